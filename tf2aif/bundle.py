"""A bundle: what the toolchain that is not here needs, to be run where it is, and brought back.

bundle/bundle.json     the steps in order, and the digests of what they read
bundle/NN-STEP.json    each step as a request, its paths relative to the folder
bundle/inputs/         copies of all that the steps read
bundle/tf2aif.zip      the code that runs them
bundle/run.sh          runs them all; what it makes goes to a folder beside

On the other machine nothing but Python, msgspec, numpy, xxhash and the vendor's tools is needed.
`tf2aif import-bundle` takes what was made there into the store: see `tf2aif.imports`.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .devices import device_facts
from .digest import digest_tree, list_tree
from .errors import Tf2aifError, ToolchainMissing
from .facts import Facts, step_facts
from .folders import fresh_folder
from .machine import machine_facts
from .records import artifact_digest
from .toolchains import Missing, identity
from .worker import Request
from .workers import Workers

SCHEMA = 1
MANIFEST = "bundle.json"
RESULTS = "results.json"
CODE = "tf2aif.zip"

UNPACK = f"""
import importlib.util, sys, zipfile
if sys.version_info < (3, 11):
    sys.exit("error: Python 3.11 or later is needed, this is " + sys.version.split()[0]
        + "\\n hint: name another one: PYTHON=python3.11 run.sh")
lacking = [n for n in ("msgspec", "numpy", "xxhash") if importlib.util.find_spec(n) is None]
if lacking:
    sys.exit("error: this Python lacks " + ", ".join(lacking)
        + "\\n   at: " + sys.executable + "\\n hint: pip install " + " ".join(lacking))
try:
    zipfile.ZipFile("{CODE}").extractall(sys.argv[1])
except (OSError, zipfile.BadZipFile) as error:
    sys.exit("error: {CODE} is damaged: " + str(error) + "\\n hint: copy the whole folder again")
"""
"""What run.sh does first, in whatever Python there is: it may be older than ours."""

_COPY_AGAIN = "copy the whole folder again"


class PackedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a bundle."""

    id: str
    request: str  # the file's name
    version: int
    files: dict[str, str] = {}  # name of an input -> digest: the user's files
    inputs: dict[str, str] = {}  # name of an input -> digest: artifacts that were packed
    made: dict[str, str] = {}  # name of an input -> id of an earlier step of the bundle
    device: str | None = None  # the kind of device that it compiles for
    timeout_s: float | None = None

    @property
    def folder(self) -> str:
        """Where its artifact stands, below the folder of results."""
        return self.id.partition("/")[2]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`bundle.json`."""

    schema: int
    variant: str
    steps: tuple[PackedStep, ...]


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one step, and from what."""

    id: str
    facts: Facts
    artifact: str  # the digest of what it made
    made_by: dict[str, Any]
    result: dict[str, Any]
    timing: dict[str, float]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """`results.json`, beside the artifacts."""

    schema: int
    variant: str
    steps: tuple[StepResult, ...]


def read(path: Path, kind: type[Any], *, hint: str = _COPY_AGAIN) -> Any:
    """A manifest or results. Raises Tf2aifError where there are none of this version."""
    found = _decoded(path, kind, hint)
    if found.schema != SCHEMA:
        hint = "pack and import with the same version of tf2aif"
        raise Tf2aifError(f"its schema is {found.schema}, not {SCHEMA}", at=str(path), hint=hint)
    return found


def _decoded(path: Path, kind: type[Any], hint: str) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise Tf2aifError(f"not there: {error.strerror}", at=str(path), hint=hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Tf2aifError(f"cannot be read: {error}", at=str(path), hint=hint) from error


def write_code(path: Path) -> None:
    """This package's own code as a zip file, always the same bytes; with the toolchains' locks."""
    package = Path(__file__).parent
    files = [*package.rglob("*.py"), *package.glob("data/locks/toolchain-*.txt")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(files):
            name = zipfile.ZipInfo(f"tf2aif/{file.relative_to(package)}")
            name.external_attr = 0o644 << 16
            archive.writestr(name, file.read_bytes(), zipfile.ZIP_DEFLATED)


def run(folder: Path, out: Path) -> Results:
    """Run the steps of a bundle on this machine; their artifacts and `results.json` in `out`.

    Raises ToolchainMissing where the first toolchain is not here either, Tf2aifError where the
    bundle is damaged, StepFailed where a step failed: what was made before it stays, and can be
    imported.
    """
    manifest: Manifest = read(folder / MANIFEST, Manifest)
    requests = [_request(folder, step) for step in manifest.steps]
    todo = list(_look(manifest, requests))
    (out / RESULTS).unlink(missing_ok=True)  # those of an earlier run
    results = Results(schema=SCHEMA, variant=manifest.variant, steps=())
    with Workers() as workers:
        for number, (step, request) in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {step.id}", file=sys.stderr, flush=True)
            done = (*results.steps, _run_step(step, request, out, workers))
            results = msgspec.structs.replace(results, steps=done)
            _write(results, out)
    return results


def _write(results: Results, out: Path) -> None:
    content = msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"
    temporary = out / f".{RESULTS}"
    temporary.write_bytes(content)
    temporary.replace(out / RESULTS)


def _request(folder: Path, step: PackedStep) -> Request:
    """The request in a file, with this machine's paths."""
    request: Request = _decoded(folder / step.request, Request, _COPY_AGAIN)
    here = folder.absolute()
    return msgspec.structs.replace(
        request,
        inputs={name: str(here / path) for name, path in request.inputs.items()},
        folder=str(here / request.folder),
        code=str(here / request.code) if request.code else None,
    )


def _look(manifest: Manifest, requests: Sequence[Request]) -> Iterator[tuple[PackedStep, Request]]:
    """The steps that can run: all is there and as it was packed, before minutes are spent."""
    left_out: set[str] = set()  # a compiler's machine need not have the device
    for number, (step, request) in enumerate(zip(manifest.steps, requests, strict=True)):
        if left_out & set(step.made.values()):
            left_out.add(step.id)
            continue
        tool = identity(request.toolchain)
        if isinstance(tool, Missing):
            if left_out or number:
                print(f"{step.id} is left out: {tool.what} is not here", file=sys.stderr)
                left_out.add(step.id)
                continue
            raise ToolchainMissing(
                f"{step.id} needs {tool.what}, which is not here", hint=tool.hint
            )
        for name, digest in {**step.files, **step.inputs}.items():
            _check_input(step, name, Path(request.inputs[name]), digest)
        yield step, request


def _check_input(step: PackedStep, name: str, path: Path, digest: str) -> None:
    """Raises Tf2aifError where an input is not the one that was packed."""
    try:
        found = digest_tree(path) if name in step.files else artifact_digest(list_tree(path))
    except OSError:  # not there
        found = ""
    if found != digest:
        raise Tf2aifError(f"input '{name}' of {step.id} is damaged", at=str(path), hint=_COPY_AGAIN)


def _run_step(step: PackedStep, request: Request, out: Path, workers: Workers) -> StepResult:
    earlier = {name: out / other.partition("/")[2] for name, other in step.made.items()}
    inputs = {**request.inputs, **{name: str(path) for name, path in earlier.items()}}
    made = {name: artifact_digest(list_tree(path)) for name, path in earlier.items()}
    with fresh_folder(out / step.folder) as fresh:
        wanted = msgspec.structs.replace(request, inputs=inputs, out=str(fresh))
        log = out / f"{step.folder}.log"
        outcome = workers.run(wanted, log=log, timeout_s=step.timeout_s)
    tool = identity(request.toolchain)
    facts = {} if isinstance(tool, Missing) else tool.facts()
    return StepResult(
        id=step.id,
        facts=step_facts(
            request.kind,
            step.version,
            request.options,
            files=step.files,
            inputs={**step.inputs, **made},
            seed=request.seed,
        ),
        artifact=artifact_digest(list_tree(out / step.folder)),
        made_by=_place(facts, step),
        result=dict(outcome.result),
        timing={"wall_s": outcome.wall_s, "cpu_s": outcome.cpu_s, "peak_mb": outcome.peak_mb},
    )


def _place(tool: Mapping[str, Any], step: PackedStep) -> Facts:
    """Toolchain, machine, and device, where the step compiles for one."""
    device = device_facts(step.device) if step.device else {}
    named = {f"toolchain.{k}": v for k, v in tool.items()}
    return named | machine_facts() | {f"device.{k}": v for k, v in device.items()}


def copy(source: Path, dest: Path) -> None:
    """Copy a file or a folder; parents are made."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, dest)
    else:
        shutil.copyfile(source, dest)


def summary(results: Results) -> Mapping[str, Any]:
    """What a person wants to see: the scores, and where the rest lies."""
    scores = [step.result for step in results.steps if "drop" in step.result]
    return scores[-1] if scores else {}


def main() -> int:
    """`python -m tf2aif.bundle FOLDER OUT`, as run.sh calls it."""
    if len(sys.argv) != 3:
        print("usage: python -m tf2aif.bundle FOLDER OUT", file=sys.stderr)
        return 2
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = summary(run(folder, out.absolute()))
    except Tf2aifError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a folder that is not ours
        print(f"error: {error.strerror or error}\n   at: {error.filename or ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was made before is kept", file=sys.stderr)
        return 130
    if found.get("metric"):
        print(f"{found['metric']}: source {found['source']:.4g}, variant {found['variant']:.4g}")
    print(f"written to {out}; bring it back, then: tf2aif import-bundle {out.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
