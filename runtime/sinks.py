# SPDX-License-Identifier: Apache-2.0
"""Where frames and sound go: an mp4 file, an array file. Each writes aside and renames when it is whole."""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from .errors import MediaError, MissingExtraError

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


class _FileSink:
    """Writes to NAME.partial and renames it when the body ends well."""

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise MediaError(
                f"{path.parent} is no folder; expected the folder that {path.name} is to be written to: create it first"
            )
        if path.is_dir():
            raise MediaError(f"{path} is a folder; expected the name of a file to write")
        self._path = path
        self._partial = path.with_name(path.name + ".partial")

    def _close(self) -> None:
        """Finish the partial file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
            if kind is None:
                os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)


class ArraySink(_FileSink):
    """Frames as one uint8 array (T, H, W, 3) in a .npy file."""

    def __init__(self, path: Path, *, frame_count: int, height: int, width: int) -> None:
        super().__init__(path)
        self._array = np.lib.format.open_memmap(
            self._partial, mode="w+", dtype=np.uint8, shape=(frame_count, height, width, 3)
        )
        self._written = 0

    def write(self, frames: Pixels) -> None:
        """Take the next frames, (T, H, W, 3) RGB."""
        self._array[self._written : self._written + len(frames)] = frames
        self._written += len(frames)

    def _close(self) -> None:
        self._array.flush()
        del self._array


class Mp4Sink(_FileSink):
    """H.264 video and AAC sound, written together so that they stay in step."""

    def __init__(
        self, path: Path, *, height: int, width: int, fps: int, sound: Samples, sample_rate: int, comment: str
    ) -> None:
        """Open the file.

        Args:
            path: target; what the suffix says is ignored, the container is mp4.
            height: pixels, even.
            width: pixels, even.
            fps: frames per second.
            sound: mono samples in [-1, 1], as long as the video will be.
            sample_rate: of the sound, Hz.
            comment: the metadata line.
        """
        super().__init__(path)
        self._av = _import_av()
        self._container: Any = self._av.open(
            str(self._partial), mode="w", format="mp4", options={"movflags": "+faststart"}
        )
        self._container.metadata["comment"] = comment
        self._video: Any = self._container.add_stream("libx264", rate=fps)
        self._video.height, self._video.width, self._video.pix_fmt = height, width, "yuv420p"
        self._video.options = {"crf": "16", "preset": "veryfast"}
        self._audio: Any = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._audio.bit_rate = 96_000
        self._fps, self._sample_rate, self._sound = fps, sample_rate, sound
        self._frames_written = self._samples_written = 0

    def write(self, frames: Pixels) -> None:
        """Take the next frames, (T, H, W, 3) RGB, and the sound that belongs to them."""
        for pixels in frames:
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = self._frames_written, Fraction(1, self._fps)
            self._container.mux(self._video.encode(frame))
            self._frames_written += 1
        self._write_sound(until=self._frames_written * self._sample_rate // self._fps)

    def _write_sound(self, *, until: int) -> None:
        piece = self._sound[self._samples_written : until]
        if not len(piece):
            return
        block = np.clip(piece, -1, 1)[None].astype(np.float32)
        frame = self._av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = (
            self._sample_rate,
            self._samples_written,
            Fraction(1, self._sample_rate),
        )
        self._container.mux(self._audio.encode(frame))
        self._samples_written += len(piece)

    def _close(self) -> None:
        try:
            if self._frames_written:
                self._container.mux(self._video.encode(None))
                self._container.mux(self._audio.encode(None))
        finally:
            self._container.close()


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", extra="video", purpose="writing an mp4 file") from error
    return av
