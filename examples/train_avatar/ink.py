# SPDX-License-Identifier: Apache-2.0
"""Colours, paints and outlines: what every part of a drawn face is made with. Coordinates are design units."""

import skia

Colour = tuple[float, float, float]
"""Red, green, blue, 0 to 255."""
Point = tuple[float, float]


def scaled(colour: Colour, factor: float) -> Colour:
    """Return the colour, brighter or darker."""
    red, green, blue = colour
    return min(255.0, red * factor), min(255.0, green * factor), min(255.0, blue * factor)


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """Return a colour between two; share 0 is the first."""
    red, green, blue = (a * (1 - share) + b * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def paint(
    colour: Colour, *, alpha: float = 1.0, shader: skia.Shader | None = None, blur: float = 0.0, stroke: float = 0.0
) -> skia.Paint:
    """Return an anti-aliased paint; `stroke` > 0 draws a line of that width with round ends."""
    result = skia.Paint(AntiAlias=True, Color=_ink(colour, alpha))
    if shader is not None:
        result.setShader(shader)
    if blur:
        result.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    if stroke:
        result.setStyle(skia.Paint.kStroke_Style)
        result.setStrokeWidth(stroke)
        result.setStrokeCap(skia.Paint.kRound_Cap)
    return result


def radial(centre: Point, radius: float, colours: list[Colour], stops: list[float] | None = None) -> skia.Shader:
    """Return a gradient from a centre outwards."""
    return skia.GradientShader.MakeRadial(centre, radius, [_ink(colour) for colour in colours], stops)


def linear(start: Point, end: Point, colours: list[Colour], stops: list[float] | None = None) -> skia.Shader:
    """Return a gradient along a line."""
    return skia.GradientShader.MakeLinear([start, end], [_ink(colour) for colour in colours], stops)


def smooth_outline(points: list[Point]) -> skia.Path:
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


def arc(start: Point, control: Point, end: Point) -> skia.Path:
    """Return a curve from start to end, drawn towards the control point."""
    path = skia.Path()
    path.moveTo(*start)
    path.quadTo(*control, *end)
    return path


def oval(centre: Point, half_width: float, half_height: float) -> skia.Rect:
    """Return the rectangle around an ellipse."""
    return skia.Rect.MakeXYWH(centre[0] - half_width, centre[1] - half_height, 2 * half_width, 2 * half_height)


def _ink(colour: Colour, alpha: float = 1.0) -> int:
    red, green, blue = (int(min(255.0, max(0.0, part))) for part in colour)
    return skia.Color(red, green, blue, int(255 * alpha))
