# SPDX-License-Identifier: Apache-2.0
"""Measure whether a package keeps up with its own video: encode, DiT, decode and colour, per emitted frame.

    python -m train_avatar.speed --package P

Two settings, one step each: `balanced` is the package's own windows, `low` answers sooner and repeats more. Every run
renders each engine and setting once, in a new order. Printed is the time of the four stages in the windows between the
first and the last over the time that their new frames are shown; beside it the wall time of the whole clip, key-frame
pass included. Then the same on OpenVINO with its instructions capped to AVX2, in a process of its own.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgereels.benchmarks.sound import emulable
from edgereels.runtime import AvatarSession, Trace, processor_name

from .footage import FPS
from .held_out_speech import held_out_clips

SETTINGS: dict[str, dict[str, int]] = {
    "balanced": {"window": 33, "motion": 5, "drop": 4, "steps": 1},
    "low": {"window": 17, "motion": 5, "drop": 0, "steps": 1},
}
LIMITS = {"balanced": 0.7, "low": 0.95}
"""Highest real-time factor on two cores."""
DEVICES = ("onnxruntime:CPU", "openvino:CPU")
STAGES = ("vae_encode", "dit", "vae_decode", "finish")
CAPPED_LENGTHS_S = (8.0, 6.0, 4.0, 5.0, 7.0)
"""Lengths of sound tried under the cap: OpenVINO ends the process at some, where the processor has more than AVX2."""

Samples = npt.NDArray[np.float32]


@dataclass
class Case:
    """One engine with one setting, and what it took, a value per run."""

    device: str
    setting: str
    provider: str = ""
    stages: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """Seconds per second of video, by stage, between the first and the last window."""
    whole: list[float] = field(default_factory=list[float])
    """Wall time over media time of the whole clip."""

    @property
    def totals(self) -> list[float]:
        """Return the stages' sums."""
        return [sum(each.values()) for each in self.stages]

    def as_dict(self) -> dict[str, Any]:
        """Return figures with count and spread."""
        return {
            "device": self.device,
            "setting": self.setting,
            "provider": self.provider,
            "n": len(self.stages),
            "real_time_factor": _spread(self.totals),
            "whole_clip": _spread(self.whole),
            "stages": {stage: _spread([each[stage] for each in self.stages]) for stage in STAGES},
            "limit": LIMITS[self.setting],
            "met": statistics.median(self.totals) <= LIMITS[self.setting],
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def steady_stages(events: Sequence[dict[str, Any]], *, stride_s: float) -> dict[str, float]:
    """Return seconds per second of video by stage, over the windows between the first and the last.

    Args:
        events: of a trace.
        stride_s: of video that each of these windows adds.

    Raises:
        ValueError: there are fewer than three windows.
    """
    passes = {event["pass_index"] for event in events if event["event"] == "dit"}
    inner = sorted(passes - {0})[1:-1]
    if not inner:
        raise ValueError(f"{len(passes)} passes; expected a key-frame pass and three windows: give longer sound")
    took = dict.fromkeys(STAGES, 0.0)
    for event in events:
        if event["event"] in took and event.get("pass_index") in inner:
            took[event["event"]] += event["end_s"] - event["start_s"]
    return {stage: seconds / (len(inner) * stride_s) for stage, seconds in took.items()}


def run_once(session: AvatarSession, case: Case, sound: Samples, *, keep: bool) -> None:
    """Render the clip once."""
    setting, trace, media_s = SETTINGS[case.setting], Trace(), 0.0
    for chunk in session.stream(audio=sound, trace=trace, canvas=False, **setting):
        media_s = chunk.stop_s
    if not keep:
        return
    stride = setting["window"] - setting["motion"] - setting["drop"]
    case.stages.append(steady_stages(trace.events, stride_s=stride / FPS))
    first_s = min(event["start_s"] for event in trace.events if event["event"] == "dit")
    case.whole.append((trace.events[-1]["end_s"] - first_s) / media_s)


def measure(package: str, devices: Sequence[str], sound: Samples, *, runs: int, threads: int) -> list[Case]:
    """Measure every engine and setting, interleaved, after a round that isn't counted."""
    cases = [Case(device, setting) for device in devices for setting in SETTINGS]
    with ExitStack() as stack:
        sessions = {
            device: stack.enter_context(AvatarSession.open(package, device=device, threads=threads))
            for device in devices
        }
        order = random.Random(0)
        for run in range(runs + 1):
            for case in order.sample(cases, len(cases)):
                run_once(sessions[case.device], case, sound, keep=run > 0)
                case.provider = " ".join(sessions[case.device].engines["dit"])
            print(f"run {run} of {runs}", file=sys.stderr, flush=True)
    return cases


def measure_capped(package: str, *, runs: int, threads: int) -> dict[str, Any]:
    """Measure OpenVINO in a process that is capped to AVX2; try other lengths of sound where it dies."""
    died: list[float] = []
    for seconds in CAPPED_LENGTHS_S:
        command = [sys.executable, "-m", __spec__.name, "--package", package, "--device", "openvino:CPU", "--json"]
        command += ["--seconds", str(seconds), "--runs", str(runs), "--threads", str(threads), "--uncapped-only"]
        done = subprocess.run(
            command, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=False
        )
        try:
            cases = json.loads(done.stdout)["cases"]
        except json.JSONDecodeError:
            died.append(seconds)
            print(f"capped, {seconds:g} s of sound: ended with {done.returncode}", file=sys.stderr, flush=True)
            continue
        return {"seconds": seconds, "died_at_s": died, "cases": cases}
    return {"seconds": None, "died_at_s": died, "cases": []}


def describe(cases: Sequence[dict[str, Any]]) -> str:
    """Return a table."""
    lines = [f"{'ran on':34} {'setting':9} {'n':>2} {'median':>7} {'min':>6} {'max':>6}  limit  met  "
             f"{'  '.join(STAGES)}  whole clip"]  # fmt: skip
    for case in cases:
        factor = case["real_time_factor"]
        stages = "  ".join(f"{case['stages'][stage]['median']:{len(stage)}.3f}" for stage in STAGES)
        who = f"{case['device']} {case['provider']}"
        lines.append(
            f"{who:34.34} {case['setting']:9} {case['n']:2} {factor['median']:7.3f} "
            f"{factor['min']:6.3f} {factor['max']:6.3f}  {case['limit']:5.2f}  {'yes' if case['met'] else 'NO ':3}  "
            f"{stages}  {case['whole_clip']['median']:.3f}"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--device", action="append", help=f"repeatable (default: {' and '.join(DEVICES)})")
    parser.add_argument("--seconds", type=float, default=8.0, help="of speech (default: 8)")
    parser.add_argument("--runs", type=int, default=7, help="measured runs (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--uncapped-only", action="store_true", help="leave out the rows capped to AVX2")
    parser.add_argument("--json", action="store_true", help="print for machines")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit 1 where no engine keeps a setting's limit."""
    chosen = _parser().parse_args(arguments)
    sound = emulable(held_out_clips("flite", count=1, duration_s=chosen.seconds)[0].waveform)
    devices = chosen.device or list(DEVICES)
    cases = [
        case.as_dict() for case in measure(chosen.package, devices, sound, runs=chosen.runs, threads=chosen.threads)
    ]
    result: dict[str, Any] = {"machine": processor_name(), "threads": chosen.threads, "cases": cases}
    if not chosen.uncapped_only:
        result["capped_to_avx2"] = measure_capped(chosen.package, runs=chosen.runs, threads=chosen.threads)
    if chosen.json:
        print(json.dumps(result))
    else:
        print(f"{result['machine']}, {chosen.threads} threads, {len(sound) / 16000:.2f} s of speech")
        print(describe(cases))
        if not chosen.uncapped_only:
            capped = result["capped_to_avx2"]
            print(
                f"\nONEDNN_MAX_CPU_ISA=AVX2, {capped['seconds']} s of speech; the process died at {capped['died_at_s']}"
            )
            print(describe(capped["cases"]))
    best = {name: [case["met"] for case in cases if case["setting"] == name] for name in SETTINGS}
    return 0 if all(any(met) for met in best.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
