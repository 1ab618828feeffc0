# SPDX-License-Identifier: Apache-2.0
"""What a render made, and how fast on which machine."""

import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import usable_cores


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
