# SPDX-License-Identifier: Apache-2.0
"""`edgereels plan`: what would be live on this machine, at which size, window and steps, from a short calibration."""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime import Avatar, AvatarSession, ModelPackage, UsageError, processor_name, read_avatar
from ..runtime.options import OptionParser, add_session_options, session_arguments, size, threads
from ..runtime.printable import printable
from .call_operations import CallOperations, points_of
from .latency_validity import MOST_OTHERS_CPU
from .live_plan import (
    WORDS,
    Prediction,
    Setting,
    drop_of,
    grid,
    nearest_live,
    percent,
    predict,
    sentence,
    why_not,
)
from .plan_calibration import Calibration, calibrate, curves_of

FORMAT = "edgereels-plan/1"
BUDGET_S = 20.0
ERROR_SHARE = 0.25
"""By which predictions missed what a clock on the wall showed, at most, where others were quiet: docs/planning.md."""
WINDOWS = (17, 33, 49, 81)
TIMES_STEPS = (1, 2, 4)
SMALLER = (1, 5 / 6, 2 / 3)
"""Sides of the sizes in the table, in units of the package's own."""


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="edgereels plan",
        description="Predict the real-time factor of a live stream on this machine, by size, window and steps, from "
        "windows that are really run for some seconds and the operations of the package's graphs. How wrong that is: "
        "docs/planning.md.",
    )
    parser.add_argument(
        "package", metavar="PACKAGE", nargs="?", default="default", help="package folder (default: the embedded one)"
    )
    parser.add_argument("--avatar", metavar="A", help="avatar file, or the name of an avatar inside the package")
    parser.add_argument(
        "--size", type=size, action="append", metavar="HxW", help="what to plan for; repeatable, the first is judged"
    )
    parser.add_argument("--window", type=threads, action="append", metavar="W", help="the same for windows, frames")
    parser.add_argument("--steps", type=threads, action="append", metavar="N", help="the same for denoising steps")
    parser.add_argument("--drop", type=int, metavar="D", help="frames thrown away at a window's end (default: as live)")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=BUDGET_S,
        metavar="S",
        help=f"for running windows, compilation not counted (default: {BUDGET_S:g})",
    )
    add_session_options(parser)
    return parser


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, more than 0")
    return found


def main(argv: list[str] | None = None) -> int:
    """Calibrate, predict, print."""
    arguments = _parser().parse_args(argv)
    chatty = arguments.progress or sys.stderr.isatty()

    def say(what: str) -> None:
        if chatty:
            print(what, file=sys.stderr)

    with AvatarSession.open(arguments.package, **session_arguments(arguments)) as session:
        made = make_plan(
            session,
            device=arguments.device,
            avatar=arguments.avatar,
            sizes=arguments.size,
            windows=arguments.window,
            steps=arguments.steps,
            drop=arguments.drop,
            budget_s=arguments.seconds,
            progress=say,
        )
    if arguments.json:
        sys.stdout.write(json.dumps(as_json(made), indent=1, allow_nan=False) + "\n")
    else:
        print("\n".join(map(printable, as_text(made))))
    return 0


# ── Making one ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Plan:
    """What was predicted, and from what."""

    package: ModelPackage
    """For which package."""
    machine: str
    """Where."""
    device: str
    """As it was asked for."""
    engines: Mapping[str, tuple[str, str]]
    """Graph to provider and precision, as got."""
    fps: float
    """Frames per second."""
    wanted: Prediction
    """The setting that is judged."""
    predictions: tuple[Prediction, ...]
    """All of them, in the table's order."""
    calibration: Calibration
    """What was measured."""

    @property
    def sentence(self) -> str:
        """The verdict."""
        return sentence(self.wanted, self.predictions, error=ERROR_SHARE)


def make_plan(
    session: AvatarSession,
    *,
    device: str = "cpu",
    avatar: str | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    windows: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    drop: int | None = None,
    budget_s: float = BUDGET_S,
    progress: Callable[[str], None] = lambda _what: None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> Plan:
    """Calibrate on an open session and predict; what is None is chosen around the package's own settings.

    Raises:
        UsageError: no setting exists with these numbers.
        EdgereelsError: as `AvatarSession.stream`, which is what is run.
    """
    package = session.package
    package.require("audio_encoder", "vae_encoder", "vae_decoder", "dit", "finish")
    own, face = package.manifest.settings, face_of(package, avatar)
    sizes = sizes or _smaller(face.size)
    wanted = _wanted(package, sizes=sizes, windows=windows, steps=steps, drop=drop)
    table = grid(
        sizes,
        windows or sorted({*WINDOWS, own.window}),
        steps or [own.steps * times for times in TIMES_STEPS],
        motion=own.motion,
        drop=drop,
    )
    operations = CallOperations(package)
    points = points_of(table, wanted, steps=_measured_steps(package), operations=operations.window)
    calibration = calibrate(
        session,
        points,
        operations=operations.window,
        avatar=avatar or (None if package.manifest.avatars else grey_portrait()),
        canvas_at=next(filter(face.fits, points), None),
        budget_s=budget_s,
        progress=progress,
        clock_s=clock_s,
    )
    curves = curves_of(calibration.samples, operations=operations)

    def predicted(setting: Setting) -> Prediction:
        return predict(
            setting,
            fps=own.fps,
            curves=curves,
            operations=operations,
            has_image="image_encode" in curves,
            has_canvas="canvas" in curves,
            is_measured=calibration.is_measured(setting),
        )

    return Plan(
        package=package,
        machine=processor_name(),
        device=device,
        engines=dict(session.engines),
        fps=own.fps,
        wanted=predicted(wanted),
        predictions=tuple(map(predicted, table)),
        calibration=calibration,
    )


def _wanted(
    package: ModelPackage,
    *,
    sizes: Sequence[tuple[int, int]],
    windows: Sequence[int] | None,
    steps: Sequence[int] | None,
    drop: int | None,
) -> Setting:
    """Return the setting that is judged: the first that was asked for, or the package's own."""
    own = package.manifest.settings
    for window in windows or [own.window]:
        if fault := why_not(window, motion=own.motion, drop=drop_of(window) if drop is None else drop):
            raise UsageError(f"{fault}; choose others with --window and --drop")
    asked = [sizes[0]], (windows or [own.window])[:1], (steps or [own.steps])[:1]
    return grid(*asked, motion=own.motion, drop=drop)[0]


def _measured_steps(package: ModelPackage) -> int:
    """Return how many steps are run: one, where the package can be told of another schedule than its own."""
    return 1 if "dit_time" in package.manifest.graphs else package.manifest.settings.steps


def _smaller(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return a size and some below it."""
    found = [tuple(max(16, round(side * share / 16) * 16) for side in size) for share in SMALLER]
    return [(height, width) for height, width in dict.fromkeys(found)]


def grey_portrait() -> Avatar:
    """Return somebody for packages that bring nobody: what a face looks like costs nothing."""
    return Avatar(name="nobody", portrait=np.full((64, 64, 3), 128, np.uint8))


@dataclass(frozen=True)
class Face:
    """What is known of an avatar without an engine."""

    size: tuple[int, int]
    """(height, width) that the network makes of it."""
    box: tuple[int, int] | None = None
    """(height, width) of the box in its still; None where it is a portrait alone."""

    def fits(self, setting: Setting) -> bool:
        """Whether frames of this size go into the still without being bent."""
        return self.box is not None and abs(self.box[0] - self.box[1] * setting.height / setting.width) < 1


def face_of(package: ModelPackage, avatar: str | None) -> Face:
    """Return the size at which a stream shows an avatar, the package's first if none is named."""
    avatars, portrait, box = package.manifest.avatars, (1, 1), None
    if avatar is not None and Path(avatar).exists():
        portrait = read_avatar(Path(avatar)).portrait.shape[:2]
    elif avatars:
        name = avatar or next(iter(avatars))
        path = package.avatar_path(name)  # raises where there is none of that name
        entry = avatars[name]
        if isinstance(entry, str):
            portrait = read_avatar(path).portrait.shape[:2]
        else:
            top, left, bottom, right = entry.box
            portrait = box = (bottom - top, right - left)
    table = package.manifest.sizes[package.manifest.default_size]
    ratio = portrait[0] / portrait[1]
    height, width = table[min(table, key=lambda key: abs(float(key) - ratio))]
    return Face((height, width), box)


# ── Printing it ──────────────────────────────────────────────────────────────────────────────────────────────────────


def as_text(plan: Plan) -> Iterator[str]:
    """Yield the lines of the screen."""
    calibration = plan.calibration
    windows = sum(len(point.windows_s) for point in calibration.points)
    provider, precision = plan.engines["dit"]
    yield (
        f"{plan.package.name} on {provider} in {precision}, asked for {plan.device}; {plan.machine}; calibrated in "
        f"{calibration.seconds:.0f} s ({calibration.compile_s:.0f} s of it compiling): {windows} windows at "
        f"{len(calibration.points)} sizes"
    )
    yield ""
    yield from _table(plan)
    yield ""
    yield "real-time factor, and what of the time is to spare; * ran with these steps, the rest follows from operations"
    for setting in calibration.left_out:
        yield f"not measured for lack of time (--seconds): {setting}"
    yield _stages_line(plan.wanted)
    if (others := calibration.others_percent) is not None and others > MOST_OTHERS_CPU:
        yield f"others took {others:.0f} % of the processors meanwhile: this is a plan for a machine that is as busy"
    yield plan.sentence


def _table(plan: Plan) -> Iterator[str]:
    counts = sorted({one.setting.steps for one in plan.predictions})
    head = ["size", "window", "chunk", "look-ahead", *(f"{count} step{'s'[: count != 1]}" for count in counts)]
    rows: dict[tuple[str, int], list[str]] = {}
    for one in plan.predictions:
        setting = one.setting
        word = WORDS.get(setting.window, "")
        start = [
            setting.size,
            f"{setting.window}{f' ({word})' if word else ''}",
            f"{setting.chunk_frames / plan.fps:.2f} s",
            f"{setting.look_ahead_s(plan.fps):.2f} s",
        ]
        row = rows.setdefault((setting.size, setting.window), start + [""] * len(counts))
        row[len(start) + counts.index(setting.steps)] = _cell(one)
    lines = [head, *rows.values()]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    for line in lines:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


def _cell(one: Prediction) -> str:
    spare = percent(one.spare_share) if one.is_live else "not live"
    return f"{one.real_time_factor:.2f}{'*' if one.is_measured else ' '} {spare}"


def _stages_line(one: Prediction) -> str:
    parts = sorted(one.stages_s.items(), key=lambda stage: -stage[1])
    said = ", ".join(f"{name} {taken_s * 1e3:.0f}" for name, taken_s in parts)
    chunk_ms = one.setting.chunk_frames / one.fps * 1e3
    return f"a window of {one.setting}: {one.cost_s * 1e3:.0f} ms for {chunk_ms:.0f} ms of video: {said}"


def as_json(plan: Plan) -> dict[str, Any]:
    """Return everything as plain values."""
    calibration, nearest = plan.calibration, nearest_live(plan.wanted.setting, plan.predictions)
    return {
        "format": FORMAT,
        "package": {"name": plan.package.name, "digest": plan.package.digest},
        "machine": plan.machine,
        "device": plan.device,
        "engines": {graph: list(got) for graph, got in plan.engines.items()},
        "fps": plan.fps,
        "calibration": {
            "seconds": calibration.seconds,
            "compile_s": calibration.compile_s,
            "others_percent": calibration.others_percent,
            "points": [
                _setting_json(point.setting)
                | {
                    "n": len(point.windows_s),
                    "median_s": statistics.median(point.windows_s),
                    "min_s": min(point.windows_s),
                    "max_s": max(point.windows_s),
                }
                for point in calibration.points
            ],
            "left_out": [_setting_json(setting) for setting in calibration.left_out],
        },
        "settings": [_prediction_json(one) for one in plan.predictions],
        "error_share": ERROR_SHARE,
        "verdict": {
            "live": plan.wanted.is_live,
            "sentence": plan.sentence,
            "setting": _prediction_json(plan.wanted),
            "nearest_live_setting": None if nearest is None else _prediction_json(nearest),
        },
    }


def _setting_json(setting: Setting) -> dict[str, Any]:
    return {
        "size": [setting.height, setting.width],
        "window": setting.window,
        "motion": setting.motion,
        "drop": setting.drop,
        "steps": setting.steps,
    }


def _prediction_json(one: Prediction) -> dict[str, Any]:
    return _setting_json(one.setting) | {
        "chunk_frames": one.setting.chunk_frames,
        "look_ahead_s": one.setting.look_ahead_s(one.fps),
        "cost_s": one.cost_s,
        "real_time_factor": one.real_time_factor,
        "spare_share": one.spare_share,
        "live": one.is_live,
        "is_measured": one.is_measured,
        "stages_s": dict(one.stages_s),
    }
