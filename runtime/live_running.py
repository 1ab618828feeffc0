# SPDX-License-Identifier: Apache-2.0
"""The parts of a live stream while it runs: made together, started together, ended in the order in which things flow.

::

    source ──▶ LiveEars ──▶ Generator ──▶ Playout ──▶ Player ──▶ one queue and thread per output
                            (windows)     (media time)  └──────▶ speakers, whose clock is the master
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from .allowance import Allowance
from .audio import SAMPLE_RATE
from .clock import Clock
from .composer import Composer
from .giving_up import GivingUp, QualityLevel
from .live_ears import LiveEars
from .live_face import LiveFace
from .live_generator import Generator
from .live_generator_parts import GeneratorParts
from .live_outputs import OpenOutput, Output
from .live_player import Player
from .live_reports import ChunkMade
from .live_room import LiveRoom
from .live_settings import LiveLatency, LiveSettings
from .live_state import LiveState
from .playout import Playout
from .playout_types import LatePolicy
from .silent_clock import SilentClock
from .sound_device import open_clock
from .sources import Source

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class LiveOptions:
    """What a program asked for."""

    outputs: tuple[Output, ...]
    """Where frames and sound go to."""
    speakers: bool | int | str
    """Whether sound is played, and on which device."""
    late: LatePolicy
    """What becomes of late frames."""
    ends: Literal["mark", "silence"]
    """How utterances end."""
    on_event: OnEvent
    """Called with every event, from any thread."""
    on_chunk: Callable[[ChunkMade], None] | None
    """Called with every chunk that was made."""


class LiveRunning:
    """Everything that runs."""

    def __init__(self, room: LiveRoom, options: LiveOptions, *, state: LiveState, clock: Clock) -> None:
        """Open engines, face and outputs; nothing moves before `start`."""
        for output in options.outputs:
            if output.check is not None:
                output.check()
        self._clock, self._room, self._is_stopped = clock, room, False
        self._on_event = options.on_event
        face = room.open()
        wanted, canvas = room.shown_as(face)
        allowance = Allowance(
            {each: cost.head_start_s for each, cost in face.costs.items()}, fps=wanted.fps, on_event=options.on_event
        )
        self.latency = _latency(room.settings[0], allowance)
        """What a viewer waits for."""

        def tell(event: dict[str, Any]) -> None:
            """Tell of the playout, which knows media time alone, in readings of the clock."""
            options.on_event({**event, "at_s": clock.now_s(), "media_s": event["at_s"]})

        self.playout = Playout(wanted.fps, face.rest_loop, policy=options.late, on_event=tell)
        """Says what is on."""
        self.sound_clock = _open_sound(options)
        """The master clock."""
        self.ears = LiveEars(ends=options.ends, now_s=clock.now_s, on_event=options.on_event)
        """Where sound arrives."""
        self.generator = Generator(
            self._parts(room, face, options, state=state, allowance=allowance, fps=wanted.fps), face
        )
        """Makes frames."""
        self._outputs = [OpenOutput(output, wanted, on_event=options.on_event) for output in options.outputs]
        self._composer = None if canvas is None else Composer(canvas)
        self.player = Player(
            self.playout,
            self.sound_clock,
            self._outputs,
            clock=clock,
            fps=wanted.fps,
            composer=self._composer,
            on_tick=self.generator.watch,
        )
        """Shows frames."""
        self._threads: list[threading.Thread] = []
        self._source: Source | None = None
        self._is_open: list[OpenOutput] = []

    def start(self) -> None:
        """Open the outputs and let everything run; what opening raises is raised here."""
        for output in self._outputs:
            output.start()
            self._is_open.append(output)
        if self._composer is not None:
            self._composer.start()
        self.sound_clock.__enter__()
        for name, function in (("player", self.player.run), ("generator", self._generate)):
            self._threads.append(threading.Thread(target=function, name=f"edgereels-{name}", daemon=True))
            self._threads[-1].start()

    def _generate(self) -> None:
        """Run the generator; who ends last gives the engines back."""
        try:
            self.generator.run()
        finally:
            if self._is_stopped:
                self._room.close()

    def listen(self, source: Source) -> None:
        """Take sound from a source."""
        self._source = source
        source.start(self.ears.hear, self._source_ended)

    def _source_ended(self, failure: Exception | None) -> None:
        self.ears.close(failure)
        if failure is not None:
            told = {"error": type(failure).__name__, "message": str(failure)}
            self._on_event({"event": "source_failed", "code": "S_SOURCE", "at_s": self._clock.now_s(), **told})

    def stop(self, *, within_s: float) -> None:
        """End everything; what is still busy then is left behind."""
        self._is_stopped = True
        until_s = self._clock.now_s() + within_s

        def left_s() -> float:
            return max(0.05, until_s - self._clock.now_s())

        self.ears.stop_waiting()  # before the source, which may wait for it
        self.generator.stop()
        self.player.stop()
        with ExitStack() as stack:  # whatever one of them raises, the others end too; backwards
            for thread in self._threads[1:]:
                stack.callback(lambda each=thread: _join(each, left_s()))
            if self._threads:
                stack.callback(self.sound_clock.__exit__, None, None, None)
            if self._composer is not None:
                stack.callback(self._composer.close)
            for output in sorted(self._is_open, key=lambda each: not each.output.drain, reverse=True):
                stack.callback(lambda each=output: each.stop(timeout_s=left_s()))
            for output in self._is_open:
                stack.callback(output.queue.close)
            if self._source is not None:
                stack.callback(self._source.stop)
            if self._threads:
                stack.callback(lambda: _join(self._threads[0], left_s()))  # the player: nothing more comes

    @property
    def is_making(self) -> bool:
        """Whether the generator is still busy with a window, after `stop`."""
        return any(thread.is_alive() for thread in self._threads[1:])

    def _parts(
        self,
        room: LiveRoom,
        face: LiveFace,
        options: LiveOptions,
        *,
        state: LiveState,
        allowance: Allowance,
        fps: int,
    ) -> GeneratorParts:
        kept = [room.settings[0]]
        for settings in room.settings[1:]:  # what is no cheaper on this machine is no way out
            if _cost(face, settings) < _cost(face, kept[-1]):
                kept.append(settings)
        levels = [QualityLevel(each.steps, each.window, fps / each.repeat, cost=_cost(face, each)) for each in kept]
        return GeneratorParts(
            open_face=room.open,
            ears=self.ears,
            playout=self.playout,
            position_s=self.sound_clock.position_s,
            clock=self._clock,
            allowance=allowance,
            qualities=tuple(kept),
            giving_up=GivingUp(levels, on_event=options.on_event),
            graphs_s=room.graphs_s,
            state=state,
            on_event=options.on_event,
            on_chunk=options.on_chunk,
        )


def _join(thread: threading.Thread, timeout_s: float) -> None:
    """Wait for a thread, unless it is this one: a listener may end the stream from anywhere."""
    if thread is not threading.current_thread():
        thread.join(timeout_s)


def _cost(face: LiveFace, settings: LiveSettings) -> float:
    """Return what a frame costs here, in seconds."""
    return face.costs[settings].whole_s / settings.chunk_frames


def _latency(settings: LiveSettings, allowance: Allowance) -> LiveLatency:
    return LiveLatency(
        look_ahead_s=settings.first_frame_s,
        allowance_s=allowance.of(settings),
        window=settings.window,
        steps=settings.steps,
        chunk_frames=settings.chunk_frames,
    )


def _open_sound(options: LiveOptions) -> SilentClock:
    if options.speakers is False:
        return SilentClock(SAMPLE_RATE, on_event=options.on_event)
    device = None if options.speakers is True else options.speakers
    return open_clock(SAMPLE_RATE, on_event=options.on_event, device=device)
