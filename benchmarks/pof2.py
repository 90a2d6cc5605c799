"""MobileNetV2 in power-of-two int8: how near it is to its float network, and how long it takes.

    python benchmarks/pof2.py [--size 96] [--samples 16]

Weights are random, normalisation is as training leaves it (statistics of random pictures). Both
networks are compared in their logits, on pictures that were not used for calibration. Seconds are
those of this machine's CPU: they say nothing about a DPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timed import machine

from tf2aif.engines.integer import Integers
from tf2aif.engines.network import Network
from tf2aif.engines.operators import run_float
from tf2aif.network.build import build_network
from tf2aif.network.equalise import equalise
from tf2aif.network.quantise import quantise
from tf2aif.steps import Job, import_model


def main() -> None:
    """Make the network, quantise it both ways, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=96, help="pixels of a side")
    parser.add_argument("--samples", type=int, default=16, help="for calibration, and for the rest")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    shape = (arguments.samples, arguments.size, arguments.size, 3)
    samples, others = (generator.random(shape, np.float32) for _ in range(2))
    net = _network(arguments.size, samples)
    name = net.inputs[0].name
    truth, float_s = _timed(lambda: run_float(net, {name: others}))
    print(f"{machine()}\nMobileNetV2 {arguments.size}x{arguments.size}, batch {arguments.samples}")
    print(f"{'':10}{'cosine':>8}{'error':>8}{'quantise s':>12}{'run s':>8}")
    print(f"{'float':10}{'':8}{'':8}{'':12}{float_s:8.2f}")
    for search in ("mse", "minmax"):
        made, quantise_s = _timed(
            lambda search=search: quantise(equalise(net), {name: samples}, search=search)
        )
        integers = Integers(made)
        found, run_s = _timed(lambda integers=integers: integers.run({name: others}))
        cosine, error = _compare(found["logits"], truth["logits"])
        print(f"{search:10}{cosine:8.4f}{error:8.3f}{quantise_s:12.2f}{run_s:8.2f}")


def _network(size: int, pictures: Any) -> Network:
    """Its layers, to the logits."""
    import keras

    keras.utils.set_random_seed(3)
    model = keras.applications.MobileNetV2((size, size, 3), weights=None, classes=100)
    model.layers[-1].activation = keras.activations.linear
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(6):
        model(pictures, training=True)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "saved"), Path(folder, "model")
        model.export(str(source), verbose=False)
        out.mkdir()
        job = Job(step="import", kind="import", options={}, inputs={"source": source}, out=out)
        import_model.run(job)
        net = build_network(out)
    output = net.outputs[0]
    return net._replace(outputs=(type(output)(name="logits", tensor=output.tensor),))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    made = work()
    return made, time.perf_counter() - start


def _compare(found: Any, truth: Any) -> tuple[float, float]:
    """Mean cosine of the logits, and the relative size of the difference."""
    sizes = np.linalg.norm(found, axis=-1) * np.linalg.norm(truth, axis=-1)
    cosine = float(((found * truth).sum(-1) / sizes).mean())
    return cosine, float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


if __name__ == "__main__":
    main()
