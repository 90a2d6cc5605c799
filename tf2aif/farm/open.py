"""The farm of a build: the one that is named, or one on this machine for as long as it lasts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import Tf2aifError
from ..remotes import RemoteUse, open_for, open_remote, wanted
from ..remotes.keys import VARIABLE, Trusted, find_signing_key, generate
from ..remotes.shared import Shared
from ..spec.config import Config, Farm, load_config
from ..workspace import Workspace
from .address import LOCAL, parse
from .farm import Farm as Connection
from .run import FarmBuild

Join = Callable[[Workspace], FarmBuild]
ADDRESS = "TF2AIF_FARM"


def settings(config: Config, chosen: str = "") -> Farm | None:
    """Which farm a build uses: `chosen`, or `$TF2AIF_FARM`, or that of the project; if any.

    `none` is no farm, whatever the project says.
    """
    said = config.farm if isinstance(config.farm, Farm) else None
    written = config.farm.address if isinstance(config.farm, Farm) else config.farm
    address = chosen or os.environ.get(ADDRESS, "") or written
    if not address or address == "none":
        return None
    return Farm(
        address=address,
        tls=said.tls if said else None,
        toolchains=said.toolchains if said else {},
    )


@contextmanager
def open_farm(
    project: Path, chosen: str = "", *, tls: str | None = None, remote: str = ""
) -> Iterator[Join | None]:
    """What lets a build's workspace join its farm; None where it has none.

    The workspace gets its shared caches with it. Raises Tf2aifError where the farm is not there,
    or there is no shared cache to work through.
    """
    found = settings(load_config(project), chosen)
    if found is None:
        yield None
        return
    farm = found
    with ExitStack() as stack:

        def join(space: Workspace) -> FarmBuild:
            if farm.address == LOCAL:
                return _join_local(space, farm, remote, stack)
            space.shared = open_for(project, remote)
            if space.shared is None:
                raise Tf2aifError(
                    "a farm needs a shared cache: inputs and outputs travel through it",
                    hint="name one under 'cache' in tf2aif.yaml, or with --remote",
                )
            address = parse(farm.address, tls or _placed(farm.tls, project))
            return _joined(space, Connection(address), farm, stack)

        yield join


def _joined(space: Workspace, farm: Connection, found: Farm, stack: ExitStack) -> FarmBuild:
    stack.callback(farm.close)
    if space.shared is None:
        raise ValueError("a farm without a shared cache")
    build = FarmBuild(farm, space, space.shared, chosen=found.toolchains)
    stack.callback(build.close)
    space.farm = build
    return build


def _join_local(space: Workspace, found: Farm, remote: str, stack: ExitStack) -> FarmBuild:
    """With the project's own cache where it may be written to; else with a folder in `build/`."""
    from .local import local_farm

    folder = space.private / "farm"
    used = wanted(space.project, remote)
    cache = next((one.url for one in used if one.write), "")
    environment: dict[str, str] = {}
    key = find_signing_key()
    if key is None:
        path = folder / "signing-key"
        if not path.exists():
            generate(path)
        environment[VARIABLE] = str(path)
        key = find_signing_key(environment)
    if not cache:
        cache = str(folder / "cache")
        used = (*used, RemoteUse(cache, write=True))
    settled = space.config.cache
    trusted = (*settled.trusted, *([key.public] if key else []))
    space.shared = Shared(
        [(open_remote(one.url, settled.timeout_s), one.write) for one in used],
        trusted=Trusted(trusted),
        key=key,
        timeout_s=settled.timeout_s,
    )
    address = stack.enter_context(local_farm(folder, cache, environment=environment))
    return _joined(space, Connection(address), found, stack)


def _placed(folder: str | None, project: Path) -> str | None:
    return str(project / Path(folder).expanduser()) if folder else None
