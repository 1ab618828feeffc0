# SPDX-License-Identifier: Apache-2.0
"""`edgereels quantize`: a package in, a smaller or faster one out, with proof of what it costs."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import MissingExtraError
from ..runtime.model_package import package_path
from ..runtime.options import OptionParser, add_print_options, threads
from ..runtime.printable import printable
from ..runtime.render_files import check_targets
from ..runtime.sinks import BytesSink
from .recipes import BUILT_IN, load_recipe, recipe_bytes

if TYPE_CHECKING:
    from .quantize import Coverage
    from .sensitivity import Curve


def main(argv: list[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    options = _parser().parse_args(argv)
    recipe = load_recipe(options.recipe)
    # Here and not above, so that `--help` and wrong usage answer without loading ONNX.
    try:
        from .curve_drawing import describe, draw
        from .quantize import quantize_package
        from .request import Request
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), extra="quant", purpose="edgereels quantize") from error

    _check_files(options)
    started = time.monotonic()
    request = Request(
        package=options.package,
        target=options.out,
        recipe=recipe,
        calibration=options.calibration,
        gate=not options.no_gate,
        search=any(wish is not None for wish in (options.budget_mb, options.write_recipe, options.draw)),
        budget_bytes=None if options.budget_mb is None else round(options.budget_mb * 1e6),
        force=options.force,
        threads=options.threads,
    )
    done = quantize_package(request, progress=_progress(options.progress))
    curve = _curve_of(done.curve)
    if options.write_recipe:
        write_whole(options.write_recipe, recipe_bytes(done.recipe))
    if options.draw and curve:
        write_whole(options.draw, draw(curve).encode())
    if options.json:
        print(json.dumps(_as_json(done), indent=1))
        return 0
    if curve:
        print("\n".join(map(printable, describe(curve).splitlines())) + "\n")
    print(_table(done.coverage))
    for note in done.notes:
        print(f"note: {printable(note)}")
    for ladder in done.ladders:
        print(f"quality on {ladder.engine_name}: {ladder.verdict}, {len(ladder.gates)} gates")
    seconds = time.monotonic() - started
    print(f"{options.out}: {recipe.name} in {seconds:.0f} s, digest {done.package.digest}")
    return 0


def _check_files(options: argparse.Namespace) -> None:
    """Refuse, before any work, files of results that can't be written or must not be where they are asked for."""
    made = {"--write-recipe": options.write_recipe, "--draw": options.draw}
    out: Path = options.out
    check_targets(
        {name: path for name, path in made.items() if path is not None},
        inputs={"--recipe": options.recipe} if Path(options.recipe).is_file() else {},
        packages=[package_path(options.package), out, out.parent / f"{out.name}.partial"],
    )


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
    parser.add_argument(
        "--budget-mb",
        type=_megabytes,
        metavar="N",
        help="look for the layers that hurt least and quantize no more of them than the package needs for N MB",
    )
    parser.add_argument(
        "--write-recipe",
        type=Path,
        metavar="FILE",
        help="write what was followed as a recipe; without --budget-mb as many layers as an error budget allows",
    )
    parser.add_argument(
        "--draw",
        type=Path,
        metavar="FILE.svg",
        help="draw what --write-recipe finds: size saved, error",
    )
    parser.add_argument("--force", action="store_true", help="replace a package that exists")
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="engines together use at most N (default: usable cores)"
    )
    add_print_options(parser)
    return parser


def _megabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size in MB (10^6 bytes) above 0")
    return number


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: aside, then renamed.

    Raises:
        OutputError: it can't be written.
    """
    with BytesSink(path) as sink:
        sink.write(content)


def _curve_of(fields: Mapping[str, Any] | None) -> "Curve | None":
    from .sensitivity import read_curve

    return None if fields is None else read_curve(fields)


def _progress(asked: bool) -> Callable[[str], None]:
    """Print what is being worked on, on stderr, if somebody is looking."""
    if not asked and not sys.stderr.isatty():
        return lambda _: None
    started = time.monotonic()
    return lambda line: print(f"{time.monotonic() - started:6.0f} s  {printable(line)}", file=sys.stderr, flush=True)


def _as_json(done: Any) -> dict[str, Any]:
    return {
        "package": str(done.package.root),
        "digest": done.package.digest,
        "recipe": done.package.manifest.quantization.recipe,
        "coverage": [asdict(row) | {"ratio": round(row.ratio, 4)} for row in done.coverage],
        "notes": list(done.notes),
        "recipe_followed": done.recipe.as_json(),
        "curve": done.curve,
        "quality": [{"engine": one.engine_name, "verdict": one.verdict, "misses": one.misses} for one in done.ladders],
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
