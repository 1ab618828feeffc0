# SPDX-License-Identifier: Apache-2.0
"""What a render made, and how fast on which machine."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBRARY_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
SUBNETWORK_NAMES = {
    "dit": "DiT",
    "vae_encoder": "VAE encoder",
    "vae_decoder": "VAE decoder",
    "finish": "colours",
    "audio_encoder": "audio encoder",
    "image_encoder": "image encoder",
    "text_encoder": "text encoder",
}


@dataclass(frozen=True)
class InParts:
    """How a transformer runs that doesn't fit into memory in one piece."""

    blocks: int
    """That it consists of."""
    open_blocks: int
    """Of those, how many stay open; every step opens the others again, one at a time."""

    def __str__(self) -> str:
        return f"in parts for lack of memory, {self.open_blocks} of {self.blocks} blocks stay open"


@dataclass(frozen=True)
class EngineReport:
    """Where a graph was asked to run, and what runs it."""

    subnetwork: str
    """What the graph belongs to."""
    asked: str
    """Device, as it was named."""
    library: str
    """"onnxruntime" or "openvino"."""
    provider: str
    """The part of the library that runs it, as it names it."""
    precision: str
    """What it computes in: "f32", "bf16" or "f16"."""
    node_counts: Mapping[str, int]
    """Provider to how many operators it runs; empty where the library doesn't tell."""
    kernel_precisions: Mapping[str, int] = field(default_factory=dict[str, int])
    """Matrix products and convolutions by what they compute in, {"int8": 49, "bf16": 12}; empty as above."""
    fallback: str | None = None
    """Why the best CPU engine took over from the device that was asked for; None where nothing had to."""
    in_parts: InParts | None = None
    """How the fused transformer was taken apart because memory is short; None where a graph runs whole."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return dataclasses.asdict(self)

    @property
    def what(self) -> str:
        """Library, provider and precision in words, and how many operators each provider has where they are several."""
        parts = [self.provider, f"int8 and {self.precision}" if "int8" in self.kernel_precisions else self.precision]
        if len(self.node_counts) > 1:
            parts += [f"{count} operators on {provider}" for provider, count in sorted(self.node_counts.items())]
        return f"{LIBRARY_NAMES.get(self.library, self.library)} ({', '.join(parts)})"


def engines_line(engines: Mapping[str, EngineReport]) -> str:
    """Say in one line what runs on what: "DiT, VAE decoder on OpenVINO (OpenVINO CPU, bf16); colours on ...".

    Where the transformer runs in parts, that follows.

    Args:
        engines: graph to its report.
    """
    groups: dict[str, list[str]] = {}
    for engine in sorted(engines.values(), key=lambda engine: list(SUBNETWORK_NAMES).index(engine.subnetwork)):
        names = groups.setdefault(engine.what, [])
        name = SUBNETWORK_NAMES[engine.subnetwork]
        if name not in names:
            names.append(name)
    said = [f"{', '.join(names)} on {what}" for what, names in groups.items()]
    if len(groups) == 1:
        said = [f"everything on {next(iter(groups))}"]
    said += [f"the transformer {engine.in_parts}" for engine in engines.values() if engine.in_parts]
    return "; ".join(said)


@dataclass(frozen=True)
class RenderReport:
    """What a render made, and how fast on which machine."""

    files: tuple[Path, ...]
    """What was written."""
    frame_count: int
    """Frames of video."""
    height: int
    """Pixels, of the frames that were written."""
    width: int
    """Pixels, of the frames that were written."""
    fps: float
    """Frames per second."""
    wall_s: float
    """From the first denoising step to the last frame written."""
    device: str
    """What was asked for."""
    provider: str
    """What ran the transformer."""
    precision: str
    """What it computed in."""
    threads: int
    """At most this many for all engines together."""
    machine: str
    """Processor, as the system names it."""
    package_digest: str
    """Which package."""
    engines: Mapping[str, EngineReport] = field(default_factory=dict[str, EngineReport])
    """Graph to what was asked and got, of every graph that was open."""
    box_size: tuple[int, int] | None = None
    """(height, width) that the network made, where a canvas surrounds it; None where frames are the network's."""

    @property
    def media_s(self) -> float:
        """Seconds of video."""
        return self.frame_count / self.fps

    @property
    def real_time_factor(self) -> float:
        """Wall time over media time; below 1 is faster than real time."""
        return self.wall_s / self.media_s

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        fields = dataclasses.asdict(self) | {"files": [str(path) for path in self.files]}
        return fields | {"media_s": self.media_s, "real_time_factor": self.real_time_factor}
