"""The kind of toolchain that is a container image: each step runs in a container of its own.

The image is named by its digest, which is its identity; so nothing is asked to plan a build. It
has no network, and of this machine it sees what the step reads and the GPUs that it is given.
"""

from __future__ import annotations

import json
import os
import shutil

from ..errors import Tf2aifError
from . import Identity, Missing, Toolchain
from .connection import NEEDS, Connection, loader_command
from .environment import this_platform
from .places import Place

_HINT = "install a Docker engine and its client, or point DOCKER_HOST to one"


def identity(toolchain: Toolchain) -> Identity | Missing:
    """The image's digest and how it is run; with GPUs, those of this machine too."""
    place = _place(toolchain)
    if shutil.which("docker") is None:
        return Missing("docker", _HINT)
    image = (place.docker or "").rpartition("@")[2]
    further = {"image": image}
    if place.run:
        further["run"] = json.dumps(place.run)
    if place.gpus is not None:
        further |= {"gpus": str(place.gpus), **_gpu_facts()}
    return Identity("docker", place.python, this_platform(), {}, further)


def connection(toolchain: Toolchain) -> Connection:
    """`docker run` of a new container, which goes when it ends."""
    place = _place(toolchain)
    name = f"tf2aif-{os.getpid()}-{os.urandom(4).hex()}"
    python, *rest = loader_command(place.python)
    argv = ["docker", "run", "--interactive", "--rm", "--name", name, "--network", "none"]
    if place.gpus is not None:
        argv += ["--gpus", str(place.gpus)]
    argv += [*place.run, "--entrypoint", python, place.docker or "", *rest]
    return Connection(
        tuple(argv),
        where=f"in a container of {place.docker}",
        every_variable=True,
        in_turn=False,
        ended_by=("docker", "rm", "--force", name),
        codes={
            125: ("docker could not start the container", _HINT),
            126: (f"'{place.python}' cannot be run in the image", f"the image needs {NEEDS}"),
            127: (f"there is no '{place.python}' in the image", f"the image needs {NEEDS}"),
            137: (
                "the container was killed (SIGKILL), most often for want of memory",
                "a memory limit for the step is in its target, under `limits:`",
            ),
        },
    )


def _gpu_facts() -> dict[str, str]:
    from ..devices import device_facts

    return {f"device.nvidia.{name}": value for name, value in device_facts("nvidia").items()}


def _place(toolchain: Toolchain) -> Place:
    if toolchain.place is None:
        raise Tf2aifError("kind 'docker' needs an image", hint="name it in tf2aif.yaml")
    return toolchain.place
