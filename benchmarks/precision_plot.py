# SPDX-License-Identifier: Apache-2.0
"""Seconds per generated second against the clip's PSNR, a mark per recipe and engine, as SVG."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .recipe_packages import NONE
from .rounds import figures

WIDTH, HEIGHT = 940, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 230, 40, 60
CEILING_DB = 70.0
"""Nearer to the reference than this is drawn here: 1 value in 40 is off by one level."""
MARK_PX, LABEL_PX = 7, 11
"""Radius of a mark with its line; size of a label's letters, which are 0.6 of it wide."""
COLOURS = {
    "ONNX Runtime f32": "#1f77b4",
    "OpenVINO f32": "#2ca02c",
    "OpenVINO auto": "#d62728",
    "OpenVINO f32, AVX2": "#9467bd",
}
LABELS = {"OpenVINO auto": "OpenVINO, its best", "OpenVINO f32, AVX2": "OpenVINO capped to AVX2"}


@dataclass(frozen=True)
class Mark:
    """One recipe on one engine."""

    recipe: str
    engine: str
    seconds: float
    """Per second of video, median."""
    psnr_db: float
    """Of the clip, at most `CEILING_DB`."""
    passed: bool
    """Whether every gate was passed."""


def marks(parts: Mapping[str, Any]) -> list[Mark]:
    """Return what was both timed and judged."""
    found: list[Mark] = []
    for recipe, group in parts.get("speed", {}).items():
        for engine, runs in group["rounds"].items():
            ladder = parts.get("ladders", {}).get(recipe, {}).get(engine, {})
            if engine not in COLOURS or "rungs" not in ladder:
                continue
            seconds = figures([run["whole"] for run in runs])["median"]
            psnr_db = min(CEILING_DB, ladder["rungs"]["clip"]["psnr_db"])
            found.append(Mark(recipe, engine, seconds, psnr_db, ladder["verdict"] == "passed"))
    return found


def plot(parts: Mapping[str, Any]) -> str:
    """Return the picture; without marks it says so."""
    shown = marks(parts)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    if not shown:
        return "\n".join([*lines, '<text x="70" y="60">not measured yet</text>', "</svg>", ""])
    most_s = 0.1 * (int(max(mark.seconds for mark in shown) * 10) + 1)
    least_db = 5.0 * int(min(mark.psnr_db for mark in shown) / 5)
    scale = _Scale(most_s, least_db)
    lines += [*_axes(scale), *(_drawn(mark, scale) for mark in shown), *_labels(shown, scale), *_legend(), "</svg>", ""]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Scale:
    most_s: float
    least_db: float

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.most_s

    def y(self, psnr_db: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (CEILING_DB - psnr_db) / (CEILING_DB - self.least_db)


def _axes(scale: _Scale) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines: list[str] = []
    for tenth in range(round(scale.most_s * 10) + 1):
        x = scale.x(tenth / 10)
        lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="#dddddd"/>')
        lines.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{tenth / 10:.1f}</text>')
    for level in range(round(scale.least_db), round(CEILING_DB) + 1, 5):
        y = scale.y(level)
        top = "≥" if level == CEILING_DB else ""
        lines.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        lines.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{top}{level}</text>')
    middle = (LEFT + right) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">seconds per second of video</text>')
    turned = f'transform="rotate(-90 18 {(TOP + bottom) / 2})" text-anchor="middle"'
    lines.append(f'<text x="18" y="{(TOP + bottom) / 2}" {turned}>PSNR of the clip against float32, dB</text>')
    lines.append(f'<text x="{LEFT}" y="22" fill="#555">better: left and up; hollow marks missed a gate</text>')
    return lines


def _drawn(mark: Mark, scale: _Scale) -> str:
    colour = COLOURS[mark.engine]
    fill = colour if mark.passed else "white"
    x, y = scale.x(mark.seconds), scale.y(mark.psnr_db)
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{fill}" stroke="{colour}" stroke-width="2"/>'


def _labels(shown: list[Mark], scale: _Scale) -> list[str]:
    """Write recipes beside their marks, each at the first place around its mark that nothing covers yet."""
    lines: list[str] = []
    taken = [_Box.around(scale.x(mark.seconds), scale.y(mark.psnr_db)) for mark in shown]
    for mark in sorted(shown, key=lambda one: (-one.psnr_db, one.seconds)):
        name = "as exported" if mark.recipe == NONE else mark.recipe
        box = _place(name, x=scale.x(mark.seconds), y=scale.y(mark.psnr_db), taken=taken)
        taken.append(box)
        at = f'x="{box.left:.1f}" y="{box.bottom - 3:.1f}"'
        lines.append(f'<text {at} font-size="{LABEL_PX}" fill="{COLOURS[mark.engine]}">{name}</text>')
    return lines


@dataclass(frozen=True)
class _Box:
    """Where something is drawn, in pixels; y points down."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float) -> "_Box":
        """Return the box of a mark."""
        return cls(x - MARK_PX, y - MARK_PX, x + MARK_PX, y + MARK_PX)

    def overlap(self, other: "_Box") -> float:
        """Return the area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def _place(name: str, *, x: float, y: float, taken: list[_Box]) -> _Box:
    """Return where a label covers nothing, or else the least: beside its mark, above or below it, then farther off."""
    width, height = LABEL_PX * 0.6 * len(name), LABEL_PX + 2.0
    lefts = (x + MARK_PX + 3, x - MARK_PX - 3 - width, x - width / 2)
    offsets = [(left, y - height / 2) for left in lefts[:2]]
    for rows in (1.0, 1.8, 2.6):
        offsets += [
            (left, y - height / 2 + sign * rows * height) for sign in (-1, 1) for left in (lefts[2], *lefts[:2])
        ]
    boxes = [_Box(left, top, left + width, top + height) for left, top in offsets]
    inside = [box for box in boxes if box.left > LEFT and box.top > TOP - 18 and box.bottom < HEIGHT - BOTTOM]
    return min(inside or boxes, key=lambda box: sum(box.overlap(other) for other in taken))


def _legend() -> list[str]:
    lines: list[str] = []
    for place, (engine, colour) in enumerate(COLOURS.items()):
        y = TOP + 10 + 22 * place
        lines.append(f'<circle cx="{WIDTH - RIGHT + 20}" cy="{y}" r="6" fill="{colour}"/>')
        lines.append(f'<text x="{WIDTH - RIGHT + 33}" y="{y + 4}">{LABELS.get(engine, engine)}</text>')
    return lines
