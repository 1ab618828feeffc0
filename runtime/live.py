# SPDX-License-Identifier: Apache-2.0
"""A live stream: sound arrives while frames leave. Put together here; what each part does is said in its own module.

::

    source ──▶ LiveEars ──▶ Generator ──▶ Playout ──▶ Player ──▶ one queue and thread per output
                            (windows)     (media time)  └──────▶ speakers, whose clock is the master
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

import numpy.typing as npt

from .audio import SAMPLE_RATE
from .clock import Clock, MonotonicClock
from .errors import EdgereelsError, UsageError
from .giving_up import GivingUp, QualityLevel
from .live_ears import LiveEars
from .live_face import LiveFace
from .live_generator import Generator, GeneratorParts
from .live_outputs import OpenOutput, Output
from .live_player import Player
from .live_reports import ChunkMade
from .live_room import LiveRoom
from .live_settings import LiveLatency
from .live_state import LiveState, State
from .playout import Playout
from .playout_types import LatePolicy, PlayoutCounts
from .push_source import PushSource
from .silent_clock import SilentClock
from .sound_device import open_clock
from .sources import Source

logger = logging.getLogger(__name__)

OnEvent = Callable[[dict[str, Any]], None]

LEAST_ALLOWANCE_S = 0.28
"""Set aside for making the first chunk of an utterance, at least: what the chunks after it may be late by as well."""

ALLOWANCE_FACTOR = 1.5
"""Times what a window costs: a machine that does other things now and then takes longer."""

STOPPED_WITHIN_S = 1.5
"""How long outputs may take to end."""


class LockedState(LiveState):
    """A state that several threads may change; listeners are called with it locked."""

    def __init__(self, *, on_event: OnEvent | None = None) -> None:
        super().__init__(on_event=on_event)
        self._lock = threading.RLock()

    def change(self, to: State, *, code: str, now_s: float, **details: Any) -> None:
        """Change the state."""
        with self._lock:
            if not self.has_ended and self.state is not to:
                super().change(to, code=code, now_s=now_s, **details)

    def degrade(self, code: str, *, now_s: float, **details: Any) -> None:
        """Note that something is missing."""
        with self._lock:
            super().degrade(code, now_s=now_s, **details)

    def restore(self, code: str, *, now_s: float) -> None:
        """Note that something is no longer missing."""
        with self._lock:
            super().restore(code, now_s=now_s)

    def go_on(self, *, code: str, now_s: float) -> None:
        """Leave STARTING, RECOVERING or DEGRADED."""
        with self._lock:
            super().go_on(code=code, now_s=now_s)

    def utterance_begins(self, *, now_s: float) -> None:
        """Note that somebody speaks."""
        with self._lock:
            super().utterance_begins(now_s=now_s)

    def utterance_ends(self, *, now_s: float) -> None:
        """Note that nobody speaks any longer."""
        with self._lock:
            super().utterance_ends(now_s=now_s)


class Live:
    """A live stream, from `AvatarSession.live`. It runs inside `with`; every method may be called from any thread."""

    def __init__(
        self,
        room: LiveRoom,
        *,
        source: Source | None,
        outputs: Sequence[Output],
        speakers: bool | int | str,
        late: LatePolicy | None,
        ends: Literal["mark", "silence"] | None,
        on_event: OnEvent | None,
        on_chunk: Callable[[ChunkMade], None] | None,
    ) -> None:
        """Prepare; nothing runs yet. Arguments as of `AvatarSession.live`, and a room to close at the end."""
        self._clock: Clock = MonotonicClock()
        self._pushed = PushSource(self._clock) if source is None else None
        self._source: Source = self._pushed if self._pushed is not None else source  # type: ignore[assignment]
        self._room = room
        self._outputs_wanted, self._speakers = tuple(outputs), speakers
        self._late = late or LatePolicy.SHOW
        self._ends: Literal["mark", "silence"] = ends or ("mark" if source is None else "silence")
        self._on_event, self._on_chunk = on_event, on_chunk
        self._state = LockedState(on_event=self._tell)
        self._stack = ExitStack()
        self._outputs: list[OpenOutput] = []
        self._threads: list[threading.Thread] = []
        self._stop_lock = threading.Lock()
        self._started = False
        self._left = threading.Event()  # the viewer closed the window
        self._interrupting = threading.Lock()

    # ── Beginning and end ────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        if self._started:
            raise UsageError("this live stream has run already; expected a new one: ask the session for another")
        self._started = True
        try:
            self._start()
        except BaseException as error:
            self._state.change(
                State.FAILED, code=getattr(error, "code", None) or "S_START", now_s=self.now_s(), message=str(error)
            )
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        for output in self._outputs_wanted:
            if output.check is not None:
                output.check()
        face = self._room.open()
        wanted, canvas = self._room.shown_as(face)
        settings = self._room.settings[0]
        compute_s = max(LEAST_ALLOWANCE_S, ALLOWANCE_FACTOR * face.window_s[settings])
        self._latency = LiveLatency(
            look_ahead_s=settings.first_frame_s,
            allowance_s=round(compute_s * wanted.fps + 0.49) / wanted.fps,
            window=settings.window,
            steps=settings.steps,
            chunk_frames=settings.chunk_frames,
        )
        self._playout = Playout(wanted.fps, face.rest_loop, policy=self._late, on_event=self._tell)
        self._sound_clock = self._open_clock()
        self._ears = LiveEars(ends=self._ends, on_event=self._tell)
        self._generator = Generator(self._parts(face, wanted.fps), face)
        self._outputs = [OpenOutput(output, wanted, on_event=self._tell) for output in self._outputs_wanted]
        for output in self._outputs:
            output.start()
            self._stack.callback(output.stop, timeout_s=STOPPED_WITHIN_S)
        self._stack.enter_context(self._sound_clock)
        self._player = Player(
            self._playout, self._sound_clock, self._outputs, clock=self._clock, fps=wanted.fps, canvas=canvas
        )
        self._run("player", self._player.run, self._player.stop)
        self._run("generator", self._generator.run, self._generator.stop)
        self._stack.callback(self._ears.stop_waiting)
        self._stack.callback(self._source.stop)
        self._state.go_on(code="S_OPENED", now_s=self.now_s())
        self._source.start(self._ears.hear, self._ears.close)

    def _open_clock(self) -> SilentClock:
        if self._speakers is False:
            return SilentClock(SAMPLE_RATE, on_event=self._tell)
        device = None if self._speakers is True else self._speakers
        return open_clock(SAMPLE_RATE, on_event=self._tell, device=device)

    def _parts(self, face: LiveFace, fps: int) -> GeneratorParts:
        levels = tuple(
            QualityLevel(one.steps, one.window, float(fps), cost=face.window_s[one] / one.chunk_frames)
            for one in self._room.settings
        )
        kept = [0]
        for index in range(1, len(levels)):  # what is no cheaper here is no way out
            if levels[index].cost < levels[kept[-1]].cost:
                kept.append(index)
        return GeneratorParts(
            open_face=self._room.open,
            ears=self._ears,
            playout=self._playout,
            position_s=self._sound_clock.position_s,
            clock=self._clock,
            allowance_s=self._latency.allowance_s,
            qualities=tuple(self._room.settings[index] for index in kept),
            giving_up=GivingUp([levels[index] for index in kept], on_event=self._tell),
            stage_s=self._room.stage_s,
            state=self._state,
            on_event=self._tell,
            on_chunk=self._on_chunk,
        )

    def _run(self, name: str, function: Callable[[], None], end: Callable[[], None]) -> None:
        thread = threading.Thread(target=function, name=f"edgereels-{name}", daemon=True)
        thread.start()
        self._stack.callback(thread.join, STOPPED_WITHIN_S)
        self._stack.callback(end)

    def stop(self) -> None:
        """End the stream: files are finished, devices closed. Called again it does nothing."""
        with self._stop_lock:
            if self._started and not self._state.has_ended:
                self._state.change(State.STOPPED, code="S_STOPPED", now_s=self.now_s())
            self._close()

    def _close(self) -> None:
        try:
            self._stack.close()
        finally:
            self._room.close()

    # ── Sound ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def push(self, samples: npt.NDArray[Any], sample_rate: int = SAMPLE_RATE, *, wait: bool = True) -> None:
        """Say some more of the utterance that goes on, or begin one.

        Args:
            samples: (n,) or (n, channels); floating point in [-1, 1], int16 or int32; any n.
            sample_rate: Hz.
            wait: False to take all of it at once or nothing.

        Raises:
            MediaError: the block or the rate is none that is taken.
            UsageError: the stream has another source, or has ended.
            queue.Full: `wait` is False, and 30 s wait already.
        """
        self._own_source("push").push(samples, sample_rate, wait=wait)

    def end_utterance(self) -> None:
        """Say that the speaker has finished; the face goes back to rest behind what was pushed."""
        self._own_source("end_utterance").end_utterance()

    def close_input(self) -> None:
        """Say that nothing more will be pushed; `wait_over` then waits for the rest."""
        self._own_source("close_input").close()

    def interrupt(self) -> None:
        """Stop sound and mouth within one frame, and forget what was to be said; the face goes back to rest.

        What is pushed next is said from where the face is.
        """
        with self._interrupting:
            if self._pushed is not None:
                self._pushed.clear()
            self._ears.drop()
            through = self._generator.newest_turn
            self._generator.cut(through)
            self._playout.interrupt(self.position_s(), through_utterance=through)
            self._sound_clock.clear()

    def _own_source(self, method: str) -> PushSource:
        if self._pushed is None:
            raise UsageError(f"{method} was called, and the stream has a source of its own; leave the source out")
        return self._pushed

    # ── What it does ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> State:
        """Where the stream is."""
        return self._state.state

    @property
    def causes(self) -> tuple[str, ...]:
        """Codes of what is missing while the state is DEGRADED."""
        return tuple(self._state.causes)

    @property
    def latency(self) -> LiveLatency:
        """What a viewer waits for."""
        return self._latency

    @property
    def counts(self) -> PlayoutCounts:
        """Frames and faults since the beginning."""
        return self._playout.counts

    def now_s(self) -> float:
        """Return the reading of the one clock, which events and reports use."""
        return self._clock.now_s()

    def position_s(self) -> float:
        """Return the media time that is on now: seconds of sound that the master clock has played."""
        return self._sound_clock.position_s()

    def sound_out(self) -> tuple[float, float]:
        """Return a media time, and the clock reading at which its sound is heard."""
        now_s = self.now_s()
        return self._sound_clock.position_s(), now_s

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until everything that was said has been shown and the face rests; whether that came in time."""
        return self._wait(self._is_idle, timeout_s)

    def wait_over(self, timeout_s: float | None = None) -> bool:
        """Wait until the source has ended and all of it was shown, or somebody closed the window, or the stream ended.

        Returns:
            Whether that came in time.

        Raises:
            EdgereelsError: the source, or the stream, failed.
        """
        in_time = self._wait(lambda: self._left.is_set() or (self._ears.is_over and self._is_idle()), timeout_s)
        failure = self._ears.failure or self._generator.failure
        if failure is not None:
            raise failure if isinstance(failure, EdgereelsError) else EdgereelsError(str(failure)) from failure
        return in_time

    def _is_idle(self) -> bool:
        waits = self._pushed is not None and self._pushed.waiting_s > 0
        is_made = self._ears.is_quiet and self._generator.is_idle and not waits
        return is_made and self._playout.queued_s == 0 and self._player.is_resting

    def _wait(self, is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        """Look every 20 ms until something is so twice in a row: between two threads it may only seem to be."""
        until_s = None if timeout_s is None else self.now_s() + timeout_s
        times = 0
        while times < 2:
            times = times + 1 if is_so() else 0
            if self._state.has_ended:
                return is_so()
            if until_s is not None and self.now_s() >= until_s:
                return False
            self._clock.wait_until(self.now_s() + 0.02)
        return True

    # ── Events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, event: dict[str, Any]) -> None:
        """Hand an event on; devices and outputs that come and go change the state."""
        code, now_s = event.get("code"), self.now_s()
        if event["event"] in ("audio_lost", "microphone") and code == "AUDIO_UNAVAILABLE":
            self._state.degrade("AUDIO_UNAVAILABLE", now_s=now_s)
        elif code in ("AUDIO_PLAYING", "AUDIO_AVAILABLE"):
            self._state.restore("AUDIO_UNAVAILABLE", now_s=now_s)
        elif event["event"] == "sink_failed":
            self._state.degrade(str(code), now_s=now_s)
        elif code == "WINDOW_CLOSED":
            self._left.set()
        logger.debug("live: %s", event)
        if self._on_event is not None:
            self._on_event(event)
