# SPDX-License-Identifier: Apache-2.0
"""The stills of a package: PNG of one plain kind, so that little of the format has to be trusted.

8 bits a channel, RGB, not interlaced; the chunks IHDR, IDAT and IEND, with no others between or behind them. Nothing of
what a camera or a program notes about itself gets in.
"""

import io
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import MediaError, PackageError
from .image_file import MOST_PIXELS, SMALLEST_SIDE, load_portrait

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8 = b"\x08\x02\x00\x00\x00"
"""End of IHDR: bit depth 8, colour type RGB, deflate, adaptive filters, no interlace."""
MAX_CHUNKS = 10_000  # 64 kB each, as Pillow writes them, make up to 640 MB
MAX_FILE_BYTES = 256 << 20
"""Larger files are refused before they are read; 50 million pixels have 150 MB before they are compressed."""

Pixels = npt.NDArray[np.uint8]


def still_bytes(pixels: Pixels) -> bytes:
    """Return a picture (H, W, 3) as the bytes of a still's file, without loss."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG", optimize=True)
    return data.getvalue()


def read_still(path: Path) -> Pixels:
    """Read a still, (H, W, 3) RGB; its header was checked when the package was opened.

    Raises:
        PackageError: it can't be decoded.
    """
    try:
        return load_portrait(path)
    except MediaError as error:
        raise PackageError(f"{error} (export the package again)", code="still") from error


def check_still(path: Path, *, where: str) -> tuple[int, int]:
    """Return the (height, width) of a still after a look at its chunks; nothing is decompressed.

    Raises:
        PackageError: another kind of file, a checksum that doesn't agree, truncated, or too small or large a picture.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PackageError(f"{where} is larger than {MAX_FILE_BYTES} bytes", code="still")
    data = memoryview(path.read_bytes())
    if data[:8] != SIGNATURE:
        raise PackageError(f"{where} is no PNG file", code="still")
    names, header = _chunks(data, where=where)
    kinds = [name for name, before in zip(names, [b"", *names[:-1]], strict=True) if name != before]
    if kinds != [b"IHDR", b"IDAT", b"IEND"] or len(header) != 13 or header[8:] != RGB_8:
        raise PackageError(
            f"{where} is no plain PNG; a still has 8-bit RGB, is not interlaced, and carries nothing else", code="still"
        )
    width, height = (int.from_bytes(header[start : start + 4], "big") for start in (0, 4))
    if min(height, width) < SMALLEST_SIDE or height * width > MOST_PIXELS:
        raise PackageError(
            f"{where} has {width} x {height} pixels; expected {SMALLEST_SIDE} a side to "
            f"{MOST_PIXELS // 1_000_000} million",
            code="still",
        )
    return height, width


def _chunks(data: memoryview, *, where: str) -> tuple[list[bytes], bytes]:
    """Return the names of all chunks, and what the first one holds, after comparing their checksums."""
    names: list[bytes] = []
    first = b""
    at = len(SIGNATURE)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        stop = at + 8 + length
        if stop + 4 > len(data) or len(names) == MAX_CHUNKS:
            raise PackageError(f"{where} is truncated, or in more than {MAX_CHUNKS} pieces", code="still")
        if zlib.crc32(data[at + 4 : stop]) != int.from_bytes(data[stop : stop + 4], "big"):
            raise PackageError(f"{where} is damaged: a checksum inside does not agree", code="still")
        if not names:
            first = bytes(data[at + 8 : stop])
        names.append(bytes(data[at + 4 : at + 8]))
        at = stop + 4
    return names, first
