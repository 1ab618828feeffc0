# SPDX-License-Identifier: Apache-2.0
"""A session that makes nothing: what a live stream tells about itself, by arithmetic, on a clock that a test moves."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from edgereels.benchmarks.machine_watch import MachineWatch
from edgereels.runtime import GRAPH_STAGES, ChunkMade, Clock, EngineReport, Piece

from .virtual_clock import VirtualClock

FPS, SAMPLES, WINDOW_FRAMES, AHEAD_FRAMES = 25, 640, 12, 2
PICTURE = np.zeros((1, 2, 2, 3), np.uint8)


@dataclass
class Fault:
    """What goes wrong: at a chunk of a stream, 0-based."""

    stall_s: dict[int, float] = field(default_factory=dict[int, float])
    """Chunk to how much longer it takes."""
    peek_from: int | None = None
    """From this chunk on, half a second of sound is used that hasn't come."""
    fails_at: int | None = None
    """At this chunk the session ends itself."""
    screen_s: float = 0.0
    """Every frame is shown so long after it was due."""


@dataclass(frozen=True)
class FakeLatency:
    look_ahead_s: float = (WINDOW_FRAMES + AHEAD_FRAMES) / FPS
    allowance_s: float = 0.32
    window: int = 17
    steps: int = 1
    chunk_frames: int = WINDOW_FRAMES


@dataclass
class Turn:
    """An utterance."""

    start: int
    """Absolute sample."""
    stop: int | None = None
    base_s: float = 0.0
    """When its first frame is due."""
    made: int = 0
    shown: int = 0
    is_made: bool = False


class FakeLive:
    """One stream: a thread shows a frame every 40 ms and makes what can have been made by then."""

    latency = FakeLatency()

    def __init__(self, clock: Clock, work_s: float, fault: Fault, wanted: dict[str, Any]) -> None:
        self.counts = SimpleNamespace(shown=0)
        self.state = "READY"
        self._clock, self._work_s, self._fault, self._wanted = clock, work_s, fault, wanted
        self._show = [output.make(None, None)._function for output in wanted.get("outputs", ())]
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._arrivals: list[tuple[int, float]] = []  # samples by then, clock reading
        self._turns: list[Turn] = []
        self._chunks, self._free_s, self._began_s, self._shift = 0, 0.0, 0.0, 0.0

    def __enter__(self) -> Self:
        self._began_s = self._clock.now_s()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def push(self, samples: Any, sample_rate: int) -> None:
        assert sample_rate == 16000
        if self.state == "FAILED":
            raise RuntimeError("the stream has ended")
        with self._lock:
            had = self._arrivals[-1][0] if self._arrivals else 0
            if not self._turns or self._turns[-1].stop is not None:
                self._turns.append(Turn(had))
            self._arrivals.append((had + len(samples), self._clock.now_s()))

    def end_utterance(self) -> None:
        with self._lock:
            if self._turns and self._arrivals:
                self._turns[-1].stop = self._arrivals[-1][0]

    def wait_idle(self, timeout_s: float) -> bool:
        last_s = self._clock.now_s() + timeout_s
        while not self._is_idle():
            if self._clock.now_s() >= last_s or self.state == "FAILED":
                return self.state == "FAILED"
            self._clock.wait_until(self._clock.now_s() + 0.02)
        return True

    def sound_out(self) -> tuple[float, float]:
        return self._clock.now_s() - self._began_s, self._clock.now_s()

    def _is_idle(self) -> bool:
        with self._lock:
            return all(turn.is_made and turn.shown == turn.made for turn in self._turns)

    def _run(self) -> None:
        slot = 0
        while self._clock.wait_until(self._began_s + slot / FPS, self._stop):
            with self._lock:
                made = self._make(self._clock.now_s())
                shown = self._frame(slot)
            for chunk in made:
                self._wanted["on_chunk"](chunk)
            for show in self._show:
                show(shown)
            slot += 1

    def _make(self, now_s: float) -> list[ChunkMade]:
        made: list[ChunkMade] = []
        for turn in self._turns:
            while not turn.is_made and (chunk := self._chunk(turn, now_s)) is not None:
                made.append(chunk)
        return made

    def _chunk(self, turn: Turn, now_s: float) -> ChunkMade | None:
        if self._chunks == self._fault.fails_at:
            self.state = "FAILED"
            return None
        peeks = self._fault.peek_from is not None and self._chunks >= self._fault.peek_from
        needed = turn.start + (turn.made + WINDOW_FRAMES + AHEAD_FRAMES) * SAMPLES
        needed = needed if turn.stop is None else min(needed, turn.stop)
        heard = needed - 8000 if peeks else needed
        came_s = next((at_s for stop, at_s in self._arrivals if stop >= heard), None)
        if came_s is None:
            return None
        start_s = max(came_s, self._free_s)
        ready_s = start_s + self._work_s + self._fault.stall_s.get(self._chunks, 0.0)
        if ready_s > now_s:
            return None
        if turn.made == 0:
            turn.base_s = came_s + self.latency.allowance_s
        frames = WINDOW_FRAMES
        if turn.stop is not None:
            frames = min(frames, max(1, (turn.stop - turn.start) // SAMPLES - turn.made))
        is_last = turn.stop is not None and turn.start + (turn.made + frames) * SAMPLES >= turn.stop
        planned_s = turn.base_s + turn.made / FPS
        chunk = ChunkMade(
            index=self._chunks,
            utterance=self._turns.index(turn),
            first_frame=turn.made,
            frames=frames,
            is_last=is_last,
            intended_s=came_s,
            audio_ready_s=came_s,
            start_s=start_s,
            ready_s=ready_s,
            pieces=(Piece(frames, ready_s),),
            due_s=max(planned_s, planned_s + self._shift),  # the rest of a late utterance moves with it
            look_ahead_s=AHEAD_FRAMES / FPS,
            needed_sample=needed,
            stages={
                **dict.fromkeys(GRAPH_STAGES, 0.0),
                "dit": 0.95 * (ready_s - start_s),
                "between": 0.05 * (ready_s - start_s),
            },
            waits={"queue": start_s - came_s},
            missed=ready_s > planned_s + self._shift,
        )
        self._shift = max(self._shift, ready_s - planned_s)
        self._free_s, turn.made, turn.is_made = ready_s, turn.made + frames, is_last
        self._chunks += 1
        return chunk

    def _frame(self, slot: int) -> Any:
        now_s = self._began_s + slot / FPS
        shown: dict[str, Any] = {"kind": "rest", "utterance": None, "index": 0, "lateness_s": 0.0}
        for number, turn in enumerate(self._turns):
            if turn.made and turn.is_made and turn.shown == turn.made:
                continue
            planned_s = turn.base_s + turn.shown / FPS
            if turn.made > turn.shown and now_s >= planned_s - 1e-6:
                shown = {"kind": "speech", "utterance": number, "index": turn.shown, "lateness_s": now_s - planned_s}
                turn.shown += 1
                self.counts.shown += 1
            elif turn.shown:
                shown = {"kind": "held", "utterance": number, "index": turn.shown, "lateness_s": now_s - planned_s}
            break
        due_s = now_s - self._fault.screen_s
        return SimpleNamespace(media_s=slot / FPS, due_s=due_s, frames=PICTURE, **shown)


class FakeSession:
    """Opens streams."""

    def __init__(self, clock: Clock, *, work_s: float = 0.2, fault: Fault | None = None) -> None:
        self._clock, self._work_s, self._fault = clock, work_s, fault or Fault()
        self.package = SimpleNamespace(digest="0" * 64)
        self.engine_reports = {
            "dit": EngineReport(
                "dit", asked="cpu", library="openvino", provider="OpenVINO CPU", precision="f32", node_counts={}
            )
        }
        self.engines = {"dit": ("OpenVINO CPU", "f32")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def live(self, **wanted: Any) -> FakeLive:
        wanted.setdefault("on_chunk", lambda _chunk: None)
        return FakeLive(self._clock, self._work_s, self._fault, wanted)


class QuietWatch(MachineWatch):
    """A machine on which nothing else happens and nothing can be read."""

    def __init__(self, write: Callable[[Any], None], *, now_s: Callable[[], float]) -> None:
        super().__init__(write, now_s=now_s, proc=Path("/nowhere"), sys=Path("/nowhere"))


def drive(clock: VirtualClock, job: Callable[[], Any], *, waiting: int, step_s: float = 0.04) -> Any:
    """Run a job in a thread while time passes, whenever so many threads wait for it; return its result or raise."""
    results: list[Any] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(job())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        with suppress(TimeoutError):  # fewer wait while streams are opened and closed
            clock.until_waiting(waiting, timeout_s=0.1)
        clock.advance(step_s)
    if failures:
        raise failures[0]
    return results[0] if results else None
