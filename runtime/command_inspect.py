# SPDX-License-Identifier: Apache-2.0
"""`edgereels inspect`: say what a package holds."""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .manifest import FORMAT, GraphEntry, Manifest, Quantization, StillEntry, TensorSpec
from .model_package import ModelPackage
from .options import OptionParser, add_print_options
from .printable import printable
from .quality import parity_summary, quality_line, quality_summary
from .still_file import check_still

BLOCK = re.compile(r"(.+)_\d+")


@dataclass(frozen=True)
class GraphRow:
    """A line of the table: one graph, or all blocks of one kind."""

    name: str
    """Of the graph; for several blocks, without their numbers."""
    entries: tuple[GraphEntry, ...]
    """The graphs behind it."""
    weights: dict[str, int]
    """Files of weights that they use, and their sizes in bytes."""
    node_count: int
    """Operators in all of them."""


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="edgereels inspect", description="Say what a package holds. Nothing is run; no engine is needed."
    )
    parser.add_argument("package", metavar="PACKAGE", help='package folder, or "default" for the embedded one')
    parser.add_argument("--quick", action="store_true", help="compare sizes only; the default hashes every file")
    add_print_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print what a package holds; return 0."""
    arguments = _parser().parse_args(argv)
    checked = "size" if arguments.quick else "full"
    package = ModelPackage.open(arguments.package, verify=checked)
    if arguments.json:
        sys.stdout.write(json.dumps(_as_json(package, checked=checked), indent=1) + "\n")
    else:
        print("\n".join(map(printable, _as_text(package, checked=checked))))
    return 0


def _rows(package: ModelPackage) -> list[GraphRow]:
    """Return the graphs in the manifest's order, numbered ones of the same ends together."""
    groups: dict[tuple[str, tuple[TensorSpec, ...]], list[GraphEntry]] = {}
    for name, entry in package.manifest.graphs.items():
        numbered = BLOCK.fullmatch(name)
        groups.setdefault((numbered.group(1) if numbered else name, entry.inputs), []).append(entry)
    return [
        _row(package, name if len(entries) > 1 else entries[0].name, tuple(entries))
        for (name, _), entries in groups.items()
    ]


def _row(package: ModelPackage, name: str, entries: tuple[GraphEntry, ...]) -> GraphRow:
    weights: dict[str, int] = {}
    node_count = 0
    for entry in entries:
        summary = package.summary(entry.name)
        node_count += summary.node_count
        files = {tensor.location for tensor in summary.tensors if tensor.location}
        weights |= {file: package.manifest.files[file].size_bytes for file in files}
    return GraphRow(name, entries, weights, node_count)


def _as_json(package: ModelPackage, *, checked: str) -> dict[str, Any]:
    manifest = package.manifest
    graphs = {name: asdict(entry) for name, entry in manifest.graphs.items()}
    for name, graph in graphs.items():
        summary = package.summary(name)
        graph["nodes"], graph["opset"] = summary.node_count, summary.opset
        graph["weights"] = sorted({tensor.location for tensor in summary.tensors if tensor.location})
    whole = asdict(manifest)
    for name, entry in manifest.avatars.items():
        if isinstance(entry, StillEntry):
            whole["avatars"][name]["size"] = list(check_still(package.avatar_path(name), where=entry.still))
    whole |= {
        "format": FORMAT,
        "format_version": package.manifest.format_version,
        "graphs": graphs,
        "size_bytes": sum(entry.size_bytes for entry in manifest.files.values()),
        "weights_bytes": _weights_bytes(manifest),
        "quality": _quality(package),
        "file_count": len(manifest.files),
        "checked": checked,
    }
    return whole


def _quality(package: ModelPackage) -> dict[str, Any]:
    """Return what the package records of its quality: its ladders, and how near PyTorch it was at export."""
    return parity_summary(package.manifest) | {"said": quality_line(package), "ladders": quality_summary(package)}


def _parity_line(manifest: Manifest) -> str:
    found = parity_summary(manifest)
    if not found["graphs_measured"]:
        return "not measured"
    measured = f"{found['graphs_measured']} of {found['graphs']} graphs"
    return f"{measured} within {found['max_abs']:.1e} (relative {found['max_rel']:.1e}) of PyTorch at export"


def _quantization_line(found: Quantization) -> str:
    covered = found.covered
    share = f", {covered.size_bytes / covered.fp32_bytes:.2f} of float32" if covered.fp32_bytes else ""
    return (
        f"{found.recipe}: {covered.layers} layers, {covered.parameters:,} parameters in {_size(covered.size_bytes)}"
        f"{share}; from sha256:{found.source[:16]}"
    )


def _canvas_line(package: ModelPackage, name: str, entry: str | StillEntry) -> str:
    if not isinstance(entry, StillEntry):
        return "a portrait, no canvas"
    height, width = check_still(package.avatar_path(name), where=entry.still)
    top, left, bottom, right = entry.box
    return (
        f"canvas {height}x{width}; box top {top}, left {left}, bottom {bottom}, right {right} "
        f"({bottom - top}x{right - left}), feather {entry.feather}"
    )


def _weights_bytes(manifest: Manifest) -> int:
    return sum(entry.size_bytes for name, entry in manifest.files.items() if name.startswith("weights/"))


def _as_text(package: ModelPackage, *, checked: str) -> Iterator[str]:
    manifest, settings = package.manifest, package.manifest.settings
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    digests = "every digest agrees" if checked == "full" else "sizes agree, digests not compared"
    yield f"{package.name}: {manifest.name}, a package for {manifest.task} (format version {manifest.format_version})"
    yield f"  digest     sha256:{manifest.digest}"
    weights = _size(_weights_bytes(manifest))
    yield f"  files      {len(manifest.files)}, {_size(size_bytes)}, of which weights {weights}; {digests}"
    yield f"  precision  {manifest.precision} (storage)"
    if manifest.quantization:
        yield f"  quantized  {_quantization_line(manifest.quantization)}"
    yield f"  quality    {quality_line(package)}"
    yield from (f"  missed     {miss}" for ladder in quality_summary(package) for miss in ladder["misses"])
    yield f"  parity     {_parity_line(manifest)}"
    yield f"  made with  {', '.join(f'{tool} {version}' for tool, version in manifest.made_with.items()) or 'unknown'}"
    yield (
        f"  settings   {settings.fps:g} fps, window {settings.window}, motion {settings.motion}, drop {settings.drop} "
        f"frames, {settings.steps} step{'s' * (settings.steps > 1)}, shift {settings.shift:g}, "
        f"sound at {settings.sample_rate} Hz"
    )
    for table, sizes in manifest.sizes.items():
        mark = " (default)" if table == manifest.default_size else ""
        yield f"  sizes      {table}{mark}: {', '.join(f'{height}x{width}' for height, width in sizes.values())}"
    yield f"  portraits  {manifest.portraits}{'; avatars: ' + ', '.join(manifest.avatars) if manifest.avatars else ''}"
    for name, entry in manifest.avatars.items():
        yield f"  avatar     {name}: {_canvas_line(package, name, entry)}"
    if manifest.model_card:
        yield f"  card       {manifest.model_card}, {_size(manifest.files[manifest.model_card].size_bytes)}"
    if manifest.mouth_box:
        top, left, bottom, right = manifest.mouth_box
        yield f"  mouth box  top {top:g}, left {left:g}, bottom {bottom:g}, right {right:g} of the frame"
    yield ""
    yield from _graph_table(package)
    yield ""
    yield "licences"
    for subnetwork, licence in manifest.licences.items():
        yield f"  {subnetwork:15}  {licence}"


def _graph_table(package: ModelPackage) -> Iterator[str]:
    rows = _rows(package)
    named = [f"{row.name} x {len(row.entries)}" if len(row.entries) > 1 else row.name for row in rows]
    width = max([len("graph"), *(len(name) for name in named)])
    yield (
        f"{'graph':{width}}  {'subnetwork':13}  {'parameters':>14}  {'weights':>9}  {'nodes':>6}  "
        f"{'max abs':>8}  {'max rel':>8}  golden"
    )
    for name, row in zip(named, rows, strict=True):
        parameters = sum(entry.parameters for entry in row.entries)
        measured = [entry.parity for entry in row.entries if entry.parity]
        parity = (
            f"{max(found.max_abs for found in measured):8.1e}  {max(found.max_rel for found in measured):8.1e}"
            if measured
            else f"{'-':>8}  {'-':>8}"
        )
        golden = all(entry.name in package.manifest.golden for entry in row.entries)
        yield (
            f"{name:{width}}  {row.entries[0].subnetwork:13}  {parameters:14,}  {_size(sum(row.weights.values())):>9}  "
            f"{row.node_count:6}  {parity}  {'yes' if golden else 'no'}"
        )


def _size(size_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} B"
