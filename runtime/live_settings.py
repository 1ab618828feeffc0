# SPDX-License-Identifier: Apache-2.0
"""How long a live stream may lag behind the speaker, and what that comes to: window, steps, what is heard ahead.

A window can be made when its last sound has arrived. That wait is the same on any machine::

    speech      │ 0 ……………………………… window - motion - 1 │ 2 more │
    first frame │ is shown when all of this was heard, and the machine has made it
"""

from dataclasses import dataclass, replace

from .chunks import AUDIO_REACH, KEY_FRAME_REPEATS
from .errors import UsageError
from .manifest import Settings
from .planner import check_settings
from .stream_settings import as_usage

LATENCIES = ("low", "balanced", "quality")
"""What a user chooses from."""

_WINDOWS = {"low": (17, 5, 0), "balanced": (33, 5, 4), "quality": (81, 5, 12)}
"""Window, motion, drop."""

_STEPS = {"low": 1, "balanced": 1, "quality": 2}
"""Times the package's own."""


@dataclass(frozen=True)
class LiveSettings:
    """How the windows of a live stream are made."""

    window: int
    """Frames denoised together, 4n + 1."""
    motion: int
    """Frames that a window takes over from what is shown, 4n + 1."""
    drop: int
    """Frames thrown away at a window's end, 4n."""
    steps: int
    """Denoising steps."""
    repeat: int = 1
    """How often each new frame is shown: 1, or 2 where a machine is too slow for 25 new frames per second."""

    def __post_init__(self) -> None:
        with as_usage():
            check_settings(window=self.window, motion=self.motion, drop=self.drop)
        if self.steps < 1 or self.repeat < 1:
            raise UsageError(f"steps is {self.steps} and repeat is {self.repeat}; expected at least 1 each")

    @property
    def chunk_frames(self) -> int:
        """Frames of video that a window is good for."""
        return (self.window - self.motion - self.drop) * self.repeat

    @property
    def look_ahead_frames(self) -> int:
        """Frames of sound beyond its last new frame that a window waits for."""
        return (self.drop + AUDIO_REACH) * self.repeat

    @property
    def pinned_frames(self) -> int:
        """Frames of video that a window is good for which ends on its key frame."""
        return (self.window - KEY_FRAME_REPEATS + 1 - self.motion) * self.repeat

    @property
    def first_frame_s(self) -> float:
        """From the first sound to when the first frame can be begun, at 25 frames per second."""
        return (self.chunk_frames + self.look_ahead_frames) / 25


def live_settings(latency: str, own: Settings) -> LiveSettings:
    """Return what a word means for a package.

    Raises:
        UsageError: there is no such word.
    """
    if latency not in LATENCIES:
        raise UsageError(f"latency {latency!r} is unknown; expected one of {', '.join(LATENCIES)}")
    window, motion, drop = _WINDOWS[latency]
    return LiveSettings(window, motion, drop, own.steps * _STEPS[latency])


def lesser_settings(wanted: LiveSettings, own: Settings) -> tuple[LiveSettings, ...]:
    """Return what is cheaper, in the order in which it is given up: steps, then short windows, then the frame rate."""
    found: list[LiveSettings] = []
    steps = wanted.steps
    while steps > 1 and steps > own.steps:
        steps = max(own.steps, steps // 2)
        found.append(replace(wanted, steps=steps))
    if wanted.window < _WINDOWS["balanced"][0]:
        found.append(LiveSettings(*_WINDOWS["balanced"], steps))
    found.append(replace(found[-1] if found else wanted, repeat=2))
    return tuple(found)


@dataclass(frozen=True)
class LiveLatency:
    """What a viewer waits for, apart from devices."""

    look_ahead_s: float
    """From the first sound of an utterance until all was heard that its first frame needs: the same on any machine."""
    allowance_s: float
    """Set aside for making the first chunk on this machine, from runs at the start."""
    window: int
    """Frames denoised together."""
    steps: int
    """Denoising steps."""
    chunk_frames: int
    """New frames in a chunk."""

    def __str__(self) -> str:
        return (
            f"{self.look_ahead_s:.2f} s of look-ahead by construction and {self.allowance_s:.2f} s for computing "
            f"(windows of {self.window} frames, {self.chunk_frames} of them new, {self.steps} "
            f"{'step' if self.steps == 1 else 'steps'})"
        )
