# SPDX-License-Identifier: Apache-2.0
"""How fast a package renders here: the same clip under several settings, interleaved in one run.

    python -m edgereels.benchmarks.render_speed --package default --audio speech.wav --runs 5 \
        --setting window=33 --setting window=33,steps=4

Every run renders each setting once, in a new order; a ratio pairs the runs of two settings, so that a machine that
slows down half-way slows both. Printed: median real-time factor with its smallest and largest value, the ratio to the
first setting, and where the time went. The first, unmeasured round warms caches.
"""

import argparse
import json
import random
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime import AvatarSession, Trace, processor_name

STAGES = ("vae_encode", "dit", "vae_decode", "finish")


@dataclass
class Measured:
    """What one setting took, a value per run."""

    settings: dict[str, Any]
    """Arguments of `AvatarSession.stream`."""
    real_time_factors: list[float] = field(default_factory=list[float])
    """Wall time from the first denoising step to the last chunk, over media time."""
    stage_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Seconds per second of video, by stage."""

    def as_dict(self) -> dict[str, Any]:
        """Return figures with count and spread."""
        return {
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


def render_once(session: AvatarSession, audio: Path, measured: Measured) -> None:
    """Render the clip once and append what it took."""
    trace = Trace()
    media_s = 0.0
    for chunk in session.stream(audio=audio, trace=trace, **measured.settings):
        media_s = chunk.stop_s
    first_s = min(event["start_s"] for event in trace.events if event["event"] == "dit")
    measured.real_time_factors.append((trace.events[-1]["end_s"] - first_s) / media_s)
    for stage in STAGES:
        measured.stage_s.setdefault(stage, []).append(trace.total_s(stage) / media_s)


def measure(session: AvatarSession, audio: Path, *, settings: list[dict[str, Any]], runs: int) -> list[Measured]:
    """Render every setting `runs` times, interleaved, after one round that is thrown away."""
    results = [Measured(setting) for setting in settings]
    for result in results:
        render_once(session, audio, Measured(result.settings))
    order = random.Random(0)
    for run in range(runs):
        for result in order.sample(results, len(results)):
            render_once(session, audio, result)
        print(f"run {run + 1} of {runs}", file=sys.stderr)
    return results


def describe(results: list[Measured]) -> str:
    """Return a table: setting, count, real-time factor with spread, paired ratio to the first, seconds by stage."""
    lines = [f"{'setting':28} {'n':>3} {'median':>7} {'min':>6} {'max':>6} {'ratio':>6}  " + "  ".join(STAGES)]
    for result in results:
        pairs = zip(result.real_time_factors, results[0].real_time_factors, strict=True)
        ratio = statistics.median(ours / first for ours, first in pairs)
        named = ",".join(f"{name}={value}" for name, value in result.settings.items()) or "default"
        figures = spread(result.real_time_factors)
        stages = "  ".join(f"{statistics.median(result.stage_s[stage]):{len(stage)}.3f}" for stage in STAGES)
        lines.append(
            f"{named:28} {len(result.real_time_factors):3} {figures['median']:7.3f} {figures['min']:6.3f} "
            f"{figures['max']:6.3f} {ratio:6.3f}  {stages}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="render_speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--audio", type=Path, required=True, help="speech")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each setting (default: 5)")
    parser.add_argument("--setting", action="append", help="NAME=VALUE,… or default; repeat it to compare")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--threads", type=int, help="all engines together use at most this many")
    parser.add_argument("--json", action="store_true", help="print results for machines")
    arguments = parser.parse_args(argv)
    settings = [parse_setting(text) for text in arguments.setting or ["default"]]
    with AvatarSession.open(arguments.package, device=arguments.device, threads=arguments.threads) as session:
        results = measure(session, arguments.audio, settings=settings, runs=arguments.runs)
        digest, (provider, precision) = session.package.digest, session.engines["dit"]
    circumstances = {
        "package": digest,
        "machine": processor_name(),
        "device": arguments.device,
        "provider": provider,
        "precision": precision,
        "threads": arguments.threads,
    }
    if arguments.json:
        print(json.dumps(circumstances | {"results": [result.as_dict() for result in results]}))
    else:
        print(f"{arguments.package} sha256:{digest[:16]}, {arguments.device} ({provider}, {precision}), ", end="")
        print(f"{arguments.threads or 'all'} threads; {processor_name()}")
        print(describe(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
