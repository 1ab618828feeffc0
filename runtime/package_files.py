# SPDX-License-Identifier: Apache-2.0
"""The files of a package as they lie on disk: which there are, what they may be called, what their digest is.

Nothing here follows a link or hands a byte to a native library.
"""

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import PackageError
from .manifest import parse_json

MAX_FILES = 1024  # 40 DiT blocks need about 200: a graph, weights and golden vectors for each part
MAX_DEPTH = 4
READ_BYTES = 4 << 20
MAX_SAFETENSORS_HEADER = 16 << 20
MAX_TENSORS = 20_000  # the library takes 800 000 empty ones and 13 s over them
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# Names that Windows gives to devices, whatever their ending: a package must mean the same everywhere.
DEVICE_NAMES = frozenset(
    ["con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))],
)
SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file below a package's root."""

    path: Path
    """Where it is."""
    size_bytes: int
    """Its size."""
    is_hard_link: bool
    """Whether the same bytes have another name somewhere, through which they can change."""


def check_name(relative: str, *, where: str) -> None:
    """Refuse a path that is not plain names of A-Z, a-z, 0-9, dot, _ and -, with slashes between.

    Raises:
        PackageError: it is absolute, leads outside, or means something else on another system.
    """
    parts = relative.split("/")
    for part in parts:
        if not NAME.fullmatch(part) or part.endswith(".") or part.split(".")[0].lower() in DEVICE_NAMES:
            raise PackageError(
                f"{where}: the file name {relative!r} is not allowed; names are made of A-Z, a-z, 0-9, dot, _ and -, "
                f"and stay inside the package",
                code="name",
            )
    if len(parts) > MAX_DEPTH:
        raise PackageError(f"{where}: {relative!r} lies deeper than {MAX_DEPTH} levels", code="name")


def find_files(root: Path, *, where: str) -> tuple[dict[str, FoundFile], set[str]]:
    """List what lies below `root`: files by relative path with slashes, and folders.

    Raises:
        PackageError: something is neither a regular file nor a folder, has a name that is not allowed or differs from
            another only in case, or there is too much.
    """
    files: dict[str, FoundFile] = {}
    folders: set[str] = set()
    seen: dict[str, str] = {}
    for relative, path in _entries(root, ""):
        check_name(relative, where=where)
        twin = seen.setdefault(relative.lower(), relative)
        if twin != relative:
            raise PackageError(f"{where}: {twin!r} and {relative!r} differ only in case", code="name")
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            folders.add(relative)
        elif stat.S_ISREG(status.st_mode):
            files[relative] = FoundFile(path, status.st_size, status.st_nlink != 1)
        else:
            raise PackageError(
                f"{where}: {relative!r} is a {_kind(status.st_mode)}; a package holds regular files only", code="link"
            )
        if len(seen) > MAX_FILES:
            raise PackageError(f"{where} holds more than {MAX_FILES} files", code="count")
    return files, folders


def _entries(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield everything below a folder, a folder before its content; links are yielded and not entered."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        yield prefix + entry.name, Path(entry.path)
        # The caller has refused what is too deep by the time that this line runs: recursion ends at MAX_DEPTH.
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), prefix + entry.name + "/")


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "symbolic link"
    return "named pipe" if stat.S_ISFIFO(mode) else "device or socket"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(READ_BYTES):
            state.update(piece)
    return state.hexdigest()


def check_safetensors(path: Path, *, where: str) -> None:
    """Refuse a safetensors file whose header is not strict: the library behind it accepts doubled keys.

    Raises:
        PackageError: header too large or not strict JSON, unknown dtype, or tensors that overlap, leave holes, or do
            not end with the file.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or header_bytes > min(MAX_SAFETENSORS_HEADER, size_bytes - 8):
            raise PackageError(f"{where} is no safetensors file: its header does not fit", code="safetensors")
        header = parse_json(stream.read(header_bytes), where=where)
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise PackageError(f"{where} is no safetensors file with at most {MAX_TENSORS} tensors", code="safetensors")
    header.pop("__metadata__", None)
    end = 0
    for begin, stop, name in sorted(_extent(entry, name=name, where=where) for name, entry in header.items()):
        if begin != end:
            raise PackageError(f"{where}: the tensor {name!r} overlaps another or leaves a hole", code="safetensors")
        end = stop
    if end != size_bytes - 8 - header_bytes:
        raise PackageError(f"{where} is truncated or has trailing bytes: its tensors end elsewhere", code="safetensors")


def _extent(entry: object, *, name: str, where: str) -> tuple[int, int, str]:
    """Return first byte, end and name of a tensor in a safetensors file, after checking dtype and size."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            dtype in SAFETENSORS_BITS
            and len(shape) <= 16
            and all(isinstance(side, int) and 0 <= side < 1 << 40 for side in shape)
        ):
            if 0 <= begin <= end and (end - begin) * 8 == math.prod(shape) * SAFETENSORS_BITS[dtype]:
                return begin, end, name
    raise PackageError(f"{where}: the tensor {name!r} has a wrong dtype, shape or place", code="safetensors")
