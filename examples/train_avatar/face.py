# SPDX-License-Identifier: Apache-2.0
"""Draw a bust whose mouth, eyes, brows and head follow a `Pose`: the box that the model makes, or the whole still.

All coordinates are design units: the box is 256 x 256 of them whatever its size in pixels. Body and background never
move, so the box's borders are the same in every frame, and a still around it fits.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import skia

from .eyes import draw_eyes, draw_glasses
from .hair import draw_hair_behind, draw_hair_front, draw_hair_under
from .identities import Identity
from .ink import Point, linear, mixed, oval, paint, radial, scaled, smooth_outline
from .mouth import draw_beard, draw_mouth

CANVAS = 256.0
"""Side of the box in design units."""
STILL_SIZE = 1080
BOX = (150, 252, 726, 828)
"""Top, left, bottom, right of the box in a still, in pixels: three times 192."""
HEAD: Point = (128.0, 118.0)
"""Centre of the head at rest."""
NECK_PIVOT: Point = (128.0, 215.0)
"""The point that the head rolls about."""


@dataclass(frozen=True)
class Pose:
    """One frame's state of the face."""

    jaw: float = 0.0
    """Opening of the jaw: 0 closed, 1 wide open."""
    wide: float = 0.0
    """-1 rounded lips, +1 spread lips."""
    press: float = 0.5
    """Lips pressed together: 0 loose, 1 firmly closed (overrides the jaw)."""
    blink: float = 0.0
    """0 open eyes, 1 closed."""
    brow: float = 0.0
    """-0.5 lowered, 1 raised."""
    gaze_x: float = 0.0
    """-1 left to 1 right, in the picture."""
    gaze_y: float = 0.0
    """-1 up to 1 down."""
    yaw: float = 0.0
    """Turn of the head, -1 to 1; 0.1 moves the features by 1.3 design units."""
    pitch: float = 0.0
    """Nod, -1 up to 1 down; 0.1 moves the features by 0.8 design units."""
    roll: float = 0.0
    """Tilt about the neck, in units of 8 degrees."""
    shift_x: float = 0.0
    """Head to the right, in design units."""
    shift_y: float = 0.0
    """Head down, in design units."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the parameter names in order: the columns of a pose table."""
        return tuple(field.name for field in fields(cls))


def draw(identity: Identity, pose: Pose, size: int = 192) -> npt.NDArray[np.uint8]:
    """Return the box, shape (size, size, 3), RGB."""
    return _rendered(identity, pose, size=size, scale=size / CANVAS, origin=(0.0, 0.0))


def draw_still(identity: Identity, pose: Pose | None = None, size: int = STILL_SIZE) -> npt.NDArray[np.uint8]:
    """Return the whole picture, shape (size, size, 3), RGB, at rest unless a pose is given."""
    top, left, bottom, _right = (edge * size / STILL_SIZE for edge in BOX)
    return _rendered(identity, pose or Pose(), size=size, scale=(bottom - top) / CANVAS, origin=(left, top))


def _rendered(identity: Identity, pose: Pose, *, size: int, scale: float, origin: Point) -> npt.NDArray[np.uint8]:
    surface = skia.Surface(size, size)
    canvas = surface.getCanvas()
    canvas.translate(*origin)
    canvas.scale(scale, scale)
    head = (HEAD[0] + pose.shift_x, HEAD[1] + pose.shift_y)
    _draw_background(canvas, identity)
    _with_roll(canvas, pose, lambda: draw_hair_behind(canvas, identity, head))
    _draw_body(canvas, identity)
    _draw_neck(canvas, identity, head)
    _with_roll(canvas, pose, lambda: _draw_head(canvas, identity, pose, head))
    return surface.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3].copy()


def _with_roll(canvas: skia.Canvas, pose: Pose, paint_parts: Callable[[], None]) -> None:
    canvas.save()
    canvas.rotate(pose.roll * 8, *NECK_PIVOT)
    paint_parts()
    canvas.restore()


def _draw_background(canvas: skia.Canvas, identity: Identity) -> None:
    base = identity.background
    colours = [scaled(base, 1.1), base, scaled(base, 0.8), scaled(base, 0.66)]
    canvas.drawPaint(paint(base, shader=radial((110, 90), 420, colours, [0, 0.25, 0.6, 1])))


def _draw_body(canvas: skia.Canvas, identity: Identity) -> None:
    x, shirt = HEAD[0], identity.shirt
    path = skia.Path()
    path.moveTo(x - 150, 430)
    path.cubicTo(x - 146, 330, x - 128, 262, x - 104, 240)
    path.cubicTo(x - 84, 222, x - 62, 214, x - 30, 204)
    path.lineTo(x + 30, 204)
    path.cubicTo(x + 62, 214, x + 84, 222, x + 104, 240)
    path.cubicTo(x + 128, 262, x + 146, 330, x + 150, 430)
    path.close()
    shade = linear((x - 90, 200), (x + 110, 400), [scaled(shirt, 1.15), scaled(shirt, 0.86), scaled(shirt, 0.56)])
    canvas.drawPath(path, paint(shirt, shader=shade))
    canvas.save()
    canvas.clipPath(path, True)
    for side in (-1, 1):  # folds between chest and arms
        fold = skia.Path()
        fold.moveTo(x + side * 92, 300)
        fold.cubicTo(x + side * 84, 330, x + side * 92, 380, x + side * 98, 430)
        canvas.drawPath(fold, paint(scaled(shirt, 0.5), alpha=0.5, stroke=5, blur=3))
    canvas.restore()


def _draw_neck(canvas: skia.Canvas, identity: Identity, head: Point) -> None:
    x, body_x, skin = (head[0] + HEAD[0]) / 2, HEAD[0], identity.skin
    path = skia.Path()
    path.moveTo(x - 24, 150)
    path.lineTo(x + 24, 150)
    path.cubicTo(x + 24, 190, body_x + 28, 204, body_x + 36, 208)
    path.cubicTo(body_x + 14, 226, body_x - 14, 226, body_x - 36, 208)
    path.cubicTo(body_x - 28, 204, x - 24, 190, x - 24, 150)
    path.close()
    canvas.drawPath(path, paint(skin, shader=linear((0, 176), (0, 224), [scaled(skin, 0.62), scaled(skin, 0.9)])))
    collar = skia.Path()
    collar.moveTo(body_x - 38, 206)
    collar.cubicTo(body_x - 16, 229, body_x + 16, 229, body_x + 38, 206)
    canvas.drawPath(collar, paint(scaled(identity.shirt, 0.7), stroke=5))


def _draw_head(canvas: skia.Canvas, identity: Identity, pose: Pose, head: Point) -> None:
    features = (head[0] + pose.yaw * 13, head[1] + pose.pitch * 8)
    _draw_ears(canvas, identity, pose, head)
    draw_hair_under(canvas, identity, head)
    _draw_face_shape(canvas, identity, pose, head=head, features=features)
    draw_eyes(canvas, identity, pose, features)
    _draw_nose(canvas, identity, pose, features)
    draw_mouth(canvas, identity, pose, features)
    draw_hair_front(canvas, identity, pose, head)
    if identity.glasses:
        draw_glasses(canvas, pose, features)


def _draw_ears(canvas: skia.Canvas, identity: Identity, pose: Pose, head: Point) -> None:
    skin = identity.skin
    for side in (-1, 1):
        centre = (head[0] + side * 61 - pose.yaw * 5, head[1] + 8)
        inner = scaled(mixed(skin, (200, 90, 80), 0.25), 0.88)
        shade = radial((centre[0] - side * 2, centre[1]), 17, [inner, scaled(skin, 0.86)])
        canvas.drawOval(oval(centre, 9, 15), paint(skin, shader=shade))


def _draw_face_shape(canvas: skia.Canvas, identity: Identity, pose: Pose, *, head: Point, features: Point) -> None:
    (x, y), skin = head, identity.skin
    turn = pose.yaw * 5
    chin = 7 * pose.jaw
    right = [(62 * 0.72, -78 * 0.76), (62, -78 * 0.12), (62 * 0.95, 78 * 0.32), (62 * 0.7, 78 * 0.72 + chin * 0.6),
             (62 * 0.3, 78 * 0.99 + chin)]  # fmt: skip
    shifts = [0.0, 0.0, turn * 0.3, turn, turn * 1.5]
    outline = [(x + turn * 0.3, y - 78 * 0.98)]
    outline += [(x + dx + shift, y + dy) for (dx, dy), shift in zip(right, shifts, strict=True)]
    outline += [(x - dx + shift, y + dy) for (dx, dy), shift in zip(right[::-1], shifts[::-1], strict=True)]
    path = smooth_outline(outline)
    rim = scaled(mixed(skin, (150, 70, 60), 0.15), 0.74)
    shade = radial((x - 22 + pose.yaw * 10, y - 26), 128, [scaled(skin, 1.06), skin, rim], [0, 0.48, 1])
    canvas.drawPath(path, paint(skin, shader=shade))
    canvas.save()
    canvas.clipPath(path, True)
    for side in (-1, 1):
        cheek = (features[0] + side * 35 * (1 - 0.12 * side * pose.yaw), features[1] + 28)
        canvas.drawCircle(*cheek, 17, paint((232, 112, 100), alpha=0.2, blur=8))
    if identity.beard:
        draw_beard(canvas, identity, pose, features)
    canvas.drawOval(oval((x, y - 73), 70, 31), paint(scaled(skin, 0.5), alpha=0.32, blur=8))
    canvas.drawOval(oval((x + 74 - pose.yaw * 10, y + 15), 30, 75), paint(scaled(skin, 0.5), alpha=0.2, blur=14))
    canvas.restore()


def _draw_nose(canvas: skia.Canvas, identity: Identity, pose: Pose, features: Point) -> None:
    (x, y), skin = (features[0] + pose.yaw * 5, features[1] + 20), identity.skin
    canvas.drawOval(oval((x, y + 4.5), 10, 5), paint(scaled(skin, 0.55), alpha=0.36, blur=3))
    tip = radial((x - 3, y - 6), 14, [scaled(skin, 1.1), scaled(skin, 0.94)])
    canvas.drawOval(oval((x, y - 1.5), 7.5, 7), paint(skin, shader=tip))
    bridge = skia.Path()
    bridge.moveTo(x - 3 - pose.yaw * 3, features[1] - 10)
    bridge.lineTo(x - 1, y - 4)
    canvas.drawPath(bridge, paint(scaled(skin, 1.14), alpha=0.5, stroke=4, blur=2))
    for side in (-1, 1):
        canvas.drawOval(oval((x + side * 4.2, y + 3.4), 1.8, 1.1), paint(scaled(skin, 0.4), alpha=0.7, blur=0.7))
