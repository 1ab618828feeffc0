# SPDX-License-Identifier: Apache-2.0
"""From what single calls cost to what is live: real-time factors by size, window and steps, and the nearest live one.

Arithmetic only. A *call* is one run of a graph, or one of the things that a stream does besides; what it costs is read
off a curve over its number of operations. A live stream makes one window after the other; of each only the frames in
the middle are new, and the real-time factor is the cost of a window over the length of these.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

AUDIO_REACH = 2
"""Frames of sound that the network hears beyond a frame."""
FRAMES_PER_LATENT = 4
ENCODED_AT_ONCE = 8
"""Latents that one later call of the VAE's encoder makes."""
DECODED_AT_ONCE = 2
"""Latents that one later call of the VAE's decoder is given."""
HEARD_FRAMES = 200
"""Most that a live stream encodes for one window: 8 s."""
WORDS = {17: "low", 33: "balanced", 81: "quality"}
"""Window to the word by which `edgereels live` chooses it."""

STAGES = ("audio_encode", "image_encode", "vae_encode", "dit", "vae_decode", "finish", "canvas", "between")
"""What a window consists of; "between" is what is computed outside graphs."""


@dataclass(frozen=True, order=True)
class Setting:
    """One way to run a live stream."""

    height: int
    """Pixels that the network makes."""
    width: int
    """Pixels that the network makes."""
    window: int
    """Frames denoised together, 4n + 1."""
    steps: int
    """Denoising steps."""
    motion: int
    """Frames that a window takes over from what is shown, 4n + 1."""
    drop: int
    """Frames thrown away at a window's end, 4n."""

    @property
    def chunk_frames(self) -> int:
        """New frames of a window."""
        return self.window - self.motion - self.drop

    def look_ahead_s(self, fps: float) -> float:
        """Return how long the first frame of a chunk waits for sound, on any machine."""
        return (self.window - self.motion + AUDIO_REACH) / fps

    @property
    def size(self) -> str:
        """Height and width as on the command line."""
        return f"{self.height}x{self.width}"

    def __str__(self) -> str:
        return f"{self.size}, window {self.window}, {self.steps} {'step' if self.steps == 1 else 'steps'}"


def drop_of(window: int) -> int:
    """Return how many frames a live stream throws away at a window's end: 0 of 17, 4 of 33, 12 of 81."""
    return FRAMES_PER_LATENT * (window // 27)


def why_not(window: int, *, motion: int, drop: int) -> str:
    """Return why a live stream can't have such windows; "" where it can."""
    if window % 4 != 1 or window < 5:
        return f"a window has 5, 9, 13, … frames, not {window}"
    if drop % 4 or drop < 0:
        return f"drop is {drop}; expected one of 0, 4, 8, … frames"
    if window - motion - drop < 1 or window < motion + 5:
        return f"a window of {window} frames has no room for {motion} known, {drop} dropped and 5 pinned ones"
    return ""


def grid(
    sizes: Iterable[tuple[int, int]], windows: Iterable[int], steps: Iterable[int], *, motion: int, drop: int | None
) -> tuple[Setting, ...]:
    """Return every combination that exists, largest size first, then by window and steps.

    Args:
        sizes: (height, width).
        windows: frames.
        steps: denoising steps.
        motion: frames that a window takes over.
        drop: frames thrown away; None: as a live stream has it.
    """
    found = {
        Setting(height, width, window, count, motion, of_window)
        for (height, width), window, count in product(sizes, windows, steps)
        for of_window in [drop_of(window) if drop is None else drop]
        if not why_not(window, motion=motion, drop=of_window)
    }
    return tuple(sorted(found, key=lambda one: (-one.height * one.width, one.size, one.window, one.steps)))


# ── Calls ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Call:
    """One run of one stage."""

    stage: str
    """One of `STAGES`."""
    frames: int
    """Frames that it is about."""


def decoded_pieces(frames: int) -> list[int]:
    """Return how many frames each call of the decoder makes, of a clip that is kept up to so many.

    >>> decoded_pieces(29)
    [1, 8, 8, 8, 4]
    """
    latents = (frames + 2) // FRAMES_PER_LATENT
    whole, rest = divmod(latents, DECODED_AT_ONCE)
    at_once = DECODED_AT_ONCE * FRAMES_PER_LATENT
    return [1] + [at_once] * whole + [rest * FRAMES_PER_LATENT] * (rest > 0)


def encoded_pieces(frames: int) -> list[int]:
    """Return how many frames each call of the encoder is given, of a whole clip.

    >>> encoded_pieces(81)
    [1, 32, 32, 16]
    """
    at_once = ENCODED_AT_ONCE * FRAMES_PER_LATENT
    whole, rest = divmod(frames - 1, at_once)
    return [1] + [at_once] * whole + [rest] * (rest > 0)


def chunk_calls(setting: Setting, *, has_image: bool, has_canvas: bool) -> tuple[Call, ...]:
    """Return what is done for one window of a live stream that has been running for a while."""
    calls = [Call("audio_encode", HEARD_FRAMES), Call("vae_encode", setting.window)]
    calls += [Call("image_encode", 1)] * has_image
    calls += [Call("dit", setting.window)] * setting.steps
    # The decoder goes on behind what was shown, with one latent alone.
    for frames in (FRAMES_PER_LATENT, *decoded_pieces(1 + setting.chunk_frames - FRAMES_PER_LATENT)[1:]):
        calls += [Call("vae_decode", frames), Call("finish", frames)]
    calls += [Call("canvas", setting.chunk_frames)] * has_canvas
    return (*calls, Call("between", setting.window))


# ── Costs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Curve:
    """Seconds over operations: what was measured at a few sizes of the work."""

    points: tuple[tuple[float, float], ...]
    """(operations, seconds), rising in operations."""

    def __post_init__(self) -> None:
        if not self.points or any(after[0] <= before[0] for before, after in pairwise(self.points)):
            raise ValueError(f"a curve needs points that rise in operations; got {self.points}")

    def seconds(self, operations: float) -> float:
        """Return what so many operations take: in a straight line between points, in proportion above the last.

        Below the first point the line goes on, but stays between in proportion and as much as that point: a call has a
        part that doesn't depend on its size, and two points tell it only roughly.
        """
        at = bisect_left([point[0] for point in self.points], operations)
        if at == len(self.points):
            return _in_proportion(self.points[-1], operations)
        if at == 0:
            first = self.points[0]
            in_proportion_s = _in_proportion(first, operations)
            line_s = _on_line(self.points[:2], operations) if len(self.points) > 1 else in_proportion_s
            return min(max(in_proportion_s, line_s), first[1])
        return _on_line(self.points[at - 1 : at + 1], operations)


def _in_proportion(point: tuple[float, float], operations: float) -> float:
    known, taken_s = point
    return taken_s * operations / known if known else taken_s


def _on_line(points: Sequence[tuple[float, float]], operations: float) -> float:
    (low, low_s), (high, high_s) = points
    return low_s + (high_s - low_s) * (operations - low) / (high - low)


@dataclass(frozen=True)
class Prediction:
    """What a setting will take here."""

    setting: Setting
    """Which one."""
    fps: float
    """Frames per second of the video."""
    stages_s: Mapping[str, float]
    """Seconds of one window, by stage."""
    is_measured: bool
    """Whether exactly this size, window and number of steps ran; else its costs follow from its operations."""

    @property
    def cost_s(self) -> float:
        """Seconds of one window."""
        return sum(self.stages_s.values())

    @property
    def real_time_factor(self) -> float:
        """Cost of a window over the length of its new frames."""
        return self.cost_s * self.fps / self.setting.chunk_frames

    @property
    def spare_share(self) -> float:
        """What is left of the time; below 0 where it is not enough."""
        return 1 - self.real_time_factor

    @property
    def is_live(self) -> bool:
        """Whether a window takes no longer than its new frames."""
        return self.real_time_factor <= 1


def predict(
    setting: Setting,
    *,
    fps: float,
    curves: Mapping[str, Curve],
    operations: Callable[[Setting, Call], float],
    has_image: bool = False,
    has_canvas: bool = False,
    is_measured: bool = False,
) -> Prediction:
    """Say what a setting will take.

    Args:
        setting: which one.
        fps: frames per second of the video.
        curves: stage to its costs.
        operations: of one call at a setting.
        has_image: whether the network looks at a picture's features in every window.
        has_canvas: whether frames are laid into a still.
        is_measured: goes into the prediction.
    """
    stages_s: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    for call in chunk_calls(setting, has_image=has_image, has_canvas=has_canvas):
        stages_s[call.stage] += curves[call.stage].seconds(operations(setting, call))
    return Prediction(setting, fps, {name: taken_s for name, taken_s in stages_s.items() if taken_s}, is_measured)


# ── Verdict ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def distance(one: Setting, other: Setting) -> tuple[float, float, float, float]:
    """Return how far settings lie apart, to be compared: the factors by which steps, window and pixels differ.

    First the product of the three factors decides; among equals, what keeps the size is nearer, then what keeps the
    window, as a live stream gives up steps first.
    """
    factors = (
        _factor(one.height * one.width, other.height * other.width),
        _factor(one.window, other.window),
        _factor(one.steps, other.steps),
    )
    return (round(sum(factors), 9), *factors)


def _factor(one: float, other: float) -> float:
    return abs(math.log(one / other))


def nearest_live(wanted: Setting, predictions: Sequence[Prediction]) -> Prediction | None:
    """Return the live one that is nearest to a setting, or None."""
    live = [one for one in predictions if one.is_live]
    return min(live, key=lambda one: (*distance(wanted, one.setting), one.real_time_factor), default=None)


def sentence(wanted: Prediction, predictions: Sequence[Prediction], *, error: float) -> str:
    """Say whether a setting is live here, and if not, which is.

    Args:
        wanted: what is asked about.
        predictions: all that were made.
        error: share by which predictions have been wrong; what lies closer to the limit than that is called so.
    """
    if wanted.is_live:
        doubt = ", which is within this plan's error" if wanted.spare_share < error else ""
        return f"live at {wanted.fps:g} fps with {wanted.setting}: {percent(wanted.spare_share)} to spare{doubt}"
    doubt = " (within this plan's error)" if wanted.real_time_factor < 1 + error else ""
    said = f"not live here: {wanted.setting} needs {wanted.real_time_factor:.2f}×{doubt}; nearest live setting: "
    if (nearest := nearest_live(wanted.setting, predictions)) is None:
        fastest = min(predictions, key=lambda one: one.real_time_factor)
        return f"{said}none in this table; the fastest, {fastest.setting}, needs {fastest.real_time_factor:.2f}×"
    doubt = ", within this plan's error" if nearest.spare_share < error else ""
    return f"{said}{nearest.setting} ({percent(nearest.spare_share)} to spare{doubt})"


def percent(share: float) -> str:
    """Return a share in whole percent."""
    return f"{share * 100:.0f} %"
