# SPDX-License-Identifier: Apache-2.0
"""The one command, `edgereels`: finds the verb's room through the entry points `edgereels.commands` and calls it.

Exit codes: 0 done; 1 an error of our own, a missed gate, a mismatch; 2 wrong usage; 130 after Ctrl-C; 0 after SIGTERM
with all files closed.
"""

import signal
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import FrameType

from . import __version__
from .errors import EdgereelsError, MissingExtraError

COMMAND_GROUP = "edgereels.commands"
SUMMARIES = {
    "export": "checkpoint in, package out",
    "inspect": "say what a package holds",
    "verify": "check digests and golden vectors on a device",
    "avatar": "prepare one identity for a package",
    "render": "sound and a face in, video out",
    "demo": "render a bundled clip with the embedded avatar",
}


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C so that every file is closed."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs = {entry.name: entry for entry in entry_points(group=COMMAND_GROUP)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(verbs))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"edgereels {__version__}")
        return 0
    if arguments[0] not in verbs:
        print(
            f"edgereels: {arguments[0]!r} is not a verb; expected one of {', '.join(verbs)}: see edgereels --help",
            file=sys.stderr,
        )
        return 2
    return _run(verbs[arguments[0]], arguments[1:])


def _run(verb: EntryPoint, arguments: list[str]) -> int:
    """Call a verb and turn what it raises into a line and an exit code."""
    debug = "--debug" in arguments
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        call: Callable[[list[str]], int] = _load(verb)
        return call([argument for argument in arguments if argument != "--debug"])
    except EdgereelsError as error:
        if debug:
            raise
        print(f"edgereels {verb.name}: {error}", file=sys.stderr)
        return 1
    except SystemExit as exit_:  # argparse: 0 after --help, 2 after wrong usage
        return exit_.code if isinstance(exit_.code, int) else 2
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"edgereels {verb.name}: interrupted", file=sys.stderr)
        return 130
    except _Terminated:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _load(verb: EntryPoint) -> Callable[[list[str]], int]:
    """Import the verb's room."""
    try:
        return verb.load()
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("edgereels"):
            raise
        raise MissingExtraError(
            str(error.name), extra="export" if verb.name == "export" else "cpu", purpose=f"edgereels {verb.name}"
        ) from error


def _help(verbs: dict[str, EntryPoint]) -> str:
    lines = [
        "usage: edgereels VERB ...",
        "",
        "A talking-avatar model as ONNX graphs: export it, check it, stream it.",
        "",
    ]
    lines += [f"  {name:9} {SUMMARIES.get(name, '')}" for name in verbs]
    return "\n".join([*lines, "", "edgereels VERB --help lists a verb's options."])


if __name__ == "__main__":
    sys.exit(main())
