# SPDX-License-Identifier: Apache-2.0
"""Frames as a live stream makes them, without its clock: what the live policies cost against `edgereels render`.

Everything but the clock is the live stream's own: ears, hearing, windows, key frames, generator. A stream on a fast
machine shows just these frames.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgereels.runtime import AvatarSession, MonotonicClock, SoundBlock
from edgereels.runtime.allowance import Allowance
from edgereels.runtime.giving_up import GivingUp, QualityLevel
from edgereels.runtime.live_chunk import LiveChunk
from edgereels.runtime.live_ears import LiveEars
from edgereels.runtime.live_generator import Generator
from edgereels.runtime.live_generator_parts import GeneratorParts
from edgereels.runtime.live_room import LiveRoom
from edgereels.runtime.live_settings import LiveSettings, live_settings
from edgereels.runtime.live_state import LiveState
from edgereels.runtime.playout_types import Placed, Shown
from edgereels.runtime.prepare import find_avatar

from .rendering import Renderer
from .speech import SAMPLE_RATE

_BLOCK = 320  # 20 ms, as sound arrives


@dataclass(frozen=True)
class LiveRenderer(Renderer):
    """Renders as `edgereels live` does."""

    latency: str = "low"
    """low, balanced or quality."""

    @property
    def settings(self) -> LiveSettings:
        """How windows are made."""
        return live_settings(self.latency, self._package.manifest.settings)

    def seams(self, frames: int) -> list[int]:
        """Return the first frame of every window but the first."""
        return list(range(self.settings.chunk_frames, frames, self.settings.chunk_frames))

    @contextmanager
    def frames(
        self, waveform: npt.NDArray[np.float32], *, avatar: str, canvas: bool = False, options: tuple[str, ...] = ()
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Stream 16 kHz sound as one utterance; as `Renderer.frames`, always the box alone and without options."""
        if canvas or options:
            raise ValueError("live frames are rendered without canvas and options; expected neither")
        with AvatarSession.open(
            self.package, device=self.device, compute=self.compute, threads=self.threads, verify="size"
        ) as session:
            made = _stream(session, waveform, avatar=avatar, settings=self.settings)
        yield made[: -(-len(waveform) * 25 // SAMPLE_RATE)]


def _stream(
    session: AvatarSession, waveform: npt.NDArray[np.float32], *, avatar: str, settings: LiveSettings
) -> npt.NDArray[np.uint8]:
    """Return every frame of one utterance, the way back to rest included."""
    room = LiveRoom(
        session.package,
        find_avatar(session.package, avatar=avatar),
        settings=[settings],
        seed=42,
        canvas_of=lambda _size: None,
        placement=session._placement_for_live,
        release=lambda: None,
        on_compile=None,
    )
    clock, face = MonotonicClock(), room.open()
    ears, shown = LiveEars(ends="mark"), _Collector(face.rest_loop)
    parts = GeneratorParts(
        open_face=room.open,
        ears=ears,
        playout=shown,  # type: ignore[arg-type]  # what of a playout the generator asks for
        position_s=lambda: 0.0,
        clock=clock,
        allowance=Allowance({settings: 0.0}, fps=25),
        qualities=(settings,),
        giving_up=GivingUp([QualityLevel(settings.steps, settings.window, 25.0, 1.0)]),
        graphs_s=room.graphs_s,
        state=LiveState(),
        on_event=lambda _event: None,
        on_chunk=None,
    )
    generator = Generator(parts, face)
    parts.state.go_on(code="S_OPENED", now_s=clock.now_s())
    thread = threading.Thread(target=generator.run, daemon=True)
    thread.start()
    for first in range(0, len(waveform), _BLOCK):
        now_s, is_last = clock.now_s(), first + _BLOCK >= len(waveform)
        ears.hear(SoundBlock(waveform[first : first + _BLOCK], SAMPLE_RATE, now_s, now_s, ends_utterance=is_last))
    while generator.failure is None and not shown.ended.wait(0.1):
        pass
    generator.stop()
    ears.stop_waiting()
    thread.join()
    if generator.failure is not None:
        raise generator.failure
    return np.concatenate(shown.chunks)


class _Collector:
    """Stands for the playout: everything is shown at once."""

    queued_s = moved_s = 0.0

    def __init__(self, rest_loop: npt.NDArray[np.uint8]) -> None:
        self._rest = rest_loop
        self.chunks: list[npt.NDArray[np.uint8]] = []
        self.ended = threading.Event()

    def expect(self, media_s: float, *, utterance: int) -> float:
        """Return when the utterance begins."""
        del media_s, utterance
        return 0.0

    def ahead(self, media_s: float, count: int) -> list[Shown]:
        """Return the end of the rest loop."""
        del media_s
        nothing = np.zeros(640, np.float32)
        return [Shown("rest", frame, nothing, None, 0, 0.0, 0.0) for frame in self._rest[-count:]]

    def add(self, chunk: LiveChunk, due_s: float) -> Placed:
        """Keep a chunk."""
        self.chunks.append(chunk.frames)
        if chunk.is_last:
            self.ended.set()
        return Placed(due_s, due_s + len(chunk.frames) / 25, 0.0, 0.0, 0.0)
