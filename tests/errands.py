"""A step for the tests of toolchains: it does what its option `do` says, here or elsewhere."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf2aif.errors import StepFailed
from tf2aif.steps import Job


def run(job: Job) -> Mapping[str, Any] | None:
    """Do one errand; its other options are arguments."""
    arguments = {name: value for name, value in job.options.items() if name != "do"}
    return ERRANDS[job.options["do"]](job, **arguments)


def where(job: Job, name: str) -> dict[str, Any]:
    """Import a module; where it is from, and who we are."""
    module = importlib.import_module(name)
    return {
        "file": getattr(module, "__file__", None),
        "prefix": sys.prefix,
        "pid": os.getpid(),
        "node": platform.node(),
    }


def emulate(job: Job) -> dict[str, Any]:
    """Convert a small network with hls4ml, compile it, and ask both."""
    import hls4ml
    import keras
    import numpy as np

    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    config = hls4ml.utils.config_from_keras_model(model, granularity="name", backend="Vitis")
    project = hls4ml.converters.convert_from_keras_model(
        model, hls_config=config, output_dir=str(job.out / "hls"), backend="Vitis"
    )
    project.compile()
    samples = np.random.default_rng(1).random((16, 4), np.float32)
    error = np.abs(project.predict(samples) - model.predict(samples, verbose=0)).max()
    return {"version": hls4ml.__version__, "error": float(error)}


def copy(job: Job, say: str = "", variable: str = "") -> dict[str, Any]:
    """Copy the inputs, and write what an artifact may hold: a program, an empty folder."""
    print(say)
    for name, path in job.inputs.items():
        if path.is_dir():
            shutil.copytree(path, job.out / name)
        else:
            shutil.copyfile(path, job.out / name)
    (job.out / "empty").mkdir()
    (job.out / "run.sh").write_text("true\n")
    (job.out / "run.sh").chmod(0o755)
    return {"pid": os.getpid(), "python": sys.prefix, "variable": os.environ.get(variable)}


def network(job: Job) -> dict[str, Any]:
    """Which network interfaces there are, and who we are."""
    (job.out / "done").write_text("done")
    return {"interfaces": sorted(os.listdir("/sys/class/net")), "user": os.getuid()}


def sleep(job: Job, mark: str, seconds: float = 60) -> None:
    """Take long, with a child; their process ids are in the file `mark`."""
    words = [sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"]
    with subprocess.Popen(words) as child:
        print("sleeping", flush=True)
        beside = Path(f"{mark}.new")
        beside.write_text(f"{os.getpid()} {child.pid}")
        beside.rename(mark)


def crash(job: Job) -> None:
    """End as native code does."""
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def refuse(job: Job) -> None:
    """What a step says of an operator that it cannot convert."""
    raise StepFailed("operator 'Foo' is not supported", at="model: Foo", hint="use Bar")


def call(job: Job) -> dict[str, Any]:
    """Call the user's function."""
    from tf2aif.usercode import load_function

    (job.out / "done").write_text("done")
    return {"value": load_function(job.inputs["code"], "value")()}


ERRANDS = {
    errand.__name__: errand
    for errand in (call, copy, crash, emulate, network, refuse, sleep, where)
}
