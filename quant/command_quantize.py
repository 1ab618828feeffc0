# SPDX-License-Identifier: Apache-2.0
"""`edgereels quantize`: a package in, a smaller or faster one out, with proof of what it costs."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import MissingExtraError
from ..runtime.options import OptionParser, add_print_options, threads
from .recipes import BUILT_IN, load_recipe

if TYPE_CHECKING:
    from .quantize import Coverage


def main(argv: list[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    options = _parser().parse_args(argv)
    recipe = load_recipe(options.recipe)
    # Here and not above, so that `--help` and wrong usage answer without loading ONNX.
    try:
        from .quantize import Request, quantize_package
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), extra="quant", purpose="edgereels quantize") from error

    started = time.monotonic()
    request = Request(
        package=options.package,
        target=options.out,
        recipe=recipe,
        calibration=options.calibration,
        gate=None,
        enforce=not options.no_gate,
        force=options.force,
        threads=options.threads,
    )
    done = quantize_package(request, progress=_progress(options.progress))
    if options.json:
        print(json.dumps(_as_json(done), indent=1))
        return 0
    print(_table(done.coverage))
    for note in done.notes:
        print(f"note: {note}")
    seconds = time.monotonic() - started
    print(f"{options.out}: {recipe.name} in {seconds:.0f} s, digest {done.package.digest}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="edgereels quantize", description="Store and compute a package's layers in fewer bits, and prove the cost."
    )
    parser.add_argument("package", metavar="PACKAGE", help="folder of the package, or default")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; its parent must exist")
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE", help=f"{', '.join(BUILT_IN)}, or a recipe file")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="sounds of speech, and pictures for packages that take any face (default: the embedded demonstration)",
    )
    parser.add_argument(
        "--no-gate", action="store_true", help="write the package even where it misses its gate, and mark it as failed"
    )
    parser.add_argument("--force", action="store_true", help="replace a package that exists")
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="engines together use at most N (default: usable cores)"
    )
    add_print_options(parser)
    return parser


def _progress(asked: bool) -> Callable[[str], None]:
    """Print what is being worked on, on stderr, if somebody is looking."""
    if not asked and not sys.stderr.isatty():
        return lambda _: None
    started = time.monotonic()
    return lambda line: print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)


def _as_json(done: Any) -> dict[str, Any]:
    return {
        "package": str(done.package.root),
        "digest": done.package.digest,
        "recipe": done.package.manifest.quantization.recipe,
        "coverage": [asdict(row) | {"ratio": round(row.ratio, 4)} for row in done.coverage],
        "notes": list(done.notes),
        "quality": done.quality,
    }


def _table(rows: Sequence["Coverage"]) -> str:
    lines = [f"{'subnetwork':14} {'form':28} {'layers':>6} {'parameters':>14} {'fp32':>11} {'now':>11} {'ratio':>6}"]
    for row in rows:
        fp32, now = f"{row.fp32_bytes / 1e6:.2f} MB", f"{row.size_bytes / 1e6:.2f} MB"
        lines.append(
            f"{row.subnetwork:14} {row.form:28} {row.layers:6} {row.parameters:14,} {fp32:>11} {now:>11} "
            f"{row.ratio:5.3f}×"
        )
    return "\n".join(lines)
