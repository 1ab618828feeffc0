# SPDX-License-Identifier: Apache-2.0
"""Progress of the verbs that run a session: one line on stderr, on a terminal or where it was asked for."""

import argparse
import sys

from .placement import OnCompile
from .session import Progress


def frames_progress(arguments: argparse.Namespace) -> Progress | None:
    """Return what shows how many frames are written, or None where nothing is shown."""
    return _frames_line if _is_shown(arguments) else None


def compile_progress(arguments: argparse.Namespace) -> OnCompile | None:
    """Return what shows how many graphs are compiled, which happens once on a machine; None as above."""
    return _compile_line if _is_shown(arguments) else None


def _is_shown(arguments: argparse.Namespace) -> bool:
    return arguments.progress or sys.stderr.isatty()


def _frames_line(done: int, total: int) -> None:
    _rewrite(f"{done}/{total} frames", is_last=done == total)


def _compile_line(done: int, total: int, graph: str) -> None:
    is_last = done == total
    _rewrite(f"compiled {done}/{total} graphs{'' if is_last else f', now {graph}'}".ljust(70), is_last=is_last)


def _rewrite(text: str, *, is_last: bool) -> None:
    # back to the line's start at once, so that an error does not begin in its middle
    print(text, end="\n" if is_last else "\r", file=sys.stderr, flush=True)
