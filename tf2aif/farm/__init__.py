"""A build farm: steps go to the machine that can run them. dask.distributed dispatches.

address    where the scheduler listens, and the certificates of a farm; `keys` makes them
offer      what a machine can do: one label for each capability, and how many slots
seats      who runs a step: here, or the machines that offer its label
errand     a step on its way: a plain specification, checked like a recipe where it is run
carriage   files and records through the shared cache, with patience
farm       the build's side: submit, wait, show the log, take what was made
run        a step of a build, done by the farm
worker     a machine's side; `attempt` does one step there; `pickles`: nothing else is run there
scheduler  dask's own, behind the same restrictions; `local`: a farm on this machine

`distributed` is imported inside functions only: planning and a no-op build never load it.
"""
