"""hls-synthesis: an HLS project made into hardware by AMD's tools, and what they say about it.

`vitis-run` (Vitis) or `vivado_hls` (projects of backend VivadoAccelerator) synthesises the project
and exports it as an IP core. Resources, clock and latency are read from the tool's own report.

Source: AMD UG1399 (Vitis HLS); the commands are those of hls4ml 1.3.0.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import StepFailed
from . import Job
from .hls import PROJECT

VERSION = 1
TOOLCHAIN = "vivado"
INPUTS = ("model",)
COMPILES = True

TOOLS = {"Vitis": "vitis-run", "VivadoAccelerator": "vivado_hls"}
RESOURCES = ("BRAM_18K", "DSP", "DSP48E", "FF", "LUT", "URAM")
REPORT = "csynth.xml"
IP = "ip.zip"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is made beside the report."""

    export: bool = True  # the IP core, which a design takes in


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one resource the design takes."""

    used: int
    available: int | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`synthesis.json`: the tool's estimate; cycles are of its clock."""

    tool: str
    version: str
    part: str
    clock_target_ns: float
    clock_estimated_ns: float
    latency_cycles: int | None
    """The worst case; None where the tool cannot tell."""
    interval_cycles: int | None
    """Between one sample and the next."""
    latency_us: float | None
    resources: dict[str, Use]


class _Made(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of `hls.json`."""

    backend: str


def run(job: Job) -> Mapping[str, Any]:
    """Write the emulated artifact's files, `csynth.xml`, `synthesis.json` and `ip.zip`.

    Raises StepFailed where the tool is not there, fails, leaves no report, or the design does not
    fit the part.
    """
    options = msgspec.convert(job.options, Options)
    source = job.inputs["model"]
    if not (source / "hls.json").is_file():
        raise StepFailed("not an HLS project: it has no hls.json", at=str(source))
    backend = msgspec.json.decode((source / "hls.json").read_bytes(), type=_Made).backend
    tool = _tool(backend)
    work = Path.cwd() / PROJECT
    shutil.copytree(source / PROJECT, work)
    _synthesise(work, backend, tool, options)
    report = read_report(_find_report(work), Path(tool).name)
    _check_fits(report)
    shutil.copytree(source, job.out, dirs_exist_ok=True)
    shutil.copyfile(_find_report(work), job.out / REPORT)
    if options.export:
        _copy_core(work, job.out)
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (job.out / "synthesis.json").write_bytes(encoded + b"\n")
    built: dict[str, Any] = msgspec.to_builtins(report)
    return built


def read_report(path: Path, tool: str) -> Report:
    """What a `csynth.xml` says. Raises StepFailed where it is not one, or does not say it all."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise StepFailed(f"the synthesis report cannot be read: {error}", at=str(path)) from error

    def text(place: str) -> str:
        found = root.findtext(place)
        if found is None:
            raise StepFailed(f"the synthesis report has no {place}", at=str(path))
        return found

    estimated = float(text("PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod"))
    overall = "PerformanceEstimates/SummaryOfOverallLatency"
    latency = _cycles(text(f"{overall}/Worst-caseLatency"))
    target = float(text("UserAssignments/TargetClockPeriod"))
    return Report(
        tool=tool,
        version=root.findtext("ReportVersion/Version") or "unknown",
        part=text("UserAssignments/Part"),
        clock_target_ns=target,
        clock_estimated_ns=estimated,
        latency_cycles=latency,
        interval_cycles=_cycles(text(f"{overall}/Interval-max")),
        latency_us=None if latency is None else round(latency * target / 1000, 3),
        resources=_resources(root),
    )


def _resources(root: Any) -> dict[str, Use]:
    found = {}
    for name in RESOURCES:
        used = root.findtext(f"AreaEstimates/Resources/{name}")
        available = root.findtext(f"AreaEstimates/AvailableResources/{name}")
        if used is not None:
            found[name] = Use(used=int(used), available=int(available) if available else None)
    return found


def _cycles(text: str) -> int | None:
    """A number of cycles; the tools write `undef` or `?` where a loop's end is not known."""
    return int(text) if text.isdigit() else None


def _tool(backend: str) -> str:
    name = TOOLS.get(backend)
    if name is None:
        raise StepFailed(f"no tool synthesises projects of backend {backend}")
    path = shutil.which(name)
    if path is None:
        raise StepFailed(
            f"{name} is not on PATH, and projects of backend {backend} need it",
            hint="source the tool's settings64.sh before the build",
        )
    return path


def _command(work: Path, backend: str, tool: str, options: Options) -> list[str]:
    """As hls4ml calls them: Vitis reads a file of switches, Vivado HLS its arguments."""
    switches = {
        "reset": 1, "csim": 0, "synth": 1, "cosim": 0, "validation": 0,
        "export": int(options.export), "vsynth": 0, "fifo_opt": 0,
    }  # fmt: skip
    if backend == "Vitis":
        lines = "".join(f"    {name:<10} {value}\n" for name, value in switches.items())
        (work / "build_opt.tcl").write_text(f"array set opt {{\n{lines}}}\n", "ascii")
        return [tool, "--tcl", "build_prj.tcl", "--mode", "hls"]
    told = " ".join(f"{name}={value}" for name, value in switches.items())
    return [tool, "-f", "build_prj.tcl", told]


def _synthesise(work: Path, backend: str, tool: str, options: Options) -> None:
    command = _command(work, backend, tool, options)
    print("running " + " ".join(command), flush=True)
    done = subprocess.run(
        command, cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    output = done.stdout.decode("utf-8", "replace")
    print(output, flush=True)
    if done.returncode:
        raise StepFailed(
            f"{Path(tool).name} failed (exit {done.returncode})",
            at=_first_error(output),
            hint="the whole output is in the log",
        )


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines[-1:] or ["it said nothing"])[0][:300]


def _find_report(work: Path) -> Path:
    found = sorted(work.glob("*_prj/solution1/syn/report/*_csynth.xml"))
    # Each function has one; the top one's is that of the accelerator, where there is one.
    for name in ("network_axi_csynth.xml", "network_csynth.xml"):
        for path in found:
            if path.name == name:
                return path
    raise StepFailed(
        "the synthesis ended well but left no report",
        at="solution1/syn/report/network_csynth.xml",
        hint="the tool's output is in the log",
    )


def _copy_core(work: Path, out: Path) -> None:
    found = sorted(work.glob("*_prj/solution1/impl/ip/*.zip")) or sorted(
        work.glob("*_prj/solution1/impl/*.zip")
    )
    if not found:
        raise StepFailed(
            "the synthesis left no IP core", hint="set export: false to do without one"
        )
    shutil.copyfile(found[0], out / IP)


def _check_fits(report: Report) -> None:
    over = [
        f"{name}: {use.used} of {use.available}"
        for name, use in report.resources.items()
        if use.available is not None and use.used > use.available
    ]
    if over:
        raise StepFailed(
            f"the design does not fit {report.part}",
            at=", ".join(over),
            hint="take a higher reuse_factor or narrower types, or a larger part",
        )
