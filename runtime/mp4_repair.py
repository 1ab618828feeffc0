# SPDX-License-Identifier: Apache-2.0
"""What is left of a recording whose process was killed: cut a fragmented mp4 behind its last whole fragment."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import MediaError
from .sinks import writing


@dataclass(frozen=True)
class Repair:
    """What `repair` found."""

    fragments: int
    """Whole fragments that the file holds; 1 for a file that was closed properly."""
    kept_bytes: int
    """Size of the file now."""
    cut_bytes: int
    """What was cut off its end."""


def repair(path: Path) -> Repair:
    """Cut a recording behind the last fragment that is whole, in place. A file that is whole is not touched.

    Raises:
        MediaError: no fragment is whole, or it is no mp4; the file is not touched.
        OutputError: the file can't be read or cut.
    """
    with writing(path), path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        fragments, end = _whole_part(file, size)
        if not fragments:
            raise MediaError(
                f"{path} holds no whole fragment in {size} bytes; expected a recording of at least a second: "
                "nothing in it can be saved"
            )
        if end < size:
            file.truncate(end)
    return Repair(fragments=fragments, kept_bytes=end, cut_bytes=size - end)


def _whole_part(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return how many fragments are whole, and where the last of them ends.

    A fragment is its index (`moof`; of the first one maybe `moov`) and the media (`mdat`) behind it. A file that was
    closed may have its one index at the end.
    """
    fragments, end = 0, 0
    has_header, index_open, media_first = False, False, False
    for name, stop in _boxes(file, size):
        if name in (b"moov", b"moof"):
            has_header |= name == b"moov"
            index_open = has_header
            if name == b"moov" and media_first:
                fragments, index_open, end = 1, False, stop
        elif name == b"mdat":
            media_first |= not has_header
            if index_open:
                fragments, index_open, end = fragments + 1, False, stop
        elif fragments and not index_open:
            end = stop  # what follows a fragment and is whole: the list of fragments of a closed file
    return fragments, end


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield name and end of each whole box at the top level; stop at the first that is cut off or is none."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, name = struct.unpack(">I4s", head[:8])
        smallest = 8
        if length == 1 and len(head) == 16:  # the length follows the name, as 64 bits
            (length,), smallest = struct.unpack(">Q", head[8:]), 16
        if length < smallest or at + length > size:
            return
        at += length
        yield name, at
