# SPDX-License-Identifier: Apache-2.0
"""What a graph file is, without an engine: its name, its inputs and outputs, and digests of all that it is made of."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .manifest import TensorSpec
from .onnx_preflight import preflight
from .package_files import sha256_of

WEIGHTS = "weights"
"""Folder beside a graph whose files are called after their SHA-256."""

DYNAMIC_ACTIVATIONS = ("edgereels.activations", "int8-dynamic")
"""Metadata of a graph that wants the activations of its int8 and int4 products rounded to 8 bits while it runs."""


@dataclass(frozen=True)
class GraphIdentity:
    """One graph file."""

    path: Path
    """The .onnx file, absolute."""
    name: str
    """What it is called in a package: "dit" for dit.onnx and for dit.openvino.onnx."""
    digest: str
    """SHA-256 of the file."""
    weights: dict[str, str]
    """Path of every file that it takes values from, relative to it, to that file's SHA-256."""
    inputs: tuple[TensorSpec, ...]
    """In the graph's order."""
    outputs: tuple[TensorSpec, ...]
    """The same."""
    dynamic_activations: bool
    """Whether it carries `DYNAMIC_ACTIVATIONS`."""

    @property
    def named_weights(self) -> tuple[str, ...]:
        """Of `weights` those whose digest was taken from their name, unread."""
        return tuple(name for name in self.weights if _is_named_by_digest(name))


def identify(graph: Path) -> GraphIdentity:
    """Read a graph file, and of its weights no more than the names where these are digests.

    Raises:
        PackageError: it is no graph, or one that no package may hold.
        OSError: a file can't be read.
    """
    data = graph.read_bytes()
    folder = graph.absolute().parent
    summary = preflight(data, files=_files_beside(folder), where=graph.name)
    locations = sorted({tensor.location for tensor in summary.tensors if tensor.location is not None})
    return GraphIdentity(
        path=folder / graph.name,
        name=graph.name.split(".")[0],
        digest=hashlib.sha256(data).hexdigest(),
        weights={name: _digest(folder, name) for name in locations},
        inputs=summary.inputs,
        outputs=summary.outputs,
        dynamic_activations=_metadata_entry(*DYNAMIC_ACTIVATIONS) in data,
    )


def _metadata_entry(key: str, value: str) -> bytes:
    """Return the bytes of a StringStringEntryProto: two strings, each after its field's tag and its length."""
    return bytes([0x0A, len(key)]) + key.encode() + bytes([0x12, len(value)]) + value.encode()


def _files_beside(folder: Path) -> dict[str, int]:
    """Return the sizes of files in the graph's folder and in `weights`, by path relative to it."""
    found = [path for place in (folder, folder / WEIGHTS) if place.is_dir() for path in place.iterdir()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found if path.is_file()}


def _digest(folder: Path, name: str) -> str:
    return Path(name).stem if _is_named_by_digest(name) else sha256_of(folder / name)


def _is_named_by_digest(name: str) -> bool:
    place, _, file = name.rpartition("/")
    stem = file.removesuffix(".bin")
    return place == WEIGHTS and len(stem) == 64 and not set(stem) - set("0123456789abcdef")
