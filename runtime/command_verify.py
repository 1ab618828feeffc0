# SPDX-License-Identifier: Apache-2.0
"""`edgereels verify`: digests, golden vectors on a device, and the quality ladder where it is asked for."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .engine import library_of, open_engine, parse_device
from .errors import UsageError
from .ladder import RUNGS, check_pair, climb
from .model_package import ModelPackage, package_path
from .options import OptionParser, add_run_options
from .printable import printable
from .quality import PASSED, Quality, table
from .render_files import check_targets
from .sinks import BytesSink
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
        "--report",
        type=Path,
        metavar="FILE",
        help="write the report as JSON: results, times, versions, machine; it names no user, host or folder",
    )
    ladder = parser.add_argument_group("quality ladder")
    ladder.add_argument(
        "--ladder",
        action="store_true",
        help="also climb the quality ladder: blocks, graphs, a window and a clip against a reference, computing as a "
        "render does (auto) unless --compute says otherwise",
    )
    ladder.add_argument(
        "--reference",
        metavar="PACKAGE",
        help="the package that this one was quantized from (default: itself, where it is not quantized)",
    )
    ladder.add_argument(
        "--rungs", type=_rungs, default=RUNGS, metavar="NAME[,...]", help=f"some of {','.join(RUNGS)} (default: all)"
    )
    ladder.add_argument("--audio", type=Path, metavar="FILE", help="speech of at least two windows (default: our own)")
    add_run_options(parser, compute="f32")
    parser.set_defaults(compute=None)  # with a ladder it is what a render would take
    return parser


def _rungs(text: str) -> tuple[str, ...]:
    rungs = tuple(text.split(","))
    if unknown := [rung for rung in rungs if rung not in RUNGS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no rung; expected some of {', '.join(RUNGS)}")
    return rungs


def main(argv: Sequence[str] | None = None) -> int:
    """Verify a package; return 0 where everything agrees, else 1."""
    arguments = _parser().parse_args(argv)
    if arguments.report:
        read = [named for named in (arguments.package, arguments.reference) if named is not None]
        check_targets(
            {"--report": arguments.report}, inputs={"--audio": arguments.audio}, packages=[*map(package_path, read)]
        )
    package = ModelPackage.open(arguments.package, verify="full")
    reference = _reference(package, arguments)
    compute = arguments.compute or ("auto" if arguments.ladder else "f32")
    asked = {"device": arguments.device, "compute": compute, "threads": arguments.threads}
    chatty = arguments.progress or sys.stderr.isatty()

    def say(what: str) -> None:
        if chatty:
            print(what, file=sys.stderr)

    verification = _verify(package, asked=asked, full=arguments.full, say=say)
    quality = None
    if reference is not None:
        quality = climb(package, reference, sound=arguments.audio, rungs=arguments.rungs, progress=say, **asked)
    report = report_of(verification, asked=asked) | {"ladder": quality and quality.as_json()}
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    if arguments.report:
        with BytesSink(arguments.report) as sink:
            sink.write(text.encode())
    sys.stdout.write(text if arguments.json else _table(verification, asked=asked) + _ladder_table(quality))
    for fault in (*verification.faults, *(quality.misses if quality else ())):
        print(f"edgereels verify: {printable(fault)}", file=sys.stderr)
    return 0 if verification.passed and (quality is None or quality.verdict == PASSED) else 1


def _reference(package: ModelPackage, arguments: argparse.Namespace) -> ModelPackage | None:
    """Open what the ladder compares with; None where no ladder was asked for.

    Raises:
        UsageError: there is a reference and no ladder, a quantized package and no reference, or one of another model.
    """
    if not arguments.ladder:
        if arguments.reference or arguments.audio or arguments.rungs != RUNGS:
            raise UsageError("--reference, --rungs and --audio belong to --ladder; expected that one too")
        return None
    if arguments.reference is None and package.manifest.quantization is not None:
        raise UsageError(
            f"{package.name} is quantized; its ladder needs --reference, the package with the digest "
            f"{package.manifest.quantization.source[:16]}"
        )
    reference = package if arguments.reference is None else ModelPackage.open(arguments.reference, verify="full")
    check_pair(package, reference, rungs=arguments.rungs)
    return reference


def _verify(package: ModelPackage, *, asked: dict[str, Any], full: bool, say: Callable[[str], None]) -> Verification:
    """Run the golden vectors on the device that was asked for."""
    device = parse_device(asked["device"])  # once: "auto" asks libraries for their devices
    siblings = package.has_siblings()
    return verify_package(
        package,
        open_engine=lambda graph: open_engine(
            graph, device=str(device), threads=asked["threads"], compute=asked["compute"], siblings=siblings
        ),
        library=library_of(device, siblings=siblings),
        full=full,
        progress=lambda graph: say(f"verifying {graph}"),
    )


def _ladder_table(quality: Quality | None) -> str:
    return "\n" + table(quality) if quality else ""


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
        lines.append(
            f"{'graph':{width}}  {'compute':7}  {'max abs':>8}  {'rel L2':>8}  {'allowed':>8}  {'run ms':>8}   n"
        )
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
    return "\n".join(map(printable, lines)) + "\n"


def _row(check: GraphCheck, *, width: int) -> str:
    result, worst = check.result, check.result.worst
    figures = f"{worst.max_abs:8.1e}  {worst.rel_l2:8.1e}" if worst else f"{'-':>8}  {'-':>8}"
    allowed, verdict = result.tolerance.rel_l2, "ok" if result.passed else "FAILED"
    return (
        f"{result.graph:{width}}  {check.precision or '-':7}  {figures}  {allowed:8.1e}  {check.run_ms:8.1f}  "
        f"{len(check.runs_ms):2}  {verdict}"
    )
