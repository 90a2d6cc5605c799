"""The kind of toolchain that is AMD's synthesis tools on PATH, which this environment calls."""

from __future__ import annotations

from . import Identity, Missing, Toolchain, environment
from .tools import find_tool, vendor_version

prepare = environment.prepare
command = environment.command
search_path = environment.search_path

TOOLS = ("vitis-run", "vivado_hls")


def identity(toolchain: Toolchain) -> Identity | Missing:
    """The release of each tool that is there; at least one has to be."""
    found = environment.identity(toolchain)
    if isinstance(found, Missing):
        return found
    tools = {name: tool for name in TOOLS if (tool := find_tool(name)) is not None}
    if not tools:
        return Missing(
            " or ".join(TOOLS), "install Vitis (or Vivado HLS) and source its settings64.sh"
        )
    further = {name: vendor_version(tool) for name, tool in tools.items()}
    return found._replace(kind=toolchain.kind, further={**found.further, **further})
