# SPDX-License-Identifier: Apache-2.0
"""Write a package aside, check it, and give it its name in one step.

Everything is written below `NAME.partial`, beside the target::

    NAME.partial/progress.json   which parts are finished, made from what
    NAME.partial/package/        the package so far
    NAME.partial/scratch/        for the writer's user; emptied by the next run
    NAME.partial/replaced/       with force: the package that was there, for a moment

A run that was killed leaves that folder; the next run with the same target takes over the parts whose input is still
the same. A run that ends with an error removes it.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PackageError
from .manifest import FORMAT, FORMAT_VERSION, Manifest, digest_of, parse_json
from .model_package import MANIFEST, ModelPackage, check_package
from .package_files import check_name, sha256_of

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
PROGRESS_VERSION = 1

Piece = bytes | bytearray | memoryview | npt.NDArray[Any]


@dataclass(frozen=True)
class Part:
    """A finished part of a package being written, a subnetwork or a block of one."""

    key: str
    """Digest or description of everything that it was made from."""
    files: tuple[str, ...]
    """What it consists of; parts may share files."""
    record: Mapping[str, Any]
    """JSON that the user of the writer wants back when the part is resumed."""


class PackageWriter:
    """Writes one package; a context manager.

    ::

        with PackageWriter(Path("anna.edgereels"), force=False) as writer:
            record = writer.resume("vae_decoder", key=key)
            if record is None:
                location = writer.add_weights(pieces)                 # "weights/<sha256>.bin"
                writer.add_file("vae_decoder_first.onnx", data)
                writer.complete("vae_decoder", key=key, record={...})
            package = writer.finish(fields)

    One writer per target at a time: two of them would remove each other's files.
    """

    def __init__(self, target: str | Path, *, force: bool = False) -> None:
        self.target = Path(target)
        """Where the package will be."""
        if self.target.name in ("", ".."):
            raise PackageError(f"{target} can not be a package; give it a name of its own", code="target")
        self.partial = self.target.with_name(self.target.name + ".partial")
        """The folder beside it in which everything happens."""
        self.folder = self.partial / "package"
        """The package so far."""
        self.scratch = self.partial / "scratch"
        """An empty folder on the same file system for the user of the writer."""
        self._force = force
        self._parts: dict[str, Part] = {}
        self._wanted: set[str] = set()
        self._fresh: list[str] = []

    def __enter__(self) -> "PackageWriter":
        """Take over what a killed run left, or begin.

        Raises:
            PackageError: the target exists (without force), or its parent folder does not.
        """
        with self._writing():
            self.check_target()
            self._restore_replaced()
            self.check_target()
            self._parts = self._load_progress()
            self._sweep()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.scratch.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error leaves nothing. An interruption (Ctrl-C is no Exception) leaves what the next run can resume.
        if kind is None or issubclass(kind, Exception):
            self._restore_replaced()
            shutil.rmtree(self.partial, ignore_errors=True)

    def resume(self, part: str, *, key: str) -> dict[str, Any] | None:
        """Return the record of a part that an earlier run finished from the same input, else None.

        What it made from another input is removed.
        """
        done = self._parts.get(part)
        if done is not None and done.key != key:
            self._forget(part)
            return None
        if done is None:
            return None
        self._wanted.add(part)
        return dict(done.record)

    def complete(self, part: str, *, key: str, record: Mapping[str, Any]) -> None:
        """Note that a part is finished: it consists of every file added since the last `complete`."""
        self._parts[part] = Part(key, tuple(dict.fromkeys(self._fresh)), dict(record))
        self._wanted.add(part)
        self._fresh.clear()
        with self._writing():
            self._save_progress()

    def add_file(self, name: str, content: bytes | Path) -> Path:
        """Add a file under its relative name and return where it lies.

        A path below `scratch` is moved, any other copied. A file of that name is replaced.
        """
        check_name(name, where=self.target.name)
        path = self.folder / name
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._whole_file(content).replace(path)
        self._fresh.append(name)
        return path

    def add_weights(self, content: Iterable[Piece] | Path) -> str:
        """Add a file of weights and return its name, `weights/<sha256>.bin`, as a graph refers to it.

        Args:
            content: its bytes, piece by piece (they are hashed and written one at a time), or a file: below `scratch`
                it is moved, elsewhere copied. The same content is stored once.
        """
        if isinstance(content, Path):
            digest = sha256_of(content)
            name = f"weights/{digest}.bin"
            self.add_file(name, content)
            return name
        state = hashlib.sha256()
        incoming = self.scratch / "weights.incoming"
        with self._writing(), incoming.open("wb") as stream:
            for piece in content:
                view = _bytes_of(piece)
                state.update(view)
                stream.write(view)
        name = f"weights/{state.hexdigest()}.bin"
        self.add_file(name, incoming)
        return name

    def draft(self, fields: Mapping[str, Any]) -> ModelPackage:
        """Return the package as it would be, where it lies now: to be looked at before it gets its name.

        Args:
            fields: as for `finish`; parts that were not asked for are dropped now.

        Raises:
            PackageError: the result would not open.
        """
        with self._writing():
            return ModelPackage(self.folder.resolve(), self._seal(fields))

    def finish(self, fields: Mapping[str, Any]) -> ModelPackage:
        """Write the manifest, run every opening check, and give the package its name.

        Args:
            fields: the manifest without `format`, `format_version`, `files` and `digest`, which are made here.

        Raises:
            PackageError: the result would not open.
        """
        with self._writing():
            manifest = self._seal(fields)
            self._publish()
        return ModelPackage(self.target.resolve(), manifest)

    def _seal(self, fields: Mapping[str, Any]) -> Manifest:
        """Write the manifest and check the whole."""
        self._drop_unwanted()
        (self.folder / MANIFEST).unlink(missing_ok=True)  # that of a draft
        names = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        files = {
            name: {"size_bytes": (self.folder / name).stat().st_size, "sha256": sha256_of(self.folder / name)}
            for name in names
        }
        whole = {"format": FORMAT, "format_version": FORMAT_VERSION, "digest": "", **fields, "files": files}
        whole["digest"] = digest_of(whole)
        text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
        (self.folder / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")
        # The digests were taken from these very files a moment ago; what is left to check is everything else.
        return check_package(self.folder.resolve(), where=self.target.name, hash_all=False)

    def _whole_file(self, content: bytes | Path) -> Path:
        """Return a file on this file system that holds the content and may be moved."""
        incoming = self.partial / "incoming"
        if isinstance(content, bytes):
            incoming.write_bytes(content)
        elif content.resolve().is_relative_to(self.scratch.resolve()):
            return content
        else:
            shutil.copyfile(content, incoming)
        return incoming

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the file system refuses (no space, no permission) into one line."""
        try:
            yield
        except OSError as error:
            place = f" ({error.filename})" if error.filename else ""
            raise PackageError(
                f"{self.target} can not be written: {error.strerror or error}{place}", code="target"
            ) from error

    # ── On disk ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_target(self) -> None:
        """Raise `PackageError` where the target can't be written: it exists (without force), or has no folder."""
        if not self.target.parent.is_dir():
            raise PackageError(f"the folder {self.target.parent} does not exist; create it first", code="target")
        if (around := _package_around(self.target)) is not None:
            raise PackageError(
                f"{self.target} lies in the package {around}, which holds what its manifest lists and nothing else; "
                "choose another folder",
                code="target",
            )
        if self.target.is_symlink() or (self.target.exists() and not self.target.is_dir()):
            raise PackageError(f"{self.target} is not a folder; a package needs a name of its own", code="target")
        if self.partial.is_symlink() or (self.partial.exists() and not self.partial.is_dir()):
            raise PackageError(f"{self.partial} is in the way; remove it", code="target")
        if self.target.exists() and not self._force:
            raise PackageError(f"{self.target} exists; --force replaces it", code="target")

    def _load_progress(self) -> dict[str, Part]:
        """Return the parts of an earlier run whose files are all there; {} where there is nothing to resume."""
        path = self.partial / PROGRESS
        if not path.is_file():
            return {}
        try:
            saved = parse_json(path.read_bytes(), where=str(path))
            if saved["version"] != PROGRESS_VERSION:
                return {}
            parts = {
                name: Part(part["key"], tuple(part["files"]), part["record"]) for name, part in saved["parts"].items()
            }
            sizes: dict[str, int] = saved["sizes"]
        except (PackageError, KeyError, TypeError, AttributeError):
            logger.warning("%s can not be read; starting from the beginning", path)
            return {}

        def is_there(name: str) -> bool:
            file = self.folder / name
            return file.is_file() and not file.is_symlink() and file.stat().st_size == sizes.get(name)

        return {name: part for name, part in parts.items() if all(is_there(file) for file in part.files)}

    def _save_progress(self) -> None:
        names = sorted({file for part in self._parts.values() for file in part.files})
        saved = {
            "version": PROGRESS_VERSION,
            "parts": {
                name: {"key": part.key, "files": list(part.files), "record": part.record}
                for name, part in self._parts.items()
            },
            "sizes": {name: (self.folder / name).stat().st_size for name in names},
        }
        incoming = self.partial / "incoming"
        incoming.write_text(json.dumps(saved, allow_nan=False), encoding="utf-8")
        incoming.replace(self.partial / PROGRESS)

    def _sweep(self) -> None:
        """Remove whatever does not belong to a finished part."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.rmtree(self.partial / "replaced", ignore_errors=True)
        (self.partial / "incoming").unlink(missing_ok=True)
        kept = {file for part in self._parts.values() for file in part.files}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in kept:
                path.unlink()

    def _drop_unwanted(self) -> None:
        """Forget parts that an earlier run made and this one did not ask for, and their files."""
        kept = {file for name in self._wanted for file in self._parts[name].files} | set(self._fresh)
        dropped = {file for part in self._parts.values() for file in part.files} - kept
        self._parts = {name: self._parts[name] for name in self._wanted}
        for name in dropped:
            (self.folder / name).unlink(missing_ok=True)

    def _forget(self, part: str) -> None:
        """Drop a part, and its files unless others share them."""
        dropped = self._parts.pop(part)
        shared = {file for other in self._parts.values() for file in other.files} | set(self._fresh)
        for name in set(dropped.files) - shared:
            (self.folder / name).unlink(missing_ok=True)

    def _restore_replaced(self) -> None:
        """Bring back the package that was there, where a run ended between the two renames of `_publish`."""
        replaced = self.partial / "replaced"
        if replaced.is_dir() and not self.target.exists():
            replaced.rename(self.target)

    def _publish(self) -> None:
        if self.target.exists():
            if not self._force:
                raise PackageError(f"{self.target} appeared meanwhile; --force replaces it", code="target")
            self._keep_if_foreign()
        if self.target.exists():
            self.target.rename(self.partial / "replaced")
        self.folder.rename(self.target)

    def _keep_if_foreign(self) -> None:
        """Move a folder that is no package, and not empty, to `NAME.old` instead of removing somebody's files."""
        if (self.target / MANIFEST).is_file() or not any(self.target.iterdir()):
            return
        old = self.target.with_name(self.target.name + ".old")
        number = 1
        while old.exists():
            number += 1
            old = self.target.with_name(f"{self.target.name}.old-{number}")
        self.target.rename(old)
        logger.warning("%s was no package; it is kept as %s", self.target, old)


def _bytes_of(piece: Piece) -> memoryview:
    if isinstance(piece, np.ndarray):
        return np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
    return memoryview(piece).cast("B")


def _package_around(target: Path) -> Path | None:
    """Return the package, whole or damaged, that a name lies in; None where there is none."""
    for folder in Path(os.path.realpath(target)).parents:  # unlike `resolve`, it answers for a link to itself too
        with suppress(OSError, PackageError):
            fields = parse_json((folder / MANIFEST).read_bytes(), where=str(folder))
            if isinstance(fields, dict) and fields.get("format") == FORMAT:  # web pages have a manifest.json too
                return folder
    return None
