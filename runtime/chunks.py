# SPDX-License-Identifier: Apache-2.0
"""What travels between the parts of a stream: a key frame, the plan of one window, a finished chunk.

Frames are counted on the video's own grid (25 per second in SkyReels-V3); *absolute* frames count from the start of the
stream, *local* ones from the start of a window. A window of W frames has 1 + (W - 1) / 4 latent frames: the first
latent holds one frame, each further one holds four.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

KEY_FRAME_REPEATS = 5
"""How often the key frame stands at the end of a window: one latent of four, and one frame of the latent before it."""

AUDIO_REACH = 2
"""Audio frames that the network hears before and after each video frame."""


@dataclass(frozen=True, eq=False)
class KeyFrame:
    """The picture that pins the end of a window."""

    pixels: npt.NDArray[np.float32]
    """Shape (3, H, W), RGB in [-1, 1], colour-matched to the portrait."""

    index: int
    """Local frame of the key-frame pass that it was taken from."""


@dataclass(frozen=True)
class WindowPlan:
    """One pass of the network: what it is given, how much of it is decoded, and what of that is kept. Integers only."""

    pass_index: int
    """0 for the key-frame pass, then 1, 2, … for the windows: the order in which noise is drawn."""

    window: int
    """Frames denoised together, 4n + 1."""

    start_frame: int
    """Absolute frame of local frame 0; the pass covers `window` frames from there."""

    audio_frames: int
    """Frames of audio that really exist; audio_taps never leaves them."""

    padded_frames: int
    """Frames that the windows cover; those past audio_frames sound like the tail, mirrored."""

    condition_frames: int
    """Known frames at the start: 1 (the portrait), or the motion frames."""

    condition_start: int | None
    """Local frame of the previous pass where the motion frames begin; None if the condition is the portrait."""

    key_frame_index: int | None
    """Local frame of the key-frame pass that pins the end of this window; None in the key-frame pass itself."""

    kept_frames: int
    """Local frames 0 up to this one are colour-matched; the rest is dropped, except that a cut may end earlier."""

    emit_start: int
    """First local frame that goes out; what lies before it was emitted by the previous window."""

    emit_stop: int
    """One past the last local frame that goes out; equals emit_start in a key-frame pass whose frames only anchor."""

    @property
    def latent_frames(self) -> int:
        """Latent frames of the pass."""
        return 1 + (self.window - 1) // 4

    @property
    def decode_latents(self) -> int:
        """Latent frames that must be decoded. The decoder is causal, so the ones after them change nothing."""
        return 1 + (self.kept_frames + 2) // 4

    @property
    def motion_latents(self) -> int:
        """Latent frames written back into the noise before the first and after every step; 0 if nothing is."""
        return 0 if self.condition_start is None else 1 + (self.condition_frames - 1) // 4

    @property
    def emit_frame(self) -> int:
        """Absolute frame of the first frame that goes out."""
        return self.start_frame + self.emit_start

    @property
    def audio_taps(self) -> tuple[int, ...]:
        """Frames of the original audio for local frames -2 … window + 1: two on either side, clamped at both ends.

        Local frame f hears taps f … f + 4, its centre is tap f + 2. Past the end of the audio the tail runs backwards,
        its last frame once repeated, up to padded_frames; beyond that, and before 0, the index is clamped.
        """
        first = self.start_frame - AUDIO_REACH
        return tuple(self._original(frame) for frame in range(first, first + self.window + 2 * AUDIO_REACH))

    @property
    def mask(self) -> tuple[tuple[int, ...], ...]:
        """The four mask channels, 4 rows of latent_frames values: 1 where a frame is given, 0 where it is wanted.

        Row r of latent k > 0 stands for local frame 4k - 3 + r; latent 0 repeats local frame 0.
        """
        tail = self.window if self.key_frame_index is None else self.window - KEY_FRAME_REPEATS
        frames = [0, 0, 0, *range(self.window)]
        given = [int(frame < self.condition_frames or frame >= tail) for frame in frames]
        return tuple(tuple(given[row::4]) for row in range(4))

    def _original(self, frame: int) -> int:
        inside = min(max(frame, 0), self.padded_frames - 1)
        return inside if inside < self.audio_frames else 2 * self.audio_frames - 1 - inside


@dataclass(frozen=True, eq=False)
class VideoChunk:
    """The kept part of one window, ready to be shown."""

    frames: npt.NDArray[np.uint8]
    """Shape (T, H, W, 3), RGB. The receiver owns the buffer."""

    index: int
    """0-based number of the chunk in its stream."""

    start_frame: int
    """Absolute frame of frames[0]."""

    start_s: float
    """When frames[0] is due, in seconds of media time from the start of the stream."""

    fps: float
    """Frames per second."""

    is_last: bool = False
    """True if no chunk follows."""

    @property
    def stop_s(self) -> float:
        """When the chunk has been shown, in seconds of media time."""
        return self.start_s + len(self.frames) / self.fps


def mask_array(window: WindowPlan) -> npt.NDArray[np.float32]:
    """Return the mask of a window as an array of shape (4, latent_frames)."""
    return np.asarray(window.mask, dtype=np.float32)


def slice_audio(
    features: npt.NDArray[np.floating[Any]], window: WindowPlan
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]:
    """Cut what one window hears out of the features of the whole audio.

    The first latent hears the five frames around its only frame. Latent k > 0 holds local frames 4k - 3 … 4k and
    hears the eight frames 4k - 5 … 4k + 2: the network's regrouping (three taps of its first frame, the centres of the
    middle ones, three taps of its last frame) is exactly that contiguous run. SkyReels-V3 wan audio projection; facts
    only, own code.

    Args:
        features: shape (frames, layers, channels), one row per frame of audio that exists.
        window: the pass.

    Returns:
        `audio_first` (1, 5, layers, channels) and `audio_rest` (latent_frames - 1, 8, layers, channels).

    Raises:
        ValueError: the features are not those of the audio that was planned for.
    """
    if len(features) != window.audio_frames:
        raise ValueError(
            f"features have {len(features)} frames; the plan was made for {window.audio_frames}: plan again"
        )
    taps = np.asarray(window.audio_taps, dtype=np.intp)
    starts = np.arange(1, window.latent_frames, dtype=np.intp) * 4 - 3
    return features[taps[:5]][None], features[taps[starts[:, None] + np.arange(8, dtype=np.intp)]]
