# SPDX-License-Identifier: Apache-2.0
"""The work that everybody is measured on: every graph call of one real render, with what went in and what came out.

A folder holds `workload.json` and `tensors.safetensors`. Caches of the streamed VAE are not stored: whoever replays the
calls carries its own, as a program that streams has to.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime import AvatarSession

Array = npt.NDArray[Any]

SUBNETWORKS = ("audio_encoder", "vae_encoder", "dit", "vae_decoder", "finish")
"""In the order in which a render first needs them."""

_CACHE = re.compile(r"(?:next_)?(cache_\d+)")


@dataclass(frozen=True)
class Call:
    """One run of one graph."""

    graph: str
    """As the manifest names it: "vae_decoder_next"."""
    feeds: Mapping[str, Array]
    """Inputs without caches."""
    results: Mapping[str, Array]
    """What ONNX Runtime computed in f32, without caches."""


@dataclass(frozen=True)
class Workload:
    """The calls of one render, by subnetwork."""

    media_s: float
    """Length of the video that came of it, seconds."""
    calls: Mapping[str, tuple[Call, ...]]
    """Subnetwork to its calls in order."""


def subnetwork_of(graph: str) -> str:
    """Return which subnetwork a graph of a render belongs to: `vae_decoder` for "vae_decoder_next"."""
    return next(name for name in SUBNETWORKS if graph.startswith(name))


def carried(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the caches among a call's results under the names by which the next call takes them."""
    matches = {name: _CACHE.fullmatch(name) for name in results}
    return {match.group(1): results[name] for name, match in matches.items() if match}


def without_caches(values: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies of what is not a cache."""
    return {name: np.array(value) for name, value in values.items() if not _CACHE.fullmatch(name)}


def record(package: str | Path, folder: Path, *, audio: npt.NDArray[np.float32], threads: int) -> None:
    """Render once on ONNX Runtime in f32 and write down every call.

    Args:
        package: what to render with.
        folder: new or existing folder for the two files.
        audio: mono samples at 16 kHz.
        threads: for the engines.
    """
    from safetensors.numpy import save_file

    calls: list[Call] = []

    def observe(graph: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        calls.append(Call(graph, without_caches(feeds), without_caches(results)))

    settings = {"device": "onnxruntime:CPU", "compute": "f32", "threads": threads}
    with AvatarSession.open(package, observe=observe, **settings) as session:
        media_s = max(chunk.stop_s for chunk in session.stream(audio=audio, canvas=False))
    tensors = {
        f"{index:04d}.{side}.{name}": np.ascontiguousarray(value)
        for index, call in enumerate(calls)
        for side, values in (("in", call.feeds), ("out", call.results))
        for name, value in values.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "tensors.safetensors"))
    described = {"media_s": media_s, "graphs": [call.graph for call in calls]}
    (folder / "workload.json").write_text(json.dumps(described), encoding="utf-8")


def read_workload(folder: Path) -> Workload:
    """Read what `record` wrote."""
    from safetensors.numpy import load_file

    described = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    sides: dict[tuple[int, str], dict[str, Array]] = {}
    for key, value in load_file(str(folder / "tensors.safetensors")).items():
        index, side, name = key.split(".", 2)
        sides.setdefault((int(index), side), {})[name] = value
    by_subnetwork: dict[str, list[Call]] = {name: [] for name in SUBNETWORKS}
    for index, graph in enumerate(described["graphs"]):
        call = Call(graph, sides.get((index, "in"), {}), sides.get((index, "out"), {}))
        by_subnetwork[subnetwork_of(graph)].append(call)
    return Workload(described["media_s"], {name: tuple(calls) for name, calls in by_subnetwork.items()})


def sqnr_db(ours: list[Array], reference: list[Array]) -> float:
    """Return signal over error power of all arrays together, decibels; 200 for equality.

    Raises:
        ValueError: another number of arrays, or of values in one.
    """
    signal = error = 0.0
    for our, their in zip(ours, reference, strict=True):
        if our.shape != their.shape:
            raise ValueError(f"ours has shape {our.shape}, the reference {their.shape}")
        signal += float(np.square(their, dtype=np.float64).sum())
        error += float(np.square(np.subtract(our, their, dtype=np.float64)).sum())
    return 200.0 if error == 0 else min(200.0, 10 * float(np.log10(signal / error)))
