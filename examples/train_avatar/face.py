# SPDX-License-Identifier: Apache-2.0
"""Draw Anna: a vector portrait whose mouth, eyelids, brows and head follow a `Pose`.

All coordinates are on a 256 x 256 design canvas, so one drawing serves every picture size. Skia does the anti-aliasing,
the gradients and the soft shadows.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import skia

Colour = tuple[float, float, float]
Point = tuple[float, float]

SKIN: Colour = (246.0, 214.0, 190.0)
HAIR: Colour = (104.0, 62.0, 40.0)
EYE: Colour = (78.0, 124.0, 92.0)
SHIRT: Colour = (58.0, 104.0, 122.0)
BACKGROUND: Colour = (204.0, 216.0, 226.0)
LIP: Colour = (208.0, 108.0, 104.0)

CANVAS = 256.0
HEAD: Point = (128.0, 118.0)
"""Centre of the head at rest, in design units."""
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


def draw(pose: Pose, size: int = 128) -> npt.NDArray[np.uint8]:
    """Return the picture, shape (size, size, 3), RGB."""
    surface = skia.Surface(size, size)
    canvas = surface.getCanvas()
    canvas.scale(size / CANVAS, size / CANVAS)
    _draw_background(canvas)
    head = (HEAD[0] + pose.shift_x, HEAD[1] + pose.shift_y)
    body_x = HEAD[0] + pose.shift_x / 3
    _with_roll(canvas, pose, lambda: _draw_hair_behind(canvas, head))
    _draw_body(canvas, body_x)
    _draw_neck(canvas, head, body_x)
    _with_roll(canvas, pose, lambda: _draw_head(canvas, pose, head))
    return surface.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3].copy()


def mouth_centre(pose: Pose, size: int = 128) -> Point:
    """Return where the mouth is in the picture (x, y), in pixels."""
    x = HEAD[0] + pose.shift_x + pose.yaw * 15.5 - NECK_PIVOT[0]
    y = HEAD[1] + pose.shift_y + pose.pitch * 8 + 48 - NECK_PIVOT[1]
    angle = math.radians(pose.roll * 8)
    rolled_x = NECK_PIVOT[0] + x * math.cos(angle) - y * math.sin(angle)
    rolled_y = NECK_PIVOT[1] + x * math.sin(angle) + y * math.cos(angle)
    return rolled_x * size / CANVAS, rolled_y * size / CANVAS


def _scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return min(255.0, red * factor), min(255.0, green * factor), min(255.0, blue * factor)


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (a * (1 - share) + b * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def _ink(colour: Colour, alpha: float = 1.0) -> int:
    red, green, blue = (int(min(255.0, max(0.0, part))) for part in colour)
    return skia.Color(red, green, blue, int(255 * alpha))


def _paint(
    colour: Colour,
    *,
    alpha: float = 1.0,
    shader: skia.Shader | None = None,
    blur: float = 0.0,
    stroke: float = 0.0,
) -> skia.Paint:
    paint = skia.Paint(AntiAlias=True, Color=_ink(colour, alpha))
    if shader is not None:
        paint.setShader(shader)
    if blur:
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    if stroke:
        paint.setStyle(skia.Paint.kStroke_Style)
        paint.setStrokeWidth(stroke)
        paint.setStrokeCap(skia.Paint.kRound_Cap)
    return paint


def _radial(centre: Point, radius: float, colours: list[Colour], stops: list[float] | None = None) -> skia.Shader:
    return skia.GradientShader.MakeRadial(centre, radius, [_ink(colour) for colour in colours], stops)


def _linear(start: Point, end: Point, colours: list[Colour], stops: list[float] | None = None) -> skia.Shader:
    return skia.GradientShader.MakeLinear([start, end], [_ink(colour) for colour in colours], stops)


def _smooth_outline(points: list[Point]) -> skia.Path:
    """Return a closed Catmull-Rom curve through the points."""
    count = len(points)
    path = skia.Path()
    path.moveTo(*points[0])
    for index in range(count):
        before, start = points[index - 1], points[index]
        end, after = points[(index + 1) % count], points[(index + 2) % count]
        path.cubicTo(
            start[0] + (end[0] - before[0]) / 6, start[1] + (end[1] - before[1]) / 6,
            end[0] - (after[0] - start[0]) / 6, end[1] - (after[1] - start[1]) / 6,
            end[0], end[1],
        )  # fmt: skip
    path.close()
    return path


def _arc(start: Point, control: Point, end: Point) -> skia.Path:
    path = skia.Path()
    path.moveTo(*start)
    path.quadTo(*control, *end)
    return path


def _oval(centre: Point, half_width: float, half_height: float) -> skia.Rect:
    return skia.Rect.MakeXYWH(centre[0] - half_width, centre[1] - half_height, 2 * half_width, 2 * half_height)


def _with_roll(canvas: skia.Canvas, pose: Pose, paint_parts) -> None:
    canvas.save()
    canvas.rotate(pose.roll * 8, *NECK_PIVOT)
    paint_parts()
    canvas.restore()


def _draw_background(canvas: skia.Canvas) -> None:
    colours = [_scaled(BACKGROUND, 1.1), BACKGROUND, _scaled(BACKGROUND, 0.72)]
    canvas.drawPaint(_paint(BACKGROUND, shader=_radial((110, 90), 230, colours, [0, 0.45, 1])))


def _draw_hair_behind(canvas: skia.Canvas, head: Point) -> None:
    x, y = head
    outline = [(x, y - 90), (x + 69, y - 60), (x + 77, y + 8), (x + 72, 178), (x + 40, 190),
               (x - 40, 190), (x - 72, 178), (x - 77, y + 8), (x - 69, y - 60)]  # fmt: skip
    shade = _linear((0, y - 80), (0, 190), [_scaled(HAIR, 0.85), _scaled(HAIR, 0.5)])
    canvas.drawPath(_smooth_outline(outline), _paint(HAIR, shader=shade))


def _draw_body(canvas: skia.Canvas, x: float) -> None:
    path = skia.Path()
    path.moveTo(x - 112, 262)
    path.cubicTo(x - 104, 222, x - 66, 214, x - 30, 204)
    path.lineTo(x + 30, 204)
    path.cubicTo(x + 66, 214, x + 104, 222, x + 112, 262)
    path.close()
    shade = _linear((x - 70, 200), (x + 90, 260), [_scaled(SHIRT, 1.15), _scaled(SHIRT, 0.66)])
    canvas.drawPath(path, _paint(SHIRT, shader=shade))


def _draw_neck(canvas: skia.Canvas, head: Point, body_x: float) -> None:
    x = (head[0] + HEAD[0]) / 2
    path = skia.Path()
    path.moveTo(x - 24, 150)
    path.lineTo(x + 24, 150)
    path.cubicTo(x + 24, 190, x + 28, 204, body_x + 36, 208)
    path.cubicTo(body_x + 14, 226, body_x - 14, 226, body_x - 36, 208)
    path.cubicTo(x - 28, 204, x - 24, 190, x - 24, 150)
    path.close()
    canvas.drawPath(path, _paint(SKIN, shader=_linear((0, 176), (0, 224), [_scaled(SKIN, 0.62), _scaled(SKIN, 0.9)])))


def _draw_head(canvas: skia.Canvas, pose: Pose, head: Point) -> None:
    features = (head[0] + pose.yaw * 13, head[1] + pose.pitch * 8)
    _draw_ears(canvas, pose, head)
    _draw_face_shape(canvas, pose, head=head, features=features)
    for side in (-1, 1):
        _draw_eye(canvas, pose, side=side, features=features)
    _draw_nose(canvas, pose, features)
    _draw_mouth(canvas, pose, features)
    _draw_hair_front(canvas, pose, head)


def _draw_ears(canvas: skia.Canvas, pose: Pose, head: Point) -> None:
    for side in (-1, 1):
        centre = (head[0] + side * 61 - pose.yaw * 5, head[1] + 8)
        inner = _scaled(_mixed(SKIN, (200, 90, 80), 0.25), 0.88)
        shade = _radial((centre[0] - side * 2, centre[1]), 17, [inner, _scaled(SKIN, 0.86)])
        canvas.drawOval(_oval(centre, 9, 15), _paint(SKIN, shader=shade))


def _draw_face_shape(canvas: skia.Canvas, pose: Pose, *, head: Point, features: Point) -> None:
    x, y = head
    turn = pose.yaw * 5
    chin = 7 * pose.jaw
    right = [(62 * 0.72, -78 * 0.76), (62, -78 * 0.12), (62 * 0.95, 78 * 0.32), (62 * 0.7, 78 * 0.72 + chin * 0.6),
             (62 * 0.3, 78 * 0.99 + chin)]  # fmt: skip
    shifts = [0.0, 0.0, turn * 0.3, turn, turn * 1.5]
    outline = [(x + turn * 0.3, y - 78 * 0.98)]
    outline += [(x + dx + shift, y + dy) for (dx, dy), shift in zip(right, shifts, strict=True)]
    outline += [(x - dx + shift, y + dy) for (dx, dy), shift in zip(right[::-1], shifts[::-1], strict=True)]
    path = _smooth_outline(outline)
    rim = _scaled(_mixed(SKIN, (150, 70, 60), 0.15), 0.74)
    shade = _radial((x - 22 + pose.yaw * 10, y - 26), 128, [_scaled(SKIN, 1.06), SKIN, rim], [0, 0.48, 1])
    canvas.drawPath(path, _paint(SKIN, shader=shade))
    canvas.save()
    canvas.clipPath(path, True)
    for side in (-1, 1):
        cheek = (features[0] + side * 35 * (1 - 0.12 * side * pose.yaw), features[1] + 28)
        canvas.drawCircle(*cheek, 17, _paint((232, 112, 100), alpha=0.2, blur=8))
    canvas.drawOval(_oval((x, y - 73), 70, 31), _paint(_scaled(SKIN, 0.5), alpha=0.32, blur=8))
    canvas.drawOval(_oval((x + 74 - pose.yaw * 10, y + 15), 30, 75), _paint(_scaled(SKIN, 0.5), alpha=0.2, blur=14))
    canvas.restore()


def _draw_eye(canvas: skia.Canvas, pose: Pose, *, side: int, features: Point) -> None:
    narrowing = 1 - 0.10 * side * pose.yaw
    x, y = features[0] + side * 26 * narrowing, features[1] - 8
    half_width = 15 * narrowing
    opening = 10.0 * (1 - pose.blink) + 0.4
    socket = _scaled(_mixed(SKIN, (120, 60, 60), 0.3), 0.74)
    canvas.drawOval(_oval((x, y - 1), half_width + 4, 14), _paint(socket, alpha=0.28, blur=4))
    left, right = (x - half_width, y + 1), (x + half_width, y + 1)
    upper, lower = (x, y - opening * 1.75), (x, y + opening * 1.15)
    lids = _arc(left, upper, right)
    lids.quadTo(*lower, *left)
    lids.close()
    canvas.save()
    canvas.clipPath(lids, True)
    _draw_eyeball(canvas, (x, y))
    canvas.restore()
    canvas.drawPath(_arc(left, upper, right), _paint(_scaled(HAIR, 0.4), stroke=2.8))
    fold_y = y - 4 - opening * 0.25
    fold = _arc((x - half_width * 0.9, fold_y), (x, upper[1] - 5), (x + half_width * 0.9, fold_y))
    canvas.drawPath(fold, _paint(_scaled(SKIN, 0.66), alpha=0.6, stroke=1.2))
    rim = _arc((x - half_width * 0.8, y + 2), (x, lower[1] + 0.8), (x + half_width * 0.8, y + 2))
    canvas.drawPath(rim, _paint(_scaled(SKIN, 0.6), alpha=0.6, stroke=1.1))
    brow_y = y - 24 - pose.brow * 6
    brow = _arc(
        (x - side * 14, brow_y + 2.0 - pose.brow * 1.5), (x + side * 3, brow_y - 6), (x + side * 18, brow_y + 4)
    )
    canvas.drawPath(brow, _paint(_scaled(HAIR, 0.78), stroke=3.8))


def _draw_eyeball(canvas: skia.Canvas, eye: Point) -> None:
    x, y = eye
    white = _linear((0, y - 10), (0, y + 8), [(206, 204, 206), (252, 250, 247)])
    canvas.drawRect(_oval((x, y), 19, 16), _paint((250, 248, 244), shader=white))
    y -= 1
    iris = _radial((x, y + 2), 8.2, [_scaled(EYE, 1.45), EYE, _scaled(EYE, 0.4)], [0, 0.6, 1])
    canvas.drawCircle(x, y, 8.0, _paint(EYE, shader=iris))
    canvas.drawCircle(x, y, 3.6, _paint((14, 12, 14)))
    canvas.drawCircle(x - 2.4, y - 2.8, 2.1, _paint((255, 255, 255), alpha=0.95))
    canvas.drawCircle(x + 2.2, y + 2.4, 1.0, _paint((255, 255, 255), alpha=0.5))


def _draw_nose(canvas: skia.Canvas, pose: Pose, features: Point) -> None:
    x, y = features[0] + pose.yaw * 5, features[1] + 20
    canvas.drawOval(_oval((x, y + 4.5), 10, 5), _paint(_scaled(SKIN, 0.55), alpha=0.36, blur=3))
    tip = _radial((x - 3, y - 6), 14, [_scaled(SKIN, 1.1), _scaled(SKIN, 0.94)])
    canvas.drawOval(_oval((x, y - 1.5), 7.5, 7), _paint(SKIN, shader=tip))
    bridge = skia.Path()
    bridge.moveTo(x - 3 - pose.yaw * 3, features[1] - 10)
    bridge.lineTo(x - 1, y - 4)
    canvas.drawPath(bridge, _paint(_scaled(SKIN, 1.14), alpha=0.5, stroke=4, blur=2))
    for side in (-1, 1):
        canvas.drawOval(_oval((x + side * 4.2, y + 3.4), 1.8, 1.1), _paint(_scaled(SKIN, 0.4), alpha=0.7, blur=0.7))


@dataclass(frozen=True)
class _Mouth:
    """Outlines of the lips and of the opening between them."""

    lips: list[Point]
    gap: list[Point]
    gap_height: float
    half_width: float
    top: float
    bottom: float


def _mouth_shape(pose: Pose, centre: Point) -> _Mouth:
    x, y = centre
    half_width = (27 + 7 * max(pose.wide, 0) + 12 * min(pose.wide, 0)) * (1 - 0.06 * pose.jaw)
    gap_height = (2.0 + 23 * pose.jaw) * (1 - pose.press)
    rounding = max(0.0, -pose.wide)
    upper_lip = 3.6 + 2.4 * rounding - pose.press
    lower_lip = 5.2 + 2.6 * rounding - 1.6 * pose.press
    corner = 0.84 - 0.10 * rounding
    top, bottom = y - gap_height * 0.36, y + gap_height * 0.64
    # Lifted corners: the mouth at rest smiles a little; rounding takes the smile away.
    corner_y = y - (3.6 + 1.5 * max(pose.wide, 0)) * (1 - 0.8 * min(rounding, 1.0))
    gap_top, gap_bottom = y - gap_height * 0.33, y + gap_height * 0.55
    gap = [(x - half_width * corner, corner_y), (x - half_width * 0.42, gap_top), (x, top),
           (x + half_width * 0.42, gap_top), (x + half_width * corner, corner_y),
           (x + half_width * 0.46, gap_bottom), (x, bottom), (x - half_width * 0.46, gap_bottom)]  # fmt: skip
    bow, belly = top - upper_lip * 1.12, y + gap_height * 0.58 + lower_lip * 0.86
    lips = [(x - half_width, corner_y), (x - half_width * 0.36, bow), (x, top - upper_lip * 0.82),
            (x + half_width * 0.36, bow), (x + half_width, corner_y),
            (x + half_width * 0.5, belly), (x, bottom + lower_lip), (x - half_width * 0.5, belly)]  # fmt: skip
    return _Mouth(lips, gap, gap_height, half_width, top, bottom)


def _draw_mouth(canvas: skia.Canvas, pose: Pose, features: Point) -> None:
    centre = (features[0] + pose.yaw * 2.5, features[1] + 46 + 1.5 * pose.jaw)
    mouth = _mouth_shape(pose, centre)
    shadow = _oval((centre[0], mouth.bottom + 10), mouth.half_width * 0.7, 4)
    canvas.drawOval(shadow, _paint(_scaled(SKIN, 0.55), alpha=0.32, blur=3))
    tones = [_scaled(LIP, 0.8), _scaled(LIP, 0.94), _scaled(LIP, 1.2), _scaled(LIP, 0.96)]
    shade = _linear((0, mouth.top - 6), (0, mouth.bottom + 7), tones, [0, 0.4, 0.8, 1])
    canvas.drawPath(_smooth_outline(mouth.lips), _paint(LIP, shader=shade))
    canvas.save()
    canvas.clipPath(_smooth_outline(mouth.gap), True)
    _draw_inside_of_mouth(canvas, mouth, centre[0])
    canvas.restore()
    closed = max(pose.press, 1 - mouth.gap_height / 3.2)
    if closed > 0.05:
        line = _arc(mouth.gap[0], (centre[0], centre[1] + 4), mouth.gap[4])
        canvas.drawPath(line, _paint(_scaled(LIP, 0.48), alpha=min(1.0, max(0.0, closed)), stroke=1.6))


def _draw_inside_of_mouth(canvas: skia.Canvas, mouth: _Mouth, x: float) -> None:
    canvas.drawPaint(
        _paint((58, 14, 20), shader=_linear((0, mouth.top), (0, mouth.bottom), [(40, 8, 12), (92, 26, 30)]))
    )
    tongue = _radial((x, mouth.bottom), mouth.half_width * 0.7, [(214, 112, 110), (150, 56, 62)])
    tongue_y = mouth.bottom + 5 - 6.5 * min(1.0, mouth.gap_height / 14)
    canvas.drawOval(_oval((x, tongue_y), mouth.half_width * 0.55, 6), _paint((202, 98, 98), shader=tongue))
    teeth = min(7.0, mouth.gap_height * 0.5)
    box = skia.Rect.MakeXYWH(x - mouth.half_width * 0.66, mouth.top - 3, mouth.half_width * 1.32, teeth + 3)
    shade = _linear((0, mouth.top - 2), (0, mouth.top + teeth), [(190, 184, 178), (250, 247, 240)])
    canvas.drawRoundRect(box, 3, 3, _paint((244, 240, 232), shader=shade))


def _draw_hair_front(canvas: skia.Canvas, pose: Pose, head: Point) -> None:
    x, y = head
    turn = pose.yaw * 6
    outline = [(x - 70, y + 44), (x - 73, y - 44), (x - 45, y - 93), (x, y - 104), (x + 45, y - 93), (x + 73, y - 44),
               (x + 70, y + 44), (x + 60 + turn, y - 22), (x + 34 + turn, y - 52), (x - 10 + turn, y - 66),
               (x - 38 + turn, y - 42), (x - 60 + turn, y - 18)]  # fmt: skip
    path = _smooth_outline(outline)
    shade = _linear((x - 60, y - 100), (x + 60, y - 20), [_scaled(HAIR, 1.28), HAIR, _scaled(HAIR, 0.7)])
    canvas.drawPath(path, _paint(HAIR, shader=shade))
    canvas.save()
    canvas.clipPath(path, True)
    for place in (-35, -16, 6, 27):
        strand = _arc((x + place * 0.5, y - 104), (x + place * 1.3, y - 84), (x + place * 1.5 + turn, y - 40))
        canvas.drawPath(strand, _paint(_scaled(HAIR, 1.6), alpha=0.28, stroke=5, blur=1.6))
    canvas.restore()
