"""The kind of toolchain that needs an NVIDIA GPU beside its distributions.

Without a driver TensorRT's libraries crash or give nothing, so they count as here only where a GPU
is here, too. The GPU is looked for in files and with NVML; no library of the toolchain is loaded.
"""

from __future__ import annotations

from . import Identity, Missing, Toolchain, environment

prepare = environment.prepare
command = environment.command
search_path = environment.search_path


def identity(toolchain: Toolchain) -> Identity | Missing:
    """Versions as the environment has them, TensorRT's with its build; or what is lacking."""
    from ..devices import nvidia

    found = environment.identity(toolchain)
    if isinstance(found, Missing):
        return Missing(found.what, _hint(found))
    if not nvidia.read().present:
        return Missing(
            "an NVIDIA GPU",
            "build on a machine that has one, or name it in tf2aif.yaml; a container needs the "
            "GPU of its host",
        )
    versions = dict(found.versions)
    if full := nvidia.tensorrt_version():
        versions |= {name: full for name in versions if name == "tensorrt"}
    return found._replace(kind=toolchain.kind, versions=versions)


def _hint(missing: Missing) -> str:
    if missing.what != "tensorrt":
        return missing.hint
    return (
        "pip install tensorrt-cu13, the vendor's image, or JetPack; its Python module must be "
        "importable here (python -m venv --system-site-packages sees the system's)"
    )
