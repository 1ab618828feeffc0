# SPDX-License-Identifier: Apache-2.0
"""What a render made, and how fast on which machine."""

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .engine import usable_cores


@dataclass(frozen=True)
class EngineReport:
    """Where a graph was asked to run, and what runs it."""

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
    fallback: str | None = None
    """Why the best CPU engine took over from the device that was asked for; None where nothing had to."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class RenderReport:
    """What a render made, and how fast on which machine."""

    files: tuple[Path, ...]
    """What was written."""
    frame_count: int
    """Frames of video."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
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


def processor() -> str:
    """Return what the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def processor_name() -> str:
    """Return what the system calls its processor, and how many cores this process may use."""
    return f"{processor()}, {usable_cores()} cores usable"
