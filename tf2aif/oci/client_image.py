"""The client's image: one for each platform, and an index of them. Made as variants' images are.

Its steps stand under the name `client`, beside those of recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import Tf2aifError
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
from .layout import Content, Layout, write_layout
from .outputs import PushedImage
from .planning import PYTHON, ImageInputs, debian_lock, packages_lock
from .record import ImageRecord, facts_of
from .reference import Reference
from .registry import Registry
from .shipped import CLIENT, CLIENT_PLATFORMS, CLIENT_REQUIREMENTS, shipped_files
from .transfers import Report, push, push_index
from .variant_image import (
    Identity,
    attach_documents,
    attached_to,
    client_settings,
    describe_image,
    list_attached,
    record_image,
)

NAME = "client"


def write_client_image(
    workspace: Workspace,
    workers: Workers,
    inputs: ImageInputs,
    platforms: Sequence[str] = CLIENT_PLATFORMS,
) -> tuple[ImageRecord, ...]:
    """Bring the client's images up to date in `build/client/image`, one layout for all platforms.

    Steps whose facts stand are not run. Raises StepFailed, ToolchainMissing.
    """
    members, listings, blobs, records = [], [], dict[str, Content](), []
    for text in platforms:
        steps = plan_client(inputs, text)
        for step in steps.values():
            bring_up_to_date(step, workspace, workers)
        image, attached, record = _compose(workspace, text, inputs, tuple(steps))
        listing, more = list_attached(image, NAME, attached)
        members.append(image.descriptor)
        listings.append(listing)
        blobs |= {**image.blobs, **more}
        records.append(record)
    index = join(members)
    with fresh_folder(client_layout(workspace.build)) as out:
        named = index.named(NAME, __version__)
        write_layout(out, [named, *listings], {**blobs, **index.blobs})
    return tuple(records)


def client_layout(build: Path) -> Path:
    """Where the client's images lie."""
    return build / NAME / "image"


def find_client(build: Path) -> Layout:
    """The layout of the client's images. Raises Tf2aifError where it was not made."""
    layout = Layout(client_layout(build))
    if not (layout.folder / "index.json").is_file():
        raise Tf2aifError(
            "there is no image of the client", at=str(layout.folder), hint="tf2aif image client"
        )
    return layout


def push_client(
    build: Path,
    registry: str,
    *,
    plain_http: bool | None = None,
    report: Report | None = None,
    open_registry: Callable[..., Registry] = Registry,
) -> tuple[PushedImage, ...]:
    """Push the client's images, what is attached to them, and their index as
    `registry/client:VERSION`. Raises Tf2aifError.
    """
    layout = find_client(build)
    reference = Reference.parse(f"{registry.rstrip('/')}/{NAME}:{__version__}")
    session = open_registry(reference, plain_http=plain_http)
    images = layout.images()
    try:
        for image in images:
            attached = attached_to(layout, image.descriptor)
            push(session, layout, image.descriptor, attached=attached, report=report)
        digest = push_index(session, [image.descriptor for image in images], __version__, {})
    finally:
        session.close()
    platforms = tuple(str(image.platform) for image in images)
    return (PushedImage(name=str(reference), digest=digest, platforms=platforms),)


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


def _compose(
    workspace: Workspace, text: str, inputs: ImageInputs, steps: Sequence[str]
) -> tuple[Image, list[Image], ImageRecord]:
    """The image for a platform, what is attached to it, and what is written down of it."""
    names = _names(text)
    base, layout, stored = read_base(workspace.artifact(names["base"]))
    folders = [workspace.artifact(names[part]) for part in ("packages", "app")]
    identity = Identity(
        recipe=NAME,
        variant=__version__,
        platform=text,
        revision=inputs.revision,
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
    layers = [read_layer(folder) for folder in folders]
    components = [*base.components, *(c for layer in layers for c in layer.components)]
    attached = attach_documents(image, identity, components, facts_of(steps, workspace))
    record = record_image(identity, image, base, stored, layers, attached)
    return image, attached, record
