# SPDX-License-Identifier: Apache-2.0
"""The mouth of a drawn face: its shape from jaw, width and pressed lips, and how it is painted."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import skia

from .identities import Identity
from .ink import Point, arc, linear, oval, paint, radial, scaled, smooth_outline

if TYPE_CHECKING:
    from .face import Pose

Numbers = npt.NDArray[np.floating] | float


def half_width(jaw: Numbers, wide: Numbers) -> Numbers:
    """Return half the distance between the corners of the lips, in design units."""
    return (27 + 7 * np.maximum(wide, 0.0) + 12 * np.minimum(wide, 0.0)) * (1 - 0.06 * jaw)


@dataclass(frozen=True)
class _Mouth:
    """Outlines of the lips and of the opening between them."""

    lips: list[Point]
    gap: list[Point]
    gap_height: float
    half_width: float
    top: float
    bottom: float


def _shape(pose: "Pose", centre: Point) -> _Mouth:
    x, y = centre
    half = float(half_width(pose.jaw, pose.wide))
    gap_height = (2.0 + 23 * pose.jaw) * (1 - pose.press)
    rounding = max(0.0, -pose.wide)
    upper_lip = 3.6 + 2.4 * rounding - pose.press
    lower_lip = 5.2 + 2.6 * rounding - 1.6 * pose.press
    corner = 0.84 - 0.10 * rounding
    top, bottom = y - gap_height * 0.36, y + gap_height * 0.64
    # Lifted corners: the mouth at rest smiles a little; rounding takes the smile away.
    corner_y = y - (5.0 + 1.5 * max(pose.wide, 0)) * (1 - 0.8 * min(rounding, 1.0))
    gap_top, gap_bottom = y - gap_height * 0.33, y + gap_height * 0.55
    gap = [(x - half * corner, corner_y), (x - half * 0.42, gap_top), (x, top),
           (x + half * 0.42, gap_top), (x + half * corner, corner_y),
           (x + half * 0.46, gap_bottom), (x, bottom), (x - half * 0.46, gap_bottom)]  # fmt: skip
    bow, belly = top - upper_lip * 1.12, y + gap_height * 0.58 + lower_lip * 0.86
    lips = [(x - half, corner_y), (x - half * 0.36, bow), (x, top - upper_lip * 0.82),
            (x + half * 0.36, bow), (x + half, corner_y),
            (x + half * 0.5, belly), (x, bottom + lower_lip), (x - half * 0.5, belly)]  # fmt: skip
    return _Mouth(lips, gap, gap_height, half, top, bottom)


def draw_mouth(canvas: skia.Canvas, identity: Identity, pose: "Pose", features: Point) -> None:
    """Draw lips, teeth and tongue; `features` is the middle of the face."""
    lip = identity.lip
    centre = (features[0] + pose.yaw * 2.5, features[1] + 46 + 1.5 * pose.jaw)
    mouth = _shape(pose, centre)
    shadow = oval((centre[0], mouth.bottom + 10), mouth.half_width * 0.7, 4)
    canvas.drawOval(shadow, paint(scaled(identity.skin, 0.55), alpha=0.32, blur=3))
    tones = [scaled(lip, 0.8), scaled(lip, 0.94), scaled(lip, 1.2), scaled(lip, 0.96)]
    shade = linear((0, mouth.top - 6), (0, mouth.bottom + 7), tones, [0, 0.4, 0.8, 1])
    canvas.drawPath(smooth_outline(mouth.lips), paint(lip, shader=shade))
    canvas.save()
    canvas.clipPath(smooth_outline(mouth.gap), True)
    _draw_inside(canvas, mouth, centre[0])
    canvas.restore()
    closed = max(pose.press, 1 - mouth.gap_height / 3.2)
    if closed > 0.05:
        line = arc(mouth.gap[0], (centre[0], centre[1] + 5), mouth.gap[4])
        canvas.drawPath(line, paint(scaled(lip, 0.48), alpha=min(1.0, max(0.0, closed)), stroke=1.6))


def _draw_inside(canvas: skia.Canvas, mouth: _Mouth, x: float) -> None:
    canvas.drawPaint(paint((58, 14, 20), shader=linear((0, mouth.top), (0, mouth.bottom), [(40, 8, 12), (92, 26, 30)])))
    tongue = radial((x, mouth.bottom), mouth.half_width * 0.7, [(214, 112, 110), (150, 56, 62)])
    tongue_y = mouth.bottom + 5 - 6.5 * min(1.0, mouth.gap_height / 14)
    canvas.drawOval(oval((x, tongue_y), mouth.half_width * 0.55, 6), paint((202, 98, 98), shader=tongue))
    teeth = min(7.0, mouth.gap_height * 0.5)
    box = skia.Rect.MakeXYWH(x - mouth.half_width * 0.66, mouth.top - 3, mouth.half_width * 1.32, teeth + 3)
    shade = linear((0, mouth.top - 2), (0, mouth.top + teeth), [(190, 184, 178), (250, 247, 240)])
    canvas.drawRoundRect(box, 3, 3, paint((244, 240, 232), shader=shade))


def draw_beard(canvas: skia.Canvas, identity: Identity, pose: "Pose", features: Point) -> None:
    """Draw a short beard around mouth and chin; it sinks with the jaw."""
    (x, y), chin = features, 6 * pose.jaw
    outline = [(x - 62, y + 26), (x - 32, y + 33), (x, y + 31), (x + 32, y + 33), (x + 62, y + 26),
               (x + 48, y + 88 + chin), (x, y + 104 + chin), (x - 48, y + 88 + chin)]  # fmt: skip
    canvas.drawPath(smooth_outline(outline), paint(scaled(identity.hair, 0.85), alpha=identity.beard, blur=6))
