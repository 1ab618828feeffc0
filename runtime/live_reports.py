# SPDX-License-Identifier: Apache-2.0
"""What a live stream hands out: a chunk that was made, and what a sink gets for every frame."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .composer import Picture
from .playout_types import Kind, Shown

GRAPH_STAGES = ("audio_encode", "image_encode", "vae_encode", "dit", "vae_decode", "finish")
"""Stages of a chunk that are an engine's work."""


@dataclass(frozen=True)
class Piece:
    """Some frames of a chunk, decoded together."""

    frames: int
    """How many."""
    ready_s: float
    """When they could be shown: a reading of the stream's clock, seconds."""


@dataclass(frozen=True)
class ChunkMade:
    """When and how a chunk came about; all times are readings of the stream's one clock, seconds."""

    index: int
    """0-based within the stream."""
    utterance: int
    """0-based within the stream; the way back to rest after an interruption counts as one."""
    first_frame: int
    """Of the utterance."""
    frames: int
    """How many."""
    is_last: bool
    """Whether the utterance ends with it."""
    intended_s: float
    """When the last sound that it needed was to arrive, by the source's schedule."""
    audio_ready_s: float
    """When that sound was there."""
    start_s: float
    """When work on it began."""
    ready_s: float
    """When all of its frames could be shown."""
    pieces: tuple[Piece, ...]
    """As they were decoded, and could be shown, one after the other."""
    due_s: float
    """When its first frame was to be on."""
    look_ahead_s: float
    """Of sound beyond its last frame that it waited for, by construction."""
    needed_sample: int
    """Absolute index, at 16 kHz, behind the last sample of the stream's sound that it heard."""
    stages: Mapping[str, float]
    """Seconds by name, each measured by itself: those of `GRAPH_STAGES` that ran, `between` for the arithmetic before
    and between them, `hand_on` for giving frames to the playout. What is left of ready_s - start_s nobody measured."""
    waits: Mapping[str, float]
    """Seconds between audio_ready_s and start_s, by name: `queue`."""
    missed: bool
    """Whether it came too late, by itself."""


@dataclass(frozen=True, eq=False)
class ShownMedia:
    """One frame of the video and the sound beside it."""

    shown: Shown
    """As the playout chose it."""
    due_s: float
    """Clock reading when it was to be on."""
    picture: Picture | None
    """It in what it is shown in, if that is anything."""

    @property
    def frames(self) -> npt.NDArray[np.uint8]:
        """Shape (1, H, W, 3), RGB; composed before it is due, or else by who asks first. Not to be written to."""
        return self.shown.frame[None] if self.picture is None else self.picture.composed()

    @property
    def sound(self) -> npt.NDArray[np.float32]:
        """Shape (640,), mono, 16 kHz."""
        return self.shown.sound

    @property
    def media_s(self) -> float:
        """When it begins, in media time."""
        return self.shown.media_s

    @property
    def kind(self) -> Kind:
        """speech, rest or held."""
        return self.shown.kind

    @property
    def utterance(self) -> int | None:
        """Whose frame it is; None for the rest loop."""
        return self.shown.utterance

    @property
    def index(self) -> int:
        """Of the frame in its utterance, or in the rest loop."""
        return self.shown.index

    @property
    def lateness_s(self) -> float:
        """How long after it was due by the plan the frame is on."""
        return self.shown.lateness_s
