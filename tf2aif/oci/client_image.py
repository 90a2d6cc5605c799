"""The client's image: one for each platform, and an index of them. Made as variants' images are.

Its steps stand under the name `client`, beside those of recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..execute import bring_up_to_date
from ..folders import fresh_folder
from ..graph import Step
from ..steps import STEPS, step_module
from ..workers import Workers
from ..workspace import Workspace
from .bases import read_base
from .documents import Platform
from .image import Image, compose, join
from .layers import read_layer
from .layout import Content, write_layout
from .planning import ImageInputs, debian_lock, packages_lock
from .record import ImageRecord, LayerRecord
from .shipped import CLIENT, CLIENT_PLATFORMS, CLIENT_REQUIREMENTS, shipped_files
from .variant_image import Identity, client_settings, describe_image

NAME = "client"
PYTHON = "3.11"


def write_client_image(
    workspace: Workspace,
    workers: Workers,
    inputs: ImageInputs,
    platforms: Sequence[str] = CLIENT_PLATFORMS,
) -> tuple[ImageRecord, ...]:
    """Bring the client's images up to date in `build/client/image`, one layout for all platforms.

    Steps whose facts stand are not run. Raises StepFailed, ToolchainMissing.
    """
    members, blobs, records = [], dict[str, Content](), []
    for text in platforms:
        steps = plan_client(inputs, text)
        for step in steps.values():
            bring_up_to_date(step, workspace, workers)
        image, record = _compose(workspace, text, inputs)
        members.append(image.descriptor)
        blobs |= image.blobs
        records.append(record)
    index = join(members)
    with fresh_folder(client_layout(workspace)) as out:
        write_layout(out, [index.named(NAME, __version__)], {**blobs, **index.blobs})
    return tuple(records)


def client_layout(workspace: Workspace) -> Path:
    """Where the client's images lie."""
    return workspace.build / NAME / "image"


def plan_client(inputs: ImageInputs, platform: str) -> dict[str, Step]:
    """The steps of the client's image for a platform, in the order in which they run."""
    machine = {"platform": platform, "python": PYTHON}
    epoch = {"epoch": inputs.epoch}
    debian, packages = debian_lock(platform), packages_lock(NAME, platform, PYTHON)
    sources = {f"source/{n}": str(p) for n, p in shipped_files(CLIENT).items()}
    names = _names(platform)
    lock = {"lock": inputs.locks[packages]} if packages in inputs.locks else {}
    return {
        step.id: step
        for step in (
            _step(
                names["base"],
                "image-base",
                {"base": "debian", **machine, **epoch},
                files={"lock": inputs.locks[debian]},
            ),
            _step(
                names["lock"],
                "image-lock",
                {"requirements": sorted(CLIENT_REQUIREMENTS), **machine},
                files=lock,
            ),
            _step(
                names["packages"],
                "image-packages",
                {**machine, **epoch},
                inputs={"lock": names["lock"]},
            ),
            _step(names["app"], "image-app", {"python": PYTHON, **epoch}, files=sources),
        )
    }


def _step(
    name: str,
    kind: str,
    options: dict[str, Any],
    files: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Step:
    module = step_module(kind)
    return Step(
        id=name,
        kind=kind,
        recipe=NAME,
        folder="",
        module=STEPS[kind],
        version=module.VERSION,
        toolchain=module.TOOLCHAIN,
        options=options,
        files=dict(files or {}),
        inputs=dict(inputs or {}),
    )


def _names(platform: str) -> dict[str, str]:
    suffix = platform.partition("/")[2].replace("/", "")
    parts = {part: f"{NAME}/image-{part}-{suffix}" for part in ("base", "lock", "packages")}
    return {**parts, "app": f"{NAME}/image-app"}


def _compose(workspace: Workspace, text: str, inputs: ImageInputs) -> tuple[Image, ImageRecord]:
    names = _names(text)
    base, layout, stored = read_base(workspace.artifact(names["base"]))
    folders = [workspace.artifact(names[part]) for part in ("packages", "app")]
    identity = Identity(
        recipe=NAME,
        variant=__version__,
        platform=text,
        revision="",
        description="asks servers of the Open Inference Protocol, checks answers, measures",
        epoch=inputs.epoch,
    )
    image = compose(
        Platform.parse(text),
        folders,
        client_settings(base),
        base=(layout, stored),
        annotations=describe_image(identity, base),
        epoch=inputs.epoch,
    )
    below = [("base", d.digest, d.size) for d in stored.manifest.layers]
    layers = [read_layer(folder) for folder in folders]
    above = [(x.created_by, x.descriptor.digest, x.descriptor.size) for x in layers]
    found = tuple(LayerRecord(created_by=c, digest=d, size_bytes=s) for c, d, s in (*below, *above))
    record = ImageRecord(
        name=NAME,
        tag=__version__,
        digest=image.descriptor.digest,
        platform=text,
        size_bytes=sum(layer.size_bytes for layer in found),
        base=base.name,
        base_digest=base.digest,
        layers=found,
    )
    return image, record
