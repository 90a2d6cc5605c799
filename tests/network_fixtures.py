"""Fixtures for the layer graph: each model is imported, lifted and quantised once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import array_set, run_step
from networks import NETWORKS, REFUSED

from tf2aif.engines.network import read_network

Get = Callable[..., Path]


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A function that builds and imports a model once for each batch."""
    folder = tmp_path_factory.mktemp("networks")

    def get(name: str, batch: int | str = 1) -> Path:
        out = folder / f"{name}-{batch}"
        source = folder / f"{name}.{'h5' if name == 'legacy' else 'keras'}"
        if not source.exists():
            make = NETWORKS[name] if name in NETWORKS else REFUSED[name][0]
            make().save(source)
        if not out.exists():
            run_step("import", out, {"source": source}, batch=batch)
        return out

    return get


@pytest.fixture(scope="session")
def layers(imported: Get, tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A function that makes a model's layer graph once."""
    folder = tmp_path_factory.mktemp("layers")

    def get(name: str, batch: int | str = 1) -> Path:
        out = folder / f"{name}-{batch}"
        if not out.exists():
            run_step("layers", out, {"model": imported(name, batch)})
        return out

    return get


@pytest.fixture(scope="session")
def samples(layers: Get, tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A function that draws a sample set for a model once."""
    folder = tmp_path_factory.mktemp("samples")

    def get(name: str) -> Path:
        out = folder / name
        if not out.exists():
            generator = np.random.default_rng(1)
            net = read_network(layers(name))
            shapes = {each.name: (32, *each.shape) for each in net.inputs}
            arrays = {name: generator.random(s, np.float32) for name, s in shapes.items()}
            array_set(out, **arrays)
        return out

    return get


@pytest.fixture(scope="session")
def quantised(layers: Get, samples: Get, tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A function that quantises a model with such samples once."""
    folder = tmp_path_factory.mktemp("quantised")

    def get(name: str, **options: Any) -> Path:
        out = folder / "-".join([name, *(f"{k}={v}" for k, v in sorted(options.items()))])
        if not out.exists():
            given = {"model": layers(name), "calibration": samples(name)}
            run_step("pof2", out, given, **options)
        return out

    return get
