# SPDX-License-Identifier: Apache-2.0
"""What the forms of `edgereels bench` have in common: words of the command line, and progress."""

import argparse
import math
import sys
from collections.abc import Mapping
from typing import Any

from ..runtime import EngineReport
from ..runtime.report import engines_line
from .latency_run import Say

FRAME_S = 0.04
"""Of video, seconds."""


def add_utterance_options(parser: Any) -> None:
    """Add --utterance and --push-speed."""
    parser.add_argument(
        "--utterance", type=seconds, default=3.0, metavar="SECONDS", help="of speech in each turn (default: 3)"
    )
    parser.add_argument(
        "--push-speed",
        type=seconds,
        default=5.0,
        metavar="X",
        help="seconds of sound pushed per second; 1 is a microphone (default: 5)",
    )


def canvas(word: str | None) -> bool | None:
    """Return what a session is told for a word of the command line."""
    return {"on": True, "off": False, None: None}[word]


def whole_frames(length_s: float) -> float:
    """Return a length in whole frames, at least one: what a session adds to fill a frame is none of the sound's."""
    return length_s if math.isinf(length_s) else max(1, round(length_s / FRAME_S)) * FRAME_S


def seconds(text: str) -> float:
    """Read a length or a speed above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def count(text: str) -> int:
    """Read a count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return int(text)


def _is_shown(arguments: argparse.Namespace) -> bool:
    return arguments.progress or sys.stderr.isatty()


def say_to(arguments: argparse.Namespace) -> Say:
    """Return what shows progress, on one line; nothing where nobody watches."""
    if not _is_shown(arguments):
        return lambda _text: None
    return lambda text: print(text.ljust(70), end="\r", file=sys.stderr, flush=True)


def compiling(arguments: argparse.Namespace) -> Any:
    """Return what shows how many graphs are compiled."""
    say = say_to(arguments)
    return lambda done, total, graph: say(f"compiled {done}/{total} graphs, now {graph}")


def engines_said(engines: Mapping[str, EngineReport], device: str) -> str:
    """Return what runs on what, and the device that was asked for, as the other verbs say it."""
    return f"{engines_line(engines)}; asked for {device}"


def end_line(arguments: argparse.Namespace) -> None:
    """Leave the line that progress was written over."""
    if _is_shown(arguments):
        print(file=sys.stderr)
