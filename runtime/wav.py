# SPDX-License-Identifier: Apache-2.0
"""Reads RIFF/WAVE files: PCM of 8, 16, 24 and 32 bits, float of 32 and 64, WAVE_FORMAT_EXTENSIBLE, RF64.

A header is believed only as far as the file goes: sound ends where the file ends, and sound that lies behind a length
that was never filled in is read. Blocks are read one at a time, so a file of any length needs little memory.
"""

import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # what follows the format tag in a subformat GUID
_UNKNOWN_SIZE = 0xFFFFFFFF  # written by programs that stream, and by RF64, whose sizes stand in its ds64 chunk
_LARGEST_FORMAT_BYTES = 4096  # the longest format chunk in use has 40 bytes


@dataclass(frozen=True)
class WavHeader:
    """Where the samples of a file lie, and in what form."""

    path: Path
    """The file."""

    sample_rate: int
    """Frames per second, as written: not checked."""

    channels: int
    """Samples per frame, 1 or more."""

    sample_bytes: int
    """Bytes of one sample: 1, 2, 3, 4 or 8."""

    is_float: bool
    """True for IEEE floats, False for integers."""

    offset: int
    """First byte of the first sample."""

    frames: int
    """Whole frames that are really there."""

    def blocks(self, block_frames: int = 1 << 16) -> Iterator[npt.NDArray[np.float32]]:
        """Yield all samples in order, in arrays of shape (n, channels), integers scaled to [-1, 1).

        A float64 sample that float32 cannot hold becomes infinite; a file that shrank since ends early.
        """
        frame_bytes = self.channels * self.sample_bytes
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for first in range(0, self.frames, block_frames):
                raw = file.read(min(block_frames, self.frames - first) * frame_bytes)
                raw = raw[: len(raw) // frame_bytes * frame_bytes]
                yield _samples(raw, sample_bytes=self.sample_bytes, is_float=self.is_float).reshape(-1, self.channels)


def read_wav_header(path: Path) -> WavHeader | None:
    """Return what a file says about its samples, or None if it is no WAV file of a form that is read here.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:12] != b"WAVE":
            return None
        layout: tuple[int, int, int, bool] | None = None
        large_size: int | None = None
        position = 12
        while (chunk := _chunk(file, position)) is not None:
            name, length = chunk
            body = position + 8
            if name == b"data":
                if layout is None:
                    return None
                stated = large_size if length == _UNKNOWN_SIZE and large_size is not None else length
                rate, channels, sample_bytes, is_float = layout
                real = _real_length(file, stated=stated, start=body, file_size=size)
                return WavHeader(path, rate, channels, sample_bytes, is_float, body, real // (channels * sample_bytes))
            if name == b"fmt ":
                layout = _layout(file.read(min(length, _LARGEST_FORMAT_BYTES)))
            elif name == b"ds64":
                sizes = file.read(16)
                large_size = struct.unpack("<8xQ", sizes)[0] if len(sizes) == 16 else None
            position = _after(file, body=body, length=length)
    if layout is None:
        return None
    return WavHeader(path, *layout, offset=position, frames=0)  # it ends before its first sample


def _chunk(file: BinaryIO, position: int) -> tuple[bytes, int] | None:
    """Return name and length of the chunk that begins at a byte, or None if none does."""
    file.seek(position)
    head = file.read(8)
    if len(head) < 8 or not all(32 <= byte < 127 for byte in head[:4]):
        return None
    return head[:4], struct.unpack("<4xI", head)[0]


def _after(file: BinaryIO, *, body: int, length: int) -> int:
    """Return where the next chunk begins: at an even byte, or right behind an odd chunk of a careless writer."""
    end = body + length
    return end if length % 2 == 0 or (_chunk(file, end + 1) is None and _chunk(file, end) is not None) else end + 1


def _real_length(file: BinaryIO, *, stated: int, start: int, file_size: int) -> int:
    """Return how many bytes of sound there are, whatever the header says."""
    there = file_size - start
    if stated == there:
        return there
    if stated < there and _only_chunks_follow(file, start=start, length=stated, file_size=file_size):
        return stated
    if stated not in (0, _UNKNOWN_SIZE):
        logger.warning("the header promises %d bytes of sound, the file holds %d: reading those", stated, there)
    return there


def _only_chunks_follow(file: BinaryIO, *, start: int, length: int, file_size: int) -> bool:
    position = _after(file, body=start, length=length)
    while position < file_size:
        chunk = _chunk(file, position)
        if chunk is None or position + 8 + chunk[1] > file_size:
            return False
        position = _after(file, body=position + 8, length=chunk[1])
    return True


def _layout(chunk: bytes) -> tuple[int, int, int, bool] | None:
    """Return rate, channels, bytes of a sample and whether it is a float; None for other codings."""
    if len(chunk) < 16:
        return None
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != _GUID_TAIL:
            return None
        tag = struct.unpack_from("<H", chunk, 24)[0]
    if channels < 1:
        return None
    # 20 bits lie in 3 bytes, left-justified: the container counts, not the valid bits.
    sample_bytes = frame_bytes // channels if frame_bytes and frame_bytes % channels == 0 else -(-bits // 8)
    if tag == _PCM and sample_bytes in (1, 2, 3, 4) and bits <= 8 * sample_bytes:
        return rate, channels, sample_bytes, False
    if tag == _FLOAT and sample_bytes in (4, 8) and bits == 8 * sample_bytes:
        return rate, channels, sample_bytes, True
    return None


def _samples(raw: bytes, *, sample_bytes: int, is_float: bool) -> npt.NDArray[np.float32]:
    if is_float:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.frombuffer(raw, dtype=f"<f{sample_bytes}").astype(np.float32)
    if sample_bytes == 1:
        return (np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - 128) * np.float32(1 / 128)
    values: npt.NDArray[np.signedinteger[Any]]
    if sample_bytes == 3:
        wide = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        values, sample_bytes = wide.view("<i4")[:, 0], 4
    else:
        values = np.frombuffer(raw, dtype=f"<i{sample_bytes}")
    return values.astype(np.float32) * np.float32(2.0 ** (1 - 8 * sample_bytes))
