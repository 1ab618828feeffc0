# SPDX-License-Identifier: Apache-2.0
"""Which build of edgereels ran: versions stay the same from commit to commit, the files don't."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from .. import runtime

ROOMS = (Path(runtime.__file__).parent, Path(__file__).parent)
"""Folders whose code decides what a report says: as installed."""
DIGITS = 12


def build_digest(rooms: Sequence[Path] = ROOMS) -> str:
    """Return the first 12 hex digits of a SHA-256 over every .py file in some folders.

    Hashed are, in the order of their names, "ROOM/NAME.py", a zero byte, the file's bytes as they are, a zero byte.
    """
    files = {f"{room.name}/{path.relative_to(room).as_posix()}": path for room in rooms for path in room.rglob("*.py")}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(b"%s\0%s\0" % (name.encode(), path.read_bytes()))
    return digest.hexdigest()[:DIGITS]
