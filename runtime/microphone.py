# SPDX-License-Identifier: Apache-2.0
"""Sound from a microphone, by sounddevice; a device that is pulled is opened again when it is back.

PortAudio lists the devices when it is loaded: what it opened by name, or through a sound server, comes back, a device
that was never there until now does not.
"""

import threading
from collections import deque
from typing import Any

import numpy as np

from .clock import Clock
from .errors import MediaError
from .sound_device import check_device, import_sounddevice
from .sound_input import OnEvent, check_format
from .sources import BLOCK_S, OnBlock, SoundBlock, ThreadedSource

BACKOFF_S = (0.5, 1.0, 2.0, 5.0)
"""How long to wait before a device is opened again: first, second, third time, and every time after."""

LOST_AFTER_S = 0.5
"""A device that gave nothing for so long is taken for lost: not all of them say so."""

STARTS_WITHIN_S = 3.0
"""As long a new stream may take until its first block: a sound server wakes the device then."""

MOST_WAITING_BLOCKS = 500
"""Blocks (10 s) that wait for a slow callback; then the oldest are dropped and counted as overflows."""


class MicrophoneSource(ThreadedSource):
    """An input device. It never ends by itself: without a device there is no sound until there is one again.

    Events: `AUDIO_UNAVAILABLE` when the device is lost or can't be opened, once until it is back; `AUDIO_AVAILABLE`
    when it is, with how long it was away; `AUDIO_OVERFLOW` when sound was lost because nobody took it in time.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        device: int | str | None = None,
        sample_rate: int | None = None,
        channels: int = 1,
        module: Any = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """Say what to listen to; nothing is opened before `start`.

        Args:
            clock: tells when blocks arrived, and when to try again.
            device: number or part of a name; the system's default unless given.
            sample_rate: Hz; the device's own unless given.
            channels: to record.
            module: sounddevice, or what stands in for it.
            on_event: called with each event, from the source's thread.

        Raises:
            MediaError: the rate or the number of channels is none that is taken, or PortAudio is missing.
            MissingExtraError: sounddevice is not installed.
        """
        super().__init__()
        check_format(48_000 if sample_rate is None else sample_rate, channels, what="the microphone")
        self._module = import_sounddevice(purpose="listening to a microphone") if module is None else module
        if device is not None:
            check_device(self._module, device, "input")
        self._clock, self._device, self._rate, self._channels = clock, device, sample_rate, channels
        self._on_event = on_event
        self.overflows = 0
        """How often sound was lost because nobody took it in time."""
        self._reported_overflows = 0
        self._lost_at_s: float | None = None
        self._attempts = 0  # since the last block
        self._arrived: deque[SoundBlock] = deque(maxlen=MOST_WAITING_BLOCKS)
        self._roused = threading.Event()

    def report_to(self, on_event: OnEvent) -> None:
        """Tell of events to somebody else as well: the stream that listens."""
        before = self._on_event

        def tell(event: dict[str, Any]) -> None:
            on_event(event)
            if before is not None:
                before(event)

        self._on_event = tell

    def _wake(self) -> None:
        self._roused.set()

    def _produce(self, on_block: OnBlock) -> None:
        while not self._stopping.is_set():
            try:
                stream = self._open()
            except (self._module.PortAudioError, MediaError, ValueError, OSError) as error:
                self._lose(str(error))
            else:
                try:
                    self._listen(stream, on_block)
                finally:
                    self._close(stream)
                if self._stopping.is_set():
                    return
                self._lose("the device gives no sound any more")
            pause_s = BACKOFF_S[min(self._attempts, len(BACKOFF_S) - 1)]
            self._attempts += 1
            self._clock.wait_until(self._clock.now_s() + pause_s, self._stopping)

    def _open(self) -> Any:
        """Return a stream that runs."""
        rate = self._rate
        if rate is None:
            rate = round(self._module.query_devices(self._device, "input")["default_samplerate"])
            check_format(rate, self._channels, what="the microphone")

        def take(data: Any, frames: int, time: Any, status: Any) -> None:
            """Keep a block; called from PortAudio's thread, which must not wait."""
            del frames, time
            now_s = self._clock.now_s()
            samples = np.frombuffer(bytes(data), dtype=np.float32).reshape(-1, self._channels)
            self.overflows += bool(status and status.input_overflow) + (len(self._arrived) == MOST_WAITING_BLOCKS)
            self._arrived.append(SoundBlock(samples, rate, arrived_s=now_s, intended_s=now_s))
            self._roused.set()

        stream = self._module.RawInputStream(
            samplerate=rate,
            blocksize=round(BLOCK_S * rate),
            device=self._device,
            channels=self._channels,
            dtype="float32",
            callback=take,
            finished_callback=self._roused.set,
        )
        try:
            stream.start()
        except BaseException:
            self._close(stream)
            raise
        return stream

    def _close(self, stream: Any) -> None:
        """Close a stream whose device may be gone; what it says then is of no use."""
        try:
            stream.close()
        except self._module.PortAudioError as error:
            self._report("AUDIO_CLOSE", reason=str(error))

    def _listen(self, stream: Any, on_block: OnBlock) -> None:
        """Pass blocks on until the device is lost or the source stopped."""
        heard_s, patience_s = self._clock.now_s(), STARTS_WITHIN_S
        while not self._stopping.is_set():
            self._roused.clear()
            is_active = stream.active  # before the queue is emptied: nothing comes after it was seen to have ended
            while self._arrived:
                block = self._arrived.popleft()
                heard_s, patience_s = self._clock.now_s(), LOST_AFTER_S
                self._find()
                on_block(block)
            if self.overflows > self._reported_overflows:
                self._reported_overflows = self.overflows
                self._report("AUDIO_OVERFLOW", count=self.overflows)
            if not is_active or self._clock.now_s() >= heard_s + patience_s:
                return
            self._clock.wait_until(heard_s + patience_s, self._roused)

    def _lose(self, reason: str) -> None:
        if self._lost_at_s is None:
            self._lost_at_s = self._clock.now_s()
            self._report("AUDIO_UNAVAILABLE", reason=reason)

    def _find(self) -> None:
        self._attempts = 0
        if self._lost_at_s is not None:
            away_s, self._lost_at_s = self._clock.now_s() - self._lost_at_s, None
            self._report("AUDIO_AVAILABLE", away_s=away_s)

    def _report(self, code: str, **fields: Any) -> None:
        if self._on_event is not None:
            self._on_event({"event": "microphone", "code": code, "at_s": self._clock.now_s(), **fields})
