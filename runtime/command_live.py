# SPDX-License-Identifier: Apache-2.0
"""`edgereels live`: sound in while video comes out."""

import argparse
import json
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from .clock import MonotonicClock
from .command_progress import compile_progress
from .errors import EdgereelsError, OutputError
from .live import Live
from .live_outputs import Output, to_file, to_window
from .live_settings import LATENCIES
from .microphone import MicrophoneSource
from .old_objects import old_objects_left_alone
from .options import OptionParser, add_session_options, session_arguments
from .playout_types import LatePolicy
from .printable import printable
from .render_files import check_targets
from .report import engines_line
from .session import AvatarSession
from .sinks import LinesSink
from .sources import Source, StdinSource, WavSource

FINISHED_WITHIN_S = 15.0
"""What a file that is behind is given at the end, where nobody is in a hurry."""


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="edgereels live",
        description="Let an avatar speak what is heard now: from a microphone, a file paced as if it were spoken, or "
        "standard input; into a window, the speakers, a file. Ends with the sound, after --duration, with its window, "
        "or with Ctrl-C.",
    )
    parser.add_argument("--package", default="default", metavar="P", help="package folder (default: the embedded one)")
    parser.add_argument("--avatar", metavar="A", help="avatar file, or the name of an avatar inside the package")
    parser.add_argument("--canvas", choices=("on", "off"), help="show the whole still (default: where there is one)")
    parser.add_argument(
        "--latency", choices=LATENCIES, default="balanced", help="windows of 17, 33 or 81 frames (default: balanced)"
    )
    parser.add_argument("--seed", type=int, help="seed of the random draws (default: 42)")
    heard = parser.add_argument_group("where sound comes from: one of").add_mutually_exclusive_group(required=True)
    heard.add_argument("--audio", type=Path, metavar="FILE", help="a sound file, paced as if it were spoken now")
    heard.add_argument(
        "--microphone", nargs="?", const="", metavar="DEVICE", help="a microphone: the default one, a number or a name"
    )
    heard.add_argument(
        "--stdin", type=int, metavar="RATE", help="raw samples on standard input: signed 16 bits, mono, this rate in Hz"
    )
    shown = parser.add_argument_group("where it goes to: any of")
    shown.add_argument("--window", action="store_true", help="a window; Escape, q or its cross ends the stream")
    shown.add_argument("--full-screen", action="store_true", help="a window over the whole screen")
    shown.add_argument(
        "--speakers",
        nargs="?",
        const="",
        metavar="DEVICE",
        help="play it: on the default device, a number or a name",
    )
    shown.add_argument("--out", type=Path, metavar="OUT.mp4", help="film it; a kill loses a second at most")
    parser.add_argument("--events", type=Path, metavar="FILE.jsonl", help="write every event (docs/embedding.md)")
    parser.add_argument(
        "--late",
        choices=[str(policy) for policy in LatePolicy],
        help="late frames: shown late, dropped, or the last one held (default: drop for a microphone, else show)",
    )
    parser.add_argument("--duration", type=float, metavar="S", help="end after so many seconds")
    add_session_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Parse, stream until it is over, say how it went."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not (arguments.window or arguments.full_screen or arguments.out or arguments.speakers is not None):
        parser.error("nowhere to go: give --window, --full-screen, --speakers, --out OUT.mp4 or several of them")
    if arguments.duration is not None and not arguments.duration > 0:
        parser.error(f"--duration is {arguments.duration:g}; expected more than 0 seconds")
    made = {"out": arguments.out, "events": arguments.events}
    targets = {name: path for name, path in made.items() if path is not None}
    is_interrupted = False
    failure: EdgereelsError | None = None
    events = _Events()
    with AvatarSession.open(
        arguments.package, on_compile=compile_progress(arguments), **session_arguments(arguments)
    ) as session:
        check_targets(targets, inputs={"audio": arguments.audio}, packages=[session.package.root])
        with ExitStack() as stack:
            if arguments.events:
                events.lines = stack.enter_context(LinesSink(arguments.events))
                stack.callback(events.finish)  # also of a stream that failed: then it is wanted most
            source = stack.enter_context(_source(arguments))
            live = stack.enter_context(
                session.live(
                    latency=arguments.latency,
                    avatar=arguments.avatar,
                    canvas={"on": True, "off": False, None: None}[arguments.canvas],
                    seed=arguments.seed,
                    source=source,
                    outputs=_outputs(arguments),
                    speakers=False if arguments.speakers is None else _device(arguments.speakers, default=True),
                    late=_late(arguments),
                    on_event=events.note,
                )
            )
            stack.enter_context(old_objects_left_alone())
            print(f"live: {live.latency}", file=sys.stderr, flush=True)
            try:
                live.wait_over(arguments.duration)
                live.stop(within_s=FINISHED_WITHIN_S)
            except KeyboardInterrupt:  # how a stream without an end is ended: what it filmed and told is kept
                live.stop()
                is_interrupted = True
            except EdgereelsError as error:  # so is what it filmed and told until it failed
                live.stop()
                failure = error
            report = _report(live, session, events.counted)
    if failure is not None:
        raise failure
    print(json.dumps(report) if arguments.json else _describe(report, arguments, failed=events.failed))
    if is_interrupted:
        return 130
    return 1 if events.failed else 0


class _Events:
    """Takes events from any thread: counts them, writes them, says the important ones on stderr."""

    SAID = frozenset(
        {"state", "missing", "restored", "source_failed", "sink_failed", "sink_stuck", "chunk_lost", "too_slow"}
    )

    def __init__(self) -> None:
        self.counted = Counter[str]()
        self.failed = set[str]()
        """Outputs that broke, by name; `events` is the file of events."""
        self.lines: LinesSink | None = None
        self._lock = Lock()

    def note(self, event: dict[str, Any]) -> None:
        """Take one."""
        with self._lock:
            self.counted[str(event.get("code"))] += 1
            if event["event"] == "sink_failed":
                self.failed.add(str(event["sink"]))
            if event["event"] in self.SAID:
                print(f"live: {_said(event)}", file=sys.stderr, flush=True)
            if self.lines is not None:
                try:
                    self.lines.write(event)
                except (OSError, OutputError) as error:
                    self._fail(error)

    def finish(self) -> None:
        """Give the file its name."""
        with self._lock:
            if self.lines is not None:
                try:
                    self.lines.finish()
                except (OSError, OutputError) as error:
                    self._fail(error)
                self.lines = None

    def _fail(self, error: Exception) -> None:
        print(f"live: the file of events can't be written: {error}", file=sys.stderr, flush=True)
        self.failed.add("events")
        self.lines = None


def _said(event: dict[str, Any]) -> str:
    """Return an event as a line for people."""
    if event["event"] == "state":
        return f"{event['from']} -> {event['to']} ({event['code']})"
    left_out = ("event", "code", "at_s", "media_s")
    details = ", ".join(f"{name} {value}" for name, value in event.items() if name not in left_out)
    return printable(f"{event['event']} {event['code']}{': ' if details else ''}{details}")


def _source(arguments: argparse.Namespace) -> Source:
    clock = MonotonicClock()
    if arguments.audio is not None:
        return WavSource(arguments.audio, clock)
    if arguments.stdin is not None:
        return StdinSource(arguments.stdin, clock)
    return MicrophoneSource(clock, device=_device(arguments.microphone, default=None))


def _outputs(arguments: argparse.Namespace) -> list[Output]:
    outputs: list[Output] = []
    if arguments.window or arguments.full_screen:
        outputs.append(to_window("edgereels", full_screen=arguments.full_screen))
    if arguments.out is not None:
        outputs.append(to_file(arguments.out))
    return outputs


def _late(arguments: argparse.Namespace) -> LatePolicy | None:
    if arguments.late is not None:
        return LatePolicy(arguments.late)
    return LatePolicy.DROP if arguments.microphone is not None else None


def _device(named: str, *, default: Any) -> Any:
    """Return a device as sounddevice takes it: a number, or a part of a name."""
    if not named:
        return default
    return int(named) if named.isdecimal() else named


def _report(live: Live, session: AvatarSession, counted: Counter[str]) -> dict[str, Any]:
    return {
        "state": str(live.state),
        "latency": asdict(live.latency),
        "frames": asdict(live.counts),
        "events": dict(counted),
        "engines": engines_line(session.engine_reports),
    }


def _describe(report: dict[str, Any], arguments: argparse.Namespace, *, failed: set[str]) -> str:
    frames = report["frames"]
    made = {"file": arguments.out, "events": arguments.events}
    lines = [f"wrote {path}" for name, path in made.items() if path is not None and name not in failed]
    lines.append(
        f"{frames['shown']} frames spoken, {frames['rest']} at rest; {frames['late_chunks']} chunks late, "
        f"{frames['stalls']} stalls ({frames['stalled_s']:.2f} s), {frames['dropped']} frames dropped"
    )
    lines.append(report["engines"])
    return "\n".join(map(printable, lines))
