# SPDX-License-Identifier: Apache-2.0
"""How wrong `edgereels plan` is: its predictions against what renders and live streams take on the same machine.

    python -m edgereels.benchmarks.plan_error --device openvino:CPU --audio speech.wav --runs 3 > plan_error.json

Every run calibrates anew, then renders each setting once and streams live once, in a new order; an error pairs the
prediction and the measurement of one run. With --processor-time both count what the processors spent on this process,
over the number of threads, instead of what a clock on the wall shows: for machines that do other things besides.

Renders are predicted by the same costs, call by call: they have a key-frame pass more than a live stream and encode the
sound once, before the clock starts.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..runtime import AvatarSession, ChunkMade, Trace, load_speech
from .call_operations import CallOperations
from .circumstances import circumstances
from .command_plan import Plan, make_plan
from .live_plan import WORDS, Call, Curve, Setting, decoded_pieces, drop_of, grid
from .machine_watch import MachineWatch
from .plan_calibration import curves_of, others_percent

SIZES = ((192, 192), (160, 160))
WINDOWS = (17, 33, 49, 81)
PARTS = ("plan", "measurement")
LIVE_STAGES = ("audio_encode", "image_encode", "vae_encode", "dit", "vae_decode", "finish", "between")
"""What a live chunk's cost consists of; the canvas is composed by who reads the frames."""


def render_calls(frames: int, setting: Setting, *, has_image: bool) -> list[Call]:
    """Return what a render does from its first denoising step on.

    Args:
        frames: of the video, at least a window.
        setting: of the render.
        has_image: whether the network looks at a picture's features in every window.
    """
    if frames < setting.window:
        raise ValueError(f"{frames} frames are less than a window of {setting.window}; expected a longer sound")
    padded = frames + -(frames - setting.window) % setting.chunk_frames
    starts = range(0, padded - setting.window + 1, setting.chunk_frames)
    key_frames = {_key_frame(start + setting.window - 1, setting.window, padded) for start in starts}
    calls = [Call("dit", setting.window)] * setting.steps
    calls += _decoding(setting.window, lambda first, stop: any(first <= frame < stop for frame in key_frames))
    for start in starts:
        shown = setting.motion if start else 0
        kept = frames - start if start == starts[-1] else setting.window - setting.drop
        calls += [Call("vae_encode", setting.window)] + [Call("image_encode", 1)] * (has_image and start > 0)
        calls += [Call("dit", setting.window)] * setting.steps
        calls += _decoding(kept, lambda _first, stop, shown=shown: stop > shown)
    return calls + [Call("between", setting.window)] * (1 + len(starts))


def _key_frame(position: int, window: int, frames: int) -> int:
    """Return the frame of the key-frame pass for a place in the stream, half to even."""
    whole, rest = divmod(min(position, frames - 1) * (window - 1), frames - 1)
    return whole + (2 * rest > frames - 1 or (2 * rest == frames - 1 and whole % 2 == 1))


def _decoding(kept: int, is_finished: Any) -> list[Call]:
    calls: list[Call] = []
    first = 0
    for frames in decoded_pieces(kept):
        calls.append(Call("vae_decode", frames))
        if is_finished(first, min(first + frames, kept)):
            calls.append(Call("finish", frames))
        first += frames
    return calls


def predicted_render(
    frames: int, setting: Setting, *, fps: float, curves: Mapping[str, Curve], operations: CallOperations
) -> float:
    """Return the real-time factor that a render should have."""
    calls = render_calls(frames, setting, has_image="image_encode" in curves)
    return sum(curves[call.stage].seconds(operations(setting, call)) for call in calls) * fps / frames


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_run(
    session: AvatarSession, audio: Path, settings: Sequence[Setting], *, order: random.Random, threads: int | None
) -> list[dict[str, Any]]:
    """Calibrate, then measure every setting; return prediction and measurement of each.

    Args:
        session: open.
        audio: what is rendered.
        settings: renders.
        order: of them.
        threads: count processor time over so many; None: the time on the wall.
    """
    clock_s = time.perf_counter if threads is None else lambda: time.process_time() / threads
    plan = make_plan(session, clock_s=clock_s)
    operations = CallOperations(session.package)
    curves = curves_of(plan.calibration.samples, operations=operations)
    found: list[dict[str, Any]] = []
    watch = MachineWatch(lambda _line: None, now_s=time.perf_counter)
    for setting in order.sample(settings, len(settings)):
        frames, factor = _rendered(session, audio, setting, clock_s=clock_s)
        ours = predicted_render(frames, setting, fps=plan.fps, curves=curves, operations=operations)
        found.append(_result("render", setting, plan, predicted=ours, measured=factor, watch=watch))
    by_setting = {one.setting: one for one in plan.predictions}
    for window, word in WORDS.items() if threads is None else ():
        steps = plan.wanted.setting.steps * (2 if word == "quality" else 1)
        setting = replace(plan.wanted.setting, window=window, drop=drop_of(window), steps=steps)
        stages_s = by_setting[setting].stages_s
        cost_s = sum(stages_s.get(stage, 0.0) for stage in LIVE_STAGES)
        ours, seen_s = cost_s * plan.fps / setting.chunk_frames, _live(session, audio, word)
        seen = seen_s * plan.fps / setting.chunk_frames
        found.append(_result("live", setting, plan, predicted=ours, measured=seen, watch=watch))
    return found


def _result(
    kind: str, setting: Setting, plan: Plan, *, predicted: float, measured: float, watch: MachineWatch
) -> dict[str, Any]:
    return {
        "kind": kind,
        "size": setting.size,
        "window": setting.window,
        "steps": setting.steps,
        "was_calibrated": plan.calibration.is_measured(setting),
        "predicted": predicted,
        "measured": measured,
        "others_percent": {"plan": plan.calibration.others_percent, "measurement": others_percent(watch)},
    }


def _rendered(
    session: AvatarSession, audio: Path, setting: Setting, *, clock_s: Callable[[], float]
) -> tuple[int, float]:
    """Return frames and real-time factor as `edgereels render` has it, nothing written."""
    trace = Trace(clock=clock_s)
    stream = session.stream(
        audio=audio,
        size=(setting.height, setting.width),
        window=setting.window,
        motion=setting.motion,
        drop=setting.drop,
        steps=setting.steps,
        canvas=False,
        trace=trace,
    )
    frames = sum(len(chunk.frames) for chunk in stream)
    taken_s = trace.last_end_s - trace.first_start_s["dit"]
    return frames, taken_s * session.package.manifest.settings.fps / frames


def _live(session: AvatarSession, audio: Path, word: str) -> float:
    """Return the median cost of a live stream's chunks, the first two and the last left out."""
    made: list[ChunkMade] = []
    with session.live(latency=word, canvas=False, on_chunk=made.append) as live:
        live.push(load_speech(audio))
        live.end_utterance()
        live.wait_idle(timeout_s=60)
    counted = [chunk for chunk in made[2:] if not chunk.is_last] or made[-2:-1]
    return statistics.median(sum(chunk.stages.values()) for chunk in counted)


def summary(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per setting: medians, ranges, and the paired errors (predicted over measured, less 1)."""
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in results:
        grouped.setdefault((one["kind"], one["size"], one["window"], one["steps"]), []).append(one)
    rows: list[dict[str, Any]] = []
    for (kind, size, window, steps), runs in sorted(grouped.items()):
        errors = [one["predicted"] / one["measured"] - 1 for one in runs]
        figures = {"predicted": [one["predicted"] for one in runs], "measured": [one["measured"] for one in runs]}
        rows.append(
            {"kind": kind, "size": size, "window": window, "steps": steps, "n": len(runs)}
            | {"was_calibrated": all(one["was_calibrated"] for one in runs)}
            | {"most_others_percent": max((one["others_percent"][part] or 0.0) for one in runs for part in PARTS)}
            | {name: _spread(values) for name, values in (*figures.items(), ("error", errors))}
        )
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="plan_error", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--audio", type=Path, required=True, help="speech, 5 s or longer")
    parser.add_argument("--device", default="cpu", help="as for render (default: cpu)")
    parser.add_argument("--place", action="append", default=[], metavar="NAME=DEVICE", help="as for render; repeatable")
    parser.add_argument("--threads", type=int, help="all engines together use at most this many")
    parser.add_argument("--processor-time", action="store_true", help="count that over threads; renders only")
    parser.add_argument("--runs", type=int, default=3, help="measured runs (default: 3)")
    arguments = parser.parse_args(argv)
    threads = (arguments.threads or len(os.sched_getaffinity(0))) if arguments.processor_time else None
    order, before = random.Random(0), circumstances()
    results: list[dict[str, Any]] = []
    place = dict(one.split("=", 1) for one in arguments.place)
    with AvatarSession.open(
        arguments.package, device=arguments.device, threads=arguments.threads, place=place
    ) as session:
        own = session.package.manifest.settings
        settings = grid(SIZES, WINDOWS, [own.steps], motion=own.motion, drop=None)
        for run in range(arguments.runs):
            results += one_run(session, arguments.audio, settings, order=order, threads=threads)
            print(f"run {run + 1} of {arguments.runs}", file=sys.stderr)
        provider, precision = session.engines["dit"]
    made = {
        "clock": "wall" if threads is None else f"processor time over {threads} threads",
        "device": arguments.device,
        "provider": provider,
        "precision": precision,
        "before": before,
        "after": circumstances(),
        "runs": results,
        "summary": summary(results),
    }
    print(json.dumps(made, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
