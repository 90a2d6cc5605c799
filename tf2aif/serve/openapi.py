"""The OpenAPI document that a server publishes: its addresses, for its own model.

Source: OpenAPI 3.1.0, whose schemas are JSON Schema 2020-12.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from .. import __version__
from ..engines import TensorSpec
from .codec import Request, encode_request
from .datatypes import NUMPY, datatype_of
from .model import Model

Json = dict[str, Any]
EXAMPLE_VALUES = 4096


def document(model: Model) -> Json:
    """The document as JSON-able values. Its schemas name the model's own tensors."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"tf2aif: {model.name}, {model.version}",
            "version": __version__,
            "description": "The Open Inference Protocol v2, a raw door, and metrics.",
        },
        "paths": _paths(model),
        "components": {"schemas": _schemas(model)},
    }


def _paths(model: Model) -> Json:
    paths: Json = {
        "/v2": _get("Server metadata", "Server"),
        "/v2/health/live": _get("Is the server alive?", "Live", busy="not alive"),
        "/v2/health/ready": _get("Is it ready?", "Ready", busy="not ready"),
        "/predict": {"post": _predict()},
        "/metrics": {"get": _metrics()},
        "/openapi.json": _get("This document", "Object"),
    }
    of_model = f"/v2/models/{model.name}"
    for base in (of_model, f"{of_model}/versions/{model.version}"):
        paths[base] = _get("Model metadata", "Model")
        paths[f"{base}/ready"] = _get("Is the model ready?", "Ready", busy="not ready")
        paths[f"{base}/infer"] = {"post": _infer(model)}
    return paths


def _get(summary: str, schema: str, busy: str | None = None) -> Json:
    responses = {"200": _answer("yes" if busy else "as asked", schema)}
    if busy:
        responses["503"] = _answer(busy, schema)
    return {"get": {"summary": summary, "responses": responses}}


def _metrics() -> Json:
    text = {"application/openmetrics-text": {"schema": {"type": "string"}}}
    return {
        "summary": "Metrics in the OpenMetrics format",
        "responses": {"200": {"description": "as asked", "content": text}},
    }


def _infer(model: Model) -> Json:
    octets = {"schema": {"type": "string", "format": "binary"}}
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "the bytes of the JSON part, where binary tensors follow it",
        "schema": {"type": "integer", "minimum": 1},
    }
    answer = _answer("the outputs", "InferenceResponse")
    answer["content"]["application/octet-stream"] = octets
    return {
        "summary": "Inference, with JSON tensors or binary ones",
        "parameters": [length],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("InferenceRequest"), **_example(model)},
                "application/octet-stream": octets,
            },
        },
        "responses": {"200": answer, **_failures()},
    }


def _example(model: Model) -> Json:
    """A message of zeros, where it is not too long to be read."""
    zeros = model.zeros()
    if sum(array.size for array in zeros.values()) > EXAMPLE_VALUES:
        return {}
    body, _ = encode_request(Request(inputs=zeros), binary=False)
    return {"example": msgspec.json.decode(body)}


def _predict() -> Json:
    anything: Json = {"schema": {}}
    return {
        "summary": "A raw payload, through the service's hooks",
        "requestBody": {
            "required": True,
            "content": {"application/json": anything, "application/octet-stream": anything},
        },
        "responses": {
            "200": {"description": "what the hooks make of it", "content": {"*/*": anything}},
            **_failures(),
        },
    }


def _failures() -> Json:
    meanings = {
        "400": "the request does not fit the model or the protocol",
        "408": "the request took too long to arrive",
        "413": "the body is over the limit",
        "415": "the content encoding is not read",
        "500": "a hook or the engine failed",
        "503": "not ready, or the queue is full: try again",
        "504": "no answer before the deadline",
    }
    answers = {code: _answer(meaning, "Error") for code, meaning in meanings.items()}
    answers["503"]["headers"] = {
        "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}
    }
    return answers


def _answer(description: str, schema: str) -> Json:
    return {
        "description": description,
        "content": {"application/json": {"schema": _ref(schema)}},
    }


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _schemas(model: Model) -> Json:
    string, flag = {"type": "string"}, {"type": "boolean"}
    names = [spec.name for spec in model.outputs]
    return {
        "Object": {"type": "object"},
        "Error": _object({"error": string}),
        "Live": _object({"live": flag}),
        "Ready": {**_object({"ready": flag}), "properties": {"ready": flag, "name": string}},
        "Server": _object({"name": string, "version": string, "extensions": _list(string)}),
        "Tensor": _object(
            {"name": string, "datatype": string, "shape": _list({"type": "integer"})}
        ),
        "Model": _object(
            {
                "name": {"const": model.name},
                "versions": _list(string),
                "platform": string,
                "inputs": _list(_ref("Tensor")),
                "outputs": _list(_ref("Tensor")),
            }
        ),
        "InferenceRequest": _request([_tensor(spec) for spec in model.inputs], names),
        "InferenceResponse": _response(names),
    }


def _request(inputs: list[Json], outputs: list[str]) -> Json:
    wanted = {
        **_object({"name": {"enum": outputs}}),
        "properties": {
            "name": {"enum": outputs},
            "parameters": {
                "type": ["object", "null"],
                "properties": {"binary_data": {"type": "boolean"}},
            },
        },
    }
    timeout = {"type": "integer", "minimum": 1, "description": "microseconds"}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": {
                "type": ["object", "null"],
                "properties": {"binary_data_output": {"type": "boolean"}, "timeout": timeout},
            },
            "inputs": {
                "type": "array",
                "items": {"oneOf": inputs},
                "minItems": len(inputs),
                "maxItems": len(inputs),
                "description": "every input once, in any order",
            },
            "outputs": {
                **_list(wanted),
                "maxItems": len(outputs),
                "description": "each at most once; none: all of them",
            },
        },
    }


def _response(outputs: list[str]) -> Json:
    tensor = {**_ref("Tensor"), "properties": {"name": {"enum": outputs}}}
    return {
        **_object({"model_name": {"type": "string"}, "outputs": _list(tensor)}),
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": _list(tensor),
        },
    }


def _tensor(spec: TensorSpec) -> Json:
    axes = [{"type": "integer", "minimum": 1} if n is None else {"const": n} for n in spec.shape]
    return _object(
        {
            "name": {"const": spec.name},
            "datatype": {"const": datatype_of(spec.dtype)},
            "shape": {
                "type": "array",
                "prefixItems": axes,
                "items": False,
                "minItems": len(axes),
            },
            "data": {
                "type": "array",
                "items": {"anyOf": [_element(spec), {"type": "array"}]},
                "description": "row-major, flat or nested as the shape says",
            },
        }
    )


def _element(spec: TensorSpec) -> Json:
    """One value of that tensor in JSON."""
    dtype = NUMPY[datatype_of(spec.dtype)]
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        return {"type": "number", "minimum": -limit, "maximum": limit}
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return {"type": "integer", "minimum": int(info.min), "maximum": int(info.max)}
    return {"type": "boolean" if dtype.kind == "b" else "string"}


def _object(required: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": required}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}
