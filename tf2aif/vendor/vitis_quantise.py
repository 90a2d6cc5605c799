"""Quantise a Keras file with AMD's quantiser, and read a compiled model's fingerprint.

It runs in the environment `vitis-ai-tensorflow2` (Python 3.7 or later, TensorFlow 2.12 or earlier):

    python vitis_quantise.py quantise request.json
    python vitis_quantise.py inspect model.xmodel result.json
"""

import importlib
import json
import sys
from typing import Any


def main(words: Any) -> None:
    """Do what the first word says."""
    if words[:1] == ["quantise"] and len(words) == 2:
        quantise(read(words[1]))
    elif words[:1] == ["inspect"] and len(words) == 3:
        write(words[2], inspect(words[1]))
    else:
        sys.exit(__doc__)


def quantise(request: Any) -> None:
    """Read the float model, calibrate it, save what comes of it, and what it answers."""
    import numpy

    tensorflow = importlib.import_module("tensorflow")
    vitis_quantize = importlib.import_module(
        "tensorflow_model_optimization.quantization.keras.vitis_quantize"
    )
    print("TensorFlow", tensorflow.__version__, flush=True)
    model = tensorflow.keras.models.load_model(request["model"], compile=False)
    stored = numpy.load(request["calibration"])
    samples = [stored[name] for name in request["inputs"]]
    shapes = [[None, *each.shape[1:]] for each in samples]
    one = len(samples) == 1
    quantizer = vitis_quantize.VitisQuantizer(model, quantize_strategy="pof2s")
    quantised = quantizer.quantize_model(
        calib_dataset=samples[0] if one else samples,
        calib_batch_size=request["batch"],
        input_shape=shapes[0] if one else shapes,
        **request["options"],
    )
    quantised.save(request["quantised"])
    answer(quantised, samples, request, numpy)


def answer(model: Any, samples: Any, request: Any, numpy: Any) -> None:
    """What the quantised model gives for the first samples: compared with our emulation later."""
    first = [each[: request["answers"]] for each in samples]
    found = model.predict(first[0] if len(first) == 1 else first, batch_size=request["batch"])
    found = found if isinstance(found, (list, tuple)) else [found]
    arrays = {f"y{i}": numpy.asarray(each) for i, each in enumerate(found)}
    numpy.savez(request["answered"], **arrays)


def inspect(xmodel: str) -> Any:
    """The subgraphs of a compiled model, their devices and fingerprints."""
    xir = importlib.import_module("xir")
    graph = xir.Graph.deserialize(xmodel)
    found = []
    for each in graph.get_root_subgraph().toposort_child_subgraph():
        told = {"name": each.get_name(), "device": "", "fingerprint": None}
        if each.has_attr("device"):
            told["device"] = str(each.get_attr("device"))
        if each.has_attr("dpu_fingerprint"):
            told["fingerprint"] = hex(each.get_attr("dpu_fingerprint"))
        found.append(told)
    return {"subgraphs": found}


def read(path: str) -> Any:
    """A JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write(path: str, value: Any) -> None:
    """A JSON file."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
