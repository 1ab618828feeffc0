# SPDX-License-Identifier: Apache-2.0
"""Ranks parts of a network by what quantizing them does to the final frames, and writes a recipe under a budget.

1. Every part (block × attention, audio, feed-forward; residual block of the VAE) is quantized alone, everything else in
   float32; recorded passes are run again to decoded frames and compared: the whole picture, the mouth, and the first
   frames shown of a window, where a seam would be seen. Packages without a face are judged by their latents, and their
   decoder by its frames, relative to the reference.
2. Parts are ordered by harm for each byte they save, and added up in that order; some of these sums are measured.
3. The longest sum that stays within the error budget, or the shortest that fits the size budget, becomes a recipe: the
   one that was asked about, behind rules that keep the other parts as they are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import EdgereelsError, UsageError
from ..runtime.metrics import MOST_DB
from ..runtime.model_package import ModelPackage
from .calibration import Ranges, find_ranges
from .candidates import Candidates, Part
from .layers import Layer
from .plan import make_plan, read_graphs, static_layers
from .recipes import OPERATORS, Recipe, Rule, parse_recipe
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


@dataclass(frozen=True)
class Point:
    """A number of the least harmful parts together."""

    parts: int
    """How many, in the order of the curve."""
    saved_bytes: int
    """What they save."""
    harm: Harm
    """Measured."""


@dataclass(frozen=True)
class Curve:
    """What a search found."""

    ranked: tuple[Ranked, ...]
    """In the order in which parts are added: least harm for each byte saved first."""
    points: tuple[Point, ...]
    """Sums that were measured, by number of parts."""
    chosen: Point
    """The one that the recipe takes."""
    recipe: Recipe
    """Replays it."""
    package_bytes: int
    """Of the whole package as it is."""
    unsaved_bytes: int
    """The same with graphs and records as the recipe needs them, and nothing saved yet."""
    unmeasured: tuple[str, ...]
    """Graphs that the recipe changes and a render doesn't run; they are as the recipe says, whatever the budget."""

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON, from which `read_curve` makes the same curve."""
        return asdict(self) | {"recipe": self.recipe.as_json()}


def read_curve(fields: Mapping[str, Any]) -> Curve:
    """Return the curve that `Curve.as_json` was called on, before or after its JSON was written."""

    def point(value: Mapping[str, Any]) -> Point:
        return Point(value["parts"], value["saved_bytes"], Harm(dict(value["harm"]["regions"])))

    return Curve(
        ranked=tuple(
            Ranked(Part(**one["part"] | {"layers": tuple(one["part"]["layers"])}), Harm(dict(one["harm"]["regions"])))
            for one in fields["ranked"]
        ),
        points=tuple(point(value) for value in fields["points"]),
        chosen=point(fields["chosen"]),
        recipe=parse_recipe(json.dumps(fields["recipe"]).encode(), where="the recipe of a curve"),
        package_bytes=fields["package_bytes"],
        unsaved_bytes=fields["unsaved_bytes"],
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
        budget_bytes: size that the package may have; the least harmful parts are taken until it is that small.
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
    parts = candidates.parts
    if not parts:
        raise UsageError(f"the recipe {recipe.name} changes nothing that a render of {package.name} runs")
    with Replay(package, recording, scenes=scenes, threads=threads) as replay:
        judge = _Judge(replay, candidates, mouth_box=package.manifest.mouth_box)
        ranked: list[Ranked] = []
        for number, part in enumerate(parts, start=1):
            tell(f"part {number} of {len(parts)}: {part.subnetwork} {part.name}")
            ranked.append(Ranked(part, judge.harm([part])))
        ranked.sort(key=lambda one: _cost(one))
        points = [Point(0, 0, judge.nothing)]
        for count in _counts(ranked):
            tell(f"the {count} least harmful parts together")
            taken = [one.part for one in ranked[:count]]
            points.append(Point(count, sum(part.saved_bytes for part in taken), judge.harm(taken)))
        size_bytes = sum(entry.size_bytes for entry in package.manifest.files.values())
        unsaved_bytes = size_bytes + candidates.fixed_bytes
        if budget_bytes is None:
            default = LEAST_RELATIVE_DB if package.manifest.mouth_box is None else LEAST_DB
            chosen = _within_error(points, default if least_db is None else least_db)
        else:
            chosen = _within_size(points, ranked, unsaved_bytes, budget_bytes, judge, tell)
    left = [one.part for one in ranked[chosen.parts :]]
    return Curve(
        ranked=tuple(ranked),
        points=tuple(sorted({point.parts: point for point in [*points, chosen]}.values(), key=lambda p: p.parts)),
        chosen=chosen,
        recipe=keeping(recipe, left, name=f"{recipe.name}-searched"),
        package_bytes=size_bytes,
        unsaved_bytes=unsaved_bytes,
        unmeasured=candidates.unmeasured,
    )


def _range_of(ranges: Ranges, layer: Layer) -> Range | None:
    try:
        return ranges.of(layer.graph, layer.name)
    except UsageError:  # a graph that no render runs; the plan gives its layers another form and says so
        return None


def keeping(recipe: Recipe, parts: Sequence[Part], *, name: str) -> Recipe:
    """Return a recipe that does the same but for these parts, which it leaves alone."""
    layers: dict[str, list[str]] = {}
    for part in parts:
        layers.setdefault(part.subnetwork, []).extend(part.layers)
    rules = [Rule((f"{subnetwork}*",), tuple(sorted(names)), OPERATORS, "keep") for subnetwork, names in layers.items()]
    return replace(recipe, name=name, rules=(*rules, *recipe.rules))


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


def _within_size(
    points: Sequence[Point],
    ranked: Sequence[Ranked],
    unsaved_bytes: int,
    budget_bytes: int,
    judge: "_Judge",
    tell: Progress,
) -> Point:
    """Return the fewest parts with which the package fits the budget; measured now where that sum was not before."""
    saved, count = 0, 0
    while unsaved_bytes - saved > budget_bytes:
        if count == len(ranked) or ranked[count].part.saved_bytes <= 0:
            raise EdgereelsError(
                f"with every part quantized the package takes {(unsaved_bytes - saved) / 1e6:.2f} MB; the budget is "
                f"{budget_bytes / 1e6:.2f} MB: allow more, or take a recipe with fewer bits"
            )
        saved += ranked[count].part.saved_bytes
        count += 1
    known = {point.parts: point for point in points}
    if count in known:
        return known[count]
    tell(f"the {count} least harmful parts together")
    return Point(count, saved, judge.harm([one.part for one in ranked[:count]]))


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Judge:
    """Says what a choice of parts does to the scenes of a replay."""

    def __init__(
        self, replay: Replay, candidates: Candidates, *, mouth_box: tuple[float, float, float, float] | None
    ) -> None:
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


def compare(
    ours: Outcome, theirs: Outcome, *, scene: Scene, mouth_box: tuple[float, float, float, float] | None
) -> dict[str, float]:
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
    height, width = squares.shape[3:]
    top, left, bottom, right = (round(f * s) for f, s in zip(mouth_box, (height, width) * 2, strict=True))
    start = scene.window.emit_start
    return {
        "whole": float(squares.mean()),
        "mouth": float(squares[:, :, :, top:bottom, left:right].mean()),
        "seam": float(squares[:, :, start : start + SEAM_FRAMES].mean()),
    }


def _relative(ours: Frames, theirs: Frames) -> float:
    noise = float(np.square(ours - theirs, dtype=np.float64).sum())
    return noise / max(float(np.square(theirs, dtype=np.float64).sum()), 1e-30)


def decibels(error: float) -> float:
    """Return a relative squared error in decibels, at most `MOST_DB`."""
    return min(MOST_DB, float(-10 * np.log10(max(error, 1e-30))))
