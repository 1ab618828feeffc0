# SPDX-License-Identifier: Apache-2.0
"""Opens sound files: WAV with our own reader, other formats with soundfile; by content, whatever the name says."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MediaError
from .wav import read_wav_header

logger = logging.getLogger(__name__)

ACCEPTED_FORMATS = "WAV, FLAC, Ogg, MP3, AIFF or CAF"
"""What soundfile is let near. Its parsers for rarer formats (AU, MAT) have an open advisory, CVE-2022-33065."""

_SIGNATURES = (b"RIFF", b"RF64", b"RIFX", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff")
_BLOCK_FRAMES = 4096  # decoded at once: what is lost before the place where a compressed file is damaged


@dataclass(frozen=True, eq=False)
class Sound:
    """An open sound file. What its header says is not checked."""

    sample_rate: int
    """Frames per second."""

    channels: int
    """Samples per frame."""

    blocks: Iterator[npt.NDArray[np.float32]]
    """All frames in order, in arrays of shape (n, channels), nominally in [-1, 1]."""


@contextmanager
def open_sound(path: Path) -> Iterator[Sound]:
    """Open a sound file; leaving the context closes it.

    Raises:
        MediaError: there is no such file, or nothing here reads it.
    """
    _check_is_file(path)
    try:
        with ExitStack() as stack:
            header = read_wav_header(path)
            if header is not None:
                yield Sound(header.sample_rate, header.channels, header.blocks())
            else:
                sound = _open_with_soundfile(path, stack=stack)
                yield Sound(sound.samplerate, sound.channels, _decoded(sound, path=path))
    except OSError as error:
        raise MediaError(f"{path} can't be read ({error.strerror or error}); expected a sound file") from error


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise MediaError(f"{path} doesn't exist; expected a sound file: check the name")
    if not path.is_file():
        raise MediaError(f"{path} is not a file; expected a sound file: name the file itself")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty; expected a sound file: record or copy it again")


def _open_with_soundfile(path: Path, *, stack: ExitStack) -> Any:
    file = stack.enter_context(path.open("rb", buffering=0))
    head = file.read(4)
    file.seek(0)
    is_mp3_frame = len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    if not (is_mp3_frame or head.startswith(_SIGNATURES)):
        raise MediaError(f"{path} is in no known sound format; expected {ACCEPTED_FORMATS}: convert it")
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise MediaError(
            f"{path} is not a plain WAV file, and the module soundfile doesn't load ({error}); "
            "expected PCM or float WAV: convert it, or pip install soundfile"
        ) from error
    try:
        # a descriptor, because soundfile would take a name that ends in .raw for headerless sound
        return stack.enter_context(soundfile.SoundFile(file.fileno(), closefd=False))
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise MediaError(f"{path} can't be decoded ({reason}); expected {ACCEPTED_FORMATS}: convert it") from error


def _decoded(sound: Any, *, path: Path) -> Iterator[npt.NDArray[np.float32]]:
    from soundfile import SoundFileError

    frames = 0
    while True:
        try:
            block = sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        except SoundFileError as error:
            logger.warning(
                "%s is damaged after %.1f s (%s): reading up to there", path, frames / sound.samplerate, error
            )
            return
        if not len(block):
            return
        frames += len(block)
        yield block
