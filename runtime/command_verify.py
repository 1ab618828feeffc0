# SPDX-License-Identifier: Apache-2.0
"""`edgereels verify`: digests, then golden vectors on a device."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .engine import COMPUTE_CHOICES, open_engine, parse_device
from .errors import EdgereelsError
from .model_package import ModelPackage
from .verification import GraphCheck, Verification, report_of, verify_package


def _device(text: str) -> str:
    try:
        parse_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of threads, at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgereels verify",
        description="Check a package: every digest, then every graph on its golden vectors on a device. "
        "Exit code 1 and one line per failing graph where something is wrong.",
    )
    parser.add_argument("package", metavar="PACKAGE", help='package folder, or "default" for the embedded one')
    parser.add_argument(
        "--device", type=_device, default="cpu", help="cpu, cuda:N, openvino:NAME or auto (default: cpu)"
    )
    parser.add_argument(
        "--threads", type=_threads, metavar="N", help="threads to compute with (default: all usable cores)"
    )
    parser.add_argument("--compute", choices=COMPUTE_CHOICES, default="f32", help="arithmetic precision (default: f32)")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also run every graph again, which must give the same bits, and look for NaN in every weight",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write the report as JSON: results, versions, machine"
    )
    parser.add_argument("--progress", action="store_true", help="show progress even where stderr is no terminal")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Verify a package; return 0 where everything agrees, else 1."""
    arguments = _parser().parse_args(argv)
    if arguments.report and not arguments.report.parent.is_dir():
        raise EdgereelsError(f"the folder {arguments.report.parent} does not exist; create it before writing a report")
    package = ModelPackage.open(arguments.package, verify="full")
    chatty = arguments.progress or sys.stderr.isatty()

    def say(graph: str) -> None:
        if chatty:
            print(f"verifying {graph}", file=sys.stderr)

    verification = verify_package(
        package,
        open_engine=lambda graph: open_engine(
            graph, device=arguments.device, threads=arguments.threads, compute=arguments.compute
        ),
        full=arguments.full,
        progress=say,
    )
    asked = {"device": arguments.device, "compute": arguments.compute, "threads": arguments.threads}
    report = json.dumps(report_of(verification, asked=asked), indent=1, allow_nan=False) + "\n"
    if arguments.report:
        _write(arguments.report, report)
    sys.stdout.write(report if arguments.json else _table(verification, asked=asked))
    for fault in verification.faults:
        print(f"edgereels verify: {fault}", file=sys.stderr)
    return 0 if verification.passed else 1


def _write(path: Path, text: str) -> None:
    incoming = path.with_name(path.name + ".partial")
    try:
        incoming.write_text(text, encoding="utf-8")
        os.replace(incoming, path)
    except OSError as error:
        incoming.unlink(missing_ok=True)
        raise EdgereelsError(f"the report {path} can not be written: {error.strerror}") from error


def _table(verification: Verification, *, asked: dict[str, Any]) -> str:
    package = verification.package
    files = package.manifest.files
    size_mb = sum(entry.size_bytes for entry in files.values()) / 1e6
    lines = [
        f"{package.name}  sha256:{package.digest[:16]}  {len(files)} files, {size_mb:.1f} MB: all digests agree",
        "",
    ]
    if verification.checks:
        width = max(len("graph"), *(len(check.result.graph) for check in verification.checks))
        lines.append(f"{'graph':{width}}  {'compute':7}  {'max abs':>8}  {'rel L2':>8}  {'allowed':>8}  {'run ms':>8}")
        lines += [_row(check, width=width) for check in verification.checks]
        lines.append("")
    passed = sum(check.result.passed for check in verification.checks)
    providers = sorted({check.provider for check in verification.checks if check.provider})
    asked_for = f"{asked['device']}, {asked['compute']}"
    lines.append(
        f"{passed} of {len(verification.checks)} graphs agree on {', '.join(providers) or 'no device'} ({asked_for})"
    )
    if verification.unchecked:
        lines.append(f"no golden vectors, not run: {', '.join(verification.unchecked)}")
    if verification.full:
        found = len(verification.broken_weights)
        lines.append(f"weights that hold NaN or infinity: {found or 'none'}")
    return "\n".join(lines) + "\n"


def _row(check: GraphCheck, *, width: int) -> str:
    result, worst = check.result, check.result.worst
    figures = f"{worst.max_abs:8.1e}  {worst.rel_l2:8.1e}" if worst else f"{'-':>8}  {'-':>8}"
    allowed, verdict = result.tolerance.rel_l2, "ok" if result.passed else "FAILED"
    return (
        f"{result.graph:{width}}  {check.precision or '-':7}  {figures}  {allowed:8.1e}  {check.run_ms:8.1f}  {verdict}"
    )
