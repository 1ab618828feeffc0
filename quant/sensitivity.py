# SPDX-License-Identifier: Apache-2.0
"""Ranks parts of a network by what quantizing them does to the final frames, and writes a recipe under a budget.

1. Every part (block × attention, audio, feed-forward; residual block of the VAE) is quantized alone, everything else in
   float32; recorded passes are run again to decoded frames and compared: the whole picture, the mouth, and the first
   frames shown of a window, where a seam would be seen. Packages without a face are judged by their latents, and their
   decoder by its frames, relative to the reference.
2. Parts are ordered by harm for each byte they save, and added up in that order; some of these sums are measured.
3. The longest sum that stays within the error budget becomes a recipe: the one that was asked about, behind rules that
   keep the other parts as they are. Under a size budget it is the shortest sum that fits, less the parts, most harmful
   first, without which it still fits: the last part added may be a large one.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import EdgereelsError, UsageError
from ..runtime.metrics import MOST_DB, Box, crop
from ..runtime.model_package import ModelPackage
from .calibration import Ranges, find_ranges
from .candidates import Candidates, Part, keeping
from .layers import Layer
from .package_size import package_bytes
from .plan import make_plan, read_graphs, static_layers
from .recipes import Recipe, parse_recipe
from .replay import Outcome, Replay, Scene
from .rewrite import Range
from .trajectory import Recording

SCENES = 2
"""Passes that are looked at: the loudest and the quietest window."""

SEAM_FRAMES = 4
"""First shown frames of a window that count as its seam: one latent."""

POINTS = 16
"""Sums of parts that are measured at most; each takes as long as one part."""

LEAST_DB = 40.0
"""Error budget where nothing is asked for, in decibels of PSNR in the worst region: 2.5 of 255 levels. The gate is at
30, and no clip is to miss it for being harder than these passes. Without a face: see `LEAST_RELATIVE_DB`."""

LEAST_RELATIVE_DB = 20.0
"""The same for packages without a face: signal to noise of latents and frames, the gate of 4-bit weights and W8A8."""

PIXEL_PEAK = 2.0
"""Frames lie in [-1, 1]."""

Frames = npt.NDArray[np.float32]
Progress = Callable[[str], None]
SizeOf = Callable[[Sequence[Part]], int]


@dataclass(frozen=True)
class Harm:
    """What quantizing does to the outcome: mean squared error by region, relative to its peak or energy."""

    regions: Mapping[str, float]
    """ "whole", "mouth", "seam" for a face; "latents", "frames" without one. 1 would be as strong as the peak, or the
    reference."""

    @property
    def worst(self) -> float:
        """Error of the worst region."""
        return max(self.regions.values())

    @property
    def worst_db(self) -> float:
        """The same in decibels: PSNR for a face, signal to noise without one."""
        return decibels(self.worst)


@dataclass(frozen=True)
class Ranked:
    """A part and what it does alone."""

    part: Part
    """Which."""
    harm: Harm
    """With it alone quantized."""
    taken: bool = False
    """Whether the recipe quantizes it."""


@dataclass(frozen=True)
class Point:
    """Some parts together."""

    parts: int
    """How many: the first of the curve, but for a choice under a size budget, which may pass over some."""
    package_bytes: int
    """What the package takes with them: all of its files, predicted."""
    harm: Harm
    """Measured."""


@dataclass(frozen=True)
class Curve:
    """What a search found."""

    ranked: tuple[Ranked, ...]
    """In the order in which parts are added: least harm for each byte saved first."""
    points: tuple[Point, ...]
    """Sums that were measured, by number of parts; the first is that of none."""
    chosen: Point
    """What the recipe takes."""
    recipe: Recipe
    """Replays it."""
    package_bytes: int
    """Of the whole package as it is."""
    unmeasured: tuple[str, ...]
    """Graphs that the recipe changes and a render doesn't run; they are as the recipe says, whatever the budget."""

    def saved_bytes(self, point: Point) -> int:
        """Return what the parts of a point save; below 0 where few of them bring another graph along."""
        return self.points[0].package_bytes - point.package_bytes

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON, from which `read_curve` makes the same curve."""
        return asdict(self) | {"recipe": self.recipe.as_json()}


def read_curve(fields: Mapping[str, Any]) -> Curve:
    """Return the curve that `Curve.as_json` was called on, before or after its JSON was written."""

    def point(value: Mapping[str, Any]) -> Point:
        return Point(value["parts"], value["package_bytes"], Harm(dict(value["harm"]["regions"])))

    return Curve(
        ranked=tuple(
            Ranked(
                Part(**one["part"] | {"layers": tuple(one["part"]["layers"])}),
                Harm(dict(one["harm"]["regions"])),
                one["taken"],
            )
            for one in fields["ranked"]
        ),
        points=tuple(point(value) for value in fields["points"]),
        chosen=point(fields["chosen"]),
        recipe=parse_recipe(json.dumps(fields["recipe"]).encode(), where="the recipe of a curve"),
        package_bytes=fields["package_bytes"],
        unmeasured=tuple(fields["unmeasured"]),
    )


def search(
    package: ModelPackage,
    recording: Recording,
    *,
    recipe: Recipe,
    scratch: Path,
    budget_bytes: int | None = None,
    least_db: float | None = None,
    scenes: int = SCENES,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Curve:
    """Measure what each part of a recipe does, and find which of them to take.

    Args:
        package: not quantized yet.
        recording: of that package, see `trajectory.record`.
        recipe: what would be done to every part.
        scratch: folder for graphs and weights.
        budget_bytes: size that all files of the package together may have; the least harmful parts that make it that
            small are taken.
        least_db: error budget in decibels of the worst region, where there is no size budget; default `LEAST_DB`, or
            `LEAST_RELATIVE_DB` without a face.
        scenes: passes to look at.
        threads: of engines.
        progress: called with a line before each piece of work.

    Raises:
        EngineError: a candidate can't be run.
        UsageError: the recipe changes nothing that a render runs, or both budgets are given.
        EdgereelsError: the budget can't be met.
    """
    if budget_bytes is not None and least_db is not None:
        raise UsageError("a size budget and an error budget were given; expected one of them")
    tell = progress or (lambda _line: None)
    graphs = read_graphs(package)
    static = static_layers(recipe, graphs)
    ranges = Ranges("mse", {})
    if static:
        tell("watch the activations")
        ranges = find_ranges(package, recording, scratch=scratch, layers=static, threads=threads)
    plan = make_plan(recipe, graphs, find_range=lambda layer: _range_of(ranges, layer))
    library = "openvino" if recipe.needs_ranges else "onnxruntime"
    candidates = Candidates(package, plan, library=library, scratch=scratch)
    if not candidates.parts:
        raise UsageError(f"the recipe {recipe.name} changes nothing that a render of {package.name} runs")
    if budget_bytes is not None:
        _check_size(package, candidates, budget_bytes=budget_bytes)
    with Replay(package, recording, scenes=scenes, threads=threads) as replay:
        judge = _Judge(replay, candidates, mouth_box=package.manifest.mouth_box)
        ranked: list[Ranked] = []
        for number, part in enumerate(candidates.parts, start=1):
            tell(f"part {number} of {len(candidates.parts)}: {part.subnetwork} {part.name}")
            ranked.append(Ranked(part, judge.harm([part])))
        ranked.sort(key=lambda one: _cost(one))
        parts = _parts(ranked)
        points = [Point(0, candidates.package_bytes([]), judge.nothing)]
        for count in _counts(ranked):
            tell(f"the {count} least harmful parts together")
            points.append(Point(count, candidates.package_bytes(parts[:count]), judge.harm(parts[:count])))
        if budget_bytes is None:
            default = LEAST_RELATIVE_DB if package.manifest.mouth_box is None else LEAST_DB
            chosen = _within_error(points, default if least_db is None else least_db)
            taken = parts[: chosen.parts]
        else:
            saving = [one for one in ranked if one.part.saved_bytes > 0]
            taken = within_size(saving, candidates.package_bytes, budget_bytes=budget_bytes)
            known = next((point for point in points if parts[: point.parts] == taken), None)
            tell(f"the {len(taken)} parts of the recipe together")
            chosen = known or Point(len(taken), candidates.package_bytes(taken), judge.harm(taken))
    return Curve(
        ranked=tuple(replace(one, taken=one.part in taken) for one in ranked),
        points=tuple(points),
        chosen=chosen,
        recipe=keeping(recipe, [part for part in parts if part not in taken], name=f"{recipe.name}-searched"),
        package_bytes=package_bytes(package),
        unmeasured=candidates.unmeasured,
    )


def _range_of(ranges: Ranges, layer: Layer) -> Range | None:
    try:
        return ranges.of(layer.graph, layer.name)
    except UsageError:  # a graph that no render runs; the plan gives its layers another form and says so
        return None


# ── Choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cost(one: Ranked) -> tuple[bool, float]:
    """Order parts by harm for each byte saved; those that save nothing come last."""
    saves = one.part.saved_bytes > 0
    return not saves, one.harm.worst / one.part.saved_bytes if saves else one.harm.worst


def _counts(ranked: Sequence[Ranked]) -> list[int]:
    """Return how many parts to take together, at most `POINTS` times: all, and evenly from the end that hurts."""
    total = len(ranked)
    step = max(1, -(-total // POINTS))
    return sorted({*range(total, 0, -step)})


def _within_error(points: Sequence[Point], least_db: float) -> Point:
    fitting = [point for point in points if point.harm.worst_db >= least_db and point.parts]
    if not fitting:
        best = max((point for point in points if point.parts), key=lambda point: point.harm.worst_db)
        raise EdgereelsError(
            f"no sum of parts stays within the error budget: {best.parts} parts come to {best.harm.worst_db:.1f} dB; "
            f"expected at least {least_db:.1f} dB: allow more error, or take a milder recipe"
        )
    return max(fitting, key=lambda point: point.parts)


def _check_size(package: ModelPackage, candidates: Candidates, *, budget_bytes: int) -> None:
    if candidates.package_bytes([]) <= budget_bytes:
        raise UsageError(
            f"{package.name} fits a budget of {budget_bytes / 1e6:.2f} MB as it is, it takes "
            f"{package_bytes(package) / 1e6:.2f} MB; give a smaller one, or none to quantize all that the recipe names"
        )
    size = candidates.package_bytes([part for part in candidates.parts if part.saved_bytes > 0])
    if size > budget_bytes:
        raise EdgereelsError(
            f"with every part quantized the package takes {size / 1e6:.2f} MB; the budget is {budget_bytes / 1e6:.2f} "
            "MB: allow more, or take a recipe with fewer bits"
        )


def within_size(ranked: Sequence[Ranked], size_of: SizeOf, *, budget_bytes: int) -> list[Part]:
    """Return the fewest of the first parts that fit a budget, less those that it doesn't take, most harmful first.

    Args:
        ranked: in the order in which parts are added.
        size_of: returns what the package takes with some parts quantized.
        budget_bytes: what it may take; no less than with all of these parts.
    """
    # Every part saves, so sizes fall; but for some bytes of graphs, which the loop makes up for.
    count = bisect_left(range(len(ranked)), -budget_bytes, key=lambda n: -size_of(_parts(ranked[:n])))
    while size_of(_parts(ranked[:count])) > budget_bytes:
        count += 1
    taken = list(ranked[:count])
    for one in sorted(taken, key=lambda one: one.harm.worst, reverse=True):
        without = [other for other in taken if other is not one]
        if size_of(_parts(without)) <= budget_bytes:
            taken = without
    return _parts(taken)


def _parts(ranked: Sequence[Ranked]) -> list[Part]:
    return [one.part for one in ranked]


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Judge:
    """Says what a choice of parts does to the scenes of a replay."""

    def __init__(self, replay: Replay, candidates: Candidates, *, mouth_box: Box | None) -> None:
        self._replay = replay
        self._candidates = candidates
        self._mouth_box = mouth_box
        names = ("latents", "frames") if mouth_box is None else ("whole", "mouth", "seam")
        self.nothing = Harm(dict.fromkeys(names, 0.0))
        """What no part does."""

    def harm(self, parts: Sequence[Part]) -> Harm:
        """Run every scene with these parts quantized; means over the scenes."""
        outcomes = self._replay.run(self._candidates.write(parts))
        found: dict[str, list[float]] = {}
        for scene, ours, theirs in zip(self._replay.scenes, outcomes, self._replay.reference, strict=True):
            for region, error in compare(ours, theirs, scene=scene, mouth_box=self._mouth_box).items():
                found.setdefault(region, []).append(error)
        return Harm({region: float(np.mean(errors)) for region, errors in found.items()})


def compare(ours: Outcome, theirs: Outcome, *, scene: Scene, mouth_box: Box | None) -> dict[str, float]:
    """Return region to error: squared, relative to the peak of a pixel, or to the reference where there is no face.

    Args:
        ours: outcome to be judged.
        theirs: the reference.
        scene: whose outcomes they are.
        mouth_box: [top, left, bottom, right] as fractions of the frame, or None.
    """
    if mouth_box is None:
        return {
            "latents": _relative(ours.latents, theirs.latents),
            "frames": _relative(ours.frames, theirs.frames),
        }
    squares = np.square(ours.frames - theirs.frames, dtype=np.float64) / PIXEL_PEAK**2
    clip = np.moveaxis(squares[0], 0, -1)
    start = scene.window.emit_start
    return {
        "whole": float(clip.mean()),
        "mouth": float(crop(clip, mouth_box).mean()),
        "seam": float(clip[start : start + SEAM_FRAMES].mean()),
    }


def _relative(ours: Frames, theirs: Frames) -> float:
    noise = float(np.square(ours - theirs, dtype=np.float64).sum())
    return noise / max(float(np.square(theirs, dtype=np.float64).sum()), 1e-30)


def decibels(error: float) -> float:
    """Return a relative squared error in decibels, at most `MOST_DB`."""
    return min(MOST_DB, float(-10 * np.log10(max(error, 1e-30))))
