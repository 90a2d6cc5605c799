"""Fixed-point types as `ap_fixed` of the HLS tools has them, and quantisation to them in numpy.

A value of `Fixed(width=w, integer=i)` is a multiple of 2**-(w - i); `integer` counts the sign bit
and may be negative, or greater than `width`. Real values are held as float64: every value of up to
53 bits is one exactly, so rounding here is the rounding of the hardware.

Source: AMD UG1399, "Arbitrary Precision Fixed-Point Data Types".
"""

from __future__ import annotations

import re
from math import ceil, log2
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from ..errors import Tf2aifError

if TYPE_CHECKING:
    from ..engines import Array

Rounding = Literal["TRN", "RND"]
Overflow = Literal["WRAP", "SAT"]

EXACT_BITS = 53
"""Up to here float64 holds every value of a type exactly."""

_SPELLED = re.compile(
    r"(?P<unsigned>u?)fixed<(?P<width>\d+),(?P<integer>-?\d+)"
    r"(?:,(?P<rounding>TRN|RND))?(?:,(?P<overflow>WRAP|SAT))?>"
)


class Fixed(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One fixed-point type."""

    width: int
    """Bits in all."""
    integer: int
    """Bits before the binary point, the sign's among them."""
    signed: bool = True
    rounding: Rounding = "TRN"
    """TRN: towards minus infinity. RND: to the nearest, halves towards plus infinity."""
    overflow: Overflow = "WRAP"
    """WRAP: the upper bits are lost. SAT: the nearest value that the type has."""

    @property
    def fraction(self) -> int:
        """Bits behind the binary point."""
        return self.width - self.integer

    @property
    def low(self) -> float:
        """The smallest value."""
        return -(2.0 ** (self.integer - 1)) if self.signed else 0.0

    @property
    def high(self) -> float:
        """The largest value."""
        return 2.0 ** (self.integer - self.signed) - 2.0**-self.fraction

    def spell(self) -> str:
        """As hls4ml's configuration spells it; `parse` reads it back."""
        modes = "" if self == self.plain() else f",{self.rounding},{self.overflow}"
        return f"{'' if self.signed else 'u'}fixed<{self.width},{self.integer}{modes}>"

    def plain(self) -> Fixed:
        """The same values, rounded and overflowing as the tools do where nothing is said."""
        return Fixed(width=self.width, integer=self.integer, signed=self.signed)


def parse(text: str) -> Fixed:
    """The type that a text such as `fixed<16,6>` or `ufixed<8,0,RND,SAT>` spells.

    >>> parse("fixed<16,6,RND,SAT>").fraction
    10

    Raises Tf2aifError where it is none.
    """
    hint = "spell it fixed<WIDTH,INTEGER> or ufixed<WIDTH,INTEGER,RND,SAT>; 1 to 64 bits"
    found = _SPELLED.fullmatch(text.replace(" ", ""))
    if found is None:
        raise Tf2aifError(f"'{text}' is no fixed-point type", hint=hint)
    width, integer = int(found["width"]), int(found["integer"])
    if not 1 <= width <= 64 or abs(integer) > 64:
        raise Tf2aifError(f"'{text}' is out of range", hint=hint)
    return Fixed(
        width=width,
        integer=integer,
        signed=not found["unsigned"],
        rounding="RND" if found["rounding"] == "RND" else "TRN",
        overflow="SAT" if found["overflow"] == "SAT" else "WRAP",
    )


def quantize(values: Array, fixed: Fixed) -> Array:
    """Real values as the type holds them: rounded, then saturated or wrapped; float64.

    `values` are finite. Exact for types of up to 53 bits and values that float64 has exactly.
    """
    import numpy as np

    # Powers of two: no product rounds.
    scaled: Array = np.asarray(values, np.float64) * 2.0**fixed.fraction
    if fixed.rounding == "RND":
        # Adding a half is not exact next to 2**52; those values are whole already.
        scaled += np.where(np.abs(scaled) < 2.0**51, 0.5, 0.0)
    stored = np.floor(scaled, out=scaled)
    low, high = fixed.low * 2.0**fixed.fraction, fixed.high * 2.0**fixed.fraction
    if fixed.overflow == "SAT":
        np.clip(stored, low, high, out=stored)
    else:
        stored = np.mod(stored - low, 2.0**fixed.width) + low
    stored *= 2.0**-fixed.fraction
    return stored


def nearest(values: Array, fixed: Fixed) -> Array:
    """Constants as the type holds them: to the nearest value, whatever its own modes are."""
    return quantize(
        values,
        Fixed(
            width=fixed.width,
            integer=fixed.integer,
            signed=fixed.signed,
            rounding="RND",
            overflow="SAT",
        ),
    )


def integer_bits(low: float, high: float, *, signed: bool = True) -> int:
    """The fewest integer bits with which a type reaches from `low` to `high`.

    The sign's bit counts. May be negative: then all values are below one half.

    >>> integer_bits(-4.0, 3.9)
    3
    >>> integer_bits(0.0, 3.9, signed=False)
    2
    """
    size = max(abs(low), abs(high))
    bits = ceil(log2(size)) if size else 0
    return bits + (high >= 2.0**bits) + signed


def product(left: Fixed, right: Fixed) -> Fixed:
    """The type that holds every product of two types exactly."""
    return Fixed(
        width=left.width + right.width,
        integer=left.integer + right.integer,
        signed=left.signed or right.signed,
    )


def total(terms: Fixed, count: int, *others: Fixed) -> Fixed:
    """The type that holds every sum of `count` values of one type, and one of each other, exactly.

    Partial sums, in any order, are among the sums it holds. Always signed.
    """
    integers = [terms.integer + (not terms.signed) + max(0, ceil(log2(count)))]
    integers += [other.integer + (not other.signed) for other in others]
    fraction = max(each.fraction for each in (terms, *others))
    integer = max(integers) + (len(integers) > 1)
    return Fixed(width=integer + fraction, integer=integer)
