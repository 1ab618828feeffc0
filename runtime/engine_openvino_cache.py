# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs on disk: named after everything that went into them, hashed, in a folder nobody else may write.

OpenVINO uses a compiled graph whose weights were damaged without noticing, so each file holds the digest of what it
carries, which is compared before OpenVINO sees a byte: once in a process, and again when the file is another one or was
written to. What doesn't fit is deleted and compiled again, and said so.
Files are written aside and renamed; processes may share the folder.

The folder is EDGEREELS_CACHE, else `edgereels/openvino` in the user's own cache folder. Deleting it does no harm.
"""

import atexit
import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

PLACE_VARIABLE = "EDGEREELS_CACHE"
LIMIT_BYTES = 2 << 30  # the embedded package's graphs are 21 MB at one size and precision
MAGIC = b"edgereels openvino graph 1\n"
HEADER_BYTES = 256  # magic, key, digest, zeros: what follows stays aligned to cache lines
BLOB, CRASH, SAFE, ASIDE = ".graph", ".crash", ".safe", ".partial"

Bytes = npt.NDArray[np.uint8]

Stamp = tuple[int, int, int, int]
"""Device, inode, size in bytes, nanoseconds of the last change: what tells a file from what it was."""
_verified: dict[Path, Stamp] = {}
"""Files whose digest this process has compared. A transformer in parts opens closed blocks again in every step, and
SHA-256 takes 0.6 s and more for a gigabyte. Of the process and not of a cache, because each of them opens it anew."""


class OnEvent(Protocol):
    """Told what happened: `cache_rejected`, `cache_unusable`, `cache_hit`, `compiled`, `compile_crashed`, ..."""

    def __call__(self, code: str, /, **fields: Any) -> None:
        """Take one event; fields are JSON values."""
        ...


def cache_folder(environment: Mapping[str, str] = os.environ, *, platform: str = sys.platform) -> Path:
    """Return where compiled graphs are kept.

    Raises:
        RuntimeError: there is no home folder.
    """
    if place := environment.get(PLACE_VARIABLE):
        return Path(place).absolute()
    if platform == "win32" and (local := environment.get("LOCALAPPDATA")):
        return Path(local) / "edgereels" / "openvino"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgereels" / "openvino"
    caches = environment.get("XDG_CACHE_HOME", "")
    return (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "edgereels" / "openvino"


def compile_key(parts: Mapping[str, Any]) -> str:
    """Return the name of a compiled graph: the SHA-256 of everything that went into it, JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Crash:
    """A compilation that ended its process."""

    signal: str
    """What ended it: "SIGSEGV"."""
    path: Path
    """The file that remembers it; deleting it allows another try."""


class CompileCache:
    """One folder of compiled graphs."""

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Take a folder that `open_cache` made private.

        Args:
            folder: where.
            limit_bytes: what was used longest ago is deleted beyond this.
        """
        self.folder = folder
        self._limit_bytes = limit_bytes

    def load(self, key: str, *, on_event: OnEvent) -> Bytes | None:
        """Return a compiled graph, mapped and verified, or None.

        The array is a private mapping of the file. What doesn't fit is deleted, with an event `cache_rejected`.
        """
        path = self._path(key, BLOB)
        try:
            mapped, stamp = _mapped(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
            self.reject(key, reason=str(error), on_event=on_event)
            return None
        if _verified.get(path) != stamp and (fault := _fault(mapped, key)):
            self.reject(key, reason=fault, on_event=on_event)
            return None
        _verified[path] = _used_now(path, stamp)
        return mapped[HEADER_BYTES:]

    def reject(self, key: str, *, reason: str, on_event: OnEvent) -> None:
        """Delete a compiled graph that can't be used."""
        _verified.pop(self._path(key, BLOB), None)
        with contextlib.suppress(OSError):
            self._path(key, BLOB).unlink()
        on_event("cache_rejected", file=self._path(key, BLOB).name, reason=reason)

    def has(self, key: str) -> bool:
        """Tell whether there is a compiled graph, good or not."""
        return self._path(key, BLOB).exists()

    def store(self, key: str, blob: bytes | memoryview) -> bool:
        """Keep a compiled graph; return whether there was room for it."""
        if len(blob) > self._limit_bytes // 2:
            return False
        digest = hashlib.sha256(blob).hexdigest()
        header = (MAGIC + f"{key}\n{digest}\n".encode()).ljust(HEADER_BYTES, b"\0")
        try:
            self._write(self._path(key, BLOB), header, blob)
            self._trim()
        except OSError:
            return False
        return True

    def crash(self, key: str) -> Crash | None:
        """Return what is remembered of a compilation that ended its process."""
        path = self._path(key, CRASH)
        try:
            return Crash(signal=json.loads(path.read_text(encoding="utf-8"))["signal"], path=path)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember_crash(self, key: str, *, graph: str, signal: str) -> Crash:
        """Remember that compiling ends the process, so that it isn't tried again."""
        path = self._path(key, CRASH)
        with contextlib.suppress(OSError):
            self._write(path, json.dumps({"graph": graph, "signal": signal}).encode())
        return Crash(signal=signal, path=path)

    def is_safe(self, key: str) -> bool:
        """Tell whether a graph that the cache had no room for is known to compile without ending its process."""
        return self._path(key, SAFE).exists()

    def remember_safe(self, key: str) -> None:
        """Remember that compiling went well."""
        with contextlib.suppress(OSError):
            self._write(self._path(key, SAFE), b"")

    def _path(self, key: str, ending: str) -> Path:
        return self.folder / f"{key}{ending}"

    def _write(self, path: Path, *pieces: bytes | memoryview) -> None:
        descriptor, aside = tempfile.mkstemp(dir=self.folder, suffix=ASIDE)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                for piece in pieces:
                    stream.write(piece)
            Path(aside).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(aside).unlink()
            raise

    def _trim(self) -> None:
        """Delete what was used longest ago, and what a killed process left behind, until the rest fits."""
        found = [(status.st_mtime, status.st_size, path) for path in self.folder.iterdir() if (status := _status(path))]
        newest_s = max(used_s for used_s, _, _ in found)
        total = sum(size for _, size, _ in found)
        for used_s, size, path in sorted(found):
            is_leftover = path.suffix == ASIDE and used_s < newest_s - 3600
            if is_leftover or (total > self._limit_bytes and path.suffix == BLOB):
                with contextlib.suppress(OSError):  # Windows: another process has it mapped
                    path.unlink()
                    total -= size


def open_cache(folder: Path | None, *, on_event: OnEvent) -> CompileCache:
    """Open the cache in a folder, by default `cache_folder()`.

    Where that folder can't be made private, belongs to somebody else or can't be written, an event `cache_unusable`
    says why, and one that goes with this process takes its place.
    """
    try:
        place = cache_folder() if folder is None else folder
        make_private(place)
        return CompileCache(place)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        on_event("cache_unusable", reason=reason)
        return _cache_of_this_process(reason)


@cache
def _cache_of_this_process(reason: str) -> CompileCache:
    """Make a cache that is deleted at the end, and warn: once, though every engine asks for it."""
    logger.warning("graphs are compiled anew in every process, for they can't be kept: %s", reason)
    folder = tempfile.mkdtemp(prefix="edgereels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return CompileCache(Path(folder))


def make_private(folder: Path) -> None:
    """Make a folder that only this user may enter.

    Raises:
        OSError: it is a link, belongs to another user, or can't be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{folder} is a link; name the folder itself in {PLACE_VARIABLE}")
    if (fault := _foreign(status)) and not fault.startswith("others"):
        raise PermissionError(f"{folder} {fault}; name another one in {PLACE_VARIABLE}")
    if os.name == "posix" and status.st_mode & 0o077:
        folder.chmod(0o700)
    with tempfile.TemporaryFile(dir=folder):  # os.access lies on some network file systems
        pass


def _foreign(status: os.stat_result) -> str:
    """Say what is wrong with the owner or the rights of a file; empty where nothing is."""
    if os.name != "posix":
        return ""
    if status.st_uid != os.geteuid():
        return f"belongs to the user {status.st_uid}, not to {os.geteuid()}"
    return "others may write to it" if status.st_mode & 0o022 else ""


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:  # another process trims too
        return None


def _mapped(path: Path) -> tuple[Bytes, Stamp]:
    """Map a file of ours into memory: large graphs then count as file cache, which the system takes back at need."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if fault := _foreign(status) if stat.S_ISREG(status.st_mode) else "is no regular file":
            raise PermissionError(fault)
        # Copy on write: OpenVINO's tensors take writeable memory only, and never write here.
        mapped = np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY), np.uint8)
        return mapped, _stamp(status)
    finally:
        os.close(descriptor)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _used_now(path: Path, stamp: Stamp) -> Stamp:
    """Note on a file that it was used, as `CompileCache` counts age; return its stamp after that.

    Of a file that is not the one with the old stamp any more the old one is returned: it will be hashed again.
    """
    with contextlib.suppress(OSError):  # a read-only file system: then age counts from its making
        if _stamp(path.lstat()) == stamp:
            os.utime(path, ns=(time.time_ns(), time.time_ns()))  # finer than the system's own: a write differs from it
            return _stamp(path.lstat())
    return stamp


def _fault(mapped: Bytes, key: str) -> str:
    """Say what is wrong with the bytes of a file; empty where nothing is."""
    magic, told_key, digest, *_ = (*mapped[:HEADER_BYTES].tobytes().split(b"\n", 3), b"", b"", b"")
    if magic + b"\n" != MAGIC or told_key != key.encode():
        return "is not the graph that its name says"
    if hashlib.sha256(mapped[HEADER_BYTES:].data).hexdigest().encode() != digest:
        return "is damaged: its digest is another one"
    return ""
