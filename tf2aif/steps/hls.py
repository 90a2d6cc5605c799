"""hls: a network of layers as an HLS project, and its bit-accurate C simulation.

hls4ml writes the project, which the vendor's tools turn into hardware; g++ compiles the same C++
into a library that computes what the hardware will compute. Both are held against the arithmetic
that `hls-widths` searches with, bit by bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from ..errors import StepFailed, Tf2aifError
from ..hls.fixed import parse
from ..hls.types import Spelled
from . import Job

if TYPE_CHECKING:
    from ..engines.signature import Signature
    from ..hls.project import Settings
    from ..hls.stages import Pipeline
    from ..hls.types import Types

VERSION = 1
TOOLCHAIN = "hls4ml"
INPUTS = ("model",)

PROJECT = "project"
DEFAULT = "fixed<16,6,RND,SAT>"
TRIED = 16  # samples on which simulation and emulation are compared

Count = Annotated[int, msgspec.Meta(ge=1)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the network becomes hardware."""

    backend: Literal["Vitis", "VivadoAccelerator"] = "Vitis"
    part: str = "xczu9eg-ffvb1156-2-e"
    board: str | None = None  # as hls4ml names it; VivadoAccelerator needs it
    clock_ns: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    io_type: Literal["io_parallel", "io_stream"] = "io_stream"
    strategy: Literal["Latency", "Resource"] = "Resource"
    reuse_factor: Count = 16  # multiplications that one multiplier does for one result
    precision: str = DEFAULT  # of all types, where `hls-widths` has chosen none
    layers: dict[str, Spelled] = {}
    largest_weights: Count = 100_000  # what hls4ml and the tools behind it are practical for

    def __post_init__(self) -> None:
        """Raises ValueError, which `tf2aif check` tells, for a text that spells no type."""
        named = {f"layers.{name}": spelled for name, spelled in self.layers.items()}
        for where, words in {"precision": Spelled(result=self.precision), **named}.items():
            for text in (words.result, words.weight, words.bias):
                try:
                    _ = text and parse(text)
                except Tf2aifError as error:
                    fault = error.faults[0]
                    raise ValueError(f"{where}: {fault.message}; {fault.hint}") from error


def run(job: Job) -> Mapping[str, Any]:
    """Write `project/`, `simulation.so`, `hls.json`, `widths.json` and `signature.json`.

    Raises StepFailed for a layer that has no stage, a network that is too large, and where there
    is no g++ or it fails.
    """
    from ..engines.network import read_network
    from ..engines.signature import read_signature, write_signature
    from ..hls.compiler import compile_library, find_compiler
    from ..hls.lower import lower
    from ..hls.project import write_project
    from ..hls.types import cost_bits, write_types

    options = msgspec.convert(job.options, Options)
    find_compiler()
    signature = read_signature(job.inputs["model"])
    pipeline = lower(read_network(job.inputs["model"]))
    types = choose_types(pipeline, job.inputs["model"], options)
    check_fits(pipeline, options)
    settings = _settings(options)
    write_project(pipeline, types, settings, job.out / PROJECT)
    compile_library(job.out / PROJECT, pipeline, _headers(), job.out)
    write_types(job.out, types)
    write_signature(job.out, signature)
    _describe(job.out, pipeline, settings, signature)
    return {
        "weights": pipeline.weights(),
        "bits": cost_bits(pipeline, types),
        "layers": len(pipeline.stages),
        "bit_equal_samples": _compare(job.out, pipeline, types),
    }


def choose_types(pipeline: Pipeline, model: Path, options: Options) -> Types:
    """One type for all, then those that the search has found, then those that a user names."""
    from ..hls.types import changed, read_spelled, uniform

    try:
        types = changed(uniform(pipeline, parse(options.precision)), read_spelled(model))
        return changed(types, options.layers)
    except Tf2aifError as error:
        fault = error.faults[0]
        raise StepFailed(fault.message, at=fault.at or "step hls", hint=fault.hint) from error


def check_fits(pipeline: Pipeline, options: Options) -> None:
    """What hls4ml would refuse much later, or never end with. Raises StepFailed."""
    weights = pipeline.weights()
    if weights > options.largest_weights:
        raise StepFailed(
            f"the network has {weights} weights, and the HLS path is practical up to "
            f"{options.largest_weights}",
            hint="take a smaller network or a target with a DPU; or raise largest_weights, with "
            "io_type: io_stream, strategy: Resource and a high reuse_factor",
        )
    if options.backend == "VivadoAccelerator":
        if len(pipeline.inputs) != 1 or len(pipeline.outputs) != 1:
            raise StepFailed(
                f"backend VivadoAccelerator takes one input and one output; the model has "
                f"{len(pipeline.inputs)} and {len(pipeline.outputs)}",
                hint="take backend: Vitis with the board's part",
            )
        if options.board is None:
            raise StepFailed("backend VivadoAccelerator needs the option board")
    if options.io_type == "io_stream":
        _check_stream(pipeline)


def _check_stream(pipeline: Pipeline) -> None:
    for stage in pipeline.stages:
        if stage.kind in ("max_pool", "average_pool"):
            hole = stage.hole()
            if any(hole.padding) or hole.kernel != hole.strides:
                raise StepFailed(
                    "a pool that is padded, or whose strides are not its size, cannot be streamed",
                    at=f"{stage.name} ({stage.source})",
                    hint="take io_type: io_parallel, or another pool in the model",
                )


def _settings(options: Options) -> Settings:
    from ..hls.project import Settings

    return Settings(
        backend=options.backend,
        part=options.part,
        board=options.board,
        clock_ns=options.clock_ns,
        io_type=options.io_type,
        strategy=options.strategy,
        reuse_factor=options.reuse_factor,
    )


def _headers() -> Path:
    """Where hls4ml has the open implementation of `ap_fixed`."""
    import hls4ml

    return Path(hls4ml.__file__).parent / "templates" / "vivado" / "ap_types"


def _describe(out: Path, pipeline: Pipeline, settings: Settings, signature: Signature) -> None:
    """`hls.json`: what the engine and the synthesis have to know."""
    import hls4ml

    from ..engines.hls import FILE, Port

    stages = pipeline.named()
    outputs = {output.name: output for output in pipeline.outputs}
    told = {
        "machine": os.uname().machine,
        "inputs": [
            Port(name=spec.name, shape=stages[pipeline.inputs[spec.name]].shape)
            for spec in signature.inputs
        ],
        "outputs": [
            Port(
                name=spec.name,
                shape=stages[outputs[spec.name].stage].shape,
                door=outputs[spec.name].door,
            )
            for spec in signature.outputs
        ],
        "hls4ml": hls4ml.__version__,
        **msgspec.structs.asdict(settings),
    }
    encoded = msgspec.json.format(msgspec.json.encode(told), indent=2)
    (out / FILE).write_bytes(encoded + b"\n")


def _compare(out: Path, pipeline: Pipeline, types: Types) -> int:
    """Samples on which simulation and emulation gave the same bits; 0 where none can be emulated.

    They are random, and reach beyond the types of the inputs. Raises StepFailed where they differ.
    """
    import numpy as np

    from ..engines import hls
    from ..hls.emulate import emulate
    from ..hls.types import is_exact

    if not is_exact(pipeline, types):
        print("sums are too wide for float64: the simulation was not compared", flush=True)
        return 0
    generator = np.random.default_rng(0)
    feeds = {}
    for name, stage in pipeline.inputs.items():
        fixed, shape = types[stage].result, (TRIED, *pipeline.named()[stage].shape)
        feeds[name] = generator.uniform(1.1 * fixed.low, 1.1 * fixed.high, shape)
        feeds[name] = feeds[name].astype(np.float32).astype(np.float64)
    engine = hls.load(out)
    try:
        simulated = engine.simulate(feeds)
    finally:
        engine.close()
    for name, values in emulate(pipeline, types, feeds).items():
        # An accelerator's stream has 32-bit floats.
        if not np.array_equal(np.float32(simulated[name]), np.float32(values)):
            worst = float(np.abs(simulated[name] - values).max())
            raise StepFailed(
                f"output '{name}' of the C simulation differs by {worst:.3g} from the arithmetic "
                "that it should have",
                hint="this is a fault of tf2aif or hls4ml: please report it with the model",
            )
    return TRIED
