"""Other people's clients, unchanged, against our server, and a fuzzer on its OpenAPI document.

The clients have dependencies of their own, some against ours. Where one is not in this environment
it can be in another: `TF2AIF_KSERVE_PYTHON` and `TF2AIF_SCHEMATHESIS_PYTHON` name its Python.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_server import Server, expected, rows, served, write_litert

URL = "/v2/models/toy/versions/cpu-fp32/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(write_litert(tmp_path_factory.mktemp("clients"), batch=None)) as running:
        yield running


def python_with(module: str) -> str:
    """A Python that has that module; skips where there is none."""
    if importlib.util.find_spec(module):
        return sys.executable
    variable = f"TF2AIF_{module.upper()}_PYTHON"
    other = os.environ.get(variable)
    if not other:
        pytest.skip(f"needs {module}, here or in the environment of ${variable}")
    return other


def test_tritonclient(server: Server) -> None:
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    x = rows(3)
    with http.InferenceServerClient(server.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("toy", "cpu-fp32")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "tf2aif"
        assert client.get_model_metadata("toy")["inputs"][0]["shape"] == [-1, 6]
        for binary in (True, False):
            given = http.InferInput("features", [3, 6], "FP32")
            given.set_data_from_numpy(x, binary_data=binary)
            wanted = [http.InferRequestedOutput("scores", binary_data=binary)]
            for outputs in (wanted, None):
                got = client.infer("toy", [given], outputs=outputs, request_id="9")
                np.testing.assert_allclose(got.as_numpy("scores"), expected(x), atol=1e-5)
                assert got.get_response()["id"] == "9"
        for algorithm in ("gzip", "deflate"):
            got = client.infer("toy", [given], request_compression_algorithm=algorithm)
            np.testing.assert_allclose(got.as_numpy("scores"), expected(x), atol=1e-5)


def test_tritonclient_errors(server: Server) -> None:
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    utils = pytest.importorskip("tritonclient.utils")
    wrong = http.InferInput("feature", [1, 6], "FP32")
    wrong.set_data_from_numpy(rows())
    with http.InferenceServerClient(server.address) as client:
        with pytest.raises(utils.InferenceServerException, match="did you mean 'features'") as told:
            client.infer("toy", [wrong])
        assert told.value.status() == "400"
        with pytest.raises(utils.InferenceServerException, match="the model is 'toy'"):
            client.infer("other", [wrong])
        with pytest.raises(utils.InferenceServerException, match="the model is 'toy'"):
            client.get_model_metadata("toy", "cpu-fp64")


KSERVE = """
import asyncio, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

url, x = sys.argv[1], np.load(sys.argv[2])

async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=20))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "toy")
    for binary in (True, False):
        given = InferInput("features", list(x.shape), "FP32")
        given.set_data_from_numpy(x, binary_data=binary)
        wanted = RequestedOutput("scores", parameters={"binary_data": binary})
        request = InferRequest("toy", [given], request_outputs=[wanted])
        got = await client.infer(url, request, model_name="toy")
        assert got.model_name == "toy", got
        np.save(f"{sys.argv[2]}.{int(binary)}.npy", got.outputs[0].as_numpy())
    given = InferInput("feature", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=True)
    try:
        await client.infer(url, InferRequest("toy", [given]), model_name="toy")
    except Exception as error:
        assert "400" in str(error) or "features" in str(error), repr(error)
    else:
        raise AssertionError("it was not refused")
    await client.close()

asyncio.run(main())
"""


def test_kserve(server: Server, tmp_path: Path) -> None:
    python = python_with("kserve")
    x, file = rows(3), tmp_path / "x.npy"
    np.save(file, x)
    command = [python, "-c", KSERVE, server.url, str(file)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stderr
    for binary in (0, 1):
        got = np.load(f"{file}.{binary}.npy").reshape(3, -1)
        np.testing.assert_allclose(got, expected(x), rtol=1e-5, atol=1e-5)


def test_schemathesis(server: Server, tmp_path: Path) -> None:
    """Any request that the document allows, and many that it does not: documented answers only."""
    python = python_with("schemathesis")
    command = [python, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    if not importlib.util.find_spec("schemathesis"):
        command[:3] = [str(Path(python).with_name("st"))]
    # A document cannot say that the number of values follows from the shape, so it allows messages
    # that are refused: `positive_data_acceptance` does not apply.
    command += ["--exclude-checks", "positive_data_acceptance", "--max-examples", "10"]
    command += ["--seed", "1", "--phases", "examples,coverage,fuzzing", "--no-color"]
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=80, check=False, cwd=tmp_path
    )
    assert told.returncode == 0, told.stdout[-6000:]
    made, passed = re.search(r"(\d+) generated, (\d+) passed", told.stdout).groups()
    assert (re.search(r"Tested: 11\b", told.stdout) is not None, made) == (True, passed)
    assert int(made) > 300
    assert server.ask("/v2/health/live").json == {"live": True}
