"""What AMD's DPUs are told apart by: families and fingerprints; `dpu.json` of a compiled model."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from ..errors import Tf2aifError
from .signature import artifact_file

FILE = "dpu.json"

# The first byte of a fingerprint: type << 56 | instruction set << 48 | features.
FAMILIES = {
    0x01: "DPUCZDX8G",
    0x02: "DPUCAHX8H",
    0x05: "DPUCVDX8H",
    0x06: "DPUCVDX8G",
    0x07: "DPUCADF8H",
    0x09: "DPUCV2DX8G",
}


class Port(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An input or output by its name in the signature, and the layer that makes it."""

    name: str
    layer: str


class Compiled(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`dpu.json`: for which DPU a model was compiled, and what its ends are."""

    dpu: str
    fingerprint: str
    """Hexadecimal, as `arch.json` has it."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[str, ...]
    """All of the model's, by whose names those of the compiled tensors are told apart."""


def family(fingerprint: str) -> str:
    """The DPU of a fingerprint; raises Tf2aifError where it is none.

    >>> family("0x101000056010407")
    'DPUCZDX8G'
    """
    number = parse_fingerprint(fingerprint)
    if number >> 56 not in FAMILIES:
        raise Tf2aifError(
            f"no known DPU has the fingerprint {fingerprint}",
            hint=f"known are those of {', '.join(FAMILIES.values())}",
        )
    return FAMILIES[number >> 56]


def parse_fingerprint(text: str) -> int:
    """A fingerprint as a number; raises Tf2aifError where it is none."""
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise Tf2aifError(f"'{text}' is not a fingerprint: 64 bits, hexadecimal")
    return number


def read_compiled(artifact: Path) -> Compiled:
    """Read `dpu.json`; raises Tf2aifError where it is missing or broken."""
    path = artifact_file(artifact, FILE)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Compiled)
    except msgspec.MsgspecError as error:
        raise Tf2aifError(f"not a {FILE}: {error}", at=str(path)) from error


def write_compiled(artifact: Path, compiled: Compiled) -> None:
    """Write `dpu.json`."""
    encoded = msgspec.json.format(msgspec.json.encode(compiled), indent=2)
    (artifact / FILE).write_bytes(encoded + b"\n")
