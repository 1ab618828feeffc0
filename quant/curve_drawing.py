# SPDX-License-Identifier: Apache-2.0
"""Shows what a sensitivity search found: as text for a terminal, as an SVG for a page."""

from html import escape

from .sensitivity import Curve, Harm, Point, decibels

BAR_COLUMNS = 24
"""Longest bar of the text, in characters."""

WIDTH, HEIGHT, MARGIN = 720, 400, 56
"""Of the picture, in pixels; the margin holds the labels of the axes."""

COLOURS = ("#1b6ca8", "#c8553d", "#4f772d")
"""Of the regions, in order."""


def describe(curve: Curve) -> str:
    """Return the ranking and the curve as lines of text: the longer a bar, the more harm, or the more is saved.

    A star marks what the recipe takes.
    """
    return "\n".join([*_ranking(curve), "", *_sums(curve), "", *_choice(curve)])


def _ranking(curve: Curve) -> list[str]:
    floor = max(one.harm.worst_db for one in curve.ranked)
    ceiling = min(one.harm.worst_db for one in curve.ranked)
    regions = tuple(curve.ranked[0].harm.regions)
    lines = [f"{'part alone':44} {'saves MB':>9} {_heads(regions)}  harm"]
    for number, one in enumerate(curve.ranked, start=1):
        name = f"{number:3} {one.part.subnetwork} {one.part.name}"
        share = (floor - one.harm.worst_db) / max(1e-9, floor - ceiling)
        saves = f"{one.part.saved_bytes / 1e6:9.3f}"
        lines.append(f"{_mark(one.taken)}{name:43} {saves} {_figures(one.harm)}  {_bar(share)}")
    return lines


def _sums(curve: Curve) -> list[str]:
    most = max(1, max(curve.saved_bytes(point) for point in curve.points))
    lines = [f"{'parts together':44} {'total MB':>9} {_heads(tuple(curve.points[0].harm.regions))}  saved"]
    for point in _in_order(curve):
        mark = _mark(point == curve.chosen)
        share = max(0.0, curve.saved_bytes(point) / most)
        size = f"{point.package_bytes / 1e6:9.3f}"
        lines.append(f"{mark}{point.parts:3} parts{'':34} {size} {_figures(point.harm)}  {_bar(share)}")
    return lines


def _in_order(curve: Curve) -> list[Point]:
    """Return the sums of the first parts, and among them the choice, which may pass over some."""
    chosen = [] if curve.chosen in curve.points else [curve.chosen]
    return sorted([*curve.points, *chosen], key=lambda point: -point.package_bytes)


def _choice(curve: Curve) -> list[str]:
    left = [f"{one.part.subnetwork} {one.part.name}" for one in curve.ranked if not one.taken]
    lines = [
        f"{curve.recipe.name}: {curve.chosen.parts} of {len(curve.ranked)} parts, "
        f"{curve.chosen.package_bytes / 1e6:.2f} MB or a little less instead of {curve.package_bytes / 1e6:.2f} MB, "
        f"{curve.chosen.harm.worst_db:.1f} dB in the worst region",
        f"kept as they are: {', '.join(left) or 'none'}",
    ]
    if curve.unmeasured:
        lines.append(f"no render runs {', '.join(curve.unmeasured)}: as the recipe says, not measured")
    return lines


def _heads(regions: tuple[str, ...]) -> str:
    return " ".join(f"{region + ' dB':>10}" for region in regions)


def _figures(harm: Harm) -> str:
    return " ".join(f"{decibels(error):10.1f}" for error in harm.regions.values())


def _mark(taken: bool) -> str:
    return "*" if taken else " "


def _bar(share: float) -> str:
    return "#" * round(BAR_COLUMNS * share)


def draw(curve: Curve) -> str:
    """Return the curve as an SVG: megabytes saved to the right, decibels of each region upwards."""
    points = [point for point in _in_order(curve) if point.parts]
    regions = tuple(points[0].harm.regions)
    most = max(1, max(curve.saved_bytes(point) for point in points))
    values = [decibels(error) for point in points for error in point.harm.regions.values()]
    low, high = 10 * (min(values) // 10), 10 * (max(values) // 10 + 1)

    def across(saved_bytes: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * max(0.0, saved_bytes) / most

    def up(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low)

    body: list[str] = []
    for step in range(int(low), int(high) + 1, 10):
        body += [_line(MARGIN, up(step), WIDTH - MARGIN, up(step)), _text(MARGIN - 8, up(step) + 4, str(step), "end")]
    for quarter in range(5):
        saved = most * quarter / 4
        body.append(_text(across(saved), HEIGHT - MARGIN + 18, f"{saved / 1e6:.2f}", "middle"))
    for colour, region, row in zip(COLOURS, regions, range(len(regions)), strict=False):
        marks = [(across(curve.saved_bytes(point)), up(decibels(point.harm.regions[region]))) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in marks)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in marks]
        body.append(_text(WIDTH - MARGIN, MARGIN + 16 * row, region, "end", fill=colour))
    x = across(curve.saved_bytes(curve.chosen))
    body.append(
        f'<line x1="{x:.1f}" y1="{MARGIN}" x2="{x:.1f}" y2="{HEIGHT - MARGIN}" stroke="#444" stroke-dasharray="4"/>'
    )
    body.append(_text(WIDTH / 2, 24, f"{curve.recipe.name}: size saved against error", "middle"))
    body.append(_text(WIDTH / 2, HEIGHT - 12, "MB saved, least harmful parts first (error in dB)", "middle"))
    inside = "\n".join(body)
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n{paper}\n{inside}\n</svg>\n'


def _line(x1: float, y1: float, x2: float, y2: float, *, stroke: str = '"#ddd"') -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke={stroke}/>'


def _text(x: float, y: float, content: str, anchor: str, *, fill: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(content)}</text>'
