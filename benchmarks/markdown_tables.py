# SPDX-License-Identifier: Apache-2.0
"""Figures as text, and tables of them in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from .recipe_packages import NONE

MISSING = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of figures stand right."""
    body = [list(row) for row in rows]
    marks = ["--:" if any(_is_figure(row[at]) for row in body) else "---" for at in range(len(header))]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(marks) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def _is_figure(cell: str) -> bool:
    return cell.lstrip("+->")[:1].isdigit()


def wrapped(text: str) -> str:
    """Return Markdown with its paragraphs at 120 columns; tables, lists, headings and comments stay as they are."""
    paragraphs = (
        part if part.startswith(("|", "#", "-", "!", "<")) else fill(part, 120, break_on_hyphens=False)
        for part in text.split("\n\n")
    )
    return "\n\n".join(paragraphs)


def digits(value: float) -> str:
    """Return a figure with about three digits, without an exponent."""
    size = abs(value)
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def spread(figures: Mapping[str, float], *, unit: str = "") -> str:
    """Return "0.312 (0.301–0.340)": median, smallest and largest."""
    return f"{digits(figures['median'])}{unit} ({digits(figures['min'])}–{digits(figures['max'])})"


def times(figures: Mapping[str, float]) -> str:
    """Return a ratio with its spread: "2.10× (2.01–2.22)"."""
    return spread(figures, unit="×")


def percent(share: float) -> str:
    """Return a share in percent, whole above ten."""
    return f"{share * 100:.0f} %" if share >= 0.1 else f"{share * 100:.1f} %"


def decibels(value: Any) -> str:
    """Return a figure in decibels; what exceeds 100 is rounding noise and said so."""
    if value is None:
        return MISSING
    return f"{value:.1f}" if value < 100 else ">100"


def yes(is_met: bool) -> str:
    """Return the verdict on an aim."""
    return "met" if is_met else "**missed**"


def sentence_list(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else "none"


def named(recipe: str) -> str:
    """Return a recipe as the tables call it."""
    return "none (as exported)" if recipe == NONE else recipe
