# SPDX-License-Identifier: Apache-2.0
"""The model package: a folder that a runtime can open, checked before any engine sees a byte of it.

The format is specified in docs/package-format.md. Opening checks, in this order: names and kinds of files, the
manifest, what is listed against what is there, digests, the header of every tensor file, every still, every graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from .canvas import check_canvas, check_shape
from .errors import PackageError
from .image import nearest_size
from .manifest import GraphEntry, Manifest, StillEntry, TensorSpec, parse_json, parse_manifest
from .onnx_preflight import GraphSummary, preflight
from .package_files import FoundFile, check_name, check_safetensors, find_files, sha256_of
from .still_file import check_still

MANIFEST = "manifest.json"
MAX_GRAPH_BYTES = 256 << 20  # weights lie outside: 40 fused blocks are about 5 MB
DEFAULT_PACKAGE = Path(__file__).parent / "embedded" / "default.edgereels"
"""The package that comes with the installation."""

DEMO_SPEECH = DEFAULT_PACKAGE.parent / "demo.wav"
"""The speech that comes with it, 7.9 s."""


def package_path(named: str | Path) -> Path:
    """Return the folder that a person means: the text "default" is the embedded package, anything else a path."""
    return DEFAULT_PACKAGE if named == "default" else Path(named)


@dataclass(frozen=True)
class ModelPackage:
    """An opened package: where it is and what it holds. It keeps no file open."""

    root: Path
    """Its folder, resolved."""
    manifest: Manifest
    """What its manifest says."""

    @classmethod
    def open(cls, path: str | Path, *, verify: str = "full") -> "ModelPackage":
        """Open a package after all checks; nothing native has read a byte of it when this returns.

        Args:
            path: its folder, or "default" for the embedded one.
            verify: "full" compares the SHA-256 of every file, "size" only sizes. Where a file has a second name (a
                hard link), it is hashed in any case, and only accepted inside this installation: package managers
                link wheels from their cache.

        Raises:
            PackageError: any check fails; `code` says which.
            ValueError: `verify` is neither.
        """
        if verify not in ("full", "size"):
            raise ValueError(f"verify is {verify!r}; expected 'full' or 'size'")
        folder = package_path(path)
        where = folder.name or str(folder)
        try:
            root = _real_folder(folder)
            return cls(root, check_package(root, where=where, hash_all=verify == "full"))
        except OSError as error:  # no permission, a broken disk, a file that vanished meanwhile
            place = f" ({error.filename})" if error.filename else ""
            raise PackageError(
                f"{where} can not be read: {error.strerror or error}{place}", code="unreadable"
            ) from error

    @property
    def digest(self) -> str:
        """SHA-256 that names this package and everything in it."""
        return self.manifest.digest

    @property
    def name(self) -> str:
        """Its folder's name, for messages."""
        return self.root.name

    def has(self, subnetwork: str) -> bool:
        """Tell whether any graph of the subnetwork is here."""
        return any(entry.subnetwork == subnetwork for entry in self.manifest.graphs.values())

    def require(self, *subnetworks: str) -> None:
        """Raise `PackageError` naming the subnetworks that are not here."""
        missing = [name for name in subnetworks if not self.has(name)]
        if missing:
            raise PackageError(
                f"{self.name} has no {', '.join(missing)}; export the checkpoint again without leaving that out "
                f"(--only names {', '.join(sorted({e.subnetwork for e in self.manifest.graphs.values()}))} here)",
                code="missing-subnetwork",
            )

    def has_siblings(self, library: str = "openvino") -> bool:
        """Tell whether any graph has a file of its own for a library."""
        return any(library in entry.siblings for entry in self.manifest.graphs.values())

    def graph(self, name: str) -> GraphEntry:
        """Return what the manifest says about a graph; raise `PackageError` where there is none."""
        try:
            return self.manifest.graphs[name]
        except KeyError as error:
            raise PackageError(f"{self.name} has no graph {name!r}", code="missing-graph") from error

    def graph_path(self, name: str, library: str = "onnxruntime") -> Path:
        """Return the .onnx file of a graph that a library runs; raise `PackageError` where there is none."""
        return self.root / self.graph(name).file_for(library)

    def summary(self, name: str, library: str = "onnxruntime") -> GraphSummary:
        """Return what the bytes of a graph hold: its nodes, its constants and where their values lie."""
        sizes = {file: entry.size_bytes for file, entry in self.manifest.files.items()}
        path = self.graph_path(name, library)
        return preflight(path.read_bytes(), files=sizes, where=f"{self.name}/{path.name}")

    def golden_path(self, name: str) -> Path | None:
        """Return the file of a graph's golden vectors, or None."""
        file = self.manifest.golden.get(name)
        return self.root / file if file else None

    def quality(self) -> dict[str, Any] | None:
        """Return the quality record as JSON, or None where the package has none."""
        if self.manifest.quality is None:
            return None
        path = self.root / self.manifest.quality
        return parse_json(path.read_bytes(), where=f"{self.name}/{path.name}")

    def avatar_path(self, name: str) -> Path:
        """Return the file of an avatar or its still; raise `PackageError` that lists those that are here."""
        entry = self.manifest.avatars.get(name)
        if entry is None:
            here = ", ".join(sorted(self.manifest.avatars)) or "none"
            raise PackageError(f"{self.name} has no avatar {name!r}; its avatars: {here}", code="missing-avatar")
        return self.root / (entry.still if isinstance(entry, StillEntry) else entry)

    def tokenizer_path(self) -> Path:
        """Return the tokenizer's file; raise `PackageError` where the package takes no prompts."""
        if self.manifest.text is None:
            raise PackageError(f"{self.name} has no text encoder and takes no prompts", code="missing-subnetwork")
        return self.root / self.manifest.text.tokenizer

    def tables(self) -> dict[str, npt.NDArray[Any]]:
        """Load the tables of the package's own schedule: `timesteps`, `modulation`, `head_modulation`, float32."""
        if self.manifest.tables is None:
            raise PackageError(
                f"{self.name} has no schedule tables, which come with the dit", code="missing-subnetwork"
            )
        from safetensors.numpy import load_file

        return load_file(self.root / self.manifest.tables)


def _real_folder(folder: Path) -> Path:
    if not folder.exists():
        raise PackageError(f"{folder} does not exist; expected the folder of a package", code="not-a-folder")
    if not folder.is_dir():
        raise PackageError(f"{folder} is a file; a package is a folder (unpack it first)", code="not-a-folder")
    return folder.resolve()


def check_package(root: Path, *, where: str, hash_all: bool) -> Manifest:
    """Run every opening check on a folder and return its manifest; `where` begins the messages.

    Raises:
        PackageError: one of them fails.
    """
    found, folders = find_files(root, where=where)
    if MANIFEST not in found:
        raise PackageError(f"{where} has no {MANIFEST}; it is not a package, or not a finished one", code="manifest")
    linked = {name for name, file in found.items() if file.is_hard_link}
    if linked and not _is_installed_with_us(root):
        raise PackageError(
            f"{where}: {min(linked)!r} is a hard link to a file that has another name; copy the package instead",
            code="link",
        )
    manifest = parse_manifest(found[MANIFEST].path.read_bytes(), where=f"{where}/{MANIFEST}")
    _check_listing(manifest, found=found, folders=folders, where=where)
    for name in sorted(manifest.files if hash_all else linked - {MANIFEST}):
        _check_digest(manifest, name, found[name].path, where=where)
    _check_references(manifest, where=where)
    for name, file in found.items():
        if name.endswith(".safetensors"):
            check_safetensors(file.path, where=f"{where}/{name}")
    _check_stills(manifest, found, where=where)
    sizes = {name: entry.size_bytes for name, entry in manifest.files.items()}
    for entry in manifest.graphs.values():
        for file in (entry.file, *entry.siblings.values()):
            if sizes[file] > MAX_GRAPH_BYTES:
                raise PackageError(f"{where}/{file} is larger than {MAX_GRAPH_BYTES} bytes", code="size")
            summary = preflight(found[file].path.read_bytes(), files=sizes, where=f"{where}/{file}")
            _check_ends(entry, summary, where=f"{where}/{file}")
    return manifest


def _is_installed_with_us(root: Path) -> bool:
    """Tell whether a folder came with this installation: who wrote it wrote this code as well."""
    return root.is_relative_to(Path(__file__).resolve().parent)


def _check_listing(manifest: Manifest, *, found: Mapping[str, FoundFile], folders: set[str], where: str) -> None:
    for name, entry in manifest.files.items():
        check_name(name, where=where)
        if name not in found:
            raise PackageError(
                f"{where}: {name!r} is listed in the manifest and missing; copy it again", code="missing"
            )
        if found[name].size_bytes != entry.size_bytes:
            raise PackageError(
                f"{where}: {name!r} has {found[name].size_bytes} bytes, the manifest says {entry.size_bytes}; "
                f"copy it again",
                code="size",
            )
    parents = {name.rsplit("/", depth)[0] for name in manifest.files for depth in range(1, name.count("/") + 1)}
    unlisted = (set(found) - set(manifest.files) - {MANIFEST}) | (folders - parents)
    if unlisted or MANIFEST in manifest.files:
        name = min(unlisted or {MANIFEST})
        raise PackageError(f"{where}: {name!r} is not listed in the manifest; remove it", code="unlisted")


def _check_digest(manifest: Manifest, name: str, path: Path, *, where: str) -> None:
    found = sha256_of(path)
    listed = manifest.files[name].sha256
    if found != listed:
        raise PackageError(
            f"{where}: {name!r} has the SHA-256 {found[:12]}, the manifest says {listed[:12]}; the file is damaged or "
            f"was changed, copy it again",
            code="digest",
        )


def _check_references(manifest: Manifest, *, where: str) -> None:
    """Refuse a manifest that names files that are not listed, or lists files that play no part."""
    text = (manifest.text.tokenizer,) if manifest.text else ()
    tables = (manifest.tables,) if manifest.tables else ()
    stills = tuple(entry.still for entry in manifest.avatars.values() if isinstance(entry, StillEntry))
    portraits = tuple(entry for entry in manifest.avatars.values() if isinstance(entry, str))
    tensors = (*manifest.golden.values(), *portraits, *tables)
    graphs = tuple(file for entry in manifest.graphs.values() for file in (entry.file, *entry.siblings.values()))
    words = tuple(name for name in (manifest.quality, manifest.model_card) if name)
    named = (*graphs, *tensors, *stills, *text, *words)
    for name in named:
        if name not in manifest.files:
            raise PackageError(f"{where}/{MANIFEST} refers to {name!r}, which it does not list", code="manifest")
    if len(set(graphs)) != len(graphs) or any(not name.endswith(".onnx") for name in graphs):
        raise PackageError(f"{where}/{MANIFEST}: each graph needs an .onnx file of its own", code="manifest")
    if any(not name.endswith(".safetensors") for name in tensors):
        raise PackageError(f"{where}/{MANIFEST}: tables, golden vectors and avatars are .safetensors", code="manifest")
    if any(not name.endswith(".png") for name in stills):
        raise PackageError(f"{where}/{MANIFEST}: stills are .png", code="manifest")
    for name, entry in manifest.files.items():
        if name.startswith("weights/") and name != f"weights/{entry.sha256}.bin":
            raise PackageError(f"{where}: {name!r} is not called after its SHA-256", code="name")
        if not name.startswith(("weights/", "licences/")) and name not in named:
            raise PackageError(f"{where}: {name!r} plays no part in a package; remove it", code="unlisted")
    if not manifest.graphs.keys() >= manifest.golden.keys():
        raise PackageError(f"{where}/{MANIFEST} has golden vectors for a graph that is not here", code="manifest")
    if manifest.default_size not in manifest.sizes:
        raise PackageError(f"{where}/{MANIFEST}: default_size is not one of sizes", code="manifest")


def _check_stills(manifest: Manifest, found: Mapping[str, FoundFile], *, where: str) -> None:
    """Refuse a still of another kind, and a box that doesn't fit into it or into the network's frames."""
    for name, entry in manifest.avatars.items():
        if not isinstance(entry, StillEntry):
            continue
        size = check_still(found[entry.still].path, where=f"{where}/{entry.still}")
        try:
            check_canvas(entry.box, feather=entry.feather, still=size)
            top, left, bottom, right = entry.box
            made = nearest_size(bottom - top, right - left, table=manifest.sizes[manifest.default_size])
            check_shape(entry.box, size=made)
        except ValueError as error:
            raise PackageError(f"{where}/{MANIFEST}: avatar {name!r}: {error}", code="still") from error


def _check_ends(entry: GraphEntry, summary: GraphSummary, *, where: str) -> None:
    """Refuse a graph whose inputs or outputs are not those of the manifest."""
    for kind, listed, present in (
        ("inputs", entry.inputs, summary.inputs),
        ("outputs", entry.outputs, summary.outputs),
    ):
        ours = [(spec.name, spec.dtype, len(spec.shape)) for spec in listed]
        theirs = [(spec.name, spec.dtype, len(spec.shape)) for spec in present]
        if ours != theirs or any(_differ(a, b) for a, b in zip(listed, present, strict=True)):
            odd = next((f"{b} instead of {a}" for a, b in zip(ours, theirs, strict=False) if a != b), "another shape")
            raise PackageError(f"{where}: its {kind} are not those of the manifest ({odd})", code="ends")


def _differ(listed: TensorSpec, present: TensorSpec) -> bool:
    """Tell whether sizes contradict: a graph may leave open what the manifest fixes, not the other way round."""
    return any(
        isinstance(theirs, int) and theirs != ours for ours, theirs in zip(listed.shape, present.shape, strict=True)
    )
