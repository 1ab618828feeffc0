# SPDX-License-Identifier: Apache-2.0
"""The thread of a live stream that makes frames: waits for sound, runs a window, hands the chunk to the playout.

A *turn* is what the face does between two rests: an utterance and the way back to the rest pose behind it, or the way
back alone where an utterance was cut off.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clock import read_together
from .engine import end_runs
from .live_actor import KEPT_FRAMES, LiveActor
from .live_chunk import SAMPLES_PER_FRAME, LiveChunk
from .live_ears import Heard, Spoken
from .live_face import LiveFace
from .live_faults import LiveFaults
from .live_generator_parts import GeneratorParts
from .live_reports import ChunkMade, Piece
from .live_settings import LiveSettings
from .live_stages import LiveStages
from .live_state import State
from .live_windows import Pixels
from .playout_types import Placed

RESERVE_S = 2.0
"""So much is made ahead of what is shown; more would be thrown away at an interruption."""

STARVED_S = 1.5
"""An utterance of which nothing comes for so long has ended, whether somebody says so or not."""

HUNG_S, HUNG_FACTOR = 20.0, 5.0
"""A window that takes so long, and so many times what it took at the start, is broken off; engines are opened anew."""

_LOOK_S = 0.02  # how often somebody looks whether there is room for more


@dataclass(eq=False)
class _Turn:
    """What is known of the turn that goes on."""

    number: int
    due_s: float | None = None
    """Media time at which the next chunk is to be on."""
    pushed: int = 0
    """Samples of the utterance that were heard."""
    settings: LiveSettings | None = None
    """Of the last chunk."""
    allowance_s: float = 0.0
    """What was set aside for making it."""


class Generator:
    """Runs in a thread of its own, by `run`; everything else may be called from any thread."""

    def __init__(self, parts: GeneratorParts, face: LiveFace) -> None:
        """Prepare to make frames of an open face."""
        self._parts, self._actor = parts, LiveActor(face)
        self._faults = LiveFaults(parts, self._actor)
        self._stopping = threading.Event()
        self._turns = 0  # that have begun
        self._cut = -1  # the last turn that was cut off
        self._returning = -2  # the last turn that was only a way back
        self._chunks = 0
        self._is_away = False  # whether the face was left somewhere else than at rest
        self._is_busy = False
        self._window_since_s: float | None = None
        self._is_hung = False
        self._thread: int | None = None  # which runs it

    @property
    def failure(self) -> Exception | None:
        """What ended it, if something did."""
        return self._faults.failure

    @property
    def is_idle(self) -> bool:
        """Whether it makes nothing and has nothing to make up for."""
        return not (self._is_busy or self._is_away)

    @property
    def newest_turn(self) -> int:
        """The last turn that has begun; -1 before the first."""
        return self._turns - 1

    def cut(self, through_turn: int, *, is_away: bool) -> None:
        """Make nothing more of these turns; if the face is away from rest, it goes back from where it is."""
        self._cut = max(self._cut, through_turn)
        self._is_away = self._is_away or is_away

    def watch(self) -> None:
        """Break off a window that hangs; called now and then from another thread."""
        since_s = self._window_since_s
        after_s = max(HUNG_S, HUNG_FACTOR * self._actor.face.costs[self._settings].whole_s)
        hung_s = 0.0 if since_s is None else self._now_s - since_s - after_s
        if hung_s <= 0:
            return
        if not self._is_hung:
            self._is_hung = True
            self._tell("hung", "S_HUNG", after_s=after_s)
        # After as long again somebody else's run must be what it waits for.
        end_runs(of_thread=self._thread if hung_s < after_s else None)

    def stop(self) -> None:
        """End `run` after the window that is being made."""
        self._stopping.set()

    def run(self) -> None:
        """Make frames until `stop`, or until nothing helps any more: then `failure` says what."""
        self._thread = threading.get_ident()
        try:
            while not self._stopping.is_set():
                spoken = self._parts.ears.next(timeout_s=_LOOK_S)
                self._is_busy = spoken is not None or self._is_away
                if spoken is not None:
                    self._speak(spoken)
                elif self._is_away:
                    self._return()
                self._is_busy = False
        except Exception as error:  # nothing may end a thread unseen
            self._faults.failure = error
            self._is_busy = False
            self._parts.ears.stop_waiting()
            if not self._parts.state.has_ended:
                self._parts.state.change(
                    State.FAILED, code="S_UNEXPECTED", now_s=self._now_s, error=type(error).__name__, message=str(error)
                )

    # ── Turns ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> _Turn:
        turn = _Turn(self._turns)
        self._turns += 1
        self._actor.begin()
        return turn

    def _goes_on(self, turn: _Turn) -> bool:
        return not self._stopping.is_set() and turn.number > self._cut

    def _speak(self, spoken: Spoken) -> None:
        """Make an utterance and the way back to rest."""
        self._is_away = False  # before the turn begins: an interruption of it must not be forgotten
        turn = self._begin()
        self._parts.state.utterance_begins(now_s=self._now_s)
        is_last = False
        while not is_last and self._goes_on(turn):
            settings = self._settings
            needed = self._actor.needed_frames(settings)
            heard = self._wait_for(spoken, needed * SAMPLES_PER_FRAME, turn)
            if heard is None or not self._wait_for_room(turn):
                break
            self._hear(spoken, turn, min(needed * SAMPLES_PER_FRAME, heard.samples))
            if heard.ended:
                self._actor.hear_silence(needed)
                is_last = self._actor.can_end(heard.samples // SAMPLES_PER_FRAME, settings)
            self._chunk(turn, settings, spoken.start + turn.pushed, is_last=is_last)
        self._parts.state.utterance_ends(now_s=self._now_s)

    def _return(self) -> None:
        """Bring the face back to rest from where it was left."""
        self._is_away = False
        turn, settings = self._begin(), self._settings
        self._returning = turn.number
        self._actor.hear_silence(self._actor.needed_frames(settings))
        self._chunk(turn, settings, None, is_last=True)

    def _wait_for(self, spoken: Spoken, samples: int, turn: _Turn) -> Heard | None:
        """Return what is there of an utterance once it is enough, or all; None where nobody wants it any more."""
        before = self._parts.ears.wait_for(spoken, samples, timeout_s=0).samples
        while self._goes_on(turn):
            heard = self._parts.ears.wait_for(spoken, samples, timeout_s=STARVED_S)
            if heard.dropped:
                return None
            if heard.ended or heard.samples >= samples:
                return heard
            if heard.samples == before:
                self._tell("starved", "S_STARVED", utterance=turn.number, waited_s=STARVED_S)
                self._parts.ears.end(spoken)
            before = heard.samples
        return None

    def _wait_for_room(self, turn: _Turn) -> bool:
        """Wait until less than the reserve is queued; whether the turn goes on."""
        while self._goes_on(turn) and self._parts.playout.queued_s > RESERVE_S:
            self._parts.clock.wait_until(self._now_s + _LOOK_S, self._stopping)
        return self._goes_on(turn)

    def _hear(self, spoken: Spoken, turn: _Turn, stop: int) -> None:
        if stop > turn.pushed:
            self._actor.hear(self._parts.ears.read(spoken, turn.pushed, stop))
            turn.pushed = stop

    # ── Chunks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _chunk(self, turn: _Turn, settings: LiveSettings, needed_sample: int | None, *, is_last: bool) -> None:
        """Make one chunk of a turn; hand its pieces over as soon as they are there."""
        parts, stages = self._parts, LiveStages(self._parts.clock, self._parts.graphs_s)
        start_s, pieces, taken, is_first = self._now_s, list[Piece](), dict[str, float](), turn.due_s is None
        with stages.around("between"):
            arrival = (start_s, start_s) if needed_sample is None else parts.ears.arrival(needed_sample)
            intended_s, audio_ready_s = arrival
            due_s = self._plan(turn, settings, audio_ready_s)
        first_frame, faults, spare_s, late_s = self._actor.made, self._faults.count, math.inf, 0.0
        made = self._frames(settings, is_last=is_last)
        while True:
            with stages.around("between"):
                frames = next(made, None)
            if frames is None:
                break
            if not self._goes_on(turn):
                return
            with stages.around("hand_on"):
                ends = is_last and not self._actor.owed
                placed = self._hand_on(turn, frames, ends=ends, audio_ready_s=audio_ready_s)
            spare_s = min(spare_s, placed.spare_s - late_s)  # pieces that were late have moved those behind them
            late_s += placed.waited_s
            pieces.append(Piece(len(frames), self._now_s))
            taken = stages.seconds()
        if not pieces:
            return
        count, ready_s = sum(piece.frames for piece in pieces), pieces[-1].ready_s
        if self._faults.count == faults:  # what follows a fault says nothing of the quality
            in_time = intended_s + turn.allowance_s < due_s + 1 / 25  # the sound, for a chunk that is made in time
            if is_first and in_time and start_s - audio_ready_s < 1 / 25:  # it had all that was set aside
                parts.allowance.observe(settings, spare_s=spare_s, now_s=self._now_s)
            missed = late_s > 0 and in_time and not is_first
            self._judge(ready_s - start_s, media_s=count / 25, missed=missed, spare_s=spare_s)
        if parts.on_chunk is not None:
            parts.on_chunk(
                ChunkMade(
                    index=self._chunks,
                    utterance=turn.number,
                    first_frame=first_frame,
                    frames=count,
                    is_last=is_last,
                    intended_s=intended_s,
                    audio_ready_s=audio_ready_s,
                    start_s=start_s,
                    ready_s=ready_s,
                    pieces=tuple(pieces),
                    due_s=due_s,
                    look_ahead_s=settings.look_ahead_frames / 25,
                    needed_sample=needed_sample or 0,
                    stages=taken,
                    waits={"queue": start_s - audio_ready_s},
                    missed=late_s > 0,
                )
            )
        self._chunks += 1

    def _plan(self, turn: _Turn, settings: LiveSettings, audio_ready_s: float) -> float:
        """Decide when the turn's next chunk is to be on, and return the clock's reading then."""
        parts = self._parts
        position_s, now_s = read_together(parts.position_s, parts.clock)
        allowance_s = parts.allowance.of(settings)
        if turn.due_s is None:
            turn.due_s = self._begin_at(turn, position_s - (now_s - audio_ready_s) + allowance_s)
        elif settings != turn.settings and turn.settings is not None:  # a longer window waits for more sound, and works
            longer_s = settings.first_frame_s - turn.settings.first_frame_s + allowance_s - turn.allowance_s
            turn.due_s += max(0.0, longer_s)
        if settings != turn.settings:
            turn.settings, turn.allowance_s = settings, allowance_s
        return now_s + turn.due_s + parts.playout.moved_s - position_s

    def _hand_on(self, turn: _Turn, frames: Pixels, *, ends: bool, audio_ready_s: float) -> Placed:
        """Give the playout some frames with their sound."""
        sound, first = self._actor.sound(len(frames)), self._actor.made - len(frames)
        chunk = LiveChunk(frames, sound, turn.number, first, ends, audio_ready_s, self._now_s)
        assert turn.due_s is not None
        placed = self._parts.playout.add(chunk, turn.due_s)
        turn.due_s = placed.stop_s
        return placed

    def _begin_at(self, turn: _Turn, media_s: float) -> float:
        """Go on from what is on before a media time, and return when the turn's first frame is due: then, or later.

        It comes behind what is queued, but for a way back to rest that nobody needs any more.
        """
        playout = self._parts.playout
        if self._returning == turn.number - 1:
            playout.clear_from(media_s)
        due_s = playout.expect(media_s, utterance=turn.number)
        self._actor.start_from(np.stack([shown.frame for shown in playout.ahead(due_s, KEPT_FRAMES)]))
        return due_s

    def _frames(self, settings: LiveSettings, *, is_last: bool) -> Iterator[Pixels]:
        """Yield the frames of a window; after a fault the face that is on, as often. No more if the turn is over."""
        self._window_since_s, self._is_hung = self._now_s, False
        try:
            yield from self._actor.make(settings, is_last=is_last)
        except Exception as error:  # whatever a library raises
            self._window_since_s = None
            if self._faults.recover(error, self._stopping):
                yield self._actor.hold()
        finally:
            self._window_since_s = None

    def _judge(self, cost_s: float, *, media_s: float, missed: bool, spare_s: float) -> None:
        giving_up, state = self._parts.giving_up, self._parts.state
        giving_up.observe(cost_s=cost_s, media_s=media_s, missed=missed, now_s=self._now_s, spare_s=spare_s)
        if giving_up.index:
            state.degrade("S_QUALITY", now_s=self._now_s)
        else:
            state.restore("S_QUALITY", now_s=self._now_s)

    @property
    def _now_s(self) -> float:
        return self._parts.clock.now_s()

    @property
    def _settings(self) -> LiveSettings:
        return self._parts.qualities[self._parts.giving_up.index]

    def _tell(self, event: str, code: str, **fields: Any) -> None:
        self._parts.on_event({"event": event, "code": code, "at_s": self._now_s, **fields})
