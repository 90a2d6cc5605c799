"""Step `image-base`: the base image of a target, as a layout, with what is known of it.

`debian` reads a lock of packages, `oci` a layout, `dockerfile` a folder with a Dockerfile that a
Docker engine builds; `registry` pulls by digest. What is not Debian's and has no Python of the
target's version is given Debian's, where its C library is new enough.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from ..errors import StepFailed
from . import Job

VERSION = 2
TOOLCHAIN = "image"
INPUTS: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which base, for which machine."""

    base: str  # debian, oci:…, registry:NAME@DIGEST, dockerfile:NAME; no path of this machine
    platform: str
    python: str
    epoch: int = 0


def run(job: Job) -> dict[str, Any]:
    """Write the layout and `base.json`. Returns the digest of the base's manifest."""
    options = msgspec.convert(job.options, Options)
    kind, _, name = options.base.partition(":")
    makers = {
        "debian": _debian,
        "oci": _oci,
        "registry": _registry,
        "dockerfile": _dockerfile,
    }
    if kind not in makers:
        raise StepFailed(
            f"unknown base '{options.base}'", hint="debian, oci:, registry: or dockerfile:"
        )
    base = makers[kind](job, options, name)
    return {"digest": base.digest, "python": base.python, "components": len(base.components)}


def _debian(job: Job, options: Options, name: str) -> Any:  # noqa: ARG001
    from ..oci.apt import read_lock
    from ..oci.bases import write_debian
    from ..oci.debian import PYTHON

    if options.python != PYTHON:
        raise StepFailed(
            f"the Debian base has Python {PYTHON}, the target asks for {options.python}",
            hint="leave 'python:' out of the target, or name another base",
        )
    lock = read_lock(job.inputs["lock"])
    return write_debian(lock, job.out, Path.cwd(), package_cache(), epoch=options.epoch)


def _oci(job: Job, options: Options, name: str) -> Any:  # noqa: ARG001
    from ..oci.bases import adopt
    from ..oci.documents import Platform
    from ..oci.layout import Layout

    layout = Layout(job.inputs["layout"])
    image = layout.image(Platform.parse(options.platform))
    return adopt(options.base, layout, image, options.python, job.out, _python(job, options))


def _registry(job: Job, options: Options, name: str) -> Any:
    from ..oci.bases import write_pulled
    from ..oci.documents import Platform

    platform = Platform.parse(options.platform)
    source = _python(job, options)
    return write_pulled(name, platform, options.python, job.out, Path.cwd(), source)


def _dockerfile(job: Job, options: Options, name: str) -> Any:
    from ..oci.bases import write_built
    from ..oci.documents import Platform
    from ..oci.engine import Engine, context_of

    platform = Platform.parse(options.platform)
    tag = f"tf2aif-base-{platform.architecture}:{os.getpid()}"
    with Engine() as engine:
        with context_of(job.inputs["context"]) as context:
            engine.build(context, tag, dockerfile=name, platform=options.platform)
        with engine.saved(tag) as archive:
            source = _python(job, options)
            python, scratch = options.python, Path.cwd()
            return write_built(archive, options.base, platform, python, job.out, scratch, source)


def _python(job: Job, options: Options) -> Any:
    """What a base without Python is given one from: the lock of Debian's packages, if any."""
    from ..oci.apt import read_lock
    from ..oci.bases import PythonSource

    if "lock" not in job.inputs:
        return None
    lock = read_lock(job.inputs["lock"])
    return PythonSource(lock=lock, cache=package_cache(), scratch=Path.cwd(), epoch=options.epoch)


def package_cache() -> Path:
    """Where Debian's packages are kept between builds, by their digests."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache", "tf2aif-debs")
