# SPDX-License-Identifier: Apache-2.0
"""What is done to a session while it is measured: one live stream, turns, hours, several streams at once.

Each scenario runs in a thread of its own, the speaker; the thread that called watches the machine meanwhile. `file`,
which is no live stream, has `latency_file`.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime import EngineError
from .latency_recorder import Recorder
from .machine_watch import MachineWatch
from .paced_sound import BLOCK_S, Clip, Speaker

if TYPE_CHECKING:
    from ..runtime import Clock, Live

LIVE_SCENARIOS = ("paced", "turns", "soak", "multi")
"""What runs against the clock."""
LEAD_IN_S = 0.5
"""Before the first sound: the face rests."""
IDLE_TIMEOUT_S = 0.5
"""After which a wait for an idle session looks whether it is to end."""
MOST_WAIT_S = 120.0
"""For something new to be shown, before a session is given up: a machine that is far too slow is a finding."""
TURN_PAUSES_S = (0.2, 1.2)
"""Between turns, drawn evenly: the first sound comes at any time within a frame."""
JOINED_S = 2.0
"""How long a speaker that was asked to stop is waited for."""
WATCH_S, MEMORY_S, CONTENTION_S = 0.25, 1.0, 5.0
"""How often the place of sound, memory, and other processes are looked at."""


@dataclass(frozen=True)
class Plan:
    """What is said."""

    scenario: str
    """paced, turns, soak or multi."""
    duration_s: float
    """Of speech in paced and multi, pauses not counted in soak; the most that turns may take."""
    turns: int = 64
    """How many, in turns."""
    utterance_s: float = 3.0
    """Of each turn."""
    push_speed: float = 5.0
    """Of each turn: seconds of sound per second."""
    pause_s: float = 1.0
    """Between utterances in soak."""
    pause_seed: int = 0
    """Of the pauses between turns."""


OWN_SETTINGS = {"turns": ("turns", "utterance_s", "push_speed", "pause_seed"), "soak": ("pause_s",)}
"""Fields of a plan that a scenario has beside its duration."""


class NoAnswerError(EngineError):
    """The session neither moved the face nor came to rest."""


class Stage:
    """A live stream, with its recorder and its clock: what a scenario plays on."""

    def __init__(self, live: "Live", recorder: Recorder, clock: "Clock", *, stop: threading.Event) -> None:
        self.live, self.recorder, self.clock, self.stop = live, recorder, clock, stop
        self.speaker = Speaker(live.push, recorder, clock, stop=stop)

    def say(
        self, clip: Clip, length_s: float, *, start_s: float, speed: float = 1.0, turn: str | None = "turn"
    ) -> float:
        """Say an utterance and mark its end; return when its last sound was to be pushed."""
        if turn is not None:
            self.recorder.expect_turn(turn, start_s + min(BLOCK_S, length_s) / speed)
        stop_s = self.speaker.say(clip.blocks(length_s), start_s=start_s, speed=speed)
        self.live.end_utterance()
        return stop_s

    def rest(self) -> None:
        """Wait until all was shown and the face rests.

        Raises:
            NoAnswerError: nothing new was shown for two minutes, and it does not rest either.
        """
        shown, last_s = -1, self.clock.now_s()
        while not self.live.wait_idle(timeout_s=IDLE_TIMEOUT_S) and not self.stop.is_set():
            now_s, newest = self.clock.now_s(), self.live.counts.shown
            shown, last_s = newest, (now_s if newest != shown else last_s)
            if now_s > last_s + MOST_WAIT_S:
                raise NoAnswerError(f"nothing new was shown for {MOST_WAIT_S:g} s, and the face does not rest")


def play(plan: Plan, stage: Stage, clip: Clip) -> None:
    """Play a scenario to its end, or until `stage.stop`."""
    {"paced": _paced, "multi": _paced, "soak": _soak, "turns": _turns}[plan.scenario](plan, stage, clip)


def _paced(plan: Plan, stage: Stage, clip: Clip) -> None:
    """Speak all the time."""
    stage.say(clip, plan.duration_s, start_s=stage.clock.now_s() + LEAD_IN_S)
    stage.rest()


def _soak(plan: Plan, stage: Stage, clip: Clip) -> None:
    """Say the clip again and again, with a pause after each."""
    start_s, left_s = stage.clock.now_s() + LEAD_IN_S, plan.duration_s
    while left_s > 0 and not stage.stop.is_set():
        length_s = min(left_s, clip.length_s)
        start_s = stage.say(clip, length_s, start_s=start_s) + plan.pause_s
        left_s -= length_s
    stage.rest()


def _turns(plan: Plan, stage: Stage, clip: Clip) -> None:
    """Speak to a face that rests, again and again."""
    pauses, last_s = random.Random(plan.pause_seed), stage.clock.now_s() + plan.duration_s
    for _ in range(plan.turns):
        stage.rest()
        start_s = stage.clock.now_s() + pauses.uniform(*TURN_PAUSES_S)
        if stage.stop.is_set() or start_s > last_s:
            return
        stage.say(clip, plan.utterance_s, start_s=start_s, speed=plan.push_speed)
    stage.rest()


def first_words(stage: Stage, clip: Clip, *, kind: str, from_s: float, length_s: float, speed: float) -> None:
    """Speak at once to a stream that has just begun, and wait until the face rests again.

    Args:
        stage: the stream.
        clip: what is said.
        kind: cold or warm.
        from_s: when the wait began: the process, or the call for the stream.
        length_s: of the speech.
        speed: of pushing.
    """
    start_s = stage.clock.now_s()
    stage.recorder.expect_turn(kind, from_s, sound_from_s=start_s + BLOCK_S / speed)
    stage.say(clip, length_s, start_s=start_s, speed=speed, turn=None)
    stage.rest()


def attend(
    stages: Sequence[Stage],
    jobs: Sequence[Callable[[], None]],
    *,
    watch: MachineWatch,
    progress: Callable[[], None] | None = None,
) -> None:
    """Run a job per stream, each in its own thread, and watch the machine until all have ended.

    Whatever ends the wait early (Ctrl-C, SIGTERM) stops the jobs. What a job raises is raised here, after the others
    were stopped; but a session that failed by its own account ends the run, with an event that says so.
    """
    stop, clock = stages[0].stop, stages[0].clock
    going = _Going(len(stages))
    threads = [
        threading.Thread(target=_run, args=(job, stage, going), name="speaker", daemon=True)
        for job, stage in zip(jobs, stages, strict=True)
    ]
    watch.contention()  # what ran so far is not of the measurement
    watch.memory()
    watch.energy_begins()
    for thread in threads:
        thread.start()
    try:
        _watch(stages, watch, clock=clock, done=going.done, progress=progress)
    finally:
        stop.set()
        for thread in threads:
            thread.join(JOINED_S)
        watch.memory()
        watch.contention()
        watch.energy()
    if going.failures:
        raise going.failures[0]


class _Going:
    """How many jobs still run, and what went wrong."""

    def __init__(self, jobs: int) -> None:
        self.done = threading.Event()
        self.failures: list[Exception] = []
        self._left, self._lock = jobs, threading.Lock()

    def one_less(self) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                self.done.set()


def _run(job: Callable[[], None], stage: Stage, going: _Going) -> None:
    try:
        job()
    except Exception as error:
        if str(stage.live.state) == "FAILED":
            stage.recorder.on_event({"event": "given_up", "code": "S_FAILED", "message": str(error)})
        else:
            going.failures.append(error)
        stage.stop.set()
    finally:
        going.one_less()


def _watch(
    stages: Sequence[Stage],
    watch: MachineWatch,
    *,
    clock: "Clock",
    done: threading.Event,
    progress: Callable[[], None] | None,
) -> None:
    """Look at the sound's place, the memory and the other processes, at even times, until `done`."""
    start_s, looks = clock.now_s(), 0
    each_memory, each_contention = round(MEMORY_S / WATCH_S), round(CONTENTION_S / WATCH_S)
    is_over = False
    while not is_over:
        looks += 1
        is_over = not clock.wait_until(start_s + looks * WATCH_S, done)
        for stage in stages:
            stage.recorder.sound_out(*stage.live.sound_out())
        if looks % each_memory == 0:
            watch.memory()
            if progress is not None:
                progress()
        if looks % each_contention == 0:
            watch.contention()
