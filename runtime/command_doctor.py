# SPDX-License-Identifier: Apache-2.0
"""`edgereels doctor`: whether a package can run here, on what, and what would be better, in one screen."""

import json
import platform
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .doctor_diagnosis import Diagnosis, Gain, GraphRow, diagnose
from .doctor_memory import Need
from .engine_libraries import Library
from .engine_wheels import Finding
from .errors import PackageError
from .machine import machine_facts
from .model_package import ModelPackage
from .options import OptionParser, add_session_options, session_arguments
from .printable import printable
from .quality import quality_line

DIAGNOSIS_FORMAT = "edgereels-diagnosis"
DIAGNOSIS_VERSION = 1
INDENT = 10
WIDTH = 110
"""Characters in a line of text; a table's row may be longer."""
MOST_FILES = 3
"""More files than that in a row are counted and not named."""


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="edgereels doctor",
        description="Say what this machine has, whether a package can run here and on what, and which engine would be "
        "faster. The package is really run for that, in a process of its own. Exit code 0: it can run; 1: it can't.",
    )
    parser.add_argument(
        "package", metavar="PACKAGE", nargs="?", default="default", help="package folder (default: the embedded one)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out how much faster other engines would be, which takes seconds"
    )
    add_session_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found; return 0 where the package can run here, else 1."""
    arguments = _parser().parse_args(argv)
    chatty = arguments.progress or sys.stderr.isatty()

    def say(what: str) -> None:
        if chatty:
            print(what, file=sys.stderr)

    found = diagnose(arguments.package, asked=session_arguments(arguments), quick=arguments.quick, progress=say)
    if arguments.json:
        sys.stdout.write(json.dumps(as_json(found), indent=1, allow_nan=False) + "\n")
    else:
        print("\n".join(map(printable, as_text(found))))
    return 0 if found.can_run else 1


# ── For machines: docs/hardware.md lists the fields ──────────────────────────────────────────────────────────────────


def as_json(found: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as plain values."""
    package = found.package
    return {
        "format": DIAGNOSIS_FORMAT,
        "format_version": DIAGNOSIS_VERSION,
        "can_run": found.can_run,
        "verdict": found.verdict,
        "fault": found.fault,
        "asked": dict(found.asked),
        "machine": machine_facts(),
        "cuda": asdict(found.cuda),
        "engines": {name: asdict(library) | {"works": library.works} for name, library in found.libraries.items()},
        "package": package and _package_json(package),
        "graphs": [asdict(row) | {"verified": bool(row.seen)} for row in found.rows],
        "memory": [asdict(need) | {"fits": need.fits} for need in found.needs],
        "run": dict(found.run),
        "gains": [asdict(gain) | {"is_faster": gain.is_faster} for gain in found.gains],
        "advice": advice(found),
        "findings": [asdict(finding) for finding in found.findings],
    }


def _package_json(package: ModelPackage) -> dict[str, Any]:
    return {
        "name": package.manifest.name,
        "folder": package.name,
        "digest": package.digest,
        "quality": _quality(package),
    }


def _quality(package: ModelPackage) -> str:
    """Return what the package's record says of its quality; a record that can't be read stops nothing."""
    try:
        return quality_line(package)
    except PackageError as error:
        return str(error)


# ── For people ───────────────────────────────────────────────────────────────────────────────────────────────────────


def as_text(found: Diagnosis) -> Iterator[str]:
    """Yield the lines of the screen."""
    yield from _section("machine", [*_machine_lines(found)])
    yield from _section("engines", [_library_line(library) for library in found.libraries.values()])
    yield from _section("devices", [*_device_lines(found)])
    if found.package:
        package = found.package
        size_mb = sum(entry.size_bytes for entry in package.manifest.files.values()) / 1e6
        described = f"{package.name}, {size_mb:.1f} MB, sha256:{package.digest[:16]}"
        yield from _section("package", [described, f"quality: {_quality(package)}"])
    yield from _section("runs on", [*_graph_lines(found.rows)], wrap=False)
    yield from _section("memory", [_need_line(need) for need in found.needs])
    yield from _section("faster?", [*_gain_lines(found)])
    yield from _section("to do", [_finding_line(finding) for finding in found.findings])
    yield from _section("verdict", [found.verdict])


def _section(title: str, lines: Sequence[str], *, wrap: bool = True) -> Iterator[str]:
    for index, line in enumerate(lines):
        head = f"{title if index == 0 else '':{INDENT}}"
        if not wrap:
            yield head + line
            continue
        yield from textwrap.wrap(
            line,
            WIDTH,
            initial_indent=head,
            subsequent_indent=" " * (INDENT + 2),
            break_long_words=False,
            break_on_hyphens=False,
        ) or [head]


def _machine_lines(found: Diagnosis) -> Iterator[str]:
    processor, memory = found.processor, found.memory
    quota = "" if processor.quota_cores is None else f", time of {processor.quota_cores:g} granted"
    yield (
        f"{processor.name} ({processor.architecture}), {processor.usable_cores} of {processor.cores} cores usable"
        f"{quota}; {platform.system()}, Python {platform.python_version()}"
    )
    there = ", ".join(name for name, is_there in processor.abilities.items() if is_there) or "not told"
    cap = f"; ONEDNN_MAX_CPU_ISA={processor.isa_cap}" if processor.isa_cap else ""
    yield f"bf16 products {_known(processor.bf16)}, int8 products {_known(processor.int8)}: {there}{cap}"
    limit = " (the control group's limit)" if memory.limit_bytes is not None else ""
    yield f"memory {_gb(memory.total_bytes)}{limit}, {_gb(memory.free_bytes)} free"


def _known(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _gb(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else f"{size_bytes / 1e9:.1f} GB"


def _library_line(library: Library) -> str:
    if not library.wheels and not library.works and not library.fault:
        return f"{library.name}: not installed"
    wheels = ", ".join(f"{wheel} {number}" for wheel, number in library.wheels.items()) or "no wheel"
    if library.fault:
        return f"{library.name}: BROKEN ({wheels}): {library.fault}"
    offers = ", ".join(name for name in library.providers if name != "AzureExecutionProvider")  # a web service's
    return f"{library.name}: {wheels}{': ' if offers else ''}{offers}"


def _device_lines(found: Diagnosis) -> Iterator[str]:
    cuda = found.cuda
    for card in cuda.cards:
        major, minor = card.compute_capability
        yield (
            f"cuda:{card.index}: {card.name}, {_gb(card.total_bytes)}, {_gb(card.free_bytes)} free, compute capability "
            f"{major}.{minor}, driver {cuda.version or 'unknown'} (CUDA {cuda.cuda_version or 'unknown'})"
        )
    if not cuda.cards:
        yield f"cuda: {cuda.fault or ('NVIDIA driver without a card' if cuda.is_installed else 'no NVIDIA driver')}"
    for device in found.libraries["openvino"].devices:
        memory = device.get("memory_bytes")
        extra = [
            f"memory {_gb(int(memory))}" if memory else "",
            f"driver {device['driver']}" if "driver" in device else "",
        ]
        told = ", ".join([*map(str, device.get("capabilities", ())), *filter(None, extra)])
        yield f"openvino:{device['name']}: {device.get('full_name') or 'no name'}: {told}"


def _graph_lines(rows: Sequence[GraphRow]) -> list[str]:
    """Return a table with a line for all graphs of a subnetwork that share a path."""
    groups: dict[tuple[str, ...], list[GraphRow]] = {}
    for row in rows:
        groups.setdefault((row.subnetwork, row.provider, row.precision, _remark(row)), []).append(row)
    cells = [
        (subnetwork, provider, precision, _files(group), remark)
        for (subnetwork, provider, precision, remark), group in groups.items()
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(4)] if cells else []
    return [
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(row[:4], widths, strict=True)), row[4]]).rstrip()
        for row in cells
    ]


def _files(group: Sequence[GraphRow]) -> str:
    return (
        ", ".join(row.file for row in group)
        if len(group) <= MOST_FILES
        else f"{group[0].file} and {len(group) - 1} more"
    )


def _remark(row: GraphRow) -> str:
    told = [
        "" if row.seen else "unverified",
        f"fallback: {row.fallback}" if row.fallback else "",
        str(row.in_parts or ""),
    ]
    return "; ".join(filter(None, told))


def _need_line(need: Need) -> str:
    kind = "measured" if need.is_measured else "estimate"
    short = "" if need.fits else ": NOT ENOUGH"
    where = "" if need.where == "memory" else f"{need.where}: "
    needs = f"needs {need.needed_bytes / 1e9:.2f} GB ({kind}: {need.how})"
    return f"{where}{needs}, {_gb(need.free_bytes)} free{short}"


def _gain_lines(found: Diagnosis) -> Iterator[str]:
    for gain in found.gains:
        yield _gain_line(gain)
    if sentence := advice(found):
        yield sentence


def _gain_line(gain: Gain) -> str:
    name = gain.device or "what was asked for"
    if gain.fault:
        return f"{name}: could not be timed: {gain.fault}"
    graphs = "; ".join(
        f"{graph} {taken['now_ms']:.1f} -> {taken['then_ms']:.1f} ms ({taken['precision']})"
        for graph, taken in gain.graphs.items()
    )
    return f"{name}: {gain.median:.2f}x ({gain.low:.2f} to {gain.high:.2f}, n = {gain.n}): {graphs}"


def advice(found: Diagnosis) -> str:
    """Return one sentence that says which engine to use; empty where nothing was compared."""
    timed = [gain for gain in found.gains if gain.n]
    if not timed:
        return ""
    best = max(timed, key=lambda gain: gain.median)
    if not best.is_faster:
        return "stay with this engine: none that is installed is faster beyond chance"
    what = "at the package's own size" if found.run.get("mode") == "window" else "on its small golden vectors"
    precisions = " and ".join(sorted({str(taken["precision"]) for taken in best.graphs.values()}))
    return (
        f"{best.device} would run this package's transformer and VAE {best.median:.1f} times as fast, in {precisions}, "
        f"{what} (median of {best.n} paired rounds, {best.low:.1f} to {best.high:.1f}, {best.wins} of them faster): "
        f"--device {best.device}"
    )


def _finding_line(finding: Finding) -> str:
    return f"{finding.level}: {finding.text}{': ' if finding.command else ''}{finding.command}"
