"""KServe's objects, as far as we write them, as JSON Schema.

Written from the names and types of KServe's API (ServingRuntime v1alpha1, InferenceService v1beta1,
as of 0.21): KServe publishes its definitions in no package that tests could install. What KServe
takes from Kubernetes (containers, the fields of a pod) is held to Kubernetes' own schemas.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate

NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 53}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": NAME,
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
    },
}
FORMAT = {"name": {"type": "string"}, "version": {"type": "string"}}
MODEL_FORMAT = {"type": "object", "additionalProperties": False, "properties": FORMAT}
SUPPORTED = {
    **MODEL_FORMAT,
    "properties": {**FORMAT, "autoSelect": {"type": "boolean"}, "priority": {"type": "integer"}},
}
RUNTIME = {  # beside the fields of a pod that it takes, POD_OF_RUNTIME
    "annotations": TEXTS,
    "labels": TEXTS,
    "disabled": {"type": "boolean"},
    "multiModel": {"type": "boolean"},
    "protocolVersions": {"type": "array", "items": {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}},
    "replicas": {"type": "integer"},
    "supportedModelFormats": {"type": "array", "items": SUPPORTED},
}
POD_OF_RUNTIME = (
    *("affinity", "containers", "hostIPC", "imagePullSecrets", "nodeSelector"),
    *("schedulerName", "tolerations", "volumes"),
)
MODEL = {  # beside the fields of a container
    "modelFormat": MODEL_FORMAT,
    "protocolVersion": {"type": "string"},
    "runtime": NAME,
    "runtimeVersion": {"type": "string"},
    "storageUri": {"type": "string"},
}
PREDICTOR = {  # beside the fields of a pod
    "annotations": TEXTS,
    "labels": TEXTS,
    "canaryTrafficPercent": {"type": "integer"},
    "containerConcurrency": {"type": "integer"},
    "maxReplicas": {"type": "integer"},
    "minReplicas": {"type": "integer"},
    "timeout": {"type": "integer"},
    "model": {
        "type": "object",
        "additionalProperties": False,
        "required": ["modelFormat"],
        "properties": MODEL,
    },
}
API_VERSIONS = {
    "ServingRuntime": "serving.kserve.io/v1alpha1",
    "InferenceService": "serving.kserve.io/v1beta1",
}


def check_kserve(value: dict[str, Any], kubernetes: str) -> None:
    """Raise where it is no object of KServe's, or its pods are none of that Kubernetes."""
    kind = value["kind"]
    top = {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": API_VERSIONS[kind]},
            "kind": {"type": "string"},
            "metadata": METADATA,
            "spec": {"type": "object"},
        },
    }
    jsonschema.validate(value, top)
    if kind == "ServingRuntime":
        own = {name: part for name, part in value["spec"].items() if name not in POD_OF_RUNTIME}
        _check(own, RUNTIME)
        pod = {name: part for name, part in value["spec"].items() if name in POD_OF_RUNTIME}
    else:
        assert set(value["spec"]) == {"predictor"}
        predictor = value["spec"]["predictor"]
        _check({name: part for name, part in predictor.items() if name in PREDICTOR}, PREDICTOR)
        pod = {name: part for name, part in predictor.items() if name not in PREDICTOR}
        pod["containers"] = [{"name": "kserve-container"}]
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
    kubernetes_validate.validate(whole, kubernetes, strict=True)


def _check(value: dict[str, Any], properties: dict[str, Any]) -> None:
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    jsonschema.validate(value, schema)
