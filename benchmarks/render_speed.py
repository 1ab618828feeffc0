# SPDX-License-Identifier: Apache-2.0
"""How fast packages render here: the same clip, packages, devices and settings interleaved in one run.

    python -m edgereels.benchmarks.render_speed --package before.edgereels --package default --audio speech.wav \
        --device onnxruntime:CPU --device openvino:CPU --runs 7 --setting window=33 --setting window=33,steps=4

Every run renders each case once, in a new order; a ratio pairs the runs of two cases, so that a machine that slows
down half-way slows both. Printed: median real-time factor with its smallest and largest value, the ratio to the case
that has the first package instead, or for that package the first device, or on that the first setting; and where the
time went. The first, unmeasured round warms caches.
"""

import argparse
import json
import random
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..runtime import AvatarSession, Trace, processor_name

STAGES = ("vae_encode", "dit", "vae_decode", "finish")


@dataclass
class Measured:
    """What one case took, a value per run."""

    session: AvatarSession
    """The package on the device."""
    package: str
    """What the package was asked for as."""
    device: str
    """What the device was asked for as."""
    settings: dict[str, Any]
    """Arguments of `AvatarSession.stream`."""
    real_time_factors: list[float] = field(default_factory=list[float])
    """Wall time from the first denoising step to the last chunk, over media time."""
    stage_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Seconds per second of video, by stage."""

    @property
    def name(self) -> str:
        """Package, device and setting, for people."""
        named = ",".join(f"{name}={value}" for name, value in self.settings.items()) or "default"
        return f"{Path(self.package).name} {self.device} {named}"

    def as_dict(self) -> dict[str, Any]:
        """Return figures with count and spread, and what ran."""
        provider, precision = self.session.engines["dit"]
        return {
            "package": self.package,
            "digest": self.session.package.digest,
            "device": self.device,
            "provider": provider,
            "precision": precision,
            "settings": self.settings,
            "n": len(self.real_time_factors),
            "real_time_factor": spread(self.real_time_factors),
            "stages": {stage: spread(values) for stage, values in self.stage_s.items()},
        }


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def parse_setting(text: str) -> dict[str, Any]:
    """Read `window=33,steps=4`; "default" is the package's own."""
    if text == "default":
        return {}
    pairs = (part.split("=", 1) for part in text.split(","))
    return {name: float(value) if "." in value else int(value) for name, value in pairs}


def render_once(case: Measured, audio: Path) -> None:
    """Render the clip once and append what it took."""
    trace = Trace()
    media_s = 0.0
    for chunk in case.session.stream(audio=audio, trace=trace, canvas=False, **case.settings):
        media_s = chunk.stop_s
    first_s = min(event["start_s"] for event in trace.events if event["event"] == "dit")
    case.real_time_factors.append((trace.events[-1]["end_s"] - first_s) / media_s)
    for stage in STAGES:
        case.stage_s.setdefault(stage, []).append(trace.total_s(stage) / media_s)


def measure(cases: list[Measured], audio: Path, *, runs: int) -> None:
    """Render every case `runs` times, interleaved, after one round that is thrown away."""
    for case in cases:
        render_once(replace(case, real_time_factors=[], stage_s={}), audio)
    order = random.Random(0)
    for run in range(runs):
        for case in order.sample(cases, len(cases)):
            render_once(case, audio)
        print(f"run {run + 1} of {runs}", file=sys.stderr)


def baseline(case: Measured, cases: list[Measured]) -> Measured:
    """Return what a case is compared with: one that differs in the package alone, or in the device, or the setting."""
    first = cases[0]
    if case.package != first.package:
        wanted = (first.package, case.device, case.settings)
    elif case.device != first.device:
        wanted = (first.package, first.device, case.settings)
    else:
        wanted = (first.package, first.device, first.settings)
    return next(other for other in cases if (other.package, other.device, other.settings) == wanted)


def describe(cases: list[Measured]) -> str:
    """Return a table: case, what ran, count, real-time factor with spread, paired ratio, seconds by stage."""
    width = max(len(case.name) for case in cases)
    head = f"{'case':{width}} {'ran on':28} {'n':>3} {'median':>7} {'min':>6} {'max':>6} {'ratio':>6}  "
    lines = [head + "  ".join(STAGES)]
    for case in cases:
        pairs = zip(case.real_time_factors, baseline(case, cases).real_time_factors, strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        figures = spread(case.real_time_factors)
        stages = "  ".join(f"{statistics.median(case.stage_s[stage]):{len(stage)}.3f}" for stage in STAGES)
        lines.append(
            f"{case.name:{width}} {' '.join(case.session.engines['dit']):28} {len(case.real_time_factors):3} "
            f"{figures['median']:7.3f} {figures['min']:6.3f} {figures['max']:6.3f} {ratio:6.3f}  {stages}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="render_speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", action="append", help="package folder (default: the embedded one); repeatable")
    parser.add_argument("--audio", type=Path, required=True, help="speech")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each case (default: 5)")
    parser.add_argument("--setting", action="append", help="NAME=VALUE,… or default; repeatable")
    parser.add_argument("--device", action="append", help="as for render (default: cpu); repeatable")
    parser.add_argument("--threads", type=int, help="all engines together use at most this many")
    parser.add_argument("--json", action="store_true", help="print results for machines")
    arguments = parser.parse_args(argv)
    settings = [parse_setting(text) for text in arguments.setting or ["default"]]
    with ExitStack() as stack:
        cases: list[Measured] = []
        for package, device in product(arguments.package or ["default"], arguments.device or ["cpu"]):
            session = stack.enter_context(AvatarSession.open(package, device=device, threads=arguments.threads))
            cases += [Measured(session, package, device, setting) for setting in settings]
        measure(cases, arguments.audio, runs=arguments.runs)
        results = [case.as_dict() for case in cases]
        table = describe(cases)
    if arguments.json:
        print(json.dumps({"machine": processor_name(), "threads": arguments.threads, "results": results}))
    else:
        print(f"{processor_name()}, {arguments.threads or 'all'} threads\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
