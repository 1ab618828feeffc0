# SPDX-License-Identifier: Apache-2.0
"""What the verbs' command lines have in common: one line for wrong usage, and the options that each of them takes."""

import argparse
from typing import Any, NoReturn

from .engine import COMPUTE_CHOICES, parse_device
from .printable import printable


class OptionParser(argparse.ArgumentParser):
    """A parser that takes no abbreviated options and says what is wrong in one line; exit code 2."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and leave."""
        self.exit(2, wrong_usage(self.prog, message) + "\n")


def wrong_usage(program: str, message: str) -> str:
    """Return the line that is printed before leaving with 2."""
    return f"{program}: wrong usage: {printable(' '.join(message.split()))} (see {program} --help)"


def add_run_options(parser: argparse.ArgumentParser, *, compute: str = "auto") -> None:
    """Add what every verb that runs graphs understands.

    Args:
        parser: gets --device, --compute, --threads and those of `add_print_options`.
        compute: default precision.
    """
    parser.add_argument(
        "--device",
        type=device,
        default="cpu",
        help="cpu, onnxruntime:CPU, cuda:N, openvino:CPU|GPU|NPU or auto (default: cpu)",
    )
    parser.add_argument(
        "--compute", default=compute, choices=COMPUTE_CHOICES, help=f"arithmetic precision (default: {compute})"
    )
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="all engines together use at most N (default: the cores this process may use)",
    )
    add_print_options(parser)


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """Add what every verb that opens a session understands: `add_run_options`, --place and --allow-fallback."""
    add_run_options(parser)
    parser.add_argument(
        "--place",
        type=place,
        default={},
        metavar="NAME=DEVICE[,...]",
        help="subnetworks or graphs that run elsewhere: dit=cuda:0,vae_decoder=openvino:GPU",
    )
    parser.add_argument(
        "--allow-fallback",
        action="store_true",
        help="let the best CPU engine take over where a device can't be had (default: an error)",
    )


def session_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `AvatarSession.open` is given of the options of `add_session_options`."""
    return {
        "device": arguments.device,
        "threads": arguments.threads,
        "compute": arguments.compute,
        "place": arguments.place,
        "allow_fallback": arguments.allow_fallback,
    }


def add_print_options(parser: argparse.ArgumentParser) -> None:
    """Add what every verb understands."""
    parser.add_argument("--json", action="store_true", help="print results for machines")
    parser.add_argument("--progress", action="store_true", help="show progress even where stderr is no terminal")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def device(text: str) -> str:
    """Read a device; it stays text."""
    if text != "auto":  # resolving that one needs an engine
        try:
            parse_device(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def place(text: str) -> dict[str, str]:
    """Read NAME=DEVICE[,NAME=DEVICE]."""
    placed: dict[str, str] = {}
    for part in text.split(","):
        name, equals, where = part.partition("=")
        if not equals or not name or name in placed:
            raise argparse.ArgumentTypeError(
                f"{part!r}: expected NAME=DEVICE such as dit=cuda:0, each name once, separated by commas"
            )
        placed[name] = device(where)
    return placed


def threads(text: str) -> int:
    """Read a number of threads."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of threads, at least 1")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """Read HxW: two multiples of 16."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected HEIGHTxWIDTH such as 480x832") from None
    if height < 16 or width < 16 or height % 16 or width % 16:
        raise argparse.ArgumentTypeError(f"{text!r}: expected multiples of 16")
    return height, width
