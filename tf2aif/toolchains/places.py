"""Where a toolchain runs, if not as the table says: what a project's `tf2aif.yaml` may name."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from . import Identity, Missing, identity

PlaceKind = Literal["venv", "docker", "ssh"]
Gpus = Annotated[int, Meta(ge=1)] | Literal["all"]

OWNERS: dict[str, tuple[PlaceKind, ...]] = {
    "extends": ("venv",),
    "gpus": ("docker",),
    "run": ("docker",),
    "python": ("docker", "ssh"),
    "options": ("ssh",),
}
"""Which kind each further key belongs to."""


class Place(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Where a toolchain runs: exactly one of `venv`, `docker` and `ssh`, and what belongs to it."""

    venv: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="a virtual environment of its own, made once from this lock: a "
            "requirements file with versions and hashes, relative to the project"
        ),
    ] = None
    docker: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="a container for each step, without network: the image by its digest, "
            "`NAME@sha256:…`, or the `sha256:…` of one that the engine has"
        ),
    ] = None
    ssh: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="another machine: the host, as `ssh` and its configuration know it; it "
            "runs one step at a time"
        ),
    ] = None
    extends: Annotated[
        bool,
        Meta(
            description="venv: the packages of tf2aif's own environment come behind those of the "
            "lock; without them the lock must name msgspec, numpy and xxhash too"
        ),
    ] = True
    gpus: Annotated[
        Gpus | None, Meta(description="docker: `all`, or how many of NVIDIA's GPUs")
    ] = None
    run: Annotated[
        tuple[str, ...],
        Meta(
            description="docker: further arguments of `docker run`; a part of the key, so no "
            "secrets"
        ),
    ] = ()
    python: Annotated[
        str,
        Meta(
            description="docker, ssh: the Python there, 3.11 or newer, with msgspec, numpy and "
            "xxhash",
            min_length=1,
        ),
    ] = "python3"
    options: Annotated[
        tuple[str, ...],
        Meta(description="ssh: further arguments of `ssh`, such as `-p` and `2222`; no secrets"),
    ] = ()

    @property
    def kind(self) -> PlaceKind:
        """The kind of toolchain that it makes of one."""
        return "venv" if self.venv else "docker" if self.docker else "ssh"

    @property
    def name(self) -> str:
        """How it is called where a person reads it."""
        return self.venv or self.docker or self.ssh or ""


class Places:
    """Where the toolchains of one project run, and what they were found to be."""

    def __init__(self, places: Mapping[str, Place] | None = None) -> None:
        self._places = dict(places or {})
        self._asked: dict[str, Identity | Missing] = {}
        self._lock = threading.Lock()

    def place(self, toolchain: str) -> Place | None:
        """Where the project wants it to run; None: as the table says."""
        return self._places.get(toolchain)

    def identity(self, toolchain: str) -> Identity | Missing:
        """What the toolchain is; another machine is asked once only."""
        place = self.place(toolchain)
        if place is None or place.kind != "ssh":
            return identity(toolchain, place)
        with self._lock:
            if toolchain not in self._asked:
                self._asked[toolchain] = identity(toolchain, place)
            return self._asked[toolchain]

    def asks(self, toolchain: str) -> bool:
        """Whether only another machine can say what it is: no stat of ours can."""
        place = self.place(toolchain)
        return place is not None and place.kind == "ssh"


_IMAGE = re.compile(r"([^\s@-][^\s@]*@)?sha256:[0-9a-f]{64}")
_HOST = re.compile(r"[^\s-]\S*")


def place_faults(value: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """What is wrong with a place as it is written, types apart: key, message, hint."""
    kinds = [kind for kind in ("venv", "docker", "ssh") if value.get(kind) is not None]
    if len(kinds) != 1:
        many = f"{' and '.join(kinds)} at once" if kinds else "nothing says where it runs"
        yield "", many, "name one of venv, docker and ssh"
        return
    for key, owners in OWNERS.items():
        if key in value and kinds[0] not in owners:
            what = f"'{key}' belongs to {' or '.join(owners)}, not to {kinds[0]}"
            yield key, what, "leave it out"
    image, host = value.get("docker"), value.get("ssh")
    if isinstance(image, str) and not _IMAGE.fullmatch(image):
        yield "docker", f"'{image}' is no image by its digest: a tag may change", _DIGEST_HINT
    if isinstance(host, str) and not _HOST.fullmatch(host):
        yield "ssh", f"'{host}' is no host", "`user@host`, or a Host of your ssh configuration"


_DIGEST_HINT = (
    "write NAME@sha256:…; `docker image inspect --format '{{index .RepoDigests 0}}' NAME` says it"
)
