# SPDX-License-Identifier: Apache-2.0
"""Turns what a live stream tells, and what was given to it, into lines of a trace.

What a session says about itself is taken over, but for two things, which it could otherwise shift by being late. When a
chunk's sound was to be there is read from the schedule by which the sound was pushed, whenever the session took it. And
when a frame was to be on is counted from the first frame of its utterance, whether or not the session has moved the
rest of a late utterance to later.
"""

import json
import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .latency_pieces import lateness_s
from .latency_report import QUALITY
from .latency_trace import Chunk, Event, Frame, Line, SoundBlock, SoundOut, Turn
from .latency_trace_file import TraceWriter

if TYPE_CHECKING:
    from ..runtime import ChunkMade, ShownMedia

FPS = 25.0
"""Frames per second of media in every live stream."""
SAMPLE_RATE = 16000
"""Of the sound that is pushed, Hz."""
MOST_GAP_S = 2.0
"""A longer jump of media time is a pause of the whole machine, which the runtime reports as an event: frames inside it
were not due."""
MOST_KEPT_BLOCKS = 3_000
"""Whose times are remembered, a minute; as many again pile up before half are forgotten. More would show as memory."""
MOST_KEPT_UTTERANCES = 16
"""Whose beginnings are remembered."""


class TraceLog:
    """Where lines of all threads go: they wait for the first line of the trace, and are dropped after its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Line] = []
        self._take: Callable[[Line], None] = self._waiting.append

    def write(self, line: Line) -> None:
        """Write a line, now or after the first."""
        with self._lock:
            self._take(line)

    def begin(self, writer: TraceWriter) -> None:
        """Write what has waited, and everything from now on, into a trace that has its first line."""
        with self._lock:
            for line in self._waiting:
                writer.write(line)
            self._waiting.clear()
            self._take = writer.write

    def end(self) -> None:
        """Take nothing more: the trace is about to be sealed."""
        with self._lock:
            self._take = lambda _line: None


@dataclass
class Tally:
    """What was seen so far, for progress and for whoever has to decide during a run."""

    chunks: int = 0
    """Made, warm-up included."""
    missed: int = 0
    """Of those, after the warm-up, ready after they were due."""
    work_s: float = 0.0
    """On all chunks."""
    media_s: float = 0.0
    """Length of all chunks."""
    turns: int = 0
    """That were seen to begin."""
    lowered: int = 0
    """Times that the session gave up quality to keep up."""


@dataclass
class _Expected:
    """A turn that has begun: what is known of its first frame."""

    kind: str
    from_s: float
    sound_from_s: float
    after_utterance: int
    look_ahead_s: float | None = None
    shown_s: float | None = None


class Recorder:
    """Of one stream. Each method may be called from a thread of its own."""

    def __init__(
        self, write: Callable[[Any], None], now_s: Callable[[], float], *, stream: int = 0, warm_up_chunks: int = 0
    ) -> None:
        """Begin with nothing.

        Args:
            write: takes lines, from any thread.
            now_s: the session's clock.
            stream: 0-based.
            warm_up_chunks: first chunks that `tally.missed` leaves out.
        """
        self.tally = Tally()
        """So far."""
        self.allowance_s: float | None = None
        """Of speech that is spoken no faster than it is shown: first frames are due so long after the sound that they
        need, by the session's own promise. None: they may be due later, behind what was pushed before."""
        self._write, self._now_s, self._stream, self._warm_up = write, now_s, stream, warm_up_chunks
        self._lock = threading.Lock()
        self._sent = 0
        self._stops: list[int] = []  # sample behind each block that was pushed
        self._intended: list[float] = []  # when that block was to be pushed
        self._began: dict[int, float] = {}  # utterance -> when its first frame was to be on
        self._last_slot: int | None = None
        self._last_utterance = -1
        self._expected: _Expected | None = None

    def sent(self, intended_s: float, arrived_s: float, samples: int) -> None:
        """Note a block of sound; to be called right before it is pushed.

        Args:
            intended_s: when it was to be, by the schedule.
            arrived_s: the clock's reading.
            samples: how many, at 16 kHz.
        """
        with self._lock:
            self._sent += samples
            self._stops.append(self._sent)
            self._intended.append(intended_s)
            if len(self._stops) > 2 * MOST_KEPT_BLOCKS:
                del self._stops[:MOST_KEPT_BLOCKS], self._intended[:MOST_KEPT_BLOCKS]
        self._write(SoundBlock(intended_s, arrived_s, samples, SAMPLE_RATE, self._stream))

    def expect_turn(self, kind: str, from_s: float, *, sound_from_s: float | None = None) -> None:
        """Look for the first frame of the next utterance.

        Args:
            kind: turn, cold or warm.
            from_s: when the wait for it begins.
            sound_from_s: when its first sound is pushed; default: the same.
        """
        with self._lock:
            sound_s = from_s if sound_from_s is None else sound_from_s
            self._expected = _Expected(kind, from_s, sound_s, self._last_utterance)

    def on_chunk(self, made: "ChunkMade") -> None:
        """Take a chunk."""
        with self._lock:
            intended_s = self._intended_of(made)
            due_s = self._due_of(made, intended_s)
            chunk = Chunk(
                index=made.index,
                utterance=made.utterance,
                frames=made.frames,
                intended_s=intended_s,
                audio_ready_s=made.audio_ready_s,
                start_s=made.start_s,
                ready_s=made.ready_s,
                due_s=due_s,
                look_ahead_s=made.look_ahead_s,
                stages=dict(made.stages),
                waits=dict(made.waits),
                needed_sound_s=made.needed_sample / SAMPLE_RATE,
                pieces=[[piece.frames, piece.ready_s] for piece in made.pieces],
                stream=self._stream,
            )
        self._write(chunk)
        with self._lock:
            tally = self.tally
            tally.chunks += 1
            tally.missed += lateness_s(chunk, fps=FPS) > 0 and made.index >= self._warm_up
            tally.work_s += sum(made.stages.values())
            tally.media_s += made.frames / FPS
            expected = self._expected
            if expected and made.first_frame == 0 and made.utterance > expected.after_utterance:
                expected.look_ahead_s = max(0.0, intended_s - expected.sound_from_s)
            self._finish_turn()

    def on_shown(self, shown: "ShownMedia") -> None:
        """Take a frame that is on the screen now. What a viewer pays for is paid: the picture is composed."""
        _picture = shown.frames
        now_s, due_s = self._now_s(), shown.due_s
        with self._lock:
            if shown.kind == "speech":
                began_s = self._began.get(-1 if shown.utterance is None else shown.utterance, math.inf)
                due_s = min(due_s - shown.lateness_s, began_s + shown.index / FPS)
            slot = round(shown.media_s * FPS)
            lost = 0 if self._last_slot is None else slot - self._last_slot - 1
            lost = lost if 0 < lost <= MOST_GAP_S * FPS else 0
            self._last_slot = slot
            expected = self._expected
            if shown.kind == "speech" and shown.utterance is not None:
                is_first = expected is not None and shown.utterance > expected.after_utterance
                if expected is not None and is_first and expected.shown_s is None:
                    expected.shown_s = now_s
                self._last_utterance = max(self._last_utterance, shown.utterance)
            self._finish_turn()
        for back in range(lost, 0, -1):
            ago_s = back / FPS
            self._write(Frame(shown.media_s - ago_s, due_s - ago_s, None, shown.kind, self._stream))
        self._write(Frame(shown.media_s, due_s, now_s, shown.kind, self._stream))

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take an event, whatever its details are made of."""
        plain = {name: _plain(value) for name, value in event.items()}
        with self._lock:
            self.tally.lowered += plain["event"] == QUALITY and not plain.get("is_better", False)
        self._write(Event.of({"at_s": self._now_s(), **plain}))

    def sound_out(self, media_s: float, played_s: float) -> None:
        """Note where the sound device is."""
        self._write(SoundOut(media_s, played_s, self._stream))

    def _intended_of(self, made: "ChunkMade") -> float:
        """Return when the sound that a chunk needs was to be pushed.

        The session's word where it needs none, or some that was not pushed yet.
        """
        place = bisect_left(self._stops, made.needed_sample)
        known = made.needed_sample > 0 and place < len(self._intended)
        return self._intended[place] if known else made.intended_s

    def _due_of(self, made: "ChunkMade", intended_s: float) -> float:
        """Return when a chunk's first frame was to be on: by the session's plan, not moved by any lateness."""
        if made.first_frame == 0:
            due_s = made.due_s - max(0.0, made.audio_ready_s - intended_s)
            if self.allowance_s is not None:  # plus a frame: shown are whole ones
                due_s = min(due_s, intended_s + self.allowance_s + 1 / FPS)
            self._began[made.utterance] = due_s
            while len(self._began) > MOST_KEPT_UTTERANCES:
                del self._began[min(self._began)]
        return min(made.due_s, self._began.get(made.utterance, math.inf) + made.first_frame / FPS)

    def _finish_turn(self) -> None:
        expected = self._expected
        if expected is None or expected.shown_s is None or expected.look_ahead_s is None:
            return
        self._expected = None
        self.tally.turns += 1
        self._write(Turn(expected.from_s, expected.shown_s, expected.kind, expected.look_ahead_s, self._stream))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; what it doesn't have becomes text."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return json.loads(json.dumps(value, default=str).replace("NaN", '"NaN"').replace("Infinity", '"Infinity"'))
