# SPDX-License-Identifier: Apache-2.0
"""`edgereels bench`: is it live on this machine, and with how much to spare? Also `bench verify`, `bench compare`."""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime import LATENCIES, EngineReport, Stopped, VerificationError, load_speech
from ..runtime.options import OptionParser, add_session_options, session_arguments
from ..runtime.printable import printable
from .command_bench_compare import compare
from .command_bench_options import (
    add_utterance_options,
    canvas,
    compiling,
    count,
    end_line,
    engines_said,
    say_to,
    seconds,
    whole_frames,
)
from .latency_file import run_file
from .latency_pairs import verify_comparison
from .latency_recorder import SAMPLE_RATE
from .latency_run import Asked, Surroundings, run_live
from .latency_scenarios import LIVE_SCENARIOS, Plan
from .latency_streams import run_multi
from .latency_verify import verify
from .paced_sound import Samples
from .report_folder import COMPARISON, REPORT, TRACE, check_folder, report_folder, write_reports

SCENARIOS = ("file", *LIVE_SCENARIOS)
DEFAULT_S = {"file": math.inf, "paced": 600.0, "turns": math.inf, "soak": 3600.0, "multi": 60.0}
"""How long each scenario runs unless --duration says otherwise, seconds."""
DEFAULT_TURNS = 64
"""Which carry a p90."""
DEFAULT_STREAMS = 8
PROGRAM = "edgereels bench"


def main(argv: list[str]) -> int:
    """Measure, verify or compare; return 0, or 1 where a report is invalid."""
    if argv[:1] == ["verify"]:
        return _verify(argv[1:])
    if argv[:1] == ["compare"]:
        return compare(argv[1:])
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
    add_utterance_options(turns)
    others = parser.add_argument_group("soak, multi")
    others.add_argument("--pause", type=seconds, default=1.0, metavar="SECONDS", help="between utterances (default: 1)")
    others.add_argument(
        "--streams", type=count, default=DEFAULT_STREAMS, metavar="N", help=f"at most (default: {DEFAULT_STREAMS})"
    )
    add_session_options(parser)
    return parser


def _measure(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    check_folder(arguments.out, force=arguments.force)
    samples, asked = _what(arguments)
    engines: list[Mapping[str, EngineReport]] = []
    around = Surroundings(say=say_to(arguments), on_engines=engines.append)
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
    end_line(arguments)
    code = _tell(report, arguments, ran=engines_said(engines[-1], arguments.device))
    if stopped is not None:
        raise stopped
    return code


def _what(arguments: argparse.Namespace) -> tuple[Samples, Asked]:
    """Return the sound and what is to be done with it; everything is checked that can be."""
    samples = load_speech(arguments.audio)
    duration_s = arguments.duration or DEFAULT_S[arguments.scenario]
    if arguments.scenario == "file" and duration_s < math.inf:
        samples = samples[: round(duration_s * SAMPLE_RATE)]
    live = {"avatar": arguments.avatar, "canvas": canvas(arguments.canvas), "seed": arguments.seed}
    plan = Plan(
        arguments.scenario,
        duration_s=whole_frames(duration_s),
        turns=arguments.turns,
        utterance_s=whole_frames(arguments.utterance),
        push_speed=arguments.push_speed,
        pause_s=arguments.pause,
    )
    session = session_arguments(arguments) | {"on_compile": compiling(arguments)}
    asked = Asked(
        plan,
        package=arguments.package,
        session=session,
        live=live | {"latency": arguments.latency},
        audio=arguments.audio.name,
        streams=arguments.streams,
    )
    return samples, asked


def _tell(report: dict[str, Any], arguments: argparse.Namespace, *, ran: str) -> int:
    """Print the finding, and what ran on what; return the exit code."""
    validity = report["validity"]
    if arguments.json:
        print(json.dumps(report))
    else:
        print(printable(report["verdict"]["sentence"]))
        print(printable(f"{validity['status']}: {arguments.out / 'report.html'}"))
        print(printable(ran))
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
