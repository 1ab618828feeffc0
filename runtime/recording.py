# SPDX-License-Identifier: Apache-2.0
"""Film a live stream into an mp4 that a crash, a kill or a full disk can't take: written in fragments of a second."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .errors import MediaError, OutputError
from .frame_queue import OnEvent
from .live_sinks import LiveSink, Media
from .mp4_repair import repair
from .sealed_file import SealedFile
from .sinks import check_target, import_av, writing

FRAGMENTS = "frag_keyframe+default_base_moof"
INDEXED = f"hybrid_fragmented+{FRAGMENTS}"  # becomes an ordinary, seekable mp4 when it is closed; FFmpeg 7.1 and later
PLAIN = f"empty_moov+{FRAGMENTS}"

LEAST_FREE_BYTES = 256 << 20
"""Room that a recording leaves on the disk: logs and caches of other programs need some too."""

FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


class DiskFullError(OutputError):
    """There is no room, or not enough, for a recording."""

    code = "S_DISK_FULL"


class RecordingSink(LiveSink):
    """H.264 and AAC in NAME.partial, which is renamed to NAME when the recording ends, for whatever reason.

    What is on the disk can be opened at any time. A kill loses at most one fragment, which is a second, and the sound
    that the encoder holds back (measured: 29 frames in all). When the disk is full, what was filmed is cut to whole
    fragments and kept, and `DiskFullError` is raised once. What a killed run left in NAME.partial is repaired and moved
    to STEM.salvaged-N.SUFFIX when a recording of that name begins. With `indexed`, the index of the whole file is held
    in memory until it ends: 14 MB per hour, measured.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        fps: int = 25,
        sample_rate: int = 16000,
        comment: str,
        indexed: bool = True,
        least_free_bytes: int = LEAST_FREE_BYTES,
        on_event: OnEvent | None = None,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Check the target; nothing is written yet.

        Args:
            path: target; what the suffix says is ignored, the container is mp4.
            height: pixels, even.
            width: pixels, even.
            fps: frames per second; the sample rate must be a multiple of it.
            sample_rate: of the sound, Hz.
            comment: the metadata line.
            indexed: make an ordinary mp4 of it when it ends; without, it stays fragmented and memory constant.
            least_free_bytes: a recording isn't begun with less room, and ends when there is less.
            on_event: told `recording_salvaged`.
            now_s: clock reading for the events, seconds.
        """
        if height % 2 or width % 2 or height <= 0 or width <= 0:
            raise ValueError(f"frames are {height}x{width}; expected even numbers of pixels (4:2:0)")
        if fps <= 0 or sample_rate % fps:
            raise ValueError(f"{sample_rate} Hz at {fps} frames/s; expected a whole number of samples per frame")
        check_target(path)
        self._av = import_av()
        self.path = path
        """The target."""
        self.frames_written = 0
        """Frames taken so far."""
        self._partial = path.with_name(path.name + ".partial")
        self._height, self._width, self._fps, self._comment = height, width, fps, comment
        self._sample_rate, self._samples_per_frame = sample_rate, sample_rate // fps
        self._indexed, self._least_free_bytes = indexed, least_free_bytes
        self._on_event, self._now_s = on_event, now_s

    def __enter__(self) -> Self:
        self._check_room()
        with writing(self.path):
            self._salvage_killed_run()
            self._file = SealedFile(self._partial)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed_before = self._file.failure is not None
        try:
            self._finish()
        except self._av.FFmpegError as broken:
            self._file.failure = self._file.failure or OSError(errno.EIO, str(broken))
        failed = self._file.failure is not None
        self._file.close()
        kept = self.frames_written > 0 and (not failed or self._cut())
        with writing(self.path):
            if kept:
                os.replace(self._partial, self.path)
            else:
                self._partial.unlink(missing_ok=True)
        if failed and not failed_before:
            self._raise_failure()

    def write(self, media: Media) -> None:
        """Take frames (T, height, width, 3) RGB, uint8, and their sound (T x samples per frame,).

        Raises:
            DiskFullError: there is no room left; `with` keeps what was filmed.
            OutputError: the file can't be written for another reason.
            ValueError: frames or sound have other shapes.
        """
        self._check_shapes(media)
        if not self.frames_written:
            self._open(INDEXED if self._indexed else PLAIN)
        with writing(self.path, self._av.FFmpegError):
            for index, pixels in enumerate(media.frames):
                start = index * self._samples_per_frame
                self._write_frame(pixels, media.sound[start : start + self._samples_per_frame])
        self._raise_failure()

    def _check_shapes(self, media: Media) -> None:
        frames, sound = media.frames, media.sound
        expected = (self._height, self._width, 3)
        if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (T, {expected})")
        if sound.shape != (len(frames) * self._samples_per_frame,):
            raise ValueError(
                f"sound is {sound.shape} beside {len(frames)} frames; expected {self._samples_per_frame} samples each"
            )

    def _open(self, movflags: str) -> None:
        """Begin the file; with its first frame, because FFmpeg 8.1 crashes in closing an indexed one without any."""
        with writing(self.path, self._av.FFmpegError):
            try:
                self._begin(movflags)
            except (self._av.FFmpegError, ValueError):
                if movflags == PLAIN:
                    raise
                self._file.restart()  # FFmpeg before 7.1 doesn't know the flag
                self._begin(PLAIN)
        self._raise_failure()

    def _begin(self, movflags: str) -> None:
        options = {"movflags": movflags, "flush_packets": "1"}  # a whole fragment doesn't wait in a buffer
        self._container: Any = self._av.open(self._file, mode="w", format="mp4", options=options)
        self._container.metadata["comment"] = self._comment
        self._video: Any = self._container.add_stream("libx264", rate=Fraction(self._fps))
        self._video.height, self._video.width, self._video.pix_fmt = self._height, self._width, "yuv420p"
        # zerolatency: no frame waits in the encoder. A key frame each second, and nowhere else, is a fragment's start.
        every = str(self._fps)
        keys = {"g": every, "keyint_min": every, "sc_threshold": "0"}
        self._video.options = {"crf": "18", "preset": "veryfast", "tune": "zerolatency", **keys}
        self._video.codec_context.thread_count = 1  # the other cores make the frames
        self._audio: Any = self._container.add_stream("aac", rate=self._sample_rate, layout="mono")
        self._audio.bit_rate = 96_000
        self._container.start_encoding()

    def _write_frame(self, pixels: npt.NDArray[np.uint8], sound: npt.NDArray[np.float32]) -> None:
        if self.frames_written % self._fps == 0 and self.frames_written:
            self._check_room()
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture.pts, picture.time_base = self.frames_written, Fraction(1, self._fps)
        self._container.mux(self._video.encode(picture))
        block = np.clip(np.nan_to_num(sound), -1, 1, dtype=np.float32)[None]
        heard = self._av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        heard.sample_rate, heard.pts = self._sample_rate, self.frames_written * self._samples_per_frame
        heard.time_base = Fraction(1, self._sample_rate)
        self._container.mux(self._audio.encode(heard))
        self.frames_written += 1

    def _finish(self) -> None:
        if not self.frames_written:
            return
        try:
            if self._file.failure is None:
                self._container.mux(self._video.encode(None))
                self._container.mux(self._audio.encode(None))
        finally:
            self._container.close()

    def _check_room(self) -> None:
        free_bytes = shutil.disk_usage(self.path.parent).free
        if free_bytes < self._least_free_bytes:
            raise DiskFullError(
                f"{self.path.parent} has {free_bytes >> 20} MiB free; a recording leaves "
                f"{self._least_free_bytes >> 20} MiB: make room, or record somewhere else"
            )

    def _raise_failure(self) -> None:
        failure = self._file.failure
        if failure is not None:
            kind = DiskFullError if failure.errno in FULL else OutputError
            raise kind(
                f"{self.path} can't be written ({failure.strerror}); expected room for it: make room"
            ) from failure

    def _cut(self) -> bool:
        """Cut the partial file to whole fragments; return whether there is one."""
        try:
            repair(self._partial)
        except MediaError:
            return False
        return True

    def _salvage_killed_run(self) -> None:
        """Move what a killed run left out of the way, repaired; a link that leads elsewhere is not followed."""
        if self._partial.is_symlink() or not self._partial.is_file() or not self._cut():
            self._partial.unlink(missing_ok=True)
            return
        number = 1
        while (target := self.path.with_name(f"{self.path.stem}.salvaged-{number}{self.path.suffix}")).exists():
            number += 1
        os.rename(self._partial, target)
        if self._on_event is not None:
            told = {"event": "recording_salvaged", "code": "S_SALVAGED", "at_s": self._now_s(), "path": str(target)}
            self._on_event(told)
