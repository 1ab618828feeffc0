# SPDX-License-Identifier: Apache-2.0
"""Eyes, lids, brows and glasses of a drawn face."""

from typing import TYPE_CHECKING

import skia

from .identities import Identity
from .ink import Point, arc, linear, mixed, oval, paint, radial, scaled

if TYPE_CHECKING:
    from .face import Pose

_SPACING, _HALF_WIDTH, _OPENING = 26.0, 15.0, 10.0


def _eye_centre(pose: "Pose", side: int, features: Point) -> tuple[Point, float]:
    """Return where an eye is and how much the head's turn narrows it."""
    narrowing = 1 - 0.10 * side * pose.yaw
    return (features[0] + side * _SPACING * narrowing, features[1] - 8), narrowing


def draw_eyes(canvas: skia.Canvas, identity: Identity, pose: "Pose", features: Point) -> None:
    """Draw both eyes with lids and brows; `features` is the middle of the face, in design units."""
    for side in (-1, 1):
        _draw_eye(canvas, identity, pose, side=side, features=features)


def _draw_eye(canvas: skia.Canvas, identity: Identity, pose: "Pose", *, side: int, features: Point) -> None:
    skin, hair = identity.skin, identity.hair
    (x, y), narrowing = _eye_centre(pose, side, features)
    half_width = _HALF_WIDTH * narrowing
    opening = _OPENING * (1 - pose.blink) * (1 + 0.12 * min(0.0, -pose.gaze_y)) + 0.4
    socket = scaled(mixed(skin, (120, 60, 60), 0.3), 0.74)
    canvas.drawOval(oval((x, y - 1), half_width + 4, 14), paint(socket, alpha=0.28, blur=4))
    left, right = (x - half_width, y + 1), (x + half_width, y + 1)
    upper, lower = (x, y - opening * 1.75), (x, y + opening * 1.15)
    lids = arc(left, upper, right)
    lids.quadTo(*lower, *left)
    lids.close()
    canvas.save()
    canvas.clipPath(lids, True)
    _draw_eyeball(canvas, identity, (x, y), iris=(x + 4.6 * pose.gaze_x, y - 1 + 2.8 * pose.gaze_y))
    canvas.restore()
    canvas.drawPath(arc(left, upper, right), paint(scaled(hair, 0.4), stroke=2.8))
    fold_y = y - 4 - opening * 0.25
    fold = arc((x - half_width * 0.9, fold_y), (x, upper[1] - 5), (x + half_width * 0.9, fold_y))
    canvas.drawPath(fold, paint(scaled(skin, 0.66), alpha=0.6, stroke=1.2))
    rim = arc((x - half_width * 0.8, y + 2), (x, lower[1] + 0.8), (x + half_width * 0.8, y + 2))
    canvas.drawPath(rim, paint(scaled(skin, 0.6), alpha=0.6, stroke=1.1))
    brow_y = y - 24 - pose.brow * 6
    brow = arc((x - side * 14, brow_y + 2.0 - pose.brow * 1.5), (x + side * 3, brow_y - 6), (x + side * 18, brow_y + 4))
    canvas.drawPath(brow, paint(scaled(hair, 0.78), stroke=3.8 * identity.brow))


def _draw_eyeball(canvas: skia.Canvas, identity: Identity, eye: Point, *, iris: Point) -> None:
    (x, y), colour = eye, identity.eye
    white = linear((0, y - 10), (0, y + 8), [(206, 204, 206), (252, 250, 247)])
    canvas.drawRect(oval((x, y), 19, 16), paint((250, 248, 244), shader=white))
    x, y = iris
    shade = radial((x, y + 2), 8.2, [scaled(colour, 1.45), colour, scaled(colour, 0.4)], [0, 0.6, 1])
    canvas.drawCircle(x, y, 8.0, paint(colour, shader=shade))
    canvas.drawCircle(x, y, 3.6, paint((14, 12, 14)))
    canvas.drawCircle(x - 2.4, y - 2.8, 2.1, paint((255, 255, 255), alpha=0.95))
    canvas.drawCircle(x + 2.2, y + 2.4, 1.0, paint((255, 255, 255), alpha=0.5))


def draw_glasses(canvas: skia.Canvas, pose: "Pose", features: Point) -> None:
    """Draw a frame of two round lenses over the eyes."""
    frame = (52, 44, 52)
    for side in (-1, 1):
        (x, y), narrowing = _eye_centre(pose, side, features)
        half_width = 20.5 * narrowing
        lens = skia.Rect.MakeXYWH(x - half_width, y - 18, 2 * half_width, 35)
        canvas.drawRoundRect(lens, 14, 14, paint((255, 255, 255), alpha=0.08))
        canvas.drawRoundRect(lens, 14, 14, paint(frame, alpha=0.92, stroke=2.6))
    x, y = features[0] + pose.yaw * 2, features[1] - 10
    canvas.drawPath(arc((x - 6, y), (x, y - 5), (x + 6, y)), paint(frame, alpha=0.92, stroke=2.6))
