# SPDX-License-Identifier: Apache-2.0
"""`edgereels verify`: digests, then golden vectors on a device."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .engine import open_engine
from .model_package import ModelPackage
from .options import OptionParser, add_run_options
from .sinks import BytesSink, check_target
from .verification import GraphCheck, Verification, report_of, verify_package


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="edgereels verify",
        description="Check a package: every digest, then every graph on its golden vectors on a device. "
        "Exit code 1 and one line per failing graph where something is wrong.",
    )
    parser.add_argument("package", metavar="PACKAGE", help='package folder, or "default" for the embedded one')
    parser.add_argument(
        "--full",
        action="store_true",
        help="also run every graph again, which must give the same bits, and look for NaN in every weight",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write the report as JSON: results, versions, machine"
    )
    add_run_options(parser, compute="f32")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Verify a package; return 0 where everything agrees, else 1."""
    arguments = _parser().parse_args(argv)
    if arguments.report:
        check_target(arguments.report)
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
        with BytesSink(arguments.report) as sink:
            sink.write(report.encode())
    sys.stdout.write(report if arguments.json else _table(verification, asked=asked))
    for fault in verification.faults:
        print(f"edgereels verify: {fault}", file=sys.stderr)
    return 0 if verification.passed else 1


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
