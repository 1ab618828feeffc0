# SPDX-License-Identifier: Apache-2.0
"""`edgereels bench`: is it live on this machine, and with how much to spare? Also `bench verify`, `bench compare`."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from ..runtime import LATENCIES, Stopped, VerificationError, load_speech
from ..runtime.options import OptionParser, add_run_options, add_session_options, session_arguments
from ..runtime.printable import printable
from .latency_compare import LEAST_PAIRS
from .latency_file import run_file
from .latency_pairs import read_recipe, run_compare, verify_comparison
from .latency_recorder import SAMPLE_RATE
from .latency_run import Asked, Say, Surroundings, run_live, run_multi
from .latency_scenarios import LIVE_SCENARIOS, Plan
from .latency_verify import verify
from .paced_sound import Samples
from .report_folder import COMPARISON, REPORT, TRACE, check_folder, report_folder, write_reports

SCENARIOS = ("file", *LIVE_SCENARIOS)
DEFAULT_S = {"file": math.inf, "paced": 600.0, "turns": math.inf, "soak": 3600.0, "multi": 60.0}
"""How long each scenario runs unless --duration says otherwise, seconds."""
DEFAULT_TURNS = 64
"""Which carry a p90."""
DEFAULT_STREAMS = 8
FRAME_S = 0.04
PROGRAM = "edgereels bench"


def main(argv: list[str]) -> int:
    """Measure, verify or compare; return 0, or 1 where a report is invalid."""
    if argv[:1] == ["verify"]:
        return _verify(argv[1:])
    if argv[:1] == ["compare"]:
        return _compare(argv[1:])
    return _measure(argv)


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog=PROGRAM,
        description="Measure a session against the clock. DIR gets trace.jsonl, report.json and report.html. Exit code "
        "1 where the report is invalid; a missed deadline is a finding. Also: bench verify DIR, bench compare A B.",
    )
    parser.add_argument(
        "--scenario",
        required=True,
        choices=SCENARIOS,
        help="file: a whole clip as fast as it goes; paced: one live stream; turns: from the first sound to the first "
        "moving frame, the session idling; soak: hours; multi: the largest number of streams without a miss",
    )
    parser.add_argument("--audio", type=Path, required=True, metavar="FILE", help="speech; repeated as often as needed")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for trace and reports")
    parser.add_argument("--force", action="store_true", help="replace a report that exists")
    parser.add_argument(
        "--duration",
        type=seconds,
        metavar="SECONDS",
        help="of speech: paced 600, soak 3600, multi 60 for each number of streams; file: of the clip (default: all); "
        "turns: at most so long (default: until all turns are done)",
    )
    parser.add_argument("--package", default="default", metavar="P", help="package folder (default: the embedded one)")
    parser.add_argument("--avatar", metavar="A", help="avatar file, or the name of an avatar inside the package")
    parser.add_argument(
        "--canvas", choices=("on", "off"), help="show the avatar's whole still (default: if there is one)"
    )
    parser.add_argument("--latency", choices=LATENCIES, default="balanced", help="default: balanced; not for file")
    parser.add_argument("--seed", type=int, help="seed of the random draws (default: 42)")
    turns = parser.add_argument_group("turns")
    turns.add_argument("--turns", type=count, default=DEFAULT_TURNS, metavar="N", help=f"default: {DEFAULT_TURNS}")
    _add_utterance_options(turns)
    others = parser.add_argument_group("soak, multi")
    others.add_argument("--pause", type=seconds, default=1.0, metavar="SECONDS", help="between utterances (default: 1)")
    others.add_argument(
        "--streams", type=count, default=DEFAULT_STREAMS, metavar="N", help=f"at most (default: {DEFAULT_STREAMS})"
    )
    add_session_options(parser)
    return parser


def _add_utterance_options(parser: Any) -> None:
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


def _measure(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    check_folder(arguments.out, force=arguments.force)
    samples, asked = _what(arguments)
    around = Surroundings(say=_say(arguments))
    runs = {"file": run_file, "multi": run_multi}
    stopped: Stopped | None = None
    with report_folder(arguments.out, force=arguments.force) as folder:
        try:
            runs.get(arguments.scenario, run_live)(asked, samples, folder, around)
        except Stopped as asked_to_end:
            if not (folder / TRACE).exists():  # nothing was measured yet
                raise
            stopped = asked_to_end
        report = write_reports(folder)
    _end_line(arguments)
    code = _tell(report, arguments)
    if stopped is not None:
        raise stopped
    return code


def _what(arguments: argparse.Namespace) -> tuple[Samples, Asked]:
    """Return the sound and what is to be done with it; everything is checked that can be."""
    samples = load_speech(arguments.audio)
    duration_s = arguments.duration or DEFAULT_S[arguments.scenario]
    if arguments.scenario == "file" and duration_s < math.inf:
        samples = samples[: round(duration_s * SAMPLE_RATE)]
    live = {"avatar": arguments.avatar, "canvas": _canvas(arguments.canvas), "seed": arguments.seed}
    plan = Plan(
        arguments.scenario,
        duration_s=whole_frames(duration_s),
        turns=arguments.turns,
        utterance_s=whole_frames(arguments.utterance),
        push_speed=arguments.push_speed,
        pause_s=arguments.pause,
    )
    session = session_arguments(arguments) | {"on_compile": _on_compile(arguments)}
    asked = Asked(
        plan,
        package=arguments.package,
        session=session,
        live=live | {"latency": arguments.latency},
        audio=arguments.audio.name,
        streams=arguments.streams,
    )
    return samples, asked


def whole_frames(length_s: float) -> float:
    """Return a length in whole frames, at least one: what a session adds to fill a frame is none of the sound's."""
    return length_s if math.isinf(length_s) else max(1, round(length_s / FRAME_S)) * FRAME_S


def _canvas(word: str | None) -> bool | None:
    return {"on": True, "off": False, None: None}[word]


def _tell(report: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Print the finding; return the exit code."""
    validity = report["validity"]
    if arguments.json:
        print(json.dumps(report))
    else:
        print(printable(report["verdict"]["sentence"]))
        print(printable(f"{validity['status']}: {arguments.out / 'report.html'}"))
    if validity["status"] == "invalid":
        why = "; ".join(validity["reasons"])
        print(printable(f"{PROGRAM}: the report is invalid: {why}"), file=sys.stderr)
        return 1
    return 0


# ── Verifying ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _verify(argv: list[str]) -> int:
    parser = OptionParser(
        prog=f"{PROGRAM} verify", description="Compute every figure of a report again from its trace; 1 if one differs."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what bench wrote")
    parser.add_argument("--json", action="store_true", help="print results for machines")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    if (folder / COMPARISON).is_file():
        agree = verify_comparison(folder / COMPARISON)
    else:
        for name in (TRACE, REPORT):
            if not (folder / name).is_file():
                raise VerificationError(f"{folder} holds no {name}; expected a folder that bench wrote")
        agree = verify(folder / TRACE, folder / REPORT)
    print(json.dumps({"agree": agree}) if arguments.json else f"{agree} figures of {folder} follow from its trace")
    return 0


# ── Comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _compare(argv: list[str]) -> int:
    parser = OptionParser(
        prog=f"{PROGRAM} compare",
        description="Compare two recipes of settings, interleaved in one run, after the noise of this machine. A "
        "recipe is a JSON file or text such as device=openvino:CPU,latency=low; what it leaves out the options say.",
    )
    parser.add_argument("first", metavar="A", help="recipe")
    parser.add_argument("second", metavar="B", help="recipe")
    parser.add_argument("--audio", type=Path, required=True, metavar="FILE", help="speech")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for comparison.json")
    parser.add_argument("--force", action="store_true", help="replace a comparison that exists")
    parser.add_argument(
        "--pairs", type=count, default=LEAST_PAIRS, metavar="N", help=f"default, and least for a verdict: {LEAST_PAIRS}"
    )
    parser.add_argument("--package", default="default", metavar="P", help="package folder (default: the embedded one)")
    parser.add_argument("--avatar", metavar="A", help="avatar file, or the name of an avatar inside the package")
    parser.add_argument("--canvas", choices=("on", "off"), default="off", help="default: off")
    parser.add_argument("--latency", choices=LATENCIES, default="low", help="default: low")
    parser.add_argument("--seed", type=int, help="seed of the random draws (default: 42)")
    _add_utterance_options(parser)
    add_run_options(parser)
    arguments = parser.parse_args(argv)
    check_folder(arguments.out, force=arguments.force)
    names = ("package", "avatar", "latency", "seed", "device", "threads", "compute")
    defaults = {name: getattr(arguments, name) for name in names} | {"canvas": _canvas(arguments.canvas)}
    first, second = (read_recipe(text, defaults=defaults) for text in (arguments.first, arguments.second))
    samples = load_speech(arguments.audio)
    with report_folder(arguments.out, force=arguments.force) as folder:
        found = run_compare(
            first,
            second,
            samples,
            pairs=arguments.pairs,
            length_s=whole_frames(arguments.utterance),
            speed=arguments.push_speed,
            around=Surroundings(say=_say(arguments)),
        )
        (folder / COMPARISON).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _end_line(arguments)
    print(json.dumps(found) if arguments.json else printable(found["sentence"]))
    return 0


# ── Words and progress ───────────────────────────────────────────────────────────────────────────────────────────────


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


def _say(arguments: argparse.Namespace) -> Say:
    if not _is_shown(arguments):
        return lambda _text: None
    return lambda text: print(text.ljust(70), end="\r", file=sys.stderr, flush=True)


def _on_compile(arguments: argparse.Namespace) -> Any:
    say = _say(arguments)
    return lambda done, total, graph: say(f"compiled {done}/{total} graphs, now {graph}")


def _end_line(arguments: argparse.Namespace) -> None:
    """Leave the line that progress was written over."""
    if _is_shown(arguments):
        print(file=sys.stderr)
