# SPDX-License-Identifier: Apache-2.0
"""The one command, `edgereels`: finds the verb's room through the entry points `edgereels.commands` and calls it.

Exit codes: 0 done; 1 an error of our own, a missed gate, a mismatch; 2 wrong usage; 130 after Ctrl-C, which leaves
nothing behind; 0 after SIGTERM, which leaves what was rendered so far as shorter, whole files.
"""

import io
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from types import FrameType

from . import __version__
from .engine import end_runs
from .errors import EdgereelsError, MissingExtraError, Stopped, UsageError
from .options import wrong_usage
from .printable import printable

COMMAND_GROUP = "edgereels.commands"
SUMMARIES = {
    "export": "checkpoint in, package out",
    "inspect": "say what a package holds",
    "verify": "check digests and golden vectors on a device",
    "quantize": "store and compute a package in fewer bits, and prove the cost",
    "avatar": "prepare one identity for a package",
    "render": "sound and a face in, video out",
    "live": "sound in while video comes out: microphone, file or pipe; window, speakers or file",
    "bench": "measure how late frames are, and show it",
    "plan": "say which live settings this machine can hold",
    "demo": "render a bundled clip with the embedded avatar",
    "doctor": "say whether a package can run here, on what, and what would be faster",
}


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Answer SIGTERM: unwind so that every file is finished; a second signal ends the process where it is."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Stopped


class _HeldWarnings(logging.Handler):
    """Keeps warnings until a verb has ended well; beside an error they would be a second line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal can't show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
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
    """Call a verb; print what it warned of where it ended well."""
    held = _HeldWarnings()
    logger = logging.getLogger("edgereels")
    logger.addHandler(held)
    try:
        with _signals_answered():
            code = _call(verb, arguments)
    finally:
        logger.removeHandler(held)
    if code == 0:
        for line in held.lines:
            print(f"edgereels {verb.name}: warning: {printable(line)}", file=sys.stderr)
    return code


@contextmanager
def _signals_answered() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, and both of them end a graph that is running.

    Python calls signal handlers on the main thread, and not before a native call returns, which can take minutes. The
    number of a signal is written into a socket at once, though; a thread waits there and ends the run.
    """
    if threading.current_thread() is not threading.main_thread():  # others may not set signal handlers
        yield
        return
    near, far = socket.socketpair()
    far.setblocking(False)
    previous = signal.signal(signal.SIGTERM, _stop), signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_runs_on_signals, args=(near,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous[1])
        signal.signal(signal.SIGTERM, previous[0])
        far.close()
        watcher.join()
        near.close()


def _end_runs_on_signals(near: socket.socket) -> None:
    while numbers := near.recv(16):
        if {signal.SIGINT, signal.SIGTERM} & set(numbers):
            end_runs()


def _call(verb: EntryPoint, arguments: list[str]) -> int:
    """Call a verb and turn what it raises into a line and an exit code."""
    debug = "--debug" in arguments
    try:
        call: Callable[[list[str]], int] = _load(verb)
        return call([argument for argument in arguments if argument != "--debug"])
    except BrokenPipeError:  # whoever read our output has left
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for what Python flushes at exit)
        return 1
    except UsageError as error:
        if debug:
            raise
        print(wrong_usage(f"edgereels {verb.name}", str(error)), file=sys.stderr)
        return 2
    except (EdgereelsError, OSError, MemoryError) as error:
        if debug:
            raise
        print(f"edgereels {verb.name}: {_line(error)}", file=sys.stderr)
        return 1
    except SystemExit as exit_:  # argparse: 0 after --help, 2 after wrong usage
        return exit_.code if isinstance(exit_.code, int) else 2
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"edgereels {verb.name}: interrupted", file=sys.stderr)
        return 130
    except Stopped:
        return 0


def _line(error: Exception) -> str:
    """Return one line for an error, whatever its text holds."""
    if isinstance(error, MemoryError):
        return f"not enough memory ({str(error) or 'no more to be had'}): ask for a smaller size or window"
    return printable(" ".join(str(error).split()))


def _load(verb: EntryPoint) -> Callable[[list[str]], int]:
    """Import the verb's room."""
    try:
        return verb.load()
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("edgereels"):
            raise
        extra = {"export": "export", "quantize": "quant"}.get(verb.name, "cpu")
        raise MissingExtraError(str(error.name), extra=extra, purpose=f"edgereels {verb.name}") from error


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
