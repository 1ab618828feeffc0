# SPDX-License-Identifier: Apache-2.0
"""Where the frames of chunks lie in media time, counted in slots of one frame, and what is on in a slot.

A span says what is on from its start until the next span begins: its frames, then the held face, then the rest loop.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from .live_chunk import SAMPLES_PER_FRAME, LiveChunk
from .playout_types import Frames, Shown, Sound


@dataclass(eq=False)
class Span:
    """Slots start to stop, and what is on from there until the next span begins. All numbers are slots."""

    start: int
    stop: int
    frames: Frames | None
    """What is on; None: what would be on without this span, whose face and rest_from it has taken over."""
    sound: Sound | None
    due: int
    """When frames[0] was due."""
    utterance: int | None
    first_frame: int
    face: Frames
    """What is held from stop on."""
    face_index: int
    rest_from: int
    """From when on the rest loop is on instead of the face."""
    missing_from: int | None
    """From when on frames of the utterance are missing; None if it has ended, or had not begun."""


class Timeline:
    """Spans in order. Begins with the rest loop; forgets what lies before the slot that is on."""

    def __init__(self, rest_loop_frames: Frames, *, fps: float, hold: int) -> None:
        """Begin at slot 0.

        Args:
            rest_loop_frames: (R, H, W, 3).
            fps: slots per second.
            hold: slots for which a face is held before the rest loop.
        """
        self._rest, self._fps, self._hold = rest_loop_frames, fps, hold
        self._spans = deque([Span(0, 0, None, None, 0, None, 0, rest_loop_frames[0], 0, 0, None)])

    @property
    def missing_from(self) -> int | None:
        """The slot from which frames of the last utterance are missing, so far."""
        return self._spans[-1].missing_from

    def append(self, chunk: LiveChunk, start: int, stop: int, *, due: int) -> None:
        """Put the last (stop - start) frames of a chunk into slots; the first of them was due in slot `due`."""
        skip = len(chunk.frames) - (stop - start)
        first_frame = chunk.first_frame + skip
        rest_from, missing = (stop, None) if chunk.is_last else (stop + self._hold, stop)
        frames, sound = chunk.frames[skip:], chunk.sound[skip * SAMPLES_PER_FRAME :]
        index = first_frame + stop - start - 1
        self._spans.append(
            Span(start, stop, frames, sound, due, chunk.utterance, first_frame, frames[-1], index, rest_from, missing)
        )

    def append_sound(self, chunk: LiveChunk, start: int, stop: int) -> None:
        """Put the last sound of a chunk into slots; the picture goes on as it would without the chunk."""
        before, sound = self._spans[-1], chunk.sound[(len(chunk.frames) - (stop - start)) * SAMPLES_PER_FRAME :]
        rest_from = min(before.rest_from, stop) if chunk.is_last else before.rest_from
        missing = None if chunk.is_last else before.missing_from
        utterance, face, index = before.utterance, before.face, before.face_index
        self._spans.append(Span(start, stop, None, sound, start, utterance, 0, face, index, rest_from, missing))

    def wait(self, slot: int, *, utterance: int) -> None:
        """From a slot on, hold what is on just before it: frames of an utterance are missing there until they come."""
        before = self.look(slot - 1) if slot else None
        frame, index = (self._rest[0], 0) if before is None else (before.frame, before.index)
        self._spans.append(Span(slot, slot, None, None, slot, utterance, 0, frame, index, slot + self._hold, slot))

    def cut(self, slot: int, now: Shown) -> int:
        """Throw away what comes after a slot in which `now` is on; return how many frames that were.

        The face is held, or the rest loop goes on.
        """
        dropped = self.frames_between(slot + 1, self._spans[-1].stop)
        while self._spans[-1].start > slot:
            self._spans.pop()
        span = self._spans[-1]
        rest_from = span.rest_from if now.kind == "rest" else slot + 1 + self._hold
        span.stop = min(span.stop, slot + 1)
        self._spans.append(
            Span(slot + 1, slot + 1, None, None, 0, now.utterance, 0, now.frame, now.index, rest_from, None)
        )
        return dropped

    def move(self, gap: int) -> None:
        """Move everything to later by some slots."""
        for span in self._spans:
            span.start, span.stop, span.due, span.rest_from = (
                number + gap for number in (span.start, span.stop, span.due, span.rest_from)
            )
            span.missing_from = None if span.missing_from is None else span.missing_from + gap

    def forget(self, slot: int) -> None:
        """Let go of what can't be on any more in a slot."""
        while len(self._spans) > 1 and self._spans[1].start <= slot:
            self._spans.popleft()

    def frames_between(self, start: int, stop: int) -> int:
        """Return how many frames of chunks are on in some slots."""
        return sum(
            max(0, min(stop, span.stop) - max(start, span.start)) for span in self._spans if span.frames is not None
        )

    def look(self, slot: int) -> Shown:
        """Return what is on in a slot not before the last one that was looked at."""
        span = next(span for span in reversed(self._spans) if span.start <= slot)
        media_s, sound = slot / self._fps, self.samples(slot, slot + 1)
        if span.frames is not None and slot < span.stop:
            number = slot - span.start
            late_s = (slot - span.due - number) / self._fps
            frame, index = span.frames[number], span.first_frame + number
            return Shown("speech", frame, sound, span.utterance, index, media_s, late_s)
        if slot >= span.rest_from:
            index = (slot - span.rest_from) % len(self._rest)
            return Shown("rest", self._rest[index], sound, None, index, media_s, 0.0)
        late_s = 0.0 if span.missing_from is None else (slot - span.missing_from) / self._fps
        return Shown("held", span.face, sound, span.utterance, span.face_index, media_s, late_s)

    def samples(self, start: int, stop: int) -> Sound:
        """Return what is heard in some slots, (stop - start) x 640 samples."""
        samples = np.zeros((stop - start) * SAMPLES_PER_FRAME, np.float32)
        for span in self._spans:
            first, last = max(start, span.start), min(stop, span.stop)
            if span.sound is not None and first < last:
                piece = span.sound[(first - span.start) * SAMPLES_PER_FRAME : (last - span.start) * SAMPLES_PER_FRAME]
                samples[(first - start) * SAMPLES_PER_FRAME :][: len(piece)] = piece
        return samples
