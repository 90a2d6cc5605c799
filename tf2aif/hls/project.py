"""The HLS project of a pipeline, written by hls4ml.

hls4ml is given the stages as its own layers, so that neither Keras nor TensorFlow is loaded. What
it leaves of paths, dates and random stamps is left out: the same pipeline gives the same bytes.

Source: hls4ml 1.3.0, its `ModelGraph.from_layer_list`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import StepFailed
from .fixed import nearest
from .stages import Pipeline, Stage
from .types import Types, accumulators, result_types

TOP = "network"
"""The name of the function that becomes hardware."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a project is made with, besides its types."""

    backend: Literal["Vitis", "VivadoAccelerator"]
    part: str
    board: str | None
    clock_ns: float
    io_type: Literal["io_parallel", "io_stream"]
    strategy: Literal["Latency", "Resource"]
    reuse_factor: int


def write_project(pipeline: Pipeline, types: Types, settings: Settings, out: Path) -> None:
    """Write the project into the new folder `out`.

    Raises StepFailed where hls4ml refuses the network.
    """
    from hls4ml.backends import get_backend
    from hls4ml.model import ModelGraph

    backend = get_backend(settings.backend)
    config = _config(backend, pipeline, types, settings, out)
    layers = list(_layers(pipeline, types))
    inputs, outputs = list(pipeline.inputs.values()), [each.stage for each in pipeline.outputs]
    try:
        graph = ModelGraph.from_layer_list(config, layers, inputs, outputs)
        _check_types(graph, pipeline, types)
        # It would write its configuration, which has our path in it, and load Keras for that.
        backend.writer.write_yml = lambda model: None  # noqa: ARG005
        backend.writer.write_hls(graph)
    except StepFailed:
        raise
    except Exception as error:  # its checks raise bare Exception and AssertionError too
        raise StepFailed(f"hls4ml cannot write the project: {error or type(error).__name__}") from (
            error
        )
    _tidy(out)


def _config(
    backend: Any, pipeline: Pipeline, types: Types, settings: Settings, out: Path
) -> dict[str, Any]:
    target = {"board": settings.board} if settings.backend == "VivadoAccelerator" else {}
    config: dict[str, Any] = backend.create_initial_config(
        part=settings.part,
        clock_period=settings.clock_ns,
        io_type=settings.io_type,
        **target,
    )
    # As sources alone, thousands of weights take a C++ compiler minutes: see `compiler`.
    config["WriterConfig"] = {
        **config.get("WriterConfig", {}), "Namespace": None, "WriteWeightsTxt": True,
        "WriteTar": False,
    }  # fmt: skip
    config |= {"OutputDir": str(out), "ProjectName": TOP, "Backend": settings.backend}
    config["Stamp"] = "00000000"
    config["HLSConfig"] = {
        "Model": {
            "Precision": {"default": "fixed<16,6>"},
            "ReuseFactor": settings.reuse_factor,
            "Strategy": settings.strategy,
        },
        "LayerName": dict(_precisions(pipeline, types)),
    }
    return config


def _precisions(pipeline: Pipeline, types: Types) -> Iterator[tuple[str, dict[str, Any]]]:
    results, sums = result_types(pipeline, types), accumulators(pipeline, types)
    for stage in pipeline.stages:
        precision = {"result": results[stage.name].spell()}
        if stage.name in sums:
            precision["accum"] = sums[stage.name].spell()
        chosen = types.get(stage.name)
        if chosen is not None and chosen.weight is not None and chosen.bias is not None:
            precision |= {"weight": chosen.weight.spell(), "bias": chosen.bias.spell()}
        yield stage.name, {"Precision": precision, "Trace": False}


def _layers(pipeline: Pipeline, types: Types) -> Iterator[dict[str, Any]]:
    shapes = {stage.name: stage.shape for stage in pipeline.stages}
    for stage in pipeline.stages:
        given = [shapes[name] for name in stage.inputs]
        layer = {"name": stage.name, "data_format": "channels_last"}
        yield layer | _layer(stage, given, types) | {"inputs": list(stage.inputs)}


def _layer(stage: Stage, given: list[tuple[int, ...]], types: Types) -> dict[str, Any]:
    match stage.kind:
        case "input":
            return {"class_name": "InputLayer", "input_shape": list(stage.shape)}
        case "conv":
            return {"class_name": "Conv2D", **_geometry(stage, given[0], "filt"),
                    **_constants(stage, types)}  # fmt: skip
        case "depthwise":
            constants = _constants(stage, types)
            weight = constants["weight_data"][..., None]
            return {"class_name": "DepthwiseConv2D", **_geometry(stage, given[0], "filt"),
                    **constants, "weight_data": weight, "depthwise_data": weight,
                    "depth_multiplier": 1}  # fmt: skip
        case "dense":
            return {"class_name": "Dense", "n_in": given[0][-1], "n_out": stage.shape[-1],
                    **_constants(stage, types)}  # fmt: skip
        case "relu":
            return {"class_name": "Activation", "activation": "relu", "n_in": prod(given[0])}
        case "max_pool" | "average_pool":
            name = "MaxPooling2D" if stage.kind == "max_pool" else "AveragePooling2D"
            return {"class_name": name, **_geometry(stage, given[0], "pool")}
        case "global_max" | "global_average":
            name = "GlobalMaxPooling2D" if stage.kind == "global_max" else "GlobalAveragePooling2D"
            return {"class_name": name, **_geometry(stage, given[0], "pool")}
        case "add":
            return {"class_name": "Merge", "op": "add", "output_shape": list(stage.shape)}
        case "concat":
            return {"class_name": "Concatenate", "op": f"concatenate{len(stage.shape)}d",
                    "axis": -1, "output_shape": list(stage.shape)}  # fmt: skip
        case "pad":
            top, bottom, left, right = stage.hole().padding
            (height, width, channels), (out_height, out_width, _) = given[0], stage.shape
            return {"class_name": "ZeroPadding2D", "pad_top": top, "pad_bottom": bottom,
                    "pad_left": left, "pad_right": right, "in_height": height, "in_width": width,
                    "out_height": out_height, "out_width": out_width,
                    "n_chan": channels}  # fmt: skip
        case "reshape":
            return {"class_name": "Reshape", "target_shape": list(stage.shape)}


def _geometry(stage: Stage, given: tuple[int, ...], prefix: str) -> dict[str, Any]:
    hole = stage.hole()
    top, bottom, left, right = hole.padding
    out_height, out_width = stage.shape[:2] if len(stage.shape) == 3 else (1, 1)
    return {
        "in_height": given[0], "in_width": given[1], "n_chan": given[2],
        "out_height": out_height, "out_width": out_width, "n_filt": stage.shape[-1],
        f"{prefix}_height": hole.kernel[0], f"{prefix}_width": hole.kernel[1],
        "stride_height": hole.strides[0], "stride_width": hole.strides[1],
        "pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right,
    }  # fmt: skip


def _constants(stage: Stage, types: Types) -> dict[str, Any]:
    """Weights that their types have exactly: the project's own rounding finds nothing to round."""
    weight, bias = stage.constants()
    chosen = types[stage.name]
    if chosen.weight is None or chosen.bias is None:
        raise StepFailed(f"layer '{stage.name}' lacks the types of its weights")
    return {
        "weight_data": nearest(weight, chosen.weight),
        "bias_data": nearest(bias, chosen.bias),
        "use_bias": True,
    }


def _check_types(graph: Any, pipeline: Pipeline, types: Types) -> None:
    """hls4ml took the types of the results as they were given."""
    results = result_types(pipeline, types)
    for node in graph.get_layers():
        wanted = results.get(node.name)
        if wanted is None:
            continue
        found = node.get_output_variable().type.precision
        told = (found.width, found.integer, bool(found.signed))
        if told != (wanted.width, wanted.integer, wanted.signed):
            raise StepFailed(
                f"hls4ml made the result of layer '{node.name}' {found}, not {wanted.spell()}"
            )


def _tidy(out: Path) -> None:
    """Without what only hls4ml's own compilation reads, and its stamp is in."""
    for name in ("build_lib.sh", "hls4ml_config.yml"):
        (out / name).unlink(missing_ok=True)
    for name in ("ap_types", "ac_types"):
        shutil.rmtree(out / "firmware" / name, ignore_errors=True)
