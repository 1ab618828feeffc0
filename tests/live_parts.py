# SPDX-License-Identifier: Apache-2.0
"""Chunks whose frames and sound say where they come from, so that what is seen can be compared with what is heard."""

import numpy as np

from edgereels.runtime.live_chunk import SAMPLES_PER_FRAME, LiveChunk
from edgereels.runtime.playout_types import Frames, Shown, Sound

FPS = 25
REST = np.full((10, 1, 1, 3), 255, np.uint8)
REST[:, 0, 0, 2] = np.arange(10)


def numbered_chunk(
    first: int, count: int, *, utterance: int = 0, first_frame: int | None = None, last: bool = False
) -> LiveChunk:
    """Frames number first, first + 1, … of everything ever said, from 1; both picture and sound carry the number."""
    numbers = np.arange(first, first + count)
    frames = np.stack([numbers >> 16, (numbers >> 8) & 255, numbers & 255], axis=-1).astype(np.uint8)[:, None, None]
    sound = np.repeat(numbers.astype(np.float32), SAMPLES_PER_FRAME)
    return LiveChunk(frames, sound, utterance, first - 1 if first_frame is None else first_frame, last, 0.0, 0.0)


def number_seen(frame: Frames) -> int:
    """Return a frame's number; 0 for the rest loop."""
    red, green, blue = (int(part) for part in frame[0, 0])
    return 0 if red == 255 else red << 16 | green << 8 | blue


def number_heard(sound: Sound) -> int:
    """Return the number of the frame that some sound belongs to; 0 for silence."""
    assert sound.min() == sound.max(), "sound of two frames in one slot"
    return int(sound[0])


def told(shown: Shown) -> tuple[str, int, int]:
    """Return the kind, the number seen and the number heard."""
    return shown.kind, number_seen(shown.frame), number_heard(shown.sound)
