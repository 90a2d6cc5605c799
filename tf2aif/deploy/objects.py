"""Workloads as plain Kubernetes objects: a Service for each service, a Deployment for each of them.

Variants of one service answer alike, under one name of a model, so one Service is before all of
them. Source: Kubernetes API reference, apps/v1, core/v1, policy/v1; "Recommended Labels"; Gateway
API, HTTPRoute v1, attached to a Service as meshes heed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..oci.image import PORT
from .names import label_value, object_name
from .pod import Object, pod_spec
from .workload import Workload

_APP = "app.kubernetes.io"
GROUP = "tf2aif/nodes"
SERVICE_PORT = 80


def plain_objects(
    workloads: Sequence[Workload], *, namespace: str = "", secret: str = "", mesh: bool = False
) -> list[Object]:
    """All objects of these workloads, by service and variant.

    With `mesh`, workloads that share the requests of a service get them by their shares: each a
    Service of its own, behind a route.
    """
    found: list[Object] = []
    for service in sorted({one.service for one in workloads}):
        own = sorted((one for one in workloads if one.service == service), key=lambda w: w.name)
        found.append(_service(object_name(service), _service_labels(own[0]), namespace))
        if mesh and len(own) > 1:
            found += [_service(one.name, labels_of(one), namespace) for one in own]
            found.append(_route(own, namespace))
        if sum(one.replicas for one in own) > 1:
            found.append(_budget(own, namespace))
        found += [_deployment(one, namespace, secret) for one in own]
    return found


def labels_of(workload: Workload) -> dict[str, str]:
    """The labels of what belongs to one workload."""
    return {
        **_service_labels(workload),
        f"{_APP}/version": label_value(workload.variant),
        **({GROUP: label_value(workload.group)} if workload.group else {}),
    }


def metadata(name: str, labels: dict[str, str], namespace: str, **more: Any) -> Object:
    """The metadata of an object."""
    place = {"namespace": namespace} if namespace else {}
    every = {**labels, f"{_APP}/component": "inference-server", f"{_APP}/managed-by": "tf2aif"}
    return {"name": name, **place, "labels": dict(sorted(every.items())), **more}


def annotations_of(workload: Workload) -> dict[str, str]:
    """What a pod tells of itself: which artifact it serves, and where its metrics are."""
    return {
        "prometheus.io/path": "/metrics",
        "prometheus.io/port": str(PORT),
        "prometheus.io/scrape": "true",
        "tf2aif/artifact": workload.artifact,
        "tf2aif/variant": workload.id,
    }


def _service_labels(workload: Workload) -> dict[str, str]:
    return {
        f"{_APP}/name": label_value(workload.recipe),
        f"{_APP}/instance": label_value(workload.service),
    }


def _service(name: str, labels: dict[str, str], namespace: str) -> Object:
    port = {"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name, labels, namespace),
        "spec": {"type": "ClusterIP", "selector": labels, "ports": [port]},
    }


def _route(own: Sequence[Workload], namespace: str) -> Object:
    """Requests to the Service of all, split by shares between the Services of each."""
    name = object_name(own[0].service)
    to = [
        {"name": one.name, "port": SERVICE_PORT, "weight": max(1, round(1000 * (one.share or 0)))}
        for one in own
    ]
    parent = {"group": "", "kind": "Service", "name": name, "port": SERVICE_PORT}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata(name, _service_labels(own[0]), namespace),
        "spec": {"parentRefs": [parent], "rules": [{"backendRefs": to}]},
    }


def _budget(own: Sequence[Workload], namespace: str) -> Object:
    """A drained node takes one pod of a service at a time."""
    labels = _service_labels(own[0])
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(object_name(own[0].service), labels, namespace),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }


def _deployment(workload: Workload, namespace: str, secret: str) -> Object:
    labels = labels_of(workload)
    spec = pod_spec(workload, secret=secret)
    if workload.replicas > 1:
        spec["topologySpreadConstraints"] = [_spread(labels)]
    template = metadata("", labels, "", annotations=annotations_of(workload))
    del template["name"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(workload.name, labels, namespace),
        "spec": {
            "replicas": workload.replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": _rolling(workload)},
            "selector": {"matchLabels": labels},
            "template": {"metadata": template, "spec": spec},
        },
    }


def _rolling(workload: Workload) -> Object:
    """Where each pod holds a device there may be none for one more."""
    scarce = bool(workload.resources.extended)
    return {"maxSurge": 0, "maxUnavailable": 1} if scarce else {"maxSurge": 1, "maxUnavailable": 0}


def _spread(labels: dict[str, str]) -> Object:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    }
