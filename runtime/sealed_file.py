# SPDX-License-Identifier: Apache-2.0
"""A file that a muxer writes to, and that stays as good as it was when the disk is full."""

import os
from contextlib import suppress
from pathlib import Path


class SealedFile:
    """A file for FFmpeg that fails once and is never written to again.

    FFmpeg closes a recording by writing over its beginning. After a write that failed this would spoil the fragments
    that are whole, so from then on everything is swallowed, and `failure` says why.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.failure: OSError | None = None
        """The first thing that went wrong."""

    def write(self, data: bytes) -> int:
        """Write all of the bytes, or remember why not."""
        left = memoryview(data)
        while self.failure is None and left:
            try:
                left = left[self._file.write(left) or 0 :]
            except OSError as error:
                self.failure = error
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, as a file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def restart(self) -> None:
        """Forget what was written."""
        self._file.seek(0)
        self._file.truncate()
        self.failure = None

    def close(self) -> None:
        """Bring what was written to the disk, and close."""
        with suppress(OSError):
            os.fsync(self._file.fileno())
        with suppress(OSError):
            self._file.close()
