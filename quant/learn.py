# SPDX-License-Identifier: Apache-2.0
"""What only rendering can teach: ranges of activations, and which layers a budget leaves to a recipe.

Both come from one recording, and both are noted by the package's writer, so that a killed run need not render again.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime import __version__
from ..runtime.manifest import Calibration
from ..runtime.model_package import ModelPackage
from ..runtime.package_writer import PackageWriter
from .plan import FindRange, SourceGraph, static_layers
from .recipes import Recipe, parse_recipe
from .request import Progress, Request
from .rewrite import Range

logger = logging.getLogger(__name__)

CODEC_VERSION = 2
"""Part of the key of resumed work: raised when the same recipe would give other bytes."""


@dataclass(frozen=True)
class Learned:
    """What rendering the sounds taught."""

    recipe: Recipe
    """To follow."""
    find_range: FindRange
    """Ranges of activations."""
    calibration: Calibration | None
    """For the manifest; None where nothing was rendered."""
    curve: Mapping[str, Any] | None
    """What a search found."""


def learn(
    source: ModelPackage,
    graphs: Sequence[SourceGraph],
    *,
    request: Request,
    writer: PackageWriter,
    progress: Progress,
) -> Learned:
    """Return the recipe to follow and the ranges of activations, resumed where a killed run had them.

    Raises:
        MediaError: a sound to calibrate with can't be used.
    """
    sounds = _sounds(request)
    if not request.search and not static_layers(request.recipe, graphs):
        if request.calibration is not None:
            logger.warning("%s was not heard: the recipe %s needs no ranges", request.calibration, request.recipe.name)
        return Learned(request.recipe, lambda _layer: None, None, None)
    from .calibration import family

    rules = request.recipe.as_json()
    key = resume_key("learned", source.digest, rules, sounds, request.search, request.budget_bytes)
    done = writer.resume("learned", key=key)
    if done is None:
        done = _render_and_learn(source, graphs, request=request, scratch=writer.scratch, progress=progress)
        writer.complete("learned", key=key, record=done)
    by_layer = {(graph, name): Range(low, high) for graph, name, low, high in done["ranges"]}
    return Learned(
        parse_recipe(json.dumps(done["recipe"]).encode(), where="the recipe of the run before"),
        lambda layer: by_layer.get((family(layer.graph), layer.name)),
        Calibration(**done["calibration"] | {"sounds": tuple(done["calibration"]["sounds"])}),
        done["curve"],
    )


def _render_and_learn(
    source: ModelPackage, graphs: Sequence[SourceGraph], *, request: Request, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """Render the sounds; return the recipe, ranges, calibration and curve as JSON."""
    from .calibration import find_ranges
    from .trajectory import record

    progress("calibrate: render")
    recording = record(source, scratch=scratch, folder=request.calibration, threads=request.threads)
    recipe, curve = request.recipe, None
    if request.search:
        from .sensitivity import search

        found = search(
            source,
            recording,
            recipe=recipe,
            scratch=scratch,
            budget_bytes=request.budget_bytes,
            threads=request.threads,
            progress=lambda line: progress(f"search: {line}"),
        )
        recipe, curve = found.recipe, found.as_json()
    static = static_layers(recipe, graphs)
    ranges: list[list[Any]] = []
    if static:
        progress("calibrate: watch the activations")
        seen = find_ranges(source, recording, scratch=scratch, layers=static, threads=request.threads)
        ranges = [[graph, name, found.low, found.high] for (graph, name), found in sorted(seen.of_layers.items())]
    calibration = asdict(recording.calibration)
    return {"recipe": recipe.as_json(), "ranges": ranges, "calibration": calibration, "curve": curve}


def _sounds(request: Request) -> list[tuple[str, int, int]]:
    """Return what tells whether the files to calibrate with are the same: names, sizes, times of change."""
    if request.calibration is None:
        return []
    from .trajectory import files_in

    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files_in(request.calibration)]


def resume_key(*parts: Any) -> str:
    """Return a digest of everything that a piece of work is made from; another version of the codecs is other work."""
    return hashlib.sha256(json.dumps([CODEC_VERSION, __version__, *parts], sort_keys=True).encode()).hexdigest()
