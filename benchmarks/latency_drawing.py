# SPDX-License-Identifier: Apache-2.0
"""Drawings of a latency report, as inline SVG that takes its colours from the page: one scale, few marks, no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 920, 64, 20, 14, 40
"""In pixels of the drawing, which is scaled to the page."""
MOST_POINTS = 1500
"""That a line is drawn through; longer ones are drawn through the highest of each stretch, so no peak is lost."""
TICKS = 6
"""Wanted along an axis."""
NARROWEST_PX, LETTER_PX = 1.5, 6.4
"""Of a bar; of a letter of a bar's label."""


@dataclass(frozen=True)
class Bar:
    """Something that lasted."""

    name: str
    """As in the trace."""
    seconds: float
    """How long."""
    css: str
    """Class that gives it its colour."""


@dataclass(frozen=True)
class Axes:
    """From figures to pixels; both axes are linear."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    height: int

    def x(self, value: float) -> float:
        """Return pixels from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        """Return pixels from the top."""
        inner = self.height - TOP - BOTTOM
        return TOP + inner * (self.y_high - value) / (self.y_high - self.y_low)


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers from at most `low` to at least `high`."""
    if high <= low:
        high = low + 1.0
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line(
    xs: Sequence[float], ys: Sequence[float], *, x_name: str, y_name: str, title: str, limit: float | None = None
) -> str:
    """Draw a line; `limit` is drawn across, dashed."""
    xs, ys = _peaks(xs, ys)
    across, up = ticks(min(xs), max(xs)), ticks(min(0.0, *ys), max([*ys, limit or 0.0]))
    axes = Axes(min(xs), max(max(xs), min(xs) + 1e-9), up[0], up[-1], 260)
    shown = [at for at in across if axes.x_low <= at <= axes.x_high]
    parts = [_grid(axes, shown, up, x_name=x_name, y_name=y_name)]
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    parts.append(f'<polyline class="line" points="{path}"/>')
    if limit is not None:
        y = axes.y(limit)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return _svg(260, title, parts)


def histogram(values: Sequence[float], *, x_name: str, title: str, marks: Sequence[tuple[str, float]] = ()) -> str:
    """Draw how often each value was seen, with named marks such as percentiles."""
    edges = ticks(min([0.0, *values]), max([*values, *(at for _, at in marks)]))
    bins = np.linspace(edges[0], edges[-1], 61)
    seen, _ = np.histogram(values, bins=bins)
    up = ticks(0, 1.15 * int(seen.max()))  # room for the names of the marks
    axes = Axes(edges[0], edges[-1], 0, up[-1], 260)
    parts = [_grid(axes, edges, up, x_name=x_name, y_name="chunks")]
    for left, right, count in zip(bins[:-1], bins[1:], seen, strict=True):
        if count:
            x, width, y = axes.x(left), axes.x(right) - axes.x(left) - 1, axes.y(count)
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{axes.y(0) - y:.1f}"/>'
            )
    parts += [_mark(axes, name, at, row) for row, (name, at) in enumerate(marks)]
    return _svg(260, title, parts)


def _mark(axes: Axes, name: str, at: float, row: int) -> str:
    x, y = axes.x(at), TOP + 12 + 15 * row
    turned = x > WIDTH * 0.8
    anchor = ' text-anchor="end"' if turned else ""
    text = f'<text x="{x + (-5 if turned else 5):.1f}" y="{y}"{anchor}>{escape(name)}'
    return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{axes.y(0):.1f}"/>{text}</text>'


def timeline(rows: Sequence[tuple[str, Sequence[Bar]]], *, title: str, due_s: float | None = None) -> str:
    """Draw rows of bars, each after the one before it; `due_s` is when everything was to be ready."""
    lengths = [sum(bar.seconds for bar in bars) for _, bars in rows]
    edges = ticks(0, max([*lengths, due_s or 0.0]) * 1000)
    height = TOP + 44 * len(rows) + BOTTOM
    axes = Axes(0, edges[-1], 0, 1, height)
    parts = [_grid(axes, edges, [], x_name="ms since the sound of the chunk was there", y_name="")]
    for row, (label, bars) in enumerate(rows):
        y, at_ms = TOP + 44 * row, 0.0
        parts.append(f'<text class="soft" x="{LEFT}" y="{y + 10}">{escape(label)}</text>')
        for bar in bars:
            parts.append(_bar(axes, bar, at_ms, y + 15))
            at_ms += bar.seconds * 1000
    if due_s is not None and due_s > 0:
        x = axes.x(due_s * 1000)
        near_edge = ' text-anchor="end"' if x > WIDTH - 60 else ""
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text x="{x + (-4 if near_edge else 4):.1f}" y="{TOP + 10}"{near_edge}>due</text>')
    return _svg(height, title, parts)


def _bar(axes: Axes, bar: Bar, at_ms: float, y: float) -> str:
    x, width = axes.x(at_ms), axes.x(at_ms + bar.seconds * 1000) - axes.x(at_ms)
    told = f"{escape(bar.name)} {bar.seconds * 1000:.1f} ms"
    drawn = (
        f'<rect class="{bar.css}" x="{x:.1f}" y="{y}" width="{max(NARROWEST_PX, width - 1):.1f}" height="22" rx="2">'
        f"<title>{told}</title></rect>"
    )
    if width < LETTER_PX * len(bar.name) + 8:
        return drawn
    css = "" if bar.css == "wait" else ' class="inside"'
    return drawn + f'<text{css} x="{x + 5:.1f}" y="{y + 15}">{escape(bar.name)}</text>'


def _grid(axes: Axes, across: Sequence[float], up: Sequence[float], *, x_name: str, y_name: str) -> str:
    bottom, parts = axes.height - BOTTOM, list[str]()
    for value in up:
        y = axes.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across:
        x = axes.x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="soft" x="{middle}" y="{axes.height - 6}" text-anchor="middle">{escape(x_name)}</text>')
    if y_name:
        turned = f'transform="rotate(-90 13 {(TOP + bottom) / 2})"'
        parts.append(
            f'<text class="soft" x="13" y="{(TOP + bottom) / 2}" {turned} text-anchor="middle">{escape(y_name)}</text>'
        )
    return "".join(parts)


def _peaks(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    if len(x) > MOST_POINTS:
        edges = np.linspace(0, len(x), MOST_POINTS + 1).astype(int)
        tops = [int(a + np.argmax(y[a:b])) for a, b in pairwise(edges)]
        x, y = x[tops], y[tops]
    return x.tolist(), y.tolist()


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
