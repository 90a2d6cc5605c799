from tf2aif.tasks import configure

DOIT_CONFIG, task_tf2aif = configure(__file__)
