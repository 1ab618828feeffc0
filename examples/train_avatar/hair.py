# SPDX-License-Identifier: Apache-2.0
"""Hair of a drawn face: what hangs behind the head, and what frames the forehead."""

from typing import TYPE_CHECKING

import skia

from .identities import Identity
from .ink import Point, arc, linear, paint, scaled, smooth_outline

if TYPE_CHECKING:
    from .face import Pose

STYLES = ("long", "bob", "short", "crop")
_STRANDS = (-35, -16, 6, 27)


def draw_hair_behind(canvas: skia.Canvas, identity: Identity, head: Point) -> None:
    """Draw what hangs behind head and neck; nothing for short hair."""
    if identity.hair_style not in ("long", "bob"):
        return
    x, y = head
    end = 190 if identity.hair_style == "long" else 172
    outline = [(x, y - 90), (x + 69, y - 60), (x + 77, y + 8), (x + 72, end - 12), (x + 40, end),
               (x - 40, end), (x - 72, end - 12), (x - 77, y + 8), (x - 69, y - 60)]  # fmt: skip
    shade = linear((0, y - 80), (0, end), [scaled(identity.hair, 0.85), scaled(identity.hair, 0.5)])
    canvas.drawPath(smooth_outline(outline), paint(identity.hair, shader=shade))


def draw_hair_under(canvas: skia.Canvas, identity: Identity, head: Point) -> None:
    """Draw the hair at the temples, which shows between face and front where the head turns."""
    x, y = head
    outline = [(x - 63, y - 8), (x - 67, y - 54), (x - 41, y - 90), (x + 41, y - 90), (x + 67, y - 54), (x + 63, y - 8),
               (x + 40, y + 6), (x - 40, y + 6)]  # fmt: skip
    canvas.drawPath(smooth_outline(outline), paint(scaled(identity.hair, 0.6)))


def _front(style: str, head: Point, turn: float) -> list[Point]:
    """Return the outline of the hair over the forehead: outer edge from left to right, then the hairline back."""
    x, y = head
    if style == "long":
        return [(x - 70, y + 44), (x - 73, y - 44), (x - 45, y - 93), (x, y - 104), (x + 45, y - 93), (x + 73, y - 44),
                (x + 70, y + 44), (x + 60 + turn, y - 22), (x + 34 + turn, y - 52), (x - 10 + turn, y - 66),
                (x - 38 + turn, y - 42), (x - 60 + turn, y - 18)]  # fmt: skip
    if style == "bob":
        return [(x - 72, y + 46), (x - 75, y - 44), (x - 45, y - 93), (x, y - 104), (x + 45, y - 93), (x + 75, y - 44),
                (x + 72, y + 46), (x + 60 + turn, y - 26), (x + 32 + turn, y - 45), (x + turn, y - 42),
                (x - 32 + turn, y - 45), (x - 60 + turn, y - 26)]  # fmt: skip
    if style == "short":
        return [(x - 66, y + 2), (x - 71, y - 46), (x - 46, y - 95), (x, y - 106), (x + 46, y - 95), (x + 71, y - 46),
                (x + 66, y + 2), (x + 55 + turn, y - 38), (x + 26 + turn, y - 62), (x - 13 + turn, y - 56),
                (x - 52 + turn, y - 40)]  # fmt: skip
    return [(x - 64, y - 12), (x - 68, y - 54), (x - 42, y - 94), (x, y - 102), (x + 42, y - 94), (x + 68, y - 54),
            (x + 64, y - 12), (x + 57 + turn, y - 46), (x + 28 + turn, y - 66), (x - 28 + turn, y - 66),
            (x - 57 + turn, y - 46)]  # fmt: skip


def draw_hair_front(canvas: skia.Canvas, identity: Identity, pose: "Pose", head: Point) -> None:
    """Draw the hair over the forehead; it turns with the head."""
    (x, y), turn, hair = head, pose.yaw * 6, identity.hair
    path = smooth_outline(_front(identity.hair_style, head, turn))
    shade = linear((x - 60, y - 100), (x + 60, y - 20), [scaled(hair, 1.28), hair, scaled(hair, 0.7)])
    canvas.drawPath(path, paint(hair, shader=shade))
    canvas.save()
    canvas.clipPath(path, True)
    for place in _STRANDS:
        strand = arc((x + place * 0.5, y - 104), (x + place * 1.3, y - 84), (x + place * 1.5 + turn, y - 40))
        canvas.drawPath(strand, paint(scaled(hair, 1.6), alpha=0.28, stroke=5, blur=1.6))
    canvas.restore()
