"""MLServer's side of `serve.py`: a custom runtime around a LiteRT model, as its docs advise.

It runs in MLServer's own environment, so it imports nothing of tf2aif.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class LiteRTRuntime(MLModel):
    """The artifact's one input and outputs; NumPy tensors, or base64 of the raw bytes."""

    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        artifact = Path(self.settings.parameters.uri)
        signature = json.loads((artifact / "signature.json").read_text())
        self._names = [spec["name"] for spec in signature["outputs"]]
        self._input = signature["inputs"][0]
        self._interpreter = Interpreter(
            model_path=str(artifact / "model.tflite"), num_threads=extra["threads"]
        )
        runner = self._interpreter.get_signature_runner("serving_default")
        self._at = runner.get_input_details()[self._input["name"]]["index"]
        details = runner.get_output_details()
        self._outputs = {name: details[name]["index"] for name in self._names}
        del runner, details  # they refer to the interpreter, which then cannot plan its memory
        self._interpreter.allocate_tensors()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = payload.inputs[0]
        if given.datatype == "BYTES":
            raw = base64.b64decode(given.data[0])
            shape = [axis or 1 for axis in self._input["shape"]]
            array = np.frombuffer(raw, self._input["dtype"]).reshape(shape)
        else:
            array = NumpyCodec.decode_input(given)
        self._interpreter.set_tensor(self._at, array)
        self._interpreter.invoke()
        outputs = [
            NumpyCodec.encode_output(name, self._interpreter.get_tensor(index))
            for name, index in self._outputs.items()
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
