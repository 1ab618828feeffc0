# SPDX-License-Identifier: Apache-2.0
"""Where frames, sound and events go: an mp4 file, an array file, lines. Each writes aside and renames when whole."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from .errors import MissingExtraError, OutputError, Stopped
from .opencv import load_before_av

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]


class Sink(Protocol):
    """Takes frames in order; `with` closes it, and an exception inside leaves no file behind."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, frames: Pixels) -> None:
        """Take the next frames, (T, H, W, 3) RGB."""
        ...

    def finish(self) -> None:
        """Write what is still held back; what can fail has happened when this returns."""
        ...


@contextmanager
def writing(path: Path, *failures: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong while a file is written into one `OutputError`.

    Args:
        path: the target.
        failures: what may be raised besides OSError.
    """
    try:
        yield
    except (OSError, *failures) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} can't be written ({reason}); expected room for it and permission") from error


def check_target(path: Path) -> None:
    """Raise `OutputError` where a file can't be written to a path; nothing is touched."""
    with writing(path):
        if not path.parent.is_dir():
            raise OutputError(
                f"{path.parent} is no folder; expected the folder that {path.name} is to be written to: create it first"
            )
        if path.is_dir():
            raise OutputError(f"{path} is a folder; expected the name of a file to write")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is a device or a pipe; expected the name of a file to write")
        if not os.access(path.parent, os.W_OK):
            raise OutputError(
                f"{path.parent} does not let this user write; expected a folder that does: choose another"
            )


class FileSink:
    """Writes to NAME.partial and renames it when the body ends well.

    After `Stopped` (SIGTERM) what was written is kept, as a shorter but whole file; after any other exception nothing
    is.
    """

    def __init__(self, path: Path) -> None:
        check_target(path)
        self.path = path
        """The target."""
        self.written = 0
        """Frames, or lines, taken so far."""
        self._partial = path.with_name(path.name + ".partial")
        self._finished = False

    def finish(self) -> None:
        """Write what is still held back; what can fail has happened when this returns."""
        if not self._finished:
            self._finished = True
            self._close()

    def _open(self) -> None:
        """Begin the partial file."""

    def _close(self) -> None:
        """Finish the partial file, whatever state it is in."""

    def __enter__(self) -> Self:
        try:
            with writing(self.path):
                self._partial.unlink(missing_ok=True)  # of a killed run, or a link that leads elsewhere
            self._open()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or (issubclass(kind, Stopped) and self.written):
                self.finish()
                with writing(self.path):
                    os.replace(self._partial, self.path)
            else:
                self._abandon()
        finally:
            self._discard()

    def _discard(self) -> None:
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _abandon(self) -> None:
        """Close without caring about the content; a second failure would hide the first."""
        with suppress(OutputError):
            self.finish()


class ArraySink(FileSink):
    """Frames as one uint8 array (T, H, W, 3) in a .npy file."""

    def __init__(self, path: Path, *, height: int, width: int) -> None:
        super().__init__(path)
        self._frame_shape = (height, width, 3)

    def _open(self) -> None:
        with writing(self.path):
            self._file = self._partial.open("wb")
        self._write_header()

    def write(self, frames: Pixels) -> None:
        """Take the next frames, (T, H, W, 3) RGB."""
        with writing(self.path):  # not a memory map, whose pages would count as ours and whose full disk is a SIGBUS
            self._file.write(np.ascontiguousarray(frames).data)
        self.written += len(frames)

    def _write_header(self) -> None:
        """Write the header; numpy pads it so that the number of frames can be written over later."""
        shape = (self.written, *self._frame_shape)
        with writing(self.path):
            np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    def _close(self) -> None:
        with writing(self.path), self._file:
            self._file.seek(0)
            self._write_header()
            # a signal may have come in the middle of the last write
            self._file.truncate(self._file.tell() + self.written * math.prod(self._frame_shape))


class BytesSink(FileSink):
    """Bytes as they come."""

    def _open(self) -> None:
        with writing(self.path):
            self._file = self._partial.open("wb")

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        with writing(self.path):
            self._file.write(data)
        self.written += len(data)

    def _close(self) -> None:
        with writing(self.path):
            self._file.close()


class LinesSink(FileSink):
    """JSON objects, one a line."""

    def _open(self) -> None:
        with writing(self.path):
            self._file = self._partial.open("w", encoding="utf-8")

    def write(self, entry: Mapping[str, Any]) -> None:
        """Take the next line."""
        with writing(self.path):
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.written += 1

    def _close(self) -> None:
        with writing(self.path):
            self._file.close()


class Mp4Sink(FileSink):
    """H.264 video and AAC sound, written together so that they stay in step."""

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        fps: float,
        sound: Samples,
        sample_rate: int,
        comment: str,
        threads: int = 0,
    ) -> None:
        """Open the file.

        Args:
            path: target; what the suffix says is ignored, the container is mp4.
            height: pixels, even.
            width: pixels, even.
            fps: frames per second.
            sound: mono samples in [-1, 1]; what the frames outlast is silent.
            sample_rate: of the sound, Hz.
            comment: the metadata line.
            threads: the encoder uses at most this many; 0: as many as it likes.
        """
        super().__init__(path)
        self._av = import_av()
        self._height, self._width, self._comment, self._threads = height, width, comment, threads
        self._fps = Fraction(fps).limit_denominator(1001)
        self._sample_rate, self._sound, self._samples_written = sample_rate, sound, 0

    def _open(self) -> None:
        with self._writing():
            self._container: Any = self._av.open(
                str(self._partial), mode="w", format="mp4", options={"movflags": "+faststart"}
            )
            self._container.metadata["comment"] = self._comment
            self._video: Any = self._container.add_stream("libx264", rate=self._fps)
            self._video.height, self._video.width, self._video.pix_fmt = self._height, self._width, "yuv420p"
            self._video.options = {"crf": "16", "preset": "veryfast"}
            self._video.codec_context.thread_count = self._threads
            self._audio: Any = self._container.add_stream("aac", rate=self._sample_rate, layout="mono")
            self._audio.bit_rate = 96_000

    def write(self, frames: Pixels) -> None:
        """Take the next frames, (T, H, W, 3) RGB, and the sound that belongs to them."""
        with self._writing():
            for pixels in frames:
                frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = self.written, 1 / self._fps
                self._container.mux(self._video.encode(frame))
                self.written += 1
            self._write_sound()

    def _write_sound(self) -> None:
        """Write the sound up to the end of the last frame."""
        until = int(self.written * self._sample_rate / self._fps)
        count = until - self._samples_written
        if count <= 0:
            return
        block = np.zeros((1, count), dtype=np.float32)
        piece = np.clip(self._sound[self._samples_written : until], -1, 1)
        block[0, : len(piece)] = piece
        frame = self._av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = self._sample_rate, self._samples_written
        frame.time_base = Fraction(1, self._sample_rate)
        self._container.mux(self._audio.encode(frame))
        self._samples_written = until

    def _close(self) -> None:
        with self._writing():
            try:
                if self.written:
                    self._write_sound()
                    self._container.mux(self._video.encode(None))
                    self._container.mux(self._audio.encode(None))
            finally:
                self._container.close()

    def _writing(self) -> Any:
        return writing(self.path, self._av.FFmpegError)


def import_av() -> Any:
    """Return PyAV, or raise `MissingExtraError`."""
    load_before_av()
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", extra="video", purpose="writing an mp4 file") from error
    return av
