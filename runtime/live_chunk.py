# SPDX-License-Identifier: Apache-2.0
"""What a live stream is made of: frames and the sound of the same span, bound together so that they can't drift."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SAMPLES_PER_FRAME = 640
"""Of sound at 16 kHz beside one frame at 25 frames per second: a whole number."""


@dataclass(frozen=True, eq=False)
class LiveChunk:
    """Some frames of an utterance with their sound."""

    frames: npt.NDArray[np.uint8]
    """Shape (T, H, W, 3), RGB. The receiver owns the buffer."""

    sound: npt.NDArray[np.float32]
    """Shape (T x 640,), mono, 16 kHz, as it came in: not brought to a loudness."""

    utterance: int
    """0-based number of the utterance in its stream."""

    first_frame: int
    """Number of frames[0] within its utterance."""

    is_last: bool
    """True if the utterance ends with this chunk."""

    audio_ready_s: float
    """Clock reading when the last sample that this chunk needed had arrived."""

    ready_s: float
    """Clock reading when the chunk was ready to be shown."""
