# SPDX-License-Identifier: Apache-2.0
"""Read a video file: its sound at 16 kHz and its pictures at 25 per second, both counted from its first picture.

Pictures come upright and with square pixels. Where a film has another rate, or an uneven one, the picture of each 40 ms
is the one that a player shows in their middle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgereels.runtime.audio import loudness_lufs, normalise_loudness

from .footage import FPS, SAMPLE_RATE

if TYPE_CHECKING:
    import av

SILENT_LUFS = -60.0
"""Sound below this holds no speech."""
SHORTEST_S = 0.5
_GAP_S = 0.05
"""Time stamps of sound may disagree by so much before a hole is taken for real and filled with silence."""

Pixels = npt.NDArray[np.uint8]


class FilmError(ValueError):
    """A file can't be used; the message says why and what to do, without the file's name."""


@dataclass(frozen=True, eq=False)
class Film:
    """A video file that can be used."""

    path: Path
    width: int
    """Of its pictures as they are shown, in pixels."""
    height: int
    start_s: float
    """Time stamp of its first picture."""
    frames: int
    """Pictures at 25 per second for which there is sound."""
    sound: npt.NDArray[np.float32]
    """Mono, 16 kHz, from the first picture on, at the loudness to which the runtime brings speech."""


def open_film(path: Path) -> Film:
    """Read a file's sound and time stamps; pictures are decoded later.

    Raises:
        FilmError: it is no video, has no sound, is silent or very short, or can't be decoded.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise FilmError("it holds no pictures; expected a video")
            if not container.streams.audio:
                raise FilmError("it has no sound track; expected a video with sound: film it with the microphone on")
            shown = next(container.decode(container.streams.video[0]), None)
            if shown is None or shown.time is None:
                raise FilmError("its pictures have no time stamps; expected a file as cameras write it: convert it")
            width, height = _shown_size(container.streams.video[0], shown)
            start_s = shown.time
        with av.open(str(path)) as container:
            end_s = _end_s(container)
        with av.open(str(path)) as container:
            sound = _sound(container, start_s=start_s)
    except (FFmpegError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FilmError(f"it can't be decoded ({reason}); expected a video: convert it, or remove it") from error
    duration_s = min(end_s - start_s, len(sound) / SAMPLE_RATE)
    if duration_s < SHORTEST_S:
        raise FilmError(f"pictures with sound last {max(duration_s, 0):.2f} s; expected more: film longer")
    loudness = loudness_lufs(sound, sample_rate=SAMPLE_RATE)
    if loudness < SILENT_LUFS:
        raise FilmError(f"its sound is silent ({loudness:.0f} LUFS); expected speech: check the microphone")
    return Film(path, width, height, start_s, int(duration_s * FPS + 1e-6), normalise_loudness(sound))


def pictures(film: Film, *, size: tuple[int, int] | None = None, grey: bool = False) -> Iterator[Pixels]:
    """Yield the pictures of a film, 25 per second, RGB (height, width, 3), or grey (height, width).

    Args:
        film: the film.
        size: (width, height) to scale to, averaging areas; None: as it is.
        grey: brightness only.
    """
    import av

    count = 0
    with av.open(str(film.path)) as container:
        stream = container.streams.video[0]
        held: av.VideoFrame | None = None
        for frame in container.decode(stream):
            if frame.time is None:
                continue
            due = min(film.frames, _frames_before(frame.time - film.start_s))
            if held is not None and count < due:
                picture = _picture(stream, held, size=size, grey=grey)
                yield from (picture for _ in range(due - count))
                count = due
            held = frame
            if count == film.frames:
                return
        if held is not None and count < film.frames:
            picture = _picture(stream, held, size=size, grey=grey)
            yield from (picture for _ in range(film.frames - count))


def _frames_before(time_s: float) -> int:
    """Return how many frames of 40 ms have their middle before a time."""
    return max(0, int(np.ceil(time_s * FPS - 0.5 - 1e-6)))


def _picture(stream: Any, frame: "av.VideoFrame", *, size: tuple[int, int] | None, grey: bool) -> Pixels:
    width, height = size or _shown_size(stream, frame)
    if frame.rotation % 180:
        width, height = height, width
    scaled = frame.reformat(width=width, height=height, format="gray" if grey else "rgb24", interpolation="AREA")
    return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), round(frame.rotation / 90) % 4), np.uint8)


def _shown_size(stream: Any, frame: "av.VideoFrame") -> tuple[int, int]:
    """Return (width, height) upright and with square pixels."""
    aspect = stream.sample_aspect_ratio or 1
    width, height = max(1, round(frame.width * aspect)), frame.height
    return (height, width) if frame.rotation % 180 else (width, height)


def _end_s(container: Any) -> float:
    """Return when the last picture ends."""
    end_s = 0.0
    for packet in container.demux(container.streams.video[0]):
        if packet.pts is not None:
            end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end_s


def _sound(container: Any, *, start_s: float) -> npt.NDArray[np.float32]:
    """Return the sound from `start_s` on: channels averaged, holes filled, 16 kHz."""
    import av
    import soxr

    rate = container.streams.audio[0].rate
    converter = av.AudioResampler(format="fltp")  # the container's own rate and channels
    parts, filled = [], 0
    for decoded in container.decode(container.streams.audio[0]):
        for frame in converter.resample(decoded):
            mono = frame.to_ndarray().mean(axis=0, dtype=np.float32)
            place = round((decoded.time - start_s) * rate) if decoded.time is not None else filled
            if place > filled + _GAP_S * rate or (filled == 0 and place > 0):
                parts.append(np.zeros(place - filled, np.float32))
                filled = place
            if filled == 0 and place < 0:
                mono = mono[-place:]
            parts.append(mono)
            filled += len(mono)
    whole = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not np.isfinite(whole).all():
        raise FilmError("its sound holds NaN or Inf; expected numbers: export it again")
    return np.asarray(soxr.resample(whole, rate, SAMPLE_RATE, quality="HQ"), np.float32)
