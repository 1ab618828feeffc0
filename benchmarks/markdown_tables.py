# SPDX-License-Identifier: Apache-2.0
"""Figures as text, and tables of them in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures and stand right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---", *["--:"] * (len(header) - 1)]) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


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
