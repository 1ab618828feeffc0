# SPDX-License-Identifier: Apache-2.0
"""How to sample one stream: what a user asks for, and what it comes to for a package."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .errors import UsageError
from .manifest import Settings
from .planner import check_settings
from .sampler import Guidance
from .schedulers import euler_timesteps

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Sampling:
    """Settings without gaps, checked."""

    window: int
    """Frames denoised together, 4n+1."""
    motion: int
    """Frames handed from one window to the next, 4n+1."""
    drop: int
    """Frames thrown away at a window's end, 4n."""
    timesteps: npt.NDArray[np.float32]
    """[steps + 1] in [0, 1000], falling, ending with 0."""
    guidance: Guidance
    """Which forward passes are combined, and how."""


@dataclass(frozen=True)
class StreamSettings:
    """How to sample one stream; what is None is the package's own."""

    size: tuple[int, int] | None = None
    """(height, width), multiples of 16."""
    window: int | None = None
    """Frames denoised together, 4n+1."""
    motion: int | None = None
    """Frames handed from one window to the next, 4n+1."""
    drop: int | None = None
    """Frames thrown away at a window's end, 4n."""
    steps: int | None = None
    """Denoising steps."""
    shift: float | None = None
    """Shift of the timesteps."""
    guidance_text: float = 1.0
    """Scale against the negative prompt, at least 1."""
    guidance_audio: float = 1.0
    """Scale against silence, at least 1."""

    def __post_init__(self) -> None:
        check_size(self.size)

    def resolved(self, own: Settings) -> Sampling:
        """Fill gaps from a package's own settings.

        Raises:
            UsageError: numbers that don't exist or don't go together.
        """
        window, motion, drop = (
            _given(asked, default)
            for asked, default in ((self.window, own.window), (self.motion, own.motion), (self.drop, own.drop))
        )
        with as_usage():
            check_settings(window=window, motion=motion, drop=drop)
            timesteps = euler_timesteps(_given(self.steps, own.steps), shift=_given(self.shift, own.shift))
            guidance = Guidance(text=self.guidance_text, audio=self.guidance_audio)
        return Sampling(window, motion, drop, timesteps, guidance)


def check_size(size: tuple[int, int] | None) -> None:
    """Raise `UsageError` for a size that the networks don't take."""
    if size is not None and any(side < 16 or side % 16 for side in size):
        raise UsageError(f"size is {size[0]}x{size[1]}; expected multiples of 16")


@contextmanager
def as_usage() -> Iterator[None]:
    """Turn the ValueError of a check of arguments into `UsageError`."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def _given(value: Value | None, default: Value) -> Value:
    return default if value is None else value
