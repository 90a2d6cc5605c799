"""vitis: AMD's own quantiser and compiler, from a Keras file to an `.xmodel` for one DPU.

They run in the environment that Vitis AI brings, as programs of their own; nothing of theirs is in
this package. What they make is checked to be for the board that was asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ..engines.dpu import Compiled, Port, family, parse_fingerprint, write_compiled
from ..engines.signature import read_signature, write_signature
from ..errors import StepFailed, Tf2aifError
from . import Job

if TYPE_CHECKING:
    from ..engines import Array
    from ..engines.network import Network
    from ..toolchains.vitis import Installation

VERSION = 1
TOOLCHAIN = "vitis"
INPUTS = ("model", "calibration")
COMPILES = True

XMODEL = "model.xmodel"
META = "meta.json"
NAME = "net"
ANSWERS = 32  # samples for which the vendor's quantised model is compared with ours
LAST_LINES = 20


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The DPU of a board, and the versions of Vitis AI that serve it.

    `arch` is the path of an `arch.json` in the installation; by default one is written from the
    fingerprint. `quantizer` are further arguments of the vendor's `quantize_model`.
    """

    dpu: str
    fingerprint: Annotated[str, Meta(pattern=r"^0x[0-9a-f]{1,16}$")]
    vitis_ai: tuple[str, ...]
    arch: str = ""
    calibration_batch: Annotated[int, Meta(ge=1)] = 20
    quantizer: dict[str, Any] = {}

    def __post_init__(self) -> None:
        """Raises ValueError, which `tf2aif check` tells, where fingerprint and DPU do not agree."""
        try:
            found = family(self.fingerprint)
        except Tf2aifError as error:
            raise ValueError(error.faults[0].message) from error
        if found != self.dpu:
            told = f"the fingerprint {self.fingerprint} is that of a {found}, not of a {self.dpu}"
            raise ValueError(told)


def run(job: Job) -> Mapping[str, Any]:
    """Write `model.xmodel`, `meta.json`, `dpu.json` and `signature.json`.

    Raises StepFailed where Vitis AI is not here or of another version, where the model or
    `arch.json` is for another DPU, and where one of the vendor's programs fails.
    """
    from ..engines.network import read_network

    options = msgspec.convert(job.options, Options)
    model = job.inputs["model"]
    _check_target(model, options)
    vendor = _vendor(options)
    net = read_network(model)
    with tempfile.TemporaryDirectory(prefix="vitis-") as folder:
        work = Path(folder)
        arch = _arch(options, work)
        agreement = _quantise(vendor, job, net, options, work)
        compile_model(vendor, work, arch)
        told = check_fingerprint(vendor, work, options)
        shutil.copyfile(work / "compiled" / f"{NAME}.xmodel", job.out / XMODEL)
        if (work / "compiled" / META).exists():
            shutil.copyfile(work / "compiled" / META, job.out / META)
    write_compiled(job.out, _compiled(net, options))
    write_signature(job.out, read_signature(model))
    return {
        "size_bytes": (job.out / XMODEL).stat().st_size,
        "vitis_ai": vendor.version,
        "fingerprint_from": told,
        "agreement": agreement,
    }


def _check_target(model: Path, options: Options) -> None:
    """Raises StepFailed where the model was quantised for another DPU."""
    from .dpu_check import JSON, Placement

    path = model / JSON
    if path.exists():
        told = msgspec.json.decode(path.read_bytes(), type=Placement).dpu
        if told != options.dpu:
            raise StepFailed(
                f"the model was quantised for a {told}; this target has a {options.dpu}",
                hint="give the steps dpu-check and vitis of the target the same 'dpu'",
            )


def _vendor(options: Options) -> Installation:
    from ..toolchains import Missing
    from ..toolchains.vitis import HINT, find

    found = find()
    if isinstance(found, Missing):
        raise StepFailed(f"{found.what} is not here", hint=found.hint)
    if found.version and found.version not in options.vitis_ai:
        wanted = " or ".join(options.vitis_ai)
        raise StepFailed(
            f"this board needs Vitis AI {wanted}; on PATH is {found.version}",
            at=str(found.compiler),
            hint=HINT,
        )
    return found


def _arch(options: Options, work: Path) -> Path:
    """The `arch.json` for the compiler: the installation's, checked, or one of our own."""
    if not options.arch:
        path = work / "arch.json"
        path.write_bytes(msgspec.json.encode({"fingerprint": options.fingerprint}))
        return path
    path = Path(options.arch)
    hint = "name the arch.json of the board's own platform, or leave 'arch' out"
    try:
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise StepFailed(
            f"cannot read arch.json: {error.strerror}", at=str(path), hint=hint
        ) from error
    except msgspec.MsgspecError as error:
        raise StepFailed(f"not an arch.json: {error}", at=str(path), hint=hint) from error
    target, fingerprint = told.get("target"), told.get("fingerprint")
    if isinstance(fingerprint, str):
        right = _is(options, fingerprint)
    else:
        right = isinstance(target, str) and target.split("_")[0] == options.dpu
    if not right:
        raise StepFailed(
            f"arch.json is for {fingerprint or target or 'no DPU'}; the target has "
            f"{options.dpu} {options.fingerprint}",
            at=str(path),
            hint=hint,
        )
    return path


def _is(options: Options, fingerprint: str) -> bool:
    try:
        return parse_fingerprint(fingerprint) == _number(options)
    except Tf2aifError:
        return False


def _quantise(
    vendor: Installation, job: Job, net: Network, options: Options, work: Path
) -> dict[str, Any]:
    """Run the vendor's quantiser; how far its model's answers are from our emulation's."""
    from ..engines.network import write_arrays
    from ..sampleset import read_set
    from .vitis_model import FILE

    samples = read_set(job.inputs["calibration"]).inputs
    write_arrays(
        work / "calibration.npz", {f"x{i}": samples[each.name] for i, each in enumerate(net.inputs)}
    )
    request = {
        "model": str(job.inputs["model"] / FILE),
        "calibration": str(work / "calibration.npz"),
        "inputs": [f"x{i}" for i in range(len(net.inputs))],
        "batch": options.calibration_batch,
        "options": options.quantizer,
        "quantised": str(work / "quantized.h5"),
        "answers": ANSWERS,
        "answered": str(work / "answers.npz"),
    }
    (work / "request.json").write_bytes(msgspec.json.encode(request))
    _call(vendor, [str(vendor.python), str(_script(work)), "quantise", "request.json"], work)
    _expect(work / "quantized.h5", "AMD's quantiser")
    return _agreement(job.inputs["model"], samples, net, work / "answers.npz")


def _script(work: Path) -> Path:
    """The script for the vendor's Python, alone in a folder, so that no module hides another."""
    from ..vendor import vitis_quantise

    path = work / "script" / "vitis_quantise.py"
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(vitis_quantise.__file__, path)
    return path


def compile_model(vendor: Installation, work: Path, arch: Path) -> None:
    """Run the vendor's compiler on `quantized.h5` in a folder; `compiled/net.xmodel` is made."""
    words = ["-m", "quantized.h5", "-a", str(arch), "-o", "compiled", "-n", NAME]
    _call(vendor, [str(vendor.compiler), *words], work)
    _expect(work / "compiled" / f"{NAME}.xmodel", vendor.compiler.name)


def _call(vendor: Installation, command: Sequence[str], work: Path) -> None:
    """Run one of the vendor's programs, its output in our log; StepFailed where it fails."""
    print("$", *command, flush=True)
    path = f"{vendor.python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command,
        cwd=work,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last.append(line.rstrip())
    if process.returncode:
        raise StepFailed(
            f"{Path(command[0]).name} failed with exit code {process.returncode}:\n"
            + "\n".join(last),
            at=" ".join(command),
            hint="its whole output is in the log of this step",
        )


def _expect(path: Path, who: str) -> None:
    """Raises StepFailed where a program that ended well left nothing."""
    if not path.exists() or not path.stat().st_size:
        raise StepFailed(
            f"{who} ended well but made no {path.name}", hint="read its output in the log"
        )


def _agreement(
    model: Path, samples: Mapping[str, Array], net: Network, answered: Path
) -> dict[str, Any]:
    """How far the vendor's quantised model is from our emulation, by output."""
    import numpy as np

    from ..engines import pof2
    from ..engines.batches import run_batches
    from .check import compare

    first = {each.name: np.asarray(samples[each.name][:ANSWERS]) for each in net.inputs}
    ours = run_batches(pof2.load(model), first)
    found = {}
    with np.load(answered) as theirs:
        for i, each in enumerate(net.outputs):
            other = theirs[f"y{i}"].reshape(ours[each.name].shape)
            found[each.name] = msgspec.to_builtins(compare(ours[each.name], other))
    print("our emulation against AMD's quantised model:", found)
    return found


def check_fingerprint(vendor: Installation, work: Path, options: Options) -> str:
    """Where the fingerprint of what was compiled was read; StepFailed where it is another."""
    xmodel = work / "compiled" / f"{NAME}.xmodel"
    where, found = _told(vendor, work, xmodel)
    wrong = [text for text in found if parse_fingerprint(text) != _number(options)]
    if wrong:
        raise StepFailed(
            f"the compiled model is for the fingerprint {wrong[0]}; the board has "
            f"{options.fingerprint}",
            hint="compile with the arch.json of this board",
        )
    return where


def _number(options: Options) -> int:
    return parse_fingerprint(options.fingerprint)


def _told(vendor: Installation, work: Path, xmodel: Path) -> tuple[str, list[str]]:
    """Fingerprints as the compiled model tells them: through xir, else in `meta.json`."""
    command = [str(vendor.python), str(_script(work)), "inspect", str(xmodel), "inspected.json"]
    try:
        _call(vendor, command, work)
    except StepFailed:
        print("xir cannot read the compiled model here: taking meta.json")
    else:
        content = msgspec.json.decode((work / "inspected.json").read_bytes())
        dpus = [each for each in content["subgraphs"] if each["device"].upper() == "DPU"]
        if not dpus:
            raise StepFailed(
                "the compiled model has no part that runs on the DPU",
                hint="look at the placement table of the pre-check, and at the compiler's output",
            )
        found = [each["fingerprint"] for each in dpus if each["fingerprint"]]
        if found:
            return "xir", found
    path = work / "compiled" / META
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    matches = re.findall(r"\b(?:0x|_)([0-9a-fA-F]{15,16})\b", text.replace("_", " _"))
    return (META, [f"0x{digits}" for digits in matches]) if matches else ("arch.json", [])


def _compiled(net: Network, options: Options) -> Compiled:
    from ..network.keras_layers import keras_name

    return Compiled(
        dpu=options.dpu,
        fingerprint=options.fingerprint,
        inputs=tuple(Port(name=each.name, layer=keras_name(each.name)) for each in net.inputs),
        outputs=tuple(Port(name=each.name, layer=each.tensor) for each in net.outputs),
        layers=tuple(keras_name(name) for name in net.shapes()),
    )
