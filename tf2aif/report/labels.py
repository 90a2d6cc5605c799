"""Where labels go beside points, so that none covers another label or a point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct

STEP_PX = 5.0
RINGS = 60
DIRECTIONS = 16


class Box(Struct, frozen=True):
    """A rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether they have more than an edge in common."""
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.top <= other.bottom or other.top <= self.bottom)

    def within(self, other: Box) -> bool:
        """Whether all of it lies in the other."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.bottom <= self.bottom and self.top <= other.top


def around(x: float, y: float, width: float, height: float) -> Box:
    """The rectangle with that middle.

    >>> around(0, 0, 2, 4)
    Box(left=-1.0, bottom=-2.0, right=1.0, top=2.0)
    """
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    inside: Box,
    taken: Iterable[Box] = (),
    mark: float = 9.0,
) -> list[tuple[float, float] | None]:
    """The middle of each point's label, in the order of the points; None where there is no room.

    Each label takes the nearest free place around its point, one after the other, and no place is
    free that a mark of `mark` by `mark` lies in, a label, or what is `taken`. Points with the
    fewest neighbours come last: they find a place more easily.
    """
    used = [*taken, *(around(x, y, mark, mark) for x, y in points)]
    crowd = [sum(math.dist(a, b) < 4 * mark for b in points) for a in points]
    found: list[tuple[float, float] | None] = [None] * len(points)
    for index in sorted(range(len(points)), key=lambda i: (-crowd[i], i)):
        width, height = sizes[index]
        for place in _places(*points[index], mark / 2 + max(4.0, height / 2)):
            box = around(*place, width, height)
            if box.within(inside) and not any(box.meets(other) for other in used):
                used.append(box)
                found[index] = place
                break
    return found


def _places(x: float, y: float, nearest: float) -> Iterable[tuple[float, float]]:
    """Around a point, ever farther; to the right and above it first."""
    for ring in range(RINGS):
        radius = nearest + ring * STEP_PX
        for turn in range(DIRECTIONS):
            angle = math.pi / 4 + (turn + 1) // 2 * (-1) ** turn * 2 * math.pi / DIRECTIONS
            yield x + radius * math.cos(angle) * 1.2, y + radius * math.sin(angle)
