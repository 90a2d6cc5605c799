"""Environment variables: which ones a worker process sees, and which of them are facts.

A worker sees no variable by accident: a step that reads one which is not in its key would be
stale without anybody noticing. Nothing heavy is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

PASSED = frozenset({
    "ALL_PROXY", "CURL_CA_BUNDLE", "HOME", "HTTPS_PROXY", "HTTP_PROXY", "LANG", "LANGUAGE",
    "DOCKER_CERT_PATH", "DOCKER_CONFIG", "DOCKER_HOST", "DOCKER_TLS_VERIFY",
    "LD_LIBRARY_PATH", "NO_PROXY", "PATH", "PYTHONHOME", "PYTHONPATH", "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "VIRTUAL_ENV", "XDG_CACHE_HOME",
    "all_proxy", "http_proxy", "https_proxy", "no_proxy",
})  # fmt: skip
"""Needed to start at all, to find files, or to reach the network: never facts."""

VENDOR_PREFIXES = (
    "CUDA_",
    "DNNL_",
    "KERAS_",
    "KMP_",
    "MKL_",
    "NVIDIA_",
    "OMP_",
    "ONEDNN_",
    "OPENVINO_",
    "OV_",
    "TF_",
    "XLA_",
)
"""Read by the converters and engines: passed on, and facts where they can change results."""

TERRAFORM = (
    "TF_CLI_",
    "TF_CLOUD_",
    "TF_DATA_DIR",
    "TF_ENCRYPTION",
    "TF_IGNORE",
    "TF_IN_AUTOMATION",
    "TF_INPUT",
    "TF_LOG",
    "TF_PLUGIN_CACHE_",
    "TF_REGISTRY_",
    "TF_STATE_PERSIST_INTERVAL",
    "TF_TOKEN_",
    "TF_VAR_",
    "TF_WORKSPACE",
)
"""Another TF's, which often hold credentials: neither passed on nor facts.

Source: "Environment variables" of Terraform's and OpenTofu's command lines.
"""

_SECRETS = ("apikey", "credential", "passwd", "password", "secret", "token")

FIXED: Mapping[str, str] = {
    "CI": "true",  # OpenVINO's telemetry sends nothing where it sees this, and does not ask
    "DO_NOT_TRACK": "1",
    "KERAS_BACKEND": "tensorflow",
    "NNCF_CI": "1",  # NNCF's own switch for the same
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONFAULTHANDLER": "1",  # the Python stack of a crash in native code goes to the log
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",  # what a killed step printed is in its log
    "PYTHONUTF8": "1",  # `open` without an encoding means the same on every machine
}
DEFAULTS: Mapping[str, str] = {"TF_CPP_MIN_LOG_LEVEL": "2"}


def environment_facts(extra: Iterable[str] = ()) -> dict[str, str]:
    """The variables that are set and can change what a step makes, by name, sorted.

    `extra` are the names that a recipe lists for its own code. What only changes the logs is not
    among them, nor what a worker sees at one fixed value.
    """
    return {
        name: os.environ[name]
        for name in sorted({*_vendor_names(), *extra})
        if name in os.environ and name not in FIXED and not _only_logs(name)
    }


def as_facts(variables: Mapping[str, str]) -> dict[str, Any]:
    """Variables as they stand in keys and records: of a secret, its SHA-256.

    >>> as_facts({"OMP_NUM_THREADS": "2"})
    {'environment.OMP_NUM_THREADS': '2'}
    """
    return {
        f"environment.{name}": _digest(value) if is_secret(name) else value
        for name, value in sorted(variables.items())
    }


def is_secret(name: str) -> bool:
    """Whether a name, of a variable or an option, says that its value is nobody's business.

    >>> [is_secret(name) for name in ("HF_TOKEN", "NVIDIA_API_KEY", "arguments.keys", "DATA_DIR")]
    [True, True, False, False]
    """
    plain = name.lower().replace("-", "_")
    return plain.endswith("_key") or any(word in plain for word in _SECRETS)


def _digest(value: str) -> str:
    import hashlib

    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"


def child_environment(extra: Iterable[str] = ()) -> dict[str, str]:
    """The whole environment of a worker: passed on, listed by the recipe, or fixed here."""
    names = {*PASSED, *_vendor_names(), *extra}
    names |= {name for name in os.environ if name.startswith(("LC_", "UV_"))}
    passed = {name: os.environ[name] for name in sorted(names) if name in os.environ}
    return {**DEFAULTS, **passed, **FIXED}


def _vendor_names() -> Iterable[str]:
    return filter(is_vendors, os.environ)


def is_vendors(name: str) -> bool:
    """Whether a variable is for the converters and engines.

    >>> [is_vendors(name) for name in ("TF_ENABLE_ONEDNN_OPTS", "TF_VAR_password", "KERAS_TOKEN")]
    [True, False, False]
    """
    ours = name.startswith(VENDOR_PREFIXES) and not name.startswith(TERRAFORM)
    return ours and not is_secret(name)


def _only_logs(name: str) -> bool:
    return name.startswith("TF_CPP_") or name.endswith(("_VERBOSE", "_LOG_LEVEL", "_LOGGING"))
