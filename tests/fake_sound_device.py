# SPDX-License-Identifier: Apache-2.0
"""A sound device that a test moves: it asks for blocks when they are due by its own clock, and keeps what it played."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from .virtual_clock import VirtualClock


class FakeSoundModule:
    """Stands for sounddevice. `run` lets time pass; the streams that were opened ask for sound meanwhile."""

    class PortAudioError(Exception):
        pass

    def __init__(
        self, clock: VirtualClock, *, lead_s: float = 0.05, ppm: float = 0, jitter: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.clock, self.lead_s, self.ppm, self.jitter = clock, lead_s, ppm, jitter
        """`jitter`: seconds between the driver's look at its clock and the call."""
        self.available = True
        self.silent = False
        """A device that is still there but asks for nothing."""
        self.underflow_next = False
        self.gives_times = True
        self.fills_blocks, self.wakes_after_s = 0, 0.0
        """Blocks that a stream asks for at once when it starts, and how long it sleeps before the next one."""
        self.opened = 0
        self.stream: FakeStream | None = None
        self.played: list[tuple[float, np.ndarray]] = []
        """Clock reading when a block was heard, and the block."""

    def RawOutputStream(self, **settings: Any) -> "FakeStream":  # noqa: N802 - sounddevice's own name
        if not self.available:
            raise self.PortAudioError("Error querying device -1")
        self.opened += 1
        self.stream = FakeStream(self, settings)
        return self.stream

    def unplug(self) -> None:
        self.available = False
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.settings["finished_callback"]()

    def run(self, seconds: float, *, each: Callable[[], object] | None = None, step_s: float = 0.01) -> None:
        """Let time pass in steps, calling `each` after each."""
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            if self.stream is not None and self.stream.active and not self.silent:
                self.stream.ask_until(self.clock.now_s())
            if each is not None:
                each()

    def heard(self) -> np.ndarray:
        return np.concatenate([block for _at_s, block in self.played])


class FakeStream:
    def __init__(self, module: FakeSoundModule, settings: dict[str, Any]) -> None:
        self.module, self.settings = module, settings
        self.active = False
        self.latency = module.lead_s
        self.samples = 0
        self.due_s = module.clock.now_s()

    def start(self) -> None:
        self.active = True
        self.due_s = self.module.clock.now_s() + self.module.wakes_after_s
        for _ in range(self.module.fills_blocks):
            self._ask(self.settings["blocksize"])

    def abort(self) -> None:
        self.active = False

    def close(self) -> None:
        self.active = False

    def ask_until(self, now_s: float) -> None:
        count = self.settings["blocksize"]
        period_s = count / self.settings["samplerate"] / (1 + self.module.ppm * 1e-6)
        if now_s - self.due_s > 0.1:  # the device stood still: it doesn't catch up
            self.due_s = now_s
        while self.due_s <= now_s:
            self._ask(count)
            self.due_s += period_s

    def _ask(self, count: int) -> None:
        heard_at_s = self.due_s + self.module.lead_s
        looked_at_s = self.module.clock.now_s() - self.module.jitter()
        times = SimpleNamespace(currentTime=1000 + looked_at_s, outputBufferDacTime=1000 + heard_at_s)
        if not self.module.gives_times:
            times = SimpleNamespace(currentTime=0.0, outputBufferDacTime=0.0)
        buffer = bytearray(4 * count)
        status = SimpleNamespace(output_underflow=self.module.underflow_next)
        self.module.underflow_next = False
        self.settings["callback"](buffer, count, times, status)
        self.module.played.append((heard_at_s, np.frombuffer(bytes(buffer), np.float32)))
        self.samples += count
