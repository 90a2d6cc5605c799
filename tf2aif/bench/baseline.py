"""What is measured with what: a variant's folder, its samples, and the baseline beside it."""

from __future__ import annotations

import platform
from pathlib import Path

from msgspec import Struct

from ..errors import Tf2aifError
from ..record import VariantRecord, read_record

MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64", "linux/arm/v7": "armv7l"}


class Built(Struct, frozen=True):
    """A variant that is built: its folder and record."""

    folder: Path
    record: VariantRecord

    @property
    def id(self) -> str:
        """As people write it: `kws/cpu-int8`."""
        return f"{self.record.recipe}/{self.record.variant}"

    @property
    def artifact(self) -> Path:
        """What its engine loads."""
        return self.folder / "artifact"


def read_built(folder: Path) -> Built:
    """The variant in that folder. Raises Tf2aifError where it is not built, or not for here."""
    record = read_record(folder)
    if record is None:
        hint = "name a variant's folder, such as build/RECIPE/VARIANT, and build it first"
        raise Tf2aifError("no variant is there", at=str(folder), hint=hint)
    built = Built(folder, record)
    if not built.artifact.is_dir():
        raise Tf2aifError(
            f"{built.id} is {record.state}: {record.reason}", at=str(folder), hint="build it first"
        )
    if MACHINES.get(record.platform) != platform.machine():
        raise Tf2aifError(
            f"{built.id} is for {record.platform}; this machine is {platform.machine()}",
            at=str(folder),
            hint="measure it there: its image holds the server, and 'tf2aif.client' asks it",
        )
    return built


def find_baseline(variant: Built) -> Built | None:
    """The native variant of the same recipe and platform; None where none is built."""
    if variant.record.baseline:
        return None
    found = [
        Built(folder, record)
        for folder in sorted(variant.folder.parent.iterdir())
        if (record := read_record(folder)) is not None
        and record.baseline
        and record.platform == variant.record.platform
        and (folder / "artifact").is_dir()
    ]
    # Of one platform a CPU's and a GPU's baseline are told apart by their labels.
    alike = [built for built in found if built.record.labels == variant.record.labels]
    return next(iter([*alike, *found]), None)


def find_samples(variant: Built) -> Path | None:
    """The recipe's evaluation set, where it has one."""
    folder = variant.folder.parent / ".steps" / "evaluation"
    return folder if (folder / "set.json").is_file() else None
