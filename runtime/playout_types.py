# SPDX-License-Identifier: Apache-2.0
"""What a playout is told, and what it says: policy for late frames, the picture that is on, where a chunk went."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Sound = npt.NDArray[np.float32]
Kind = Literal["speech", "rest", "held"]


class LatePolicy(StrEnum):
    """What becomes of frames, and of their sound, that come after they were due."""

    SHOW = "show"
    """Late, all of them; the rest of the utterance moves with them. Where no word may be lost: pushed speech."""
    DROP = "drop"
    """Thrown away; what is still in time is shown. Where the delay may not grow: a microphone."""
    HOLD = "hold"
    """As drop for the sound; the picture waits for the next whole chunk, so that the mouth never enters one halfway."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What is on during one frame."""

    kind: Kind
    """speech: a frame of an utterance; rest: one of the rest loop; held: the last one, as nothing newer is there."""
    frame: Frames
    """Shape (H, W, 3), RGB. A view: not to be written to."""
    sound: Sound
    """Shape (640,), what is heard meanwhile; zeros where nothing is."""
    utterance: int | None
    """Of the frame; None for the rest loop."""
    index: int
    """Of the frame in its utterance, or in the rest loop."""
    media_s: float
    """When the frame begins, in media time."""
    lateness_s: float
    """How long after it was due the frame is shown; for a held one, how long the one that is missing has been due."""


@dataclass(frozen=True)
class Placed:
    """Where a chunk went in media time."""

    start_s: float
    """When its first frame that isn't dropped begins."""
    stop_s: float
    """When its last frame ends, and the next chunk of the utterance is due; as planned, without what pauses of the
    machine have moved the utterance by (`Playout.moved_s`)."""
    lateness_s: float
    """How long after it was due its first frame was still possible; 0 if in time."""
    waited_s: float
    """By how much this chunk, by itself, came too late: a deadline was missed if above 0."""
    spare_s: float
    """How long before its place was decided it came, behind what was queued; negative: `waited_s` too late."""


@dataclass
class PlayoutCounts:
    """Frames since the start.

    Of those of chunks, added is the sum of shown, unseen, dropped, replaced, interrupted and `Playout.queued_frames`.
    """

    added: int = 0
    """Came in chunks."""
    shown: int = 0
    """Were on when somebody asked."""
    unseen: int = 0
    """Were on and gone between two times that somebody asked: the viewer is slow."""
    dropped: int = 0
    """Came too late and were thrown away."""
    replaced: int = 0
    """Gave their place to the held picture, under `LatePolicy.HOLD`."""
    interrupted: int = 0
    """Were thrown away by an interruption."""
    rest: int = 0
    """Of the rest loop, shown."""
    held: int = 0
    """Shown again because nothing newer was there."""
    late_chunks: int = 0
    """Chunks that came too late, by themselves."""
    stalls: int = 0
    """Times that an utterance had no new frame when one was due."""
    stalled_s: float = 0.0
    """Their length together."""
    resyncs: int = 0
    """Jumps of media time that were taken as a pause of everything."""
