# SPDX-License-Identifier: Apache-2.0
"""The master clock of a live stream on a sound device: it plays, and says how much of it has been heard."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from .frame_queue import OnEvent
from .silent_clock import SilentClock

LOST_AFTER_S = 0.15
"""A device that asks for nothing this long is taken for silent. It asks every `BLOCK_S`."""
CLOSE_AFTER_S = 1.0
"""After this long it is closed and opened anew; a machine that hung for a moment gets its device back before."""
STARTS_WITHIN_S = 4.0
"""As long a new stream may take until it plays: a sound server fills its buffer at once, and then wakes the device."""
BACKOFF_S = (0.5, 1.0, 2.0, 5.0)
"""Waits between attempts to open a device; the last one is repeated."""
WATCH_S = 0.05
"""How often somebody looks after the device."""
BLOCK_S = 0.02
LONGEST_LEAD_S = 2.0
"""A device that says that a block will be heard later than this doesn't know when."""
OFFSET_LEAK_S = 1e-4
"""How fast the difference of the two clocks may grow, per block. A delayed call only ever makes it look larger, so the
smallest is right; the leak follows clocks that run apart by up to 0.5 %."""


@dataclass(frozen=True)
class _Block:
    """What the device asked for last."""

    first: int
    """Number of its first sample."""
    count: int
    """Samples."""
    heard_at_s: float
    """Clock reading when its first sample is heard."""
    asked_at_s: float
    """Clock reading when it was asked for."""


class Speakers(SilentClock):
    """Plays on a sound device. One that is lost is replaced by the silent clock until it is back.

    Neither change makes the position jump: it stands for at most 0.2 s when a device goes, and sound that would have
    been heard meanwhile is skipped when one comes. When the device runs dry (xrun) the position stands as well: what
    counts is what was heard.
    """

    def __init__(
        self,
        module: Any,
        sample_rate: int = 16000,
        *,
        on_event: OnEvent | None = None,
        now_s: Callable[[], float] = time.perf_counter,
        limit_s: float = 30.0,
        latency_s: float = 0.08,
        device: int | str | None = None,
        own_thread: bool = True,
    ) -> None:
        """Make a clock; the device is opened by `with`.

        Args:
            module: sounddevice, or what stands for it.
            sample_rate: of the sound, Hz; the device or its sound server must take it.
            on_event: told `audio_playing`, `audio_lost` (AUDIO_UNAVAILABLE, once until it is back), `xrun`, `underrun`.
            now_s: clock reading in seconds, never running backwards.
            limit_s: most sound that is queued, seconds.
            latency_s: what the device is asked to hold ahead: less is quicker to interrupt, more is safer. With 0.06
                PulseAudio ran dry in 7 of 12 streams that had just begun, over and over; with 0.08 in none of 12.
            device: number, or part of its name; None is the default one.
            own_thread: call `watch` from a thread of its own; without, the caller does, every `WATCH_S`.
        """
        super().__init__(sample_rate, on_event=on_event, now_s=now_s, limit_s=limit_s)
        self._module, self._latency_s, self._device, self._own_thread = module, latency_s, device, own_thread
        self._stream: Any = None
        self._generation = 0
        self._ended = self._began = False
        self._block: _Block | None = None
        self._called_at_s: float | None = None
        self._offset_s: float | None = None
        self._last_sign_s = self._try_at_s = 0.0
        self._attempts = 0
        self._lost_told = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.xruns = 0
        """How often the device itself ran dry."""

    @property
    def playing(self) -> bool:
        """Whether a device keeps the time now."""
        return self._block is not None

    def __enter__(self) -> Self:
        super().__enter__()
        self._try_at_s = self._now_s()
        self.watch()
        if self._own_thread:
            self._thread = threading.Thread(target=self._keep_watching, name="edgereels-speakers", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(1.0)  # a driver may hang
        self._lost_told = True  # closing is no loss
        self._close()
        super().__exit__(kind, error, trace)

    def watch(self) -> None:
        """Look after the device once: notice that it is lost, close it, open it again when it is time."""
        with self._lock:
            self._advance()
            now_s = self._now_s()
            patience_s = CLOSE_AFTER_S if self._began else STARTS_WITHIN_S
            is_dead = self._stream is not None and (self._ended or now_s - self._last_sign_s > patience_s)
            is_due = self._stream is None and now_s >= self._try_at_s
        if is_dead:
            self._close()
            self._unavailable("the device stopped asking for sound")
        elif is_due:
            self._open()
        self._tell()

    def _keep_watching(self) -> None:
        while not self._stopping.wait(WATCH_S):
            self.watch()

    def _open(self) -> None:
        """Open the device; without the lock, which its first call wants."""
        with self._lock:
            self._generation += 1
            self._ended = self._began = False
            self._offset_s, self._called_at_s, self._last_sign_s = None, None, self._now_s()
        stream = None
        try:
            stream = self._module.RawOutputStream(
                samplerate=self._rate,
                channels=1,
                dtype="float32",
                blocksize=round(BLOCK_S * self._rate),
                latency=self._latency_s,
                device=self._device,
                callback=partial(self._play, self._generation),
                finished_callback=partial(self._on_end, self._generation),
            )
            stream.start()
        except (self._module.PortAudioError, OSError, ValueError) as error:
            self._dispose(stream)
            self._unavailable(str(error))
        else:
            with self._lock:
                self._stream = stream

    def _close(self) -> None:
        with self._lock:
            stream, self._stream = self._stream, None
            self._generation += 1  # late calls of this stream are not listened to
            self._go_silent(self._now_s())
        self._dispose(stream)

    def _dispose(self, stream: Any) -> None:
        for end in () if stream is None else (stream.abort, stream.close):
            with suppress(self._module.PortAudioError, OSError):
                end()

    def _unavailable(self, reason: str) -> None:
        """Tell once that there is no device, and wait a little longer before the next attempt."""
        with self._lock:
            self._generation += 1
            self._go_silent(self._now_s())
            self._try_at_s = self._now_s() + BACKOFF_S[min(self._attempts, len(BACKOFF_S) - 1)]
            self._attempts += 1
            self._tell_lost(reason)

    def _tell_lost(self, reason: str) -> None:
        if not self._lost_told:
            self._lost_told = True
            self._note("audio_lost", "AUDIO_UNAVAILABLE", reason=reason, media_s=self._reached / self._rate)

    def _go_silent(self, now_s: float) -> None:
        if self._block is not None:
            self._block, self._silent_from = None, (self._reached, now_s)
            self._tell_lost("the device stopped asking for sound")

    def _on_end(self, generation: int) -> None:
        """Remember that the device ended the stream by itself; called by the device."""
        with self._lock:
            self._ended |= generation == self._generation

    def _estimate(self, now_s: float) -> float:
        block = self._block
        if block is not None and (self._ended or now_s - block.asked_at_s > LOST_AFTER_S):
            self._go_silent(now_s)
        if self._block is None or block is None:
            return super()._estimate(now_s)
        return block.first + min((now_s - block.heard_at_s) * self._rate, block.count)

    def _play(self, generation: int, buffer: Any, count: int, times: Any, status: Any) -> None:
        """Fill a block; called by the device, in its own thread, before the block is due."""
        with self._lock:
            now_s = self._now_s()
            if generation != self._generation or not self._plays(now_s):
                buffer[:] = bytes(len(buffer))
                return
            heard_at_s = self._heard_at_s(now_s, times)
            if self._block is None:  # it begins to play: as if it had never been away
                position = self._advance()
                self._queue.skip_to(round(position + (heard_at_s - now_s) * self._rate))
                self._attempts, self._lost_told, self._began = 0, False, True
                self._note("audio_playing", "AUDIO_PLAYING", lead_s=heard_at_s - now_s)
            if status and status.output_underflow:
                self.xruns += 1
                self._note("xrun", "AUDIO_XRUN", count=self.xruns)
            self._block = _Block(self._queue.taken, count, heard_at_s, now_s)
            self._last_sign_s = now_s
            samples = self._queue.take(count)
        buffer[:] = samples.tobytes()

    def _plays(self, now_s: float) -> bool:
        """Return whether the device asks as it plays, and not yet to fill its buffer: then calls come without a pause.

        What it holds from before it began would be heard at a time that nobody knows.
        """
        before_s, self._called_at_s = self._called_at_s, now_s
        return self._began or (before_s is not None and now_s - before_s >= BLOCK_S / 2)

    def _heard_at_s(self, now_s: float, times: Any) -> float:
        """Return when the block that is asked for will be heard, by our clock."""
        lead_s = times.outputBufferDacTime - times.currentTime
        if times.currentTime <= 0 or not 0 <= lead_s < LONGEST_LEAD_S:  # some drivers give zeros
            return now_s + (self._latency_s if self._stream is None else self._stream.latency)
        offset_s = now_s - times.currentTime
        known_s = self._offset_s
        if known_s is None or abs(offset_s - known_s) > 0.2:  # a clock was set
            known_s = offset_s
        self._offset_s = min(offset_s, known_s + OFFSET_LEAK_S)
        return times.outputBufferDacTime + self._offset_s
