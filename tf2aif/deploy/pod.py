"""The pod of a workload: one container that runs the variant's image as `tf2aif run` does.

It is not root, has no capability, no service account's token and nothing to write to but /tmp.
Source: Kubernetes API reference, core/v1 PodSpec; Pod Security Standards, "restricted".
"""

from __future__ import annotations

import math
from typing import Any

from ..oci.image import PORT
from ..serve.config import Limits
from .workload import Resources, Workload

Object = dict[str, Any]

USER = 65532
"""That an image names too; said here, since a cluster may hold pods to a stated one."""
DRAIN_S = 5.0
"""Served on after SIGTERM: until every node has heard that the pod is no endpoint any more."""
_SPARE_S = 5
START_S = 120.0
"""At least so long may a server take to be ready; ten times as long as was measured."""
_START_PERIOD_S = 2


def pod_spec(workload: Workload, *, container_name: str = "server", secret: str = "") -> Object:
    """The `spec` of its pods; `secret`: the name of what the image is pulled with."""
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(DRAIN_S + Limits().stop_s) + _SPARE_S,
        "securityContext": security(workload),
        **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
        **placing(workload),
        "containers": [container(workload, container_name)],
        "volumes": [volume()],
    }
    return spec


def security(workload: Workload) -> Object:
    """The security context of a pod."""
    context: Object = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if workload.groups:
        context["supplementalGroups"] = list(workload.groups)
    return context


def volume() -> Object:
    """What a container may write to."""
    return {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}


def placing(workload: Workload) -> Object:
    """On which nodes it may run; with the taints that nodes with such devices usually have."""
    found: Object = {}
    if workload.labels:
        terms = [
            {"key": name, "operator": "In", "values": [value]}
            for name, value in sorted(workload.labels.items())
        ]
        required = {"nodeSelectorTerms": [{"matchExpressions": terms}]}
        key = "requiredDuringSchedulingIgnoredDuringExecution"
        found["affinity"] = {"nodeAffinity": {key: required}}
    if workload.resources.extended:
        found["tolerations"] = [
            {"key": name, "operator": "Exists", "effect": "NoSchedule"}
            for name in workload.resources.extended
        ]
    return found


def container(workload: Workload, name: str) -> Object:
    """The server's container."""
    words = ["--port", str(PORT), "--drain-s", f"{DRAIN_S:g}"]
    words += ["--threads", str(workload.threads)] if workload.threads else []
    environment = [{"name": n, "value": v} for n, v in workload.environment.items()]
    asked = resources(workload.resources)
    return {
        "name": name,
        "image": workload.image,
        "imagePullPolicy": "IfNotPresent",  # a digest names the same bytes for ever
        "args": words,
        **({"env": environment} if environment else {}),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        **({"resources": asked} if asked else {}),
        **probes(workload),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def resources(asked: Resources) -> Object:
    """Requests and limits; there is no limit of CPU but one that the target states."""
    extended = {name: str(count) for name, count in asked.extended.items()}
    requests = {"cpu": _cpus(asked.cpus), "memory": _memory(asked.memory_mb), **extended}
    limits = {"cpu": _cpus(asked.cpu_limit), "memory": _memory(asked.memory_limit_mb), **extended}
    both = {"requests": requests, "limits": limits}
    known = {kind: {n: v for n, v in values.items() if v} for kind, values in both.items()}
    return {kind: values for kind, values in known.items() if values}


def probes(workload: Workload) -> Object:
    """Started when it is ready for the first time; live and ready as the server says it is."""
    patience = max(START_S, 10 * (workload.cold_start_s or 0.0))
    return {
        "startupProbe": {
            "httpGet": _get("ready"),
            "periodSeconds": _START_PERIOD_S,
            "timeoutSeconds": 2,
            "failureThreshold": math.ceil(patience / _START_PERIOD_S),
        },
        "readinessProbe": {
            "httpGet": _get("ready"),
            "periodSeconds": 5,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "httpGet": _get("live"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
    }


def _get(what: str) -> Object:
    return {"path": f"/v2/health/{what}", "port": "http"}


def _cpus(amount: float | None) -> str:
    """As Kubernetes writes it: whole ones, or thousandths.

    >>> _cpus(2.0), _cpus(0.5), _cpus(None)
    ('2', '500m', '')
    """
    if amount is None:
        return ""
    thousandths = max(1, math.ceil(amount * 1000))
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def _memory(megabytes: int | None) -> str:
    return "" if megabytes is None else f"{megabytes}Mi"
