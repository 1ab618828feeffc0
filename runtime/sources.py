# SPDX-License-Identifier: Apache-2.0
"""Where the sound of a live stream comes from: a file paced as if live, standard input.

The other two are in `push_source` and `microphone`. A source calls back: `on_block` with every block of sound, from one
thread and in order, then `on_end` once. A callback that takes its time slows the source down, as far as a source can be
slowed down; that is the whole back-pressure.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt

from .clock import Clock
from .errors import UsageError
from .sound_file import open_sound
from .sound_input import check_format

logger = logging.getLogger(__name__)

BLOCK_S = 0.02
"""Length of a block unless said otherwise, in seconds: half a video frame."""


@dataclass(frozen=True, eq=False)
class SoundBlock:
    """Some sound that has just arrived."""

    samples: npt.NDArray[Any]
    """Shape (n, channels) or (n,) for one channel; floating point in [-1, 1] nominally, int16 or int32. n may be 0."""

    sample_rate: int
    """Hz."""

    arrived_s: float
    """Clock reading when the last sample was there."""

    intended_s: float
    """Clock reading when it should have been, for a source that keeps a schedule: lateness counts from here."""

    ends_utterance: bool = False
    """True if the speaker has finished with this block."""

    generation: int = 0
    """How often the source had been cleared when the block came in: what an interruption left behind is older."""


OnBlock = Callable[[SoundBlock], None]
OnEnd = Callable[[Exception | None], None]


class Source(Protocol):
    """Gives the sound of one stream; `with` stops it."""

    def start(self, on_block: OnBlock, on_end: OnEnd) -> None:
        """Begin to call back; returns at once.

        Args:
            on_block: called with every block.
            on_end: called once after the last block: with None where the sound is over, else with what went wrong, in
                the source or in `on_block`. Not called after `stop`.
        """
        ...

    def stop(self) -> None:
        """Call back no more; may be called twice, from any thread and from a callback."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ThreadedSource:
    """A source with a thread of its own, which runs `_produce`."""

    JOINED_S = 1.0
    """How long `stop` waits for the thread, in seconds; one that hangs in a read ends with the process."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, on_block: OnBlock, on_end: OnEnd) -> None:
        """Begin to call back; see `Source`.

        Raises:
            UsageError: it was started before.
        """
        if self._thread is not None or self._stopping.is_set():
            raise UsageError("the source was started or stopped before; expected a new one: open it again")
        self._thread = threading.Thread(
            target=self._run, args=(on_block, on_end), name=type(self).__name__, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Call back no more; see `Source`."""
        self._stopping.set()
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self.JOINED_S)

    def _wake(self) -> None:
        """Rouse the thread from whatever it waits for."""

    def _produce(self, on_block: OnBlock) -> None:
        """Call back with every block; return when there is no more, or soon after `_stopping` was set."""
        raise NotImplementedError

    def _run(self, on_block: OnBlock, on_end: OnEnd) -> None:
        def give(block: SoundBlock) -> None:
            if not self._stopping.is_set():
                on_block(block)

        failure: Exception | None = None
        try:
            self._produce(give)
        except Exception as error:
            failure = error
        if not self._stopping.is_set():
            on_end(failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class WavSource(ThreadedSource):
    """A sound file, given out as if it were spoken now.

    The schedule is absolute: block k is due when its last sample would have been spoken. A callback that holds the
    source up makes later blocks arrive late, not be due late.
    """

    def __init__(self, path: Path | str, clock: Clock, *, block_s: float = BLOCK_S, pace: float = 1.0) -> None:
        """Look at the file; the time of its first sample is that of `start`.

        Args:
            path: any file that `load_speech` reads.
            clock: tells when.
            block_s: seconds of sound per block.
            pace: how much faster than it was spoken.

        Raises:
            MediaError: the file, its rate or its channels are refused.
            UsageError: the block or the pace is not above 0.
        """
        super().__init__()
        if not (block_s > 0 and pace > 0):
            raise UsageError(f"a block of {block_s} s at pace {pace} was asked for; expected both above 0")
        self._path, self._clock, self._pace = Path(path), clock, pace
        with open_sound(self._path) as sound:
            check_format(sound.sample_rate, sound.channels, what=str(path))
            self.sample_rate, self.channels = sound.sample_rate, sound.channels
        self._block_frames = max(1, round(block_s * self.sample_rate))

    def _produce(self, on_block: OnBlock) -> None:
        start_s, frames = self._clock.now_s(), 0
        with open_sound(self._path) as sound:
            for samples in in_blocks(sound.blocks, self._block_frames):
                frames += len(samples)
                due_s = start_s + frames / self.sample_rate / self._pace
                self._clock.wait_until(due_s, self._stopping)
                if self._stopping.is_set():
                    return
                on_block(SoundBlock(samples, self.sample_rate, arrived_s=self._clock.now_s(), intended_s=due_s))


class StdinSource(ThreadedSource):
    """Raw samples from standard input, or any stream of bytes: signed 16 bits, little-endian, channels interleaved.

    Blocks have the size in which bytes come: a program that writes as it speaks is heard at once. The end of the stream
    is the end of the sound.
    """

    JOINED_S = 0.1
    """A read that waits for bytes can't be interrupted."""

    def __init__(self, sample_rate: int, clock: Clock, *, channels: int = 1, stream: BinaryIO | None = None) -> None:
        """Say what will come.

        Args:
            sample_rate: Hz.
            clock: tells when bytes arrived.
            channels: of the stream.
            stream: buffered; standard input unless given.

        Raises:
            MediaError: the rate or the number of channels is none that is taken.
        """
        super().__init__()
        check_format(sample_rate, channels, what="standard input")
        self.sample_rate, self.channels = sample_rate, channels
        self._clock, self._stream = clock, stream

    def _produce(self, on_block: OnBlock) -> None:
        stream: Any = sys.stdin.buffer if self._stream is None else self._stream
        frame_bytes = 2 * self.channels
        most_bytes = max(1, round(BLOCK_S * self.sample_rate)) * frame_bytes
        rest = b""
        while not self._stopping.is_set() and (read := stream.read1(most_bytes)):
            data = rest + read
            whole = len(data) // frame_bytes * frame_bytes
            rest = data[whole:]
            if whole:
                samples = np.frombuffer(data[:whole], dtype="<i2").reshape(-1, self.channels)
                now_s = self._clock.now_s()
                on_block(SoundBlock(samples, self.sample_rate, arrived_s=now_s, intended_s=now_s))
        if rest:
            logger.warning("the sound ends with %d bytes of a sample that takes %d: left out", len(rest), frame_bytes)


def in_blocks(pieces: Iterator[npt.NDArray[np.float32]], block_frames: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the same sound, shape (n, channels), in blocks of equal length; only the last may be shorter.

    Each is a copy, so that no block leads to the sound behind it.
    """
    held: npt.NDArray[np.float32] | None = None
    for piece in pieces:
        held = piece if held is None or not len(held) else np.concatenate([held, piece])
        whole = len(held) // block_frames * block_frames
        for first in range(0, whole, block_frames):
            yield held[first : first + block_frames].copy()
        held = held[whole:]
    if held is not None and len(held):
        yield held.copy()
