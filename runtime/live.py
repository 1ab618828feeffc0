# SPDX-License-Identifier: Apache-2.0
"""The public face of a live stream, from `AvatarSession.live`: push, interrupt, wait, and what it says about itself."""

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import numpy.typing as npt

from .audio import SAMPLE_RATE
from .clock import Clock, MonotonicClock, read_together
from .errors import EdgereelsError, UsageError
from .live_outputs import Output
from .live_reports import ChunkMade
from .live_room import LiveRoom
from .live_running import LiveOptions, LiveRunning
from .live_settings import LiveLatency
from .live_state import LiveState, State
from .microphone import MicrophoneSource
from .playout_types import LatePolicy, PlayoutCounts
from .push_source import PushSource
from .sources import Source

logger = logging.getLogger(__name__)

OnEvent = Callable[[dict[str, Any]], None]

STOPPED_WITHIN_S = 1.8
"""How long `Live.stop` takes at most, unless it may take longer."""


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


def _late(asked: LatePolicy | str | None) -> LatePolicy:
    try:
        return LatePolicy.SHOW if asked is None else LatePolicy(asked)
    except ValueError:
        raise UsageError(f"late is {asked!r}; expected {', '.join(LatePolicy)}") from None


def _ends(asked: str | None, *, default: Literal["mark", "silence"]) -> Literal["mark", "silence"]:
    if asked not in (None, "mark", "silence"):
        raise UsageError(f"ends is {asked!r}; expected 'mark' or 'silence'")
    return default if asked is None else ("mark" if asked == "mark" else "silence")


def _distinct(outputs: Sequence[Output]) -> tuple[Output, ...]:
    targets = [output.target.absolute() for output in outputs if output.target is not None]
    if len(set(targets)) < len(targets):
        raise UsageError("two outputs write the same file; expected a file for each")
    return tuple(outputs)


class Live:
    """A live stream. It runs inside `with`; every method may be called from any thread."""

    def __init__(
        self,
        room: LiveRoom,
        *,
        source: Source | None,
        outputs: Sequence[Output],
        speakers: bool | int | str,
        late: LatePolicy | str | None,
        ends: Literal["mark", "silence"] | None,
        on_event: OnEvent | None,
        on_chunk: Callable[[ChunkMade], None] | None,
    ) -> None:
        """Prepare; nothing runs yet. Arguments as of `AvatarSession.live`, and a room to close at the end."""
        self._clock: Clock = MonotonicClock()
        self._pushed: PushSource | None = None
        if source is None:
            source = self._pushed = PushSource(self._clock)
        self._source: Source = source
        self._room, self._on_event = room, on_event
        if isinstance(source, MicrophoneSource):
            source.report_to(self._tell)
        self._options = LiveOptions(
            _distinct(outputs),
            speakers,
            _late(late),
            _ends(ends, default="silence" if self._pushed is None else "mark"),
            self._tell,
            None if on_chunk is None else partial(self._hand_on, on_chunk),
        )
        self._state = LockedState(on_event=self._tell)
        self._parts: LiveRunning | None = None
        self._stopping = threading.Lock()  # to decide who does it; not held meanwhile, because listeners may call it
        self._is_stopped, self._telling = threading.Event(), threading.local()
        self._interrupting = threading.Lock()
        self._left = threading.Event()  # somebody closed the window
        self._is_used = self._is_closed = False

    # ── Beginning and end ────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        if self._is_used:
            raise UsageError("this live stream has run already; expected a new one: ask the session for another")
        self._is_used = True
        try:
            self._parts = LiveRunning(self._room, self._options, state=self._state, clock=self._clock)
            self._parts.start()
            self._state.go_on(code="S_OPENED", now_s=self.now_s())
            self._parts.listen(self._source)
        except BaseException as error:
            code = getattr(error, "code", None) or "S_START"
            self._state.change(State.FAILED, code=str(code), now_s=self.now_s(), message=str(error))
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, *, within_s: float = STOPPED_WITHIN_S) -> None:
        """End the stream: files are finished, devices closed.

        Called again it does nothing but wait for that; from a listener or an output's function it doesn't wait either.

        Args:
            within_s: how long that may take. What a slow file has not taken by then is left out of it.
        """
        with self._stopping:
            is_first, self._is_closed = self._is_used and not self._is_closed, self._is_used
        if not is_first:
            if self._is_used and not self._is_told_now:
                self._is_stopped.wait(within_s)
            return
        try:
            self._state.change(State.STOPPED, code="S_STOPPED", now_s=self.now_s())
            if self._parts is not None:
                self._parts.stop(within_s=within_s)
        finally:
            if self._parts is None or not self._parts.is_making:
                self._room.close()
            self._is_stopped.set()

    @property
    def _running(self) -> LiveRunning:
        if self._parts is None:
            raise UsageError("this live stream has not begun; expected it inside `with`")
        return self._parts

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
            queue.Full: `wait` is False, and there is no room (30 s), or another block waits for some.
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
            self._running.ears.drop(generation=self._pushed.generation if self._pushed is not None else 0)
            through = self._running.generator.newest_turn
            shown = self._running.player.interrupt(through_turn=through)
            self._running.generator.cut(through, is_away=shown.kind != "rest")

    def _own_source(self, method: str) -> PushSource:
        if self._state.has_ended:
            raise UsageError(f"{method} was called, and the stream is {self.state}: begin another")
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
        return self._running.latency

    @property
    def counts(self) -> PlayoutCounts:
        """Frames and faults since the beginning."""
        return self._running.playout.counts

    def now_s(self) -> float:
        """Return the reading of the one clock, which events and reports use."""
        return self._clock.now_s()

    def position_s(self) -> float:
        """Return the media time that is on now: seconds of sound that the master clock has played."""
        return self._running.sound_clock.position_s()

    def sound_out(self) -> tuple[float, float]:
        """Return a media time, and the clock reading at which its sound is heard."""
        return read_together(self._running.sound_clock.position_s, self._clock)

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
        in_time = self._wait(lambda: self._left.is_set() or (self._running.ears.is_over and self._is_idle()), timeout_s)
        failure = self._running.ears.failure or self._running.generator.failure
        if failure is not None:
            raise failure if isinstance(failure, EdgereelsError) else EdgereelsError(str(failure)) from failure
        return in_time

    def _is_idle(self) -> bool:
        waits = self._pushed is not None and self._pushed.waiting_s > 0
        is_made = self._running.ears.is_quiet and self._running.generator.is_idle and not waits
        return is_made and self._running.playout.queued_s == 0 and self._running.player.is_resting

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
        if event["event"] == "audio_lost":
            self._state.degrade("AUDIO_UNAVAILABLE", now_s=now_s)
        elif code == "AUDIO_PLAYING":
            self._state.restore("AUDIO_UNAVAILABLE", now_s=now_s)
        elif event["event"] == "microphone" and code == "AUDIO_UNAVAILABLE":
            self._state.degrade("MICROPHONE_UNAVAILABLE", now_s=now_s)
        elif event["event"] == "microphone" and code == "AUDIO_AVAILABLE":
            self._state.restore("MICROPHONE_UNAVAILABLE", now_s=now_s)
        elif event["event"] in ("sink_failed", "source_failed"):
            self._state.degrade(str(code), now_s=now_s)
        elif code == "WINDOW_CLOSED":
            self._left.set()
        logger.debug("live: %s", event)
        if self._on_event is not None:
            self._hand_on(self._on_event, event)

    def _hand_on(self, listener: Callable[[Any], None], told: Any) -> None:
        """Call a listener, perhaps from within another; what it gets wrong must not end the thread that tells it."""
        was_told = self._is_told_now
        self._telling.is_now = True
        try:
            listener(told)
        except Exception:
            logger.exception("a listener raised at %s", told)
        finally:
            self._telling.is_now = was_told

    @property
    def _is_told_now(self) -> bool:
        """Whether this thread is inside a listener, or an output's function: it may not wait for the stream's end."""
        own = threading.current_thread().name.startswith("edgereels-")
        return own or getattr(self._telling, "is_now", False)
