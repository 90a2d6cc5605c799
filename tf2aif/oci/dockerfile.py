"""The same image by the Docker engine: a Dockerfile that adds our layers to our base.

For `builder: docker`. What runs is the same; layers, times and digests are the engine's own.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from .documents import CHUNK
from .image import Settings
from .layers import BLOB

BASE = "tf2aif-base"


def write_dockerfile(
    base: str, layers: Sequence[str], settings: Settings, labels: Mapping[str, str]
) -> str:
    """A Dockerfile; `layers` are the names of tars in its context, from the bottom up."""
    lines = [f"FROM {base}", *(f"ADD {name} /" for name in layers)]
    for name, value in settings.environment.items():
        lines.append(f"ENV {name}={json.dumps(value)}")
    for name, value in sorted(labels.items()):
        lines.append(f"LABEL {json.dumps(name)}={json.dumps(value)}")
    lines += [f"EXPOSE {port}" for port in settings.ports]
    if check := settings.healthcheck:
        flags = f"--interval={check.interval_s:g}s --timeout={check.timeout_s:g}s"
        flags += f" --start-period={check.start_period_s:g}s --retries={check.retries}"
        lines.append(f"HEALTHCHECK {flags} {_exec(check.test)}")
    lines += [
        f"WORKDIR {settings.folder}",
        f"USER {settings.user}",
        f"ENTRYPOINT {json.dumps(list(settings.entrypoint))}",
        f"CMD {json.dumps(list(settings.command))}",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def build_context(dockerfile: str, layers: Mapping[str, Path]) -> Iterator[IO[bytes]]:
    """The context as a tar: the Dockerfile, and the blob of each layer's folder by its name."""
    with TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.copybufsize = CHUNK  # type: ignore[attr-defined]
            data = dockerfile.encode()
            info = tarfile.TarInfo("Dockerfile")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            for name, folder in layers.items():
                tar.add(folder / BLOB, arcname=name)
        file.seek(0)
        yield file


def _exec(test: Sequence[str]) -> str:
    """Docker's own words for a check: CMD and a list."""
    return f"CMD {json.dumps(list(test[1:]))}"
