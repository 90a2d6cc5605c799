"""Workloads as KServe's objects: for each a ServingRuntime, and an InferenceService that uses it.

The image has the model in it, so there is nothing for KServe to fetch. It runs as KServe's
Standard mode does (`RawDeployment` is the name that old and new versions take): that one heeds
affinity and tolerations without flags of Knative. Source: KServe, ServingRuntime v1alpha1 and
InferenceService v1beta1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .names import label_value
from .objects import annotations_of, labels_of, metadata
from .pod import Object, pod_spec
from .workload import Workload

CONTAINER = "kserve-container"  # KServe looks for the server under that name
_SERVING = "serving.kserve.io"


def kserve_objects(
    workloads: Sequence[Workload], *, namespace: str = "", secret: str = ""
) -> list[Object]:
    """All objects of these workloads, by service and variant."""
    found: list[Object] = []
    for one in sorted(workloads, key=lambda w: (w.service, w.name)):
        found += [_runtime(one, namespace), _service(one, namespace, secret)]
    return found


def _format(workload: Workload) -> str:
    """One that no other runtime offers: the image serves this variant and nothing else."""
    return label_value(f"tf2aif.{workload.name}")


def _runtime(workload: Workload, namespace: str) -> Object:
    spec = pod_spec(workload, container_name=CONTAINER)
    return {
        "apiVersion": f"{_SERVING}/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata(workload.name, labels_of(workload), namespace),
        "spec": {
            "annotations": annotations_of(workload),
            "supportedModelFormats": [
                {"name": _format(workload), "version": "1", "autoSelect": False}
            ],
            "protocolVersions": ["v2"],
            "multiModel": False,
            "containers": spec["containers"],
            "volumes": spec["volumes"],
        },
    }


def _service(workload: Workload, namespace: str, secret: str) -> Object:
    """What a runtime cannot say of its pods, the predictor says."""
    pod = pod_spec(workload, container_name=CONTAINER, secret=secret)
    annotations = {f"{_SERVING}/deploymentMode": "RawDeployment"}
    return {
        "apiVersion": f"{_SERVING}/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata(
            workload.name, labels_of(workload), namespace, annotations=annotations
        ),
        "spec": {
            "predictor": {
                "minReplicas": workload.replicas,
                "maxReplicas": workload.replicas,
                **dict(_of_pod(pod)),
                "model": {
                    "modelFormat": {"name": _format(workload), "version": "1"},
                    "protocolVersion": "v2",
                    "runtime": workload.name,
                },
            }
        },
    }


def _of_pod(pod: Object) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in pod.items() if name not in ("containers", "volumes"))
