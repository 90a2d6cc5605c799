"""Steps as requests and a script that runs them: again by hand, or where their toolchain is.

`rerun/` of a variant names what stands in `build/`; `bundle/` holds copies, and runs by
`tf2aif.bundle` on a machine that has nothing of ours.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from .bundle import CODE, MANIFEST, SCHEMA, UNPACK, Manifest, PackedStep, copy, write_code
from .digest import digest_tree
from .execute import request_for
from .freshness import here
from .graph import Graph
from .worker import Request
from .workspace import Workspace, write_atomically


def write_rerun(folder: Path, steps: Iterable[str], graph: Graph, workspace: Workspace) -> None:
    """Each step as a request file, and a script that runs them one after the other."""
    folder.mkdir()
    lines = ["# Runs each step of this variant again, by hand, without any cache."]
    # Where this folder will stand; a checkout may move, so paths are relative to it.
    home = workspace.build / "recipe" / "variant" / "rerun"
    for number, name in enumerate(steps):
        request = request_for(graph.steps[name], workspace, folder)
        inputs = {k: os.path.relpath(p, home) for k, p in request.inputs.items()}
        lines.append(_write_request(folder, number, request, inputs)[1])
    # Beside the variant's folder: this one is made anew by the next build.
    write_script(folder / "rerun.sh", lines, out="${HERE%/*}-rerun")


def _write_request(
    folder: Path, number: int, request: Request, inputs: dict[str, str]
) -> tuple[str, str]:
    """Write a request with relative paths; the file's name, and the line that runs it."""
    name = request.step.partition("/")[2]
    file = f"{number:02d}-{name}.json"
    code = next((inputs[k] for k, p in request.inputs.items() if p == request.code), None)
    home = os.path.dirname(code) if code else "."
    relative = msgspec.structs.replace(request, inputs=inputs, out="", folder=home, code=code)
    (folder / file).write_bytes(pretty(relative))
    words = [f"--request {shlex.quote(file)}", f'--out "$OUT"/{shlex.quote(name)}']
    return file, f'"${{PYTHON:-python3}}" -m tf2aif.worker {" ".join(words)}'


def write_bundle_folder(
    out: Path, variant: str, graph: Graph, workspace: Workspace, missing: list[str]
) -> None:
    """The requests of the steps that are missing, with copies of all that they read."""
    out.mkdir()
    packed = []
    places: dict[str, str] = {}  # several steps may read the same
    for number, name in enumerate(missing):
        step = graph.steps[name]
        request = msgspec.structs.replace(request_for(step, workspace, out), place=None)
        made = {k: other for k, other in step.inputs.items() if other in missing}
        inputs = {}
        for key_, path in request.inputs.items():
            if key_ not in made:
                inputs[key_] = places.setdefault(
                    path, f"inputs/{number:02d}-{key_}/{Path(path).name}"
                )
                if not (out / inputs[key_]).exists():
                    copy(Path(path), out / inputs[key_])
            if path == step.code:  # and what it may import from beside it
                for helper in Path(path).parent.glob("*.py"):
                    copy(helper, (out / inputs[key_]).with_name(helper.name))
        file, _ = _write_request(out, number, request, inputs)
        packed.append(
            PackedStep(
                id=name,
                request=file,
                version=step.version,
                files={n: digest_tree(Path(p), workspace.stats) for n, p in step.files.items()},
                inputs={n: here(o, workspace) for n, o in step.inputs.items() if n not in made},
                made=made,
                device=step.device,
                timeout_s=step.limits.timeout_s,
            )
        )
    manifest = Manifest(schema=SCHEMA, variant=variant, steps=tuple(packed))
    (out / MANIFEST).write_bytes(pretty(manifest))
    write_code(out / CODE)
    lines = [
        "# Runs the steps whose toolchain was not on the machine that packed this.",
        "LIB=$OUT/.tf2aif",
        'rm -rf "$LIB"',
        f'"${{PYTHON:-python3}}" -c {shlex.quote(UNPACK)} "$LIB"',
        "PYTHONPATH=$LIB${PYTHONPATH:+:$PYTHONPATH}",
        "export PYTHONPATH",
        'exec "${PYTHON:-python3}" -P -m tf2aif.bundle . "$OUT"',
    ]
    write_script(out / "run.sh", lines)


def write_script(path: Path, lines: list[str], out: str = "$HERE-out") -> None:
    """A shell script that can be run as it stands, from anywhere; its output goes to $OUT.

    $OUT is its first word, by default `out`, a folder beside the variant's: what a build may
    replace holds nothing that took hours to make.
    """
    head = [
        "#!/bin/sh",
        lines[0],
        f"# usage: {path.name} [OUT]",
        "set -e",
        'HERE=$(cd "$(dirname "$0")" && pwd)',
        f"OUT=${{1:-{out}}}",
        'mkdir -p "$OUT"',
        'OUT=$(cd "$OUT" && pwd)',
        'cd "$HERE"',
    ]
    write_atomically(path, ("\n".join([*head, *lines[1:]]) + "\n").encode())
    path.chmod(0o755)


def pretty(value: Any) -> bytes:
    """JSON for people, always the same bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
