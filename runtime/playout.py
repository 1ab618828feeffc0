# SPDX-License-Identifier: Apache-2.0
"""Which frame is on, and which sound with it: decided by media time alone, never waiting for anything.

Media time is cut into slots of one frame. A slot is decided when it is first asked about, by whoever asks first: the
feeder of the speakers, which is ahead, or the window. Nothing changes it afterwards, so that what is heard and what is
seen in a slot come from the same place of the same chunk.

::

    placed:   [ chunk 0 ][ chunk 1 ]     [ chunk 2, came late ]
    on:   rest │ speech             │held │ speech             │ rest
                                     stall
"""

import math
import threading
from collections.abc import Callable
from typing import Any

from .errors import UsageError
from .live_chunk import SAMPLES_PER_FRAME, LiveChunk
from .playout_timeline import Timeline
from .playout_types import Frames, LatePolicy, Placed, PlayoutCounts, Shown, Sound


class Playout:
    """Takes chunks when they are ready and says at any media time what is on. Safe for any number of threads."""

    def __init__(
        self,
        fps: float,
        rest_loop_frames: Frames,
        *,
        policy: LatePolicy = LatePolicy.SHOW,
        hold_s: float = 3.0,
        resync_s: float = 2.0,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Begin with the rest loop, at media time 0.

        Args:
            fps: frames per second of media time; each has 640 samples of sound.
            rest_loop_frames: (R, H, W, 3) RGB, shown in a circle while nobody speaks; its first frame is the rest pose.
            policy: what becomes of late frames.
            hold_s: how long the last frame is held where an utterance doesn't go on, before the rest loop.
            resync_s: a jump of media time by more than this is a pause of the machine and no lateness of the chunks.
            on_event: called with each event, outside any lock.

        Raises:
            UsageError: there is no rest frame.
        """
        if rest_loop_frames.ndim != 4 or not len(rest_loop_frames):
            raise UsageError(f"the rest loop has shape {rest_loop_frames.shape}; expected (R, H, W, 3), R at least 1")
        self.counts = PlayoutCounts()
        """Frames and faults since the start."""
        self._fps, self._policy, self._resync = fps, policy, round(resync_s * fps)
        self._on_event = on_event
        self._lock = threading.Lock()
        self._told: list[dict[str, Any]] = []
        self._line = Timeline(rest_loop_frames, fps=fps, hold=round(hold_s * fps))
        self._seen = -1  # last slot that somebody looked at
        self._decided = 0  # slots before this one are settled
        self._heard = 0  # slots before this one were handed out as sound
        self._tail = 0  # where what is queued ends
        self._utterance, self._cut_off = -1, -1  # the newest one, and the last one that was interrupted
        self._expected = -1  # the utterance that `expect` was called for last
        self._moved = 0  # slots by which pauses have moved the rest of the utterance

    @property
    def queued_s(self) -> float:
        """How much is there beyond what is decided: what a generator looks at before it makes more."""
        return max(0, self._tail - self._decided) / self._fps

    @property
    def moved_s(self) -> float:
        """By how much pauses of the machine have moved the rest of the utterance from when it was due."""
        return self._moved / self._fps

    @property
    def queued_frames(self) -> int:
        """Frames of chunks that come after the one that was looked at last."""
        with self._lock:
            return self._line.frames_between(self._seen + 1, self._tail)

    def add(self, chunk: LiveChunk, due_s: float) -> Placed:
        """Give a chunk its place, after what is queued.

        Args:
            chunk: of the utterance that is on, or of a later one; those of an interrupted one are thrown away.
            due_s: media time at which its first frame should be on. For one that goes on with an utterance that came
                late, when it should have been and when it follows (`Placed.stop_s`) mean the same.

        Raises:
            UsageError: it hasn't 640 samples per frame.
        """
        if chunk.sound.shape != (len(chunk.frames) * SAMPLES_PER_FRAME,):
            raise UsageError(
                f"a chunk of {len(chunk.frames)} frames has sound of shape {chunk.sound.shape}; "
                f"expected ({len(chunk.frames) * SAMPLES_PER_FRAME},)"
            )
        with self._lock:
            placed = self._add(chunk, round(due_s * self._fps))
        self._tell()
        return placed

    def at(self, media_s: float) -> Shown:
        """Return what is on; media time that runs backwards is taken as standing still."""
        with self._lock:
            shown = self._line.look(self._arrive(media_s))
        self._tell()
        return shown

    def sound(self, until_s: float) -> tuple[float, Sound]:
        """Return the sound from where the last call ended, in whole frames, and the media time at which it begins.

        What is asked for ahead of `at` is decided from then on: a chunk that comes later is late. After a pause (event
        "resync") and after an interruption it begins with the next frame to be seen: what was handed out beyond that,
        and not heard yet, is handed out again, and to be cleared by who has it.
        """
        with self._lock:
            stop = math.ceil(until_s * self._fps - 1e-6)
            self._pause(stop - 1, self._decided)
            start = max(self._heard, self._seen)
            self._heard = max(start, stop)
            self._decided = max(self._decided, stop)
            samples = self._line.samples(start, self._heard)
        self._tell()
        return start / self._fps, samples

    def ahead(self, media_s: float, count: int) -> list[Shown]:
        """Return what will be on in the `count` slots before a media time if no more chunks come; nothing is counted.

        Slots that have passed are those that were on last.
        """
        with self._lock:
            stop = max(round(media_s * self._fps), self._seen + 1)
            return [self._line.look(max(slot, self._seen, 0)) for slot in range(stop - count, stop)]

    def expect(self, media_s: float, *, utterance: int) -> float:
        """Let what is on just before a media time stay on until the first chunk of an utterance comes.

        Args:
            media_s: the earliest that the chunk could be on where sound is decided with the picture; where it is handed
                out ahead (`sound`), the chunk is due by as much later.
            utterance: whose first chunk it is.

        Returns:
            When that chunk is due: then, or behind what is queued.
        """
        with self._lock:
            self._expected, self._moved = utterance, 0
            ahead = max(0, self._decided - self._seen - 1)
            due = max(round(media_s * self._fps) + ahead, self._tail)
            if utterance > self._cut_off:
                self._line.wait(max(due, self._decided), utterance=utterance)
            return due / self._fps

    def clear_from(self, media_s: float) -> None:
        """Throw away what is queued behind a media time, if it isn't decided: a way back to rest that nobody needs."""
        with self._lock:
            slot = max(round(media_s * self._fps), self._decided, self._seen + 1)
            if slot < self._tail:
                self.counts.interrupted += self._line.cut(slot - 1, self._line.look(slot - 1))
                self._tail = slot

    def interrupt(self, media_s: float, *, through_utterance: int | None = None) -> Shown:
        """Drop everything after the frame that is on; nothing more of the interrupted utterances is taken.

        Args:
            media_s: now.
            through_utterance: the last one to be interrupted; if None, the newest that a chunk came from.

        Returns:
            Where the face is. It is held there until the next chunk, or the rest loop.
        """
        with self._lock:
            slot = self._arrive(media_s)
            now = self._line.look(slot)
            self._cut_off = max(self._cut_off, self._utterance if through_utterance is None else through_utterance)
            self._end_stall(slot + 1)
            dropped = self._line.cut(slot, now)
            self.counts.interrupted += dropped
            self._decided = self._heard = self._tail = slot + 1
            self._note("interrupted", "S_INTERRUPTED", slot, frames=dropped, kind=now.kind)
        self._tell()
        return now

    def close(self, media_s: float) -> None:
        """Note a stall that is still on."""
        with self._lock:
            self._end_stall(self._arrive(media_s))
        self._tell()

    def _arrive(self, media_s: float) -> int:
        """Settle, and count, the slots up to a media time; return its slot."""
        slot = max(math.floor(media_s * self._fps + 1e-6), self._seen, 0)
        self._pause(slot, self._seen + 1)
        if slot > self._seen:
            self._count(slot)
            self._seen = slot
            self._decided = max(self._decided, slot + 1)
            self._line.forget(slot)
        return slot

    def _pause(self, slot: int, was: int) -> None:
        """If media time has jumped, move what lay in slot `was` to here, and all else: nobody watched meanwhile."""
        if slot - self._decided <= self._resync or self._decided == 0:
            return
        gap = slot - was
        self._line.move(gap)
        self._seen, self._decided, self._heard, self._tail, self._moved = (
            number + gap for number in (self._seen, self._decided, self._heard, self._tail, self._moved)
        )
        self._heard = max(self._seen + 1, self._decided - self._resync)
        self.counts.resyncs += 1
        self._note("resync", "S_RESYNC", slot, length_s=gap / self._fps)

    def _add(self, chunk: LiveChunk, due: int) -> Placed:
        length = len(chunk.frames)
        self.counts.added += length
        if chunk.utterance <= self._cut_off:
            self.counts.interrupted += length
            return Placed(due / self._fps, due / self._fps, 0.0, 0.0, 0.0)
        if chunk.utterance != self._utterance:
            self._utterance = chunk.utterance
            if self._expected != chunk.utterance:
                self._moved = 0
        due += self._moved
        wanted = max(due, self._tail) if length else self._tail
        start = max(wanted, self._decided)
        late = start - wanted
        dropped = 0 if self._policy is LatePolicy.SHOW else min(late, length)
        self.counts.dropped += dropped
        if late:
            self.counts.late_chunks += 1
            self._note("late", "S_LATE", start, lateness_s=late / self._fps, utterance=chunk.utterance, dropped=dropped)
        stop = start + length - dropped
        if stop == start or (late and self._policy is LatePolicy.HOLD):
            self.counts.replaced += stop - start
            if chunk.is_last:
                self._end_stall(stop)
            if stop > start or chunk.is_last:
                self._line.append_sound(chunk, start, stop)
        else:
            self._end_stall(start)
            self._line.append(chunk, start, stop, due=due + dropped)
        self._tail = max(self._tail, stop) if stop > start else self._tail
        return Placed(
            start_s=start / self._fps,
            stop_s=(stop - self._moved) / self._fps,
            lateness_s=max(0, start - due) / self._fps,
            waited_s=late / self._fps,
            spare_s=(wanted - self._decided) / self._fps,
        )

    def _count(self, slot: int) -> None:
        """Count what was on since the last look, up to this one."""
        passed, kind = self._line.frames_between(self._seen + 1, slot + 1), self._line.look(slot).kind
        if kind == "speech":
            self.counts.shown += 1
            passed -= 1
        elif kind == "rest":
            self.counts.rest += 1
        else:
            self.counts.held += 1
        self.counts.unseen += passed

    def _end_stall(self, slot: int) -> None:
        """If frames of an utterance were missing up to a slot, tell it, once and with its length."""
        since = self._line.missing_from
        if since is None or slot <= since:
            return
        length_s = (slot - since) / self._fps
        self.counts.stalls += 1
        self.counts.stalled_s += length_s
        self._note("stall", "S_STALL", since, length_s=length_s)

    def _note(self, event: str, code: str, slot: int, **fields: Any) -> None:
        if self._on_event is not None:
            self._told.append({"event": event, "code": code, "at_s": slot / self._fps, **fields})

    def _tell(self) -> None:
        if self._on_event is not None and self._told:
            with self._lock:
                told, self._told = self._told, []
            for entry in told:
                self._on_event(entry)
