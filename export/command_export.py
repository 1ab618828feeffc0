# SPDX-License-Identifier: Apache-2.0
"""`edgereels export`: a checkpoint in, a package out."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.engine import bounded_threads
from ..runtime.errors import MissingExtraError
from ..runtime.options import OptionParser, add_print_options, threads
from .lora import parse_lora


def main(argv: list[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    options = _parser().parse_args(argv)
    # Here and not above, so that `--help` and wrong usage answer without loading PyTorch.
    try:
        from .export_checkpoint import Request, export_checkpoint
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), extra="export", purpose="edgereels export") from error

    started = time.monotonic()
    request = Request(
        checkpoint=options.checkpoint,
        package=options.package,
        task=options.task,
        only=options.only,
        precision=options.precision,
        ema=options.ema,
        loras=tuple(options.lora),
        licence=options.license,
        overrides=options.overrides,
        force=options.force,
        threads=options.threads,
    )
    exported = export_checkpoint(request, progress=_progress(options.progress))
    rows = [
        {
            "graph": name,
            "parameters": entry["parameters"],
            "size_bytes": exported.size_bytes[name],
            "seconds": exported.seconds[name],
            "max_abs": entry["parity"]["max_abs"],
            "max_rel": entry["parity"]["max_rel"],
        }
        for name, entry in exported.graphs.items()
    ]
    if options.json:
        package = {"package": str(options.package), "digest": exported.package.digest, "graphs": rows}
        print(json.dumps(package, indent=1))
        return 0
    print(_table(rows))
    seconds = time.monotonic() - started
    print(f"{options.package}: {len(rows)} graphs in {seconds:.0f} s, digest {exported.package.digest}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="edgereels export", description="Export a checkpoint's subnetworks to a package of ONNX graphs."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder in the published layout")
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="folder to write; its parent must exist")
    parser.add_argument("--task", choices=["talking-avatar"], help="default: what the layout says")
    parser.add_argument(
        "--only",
        type=_names,
        default=(),
        metavar="NAME[,NAME]",
        help="audio_encoder, text_encoder, image_encoder, vae_encoder, vae_decoder, finish, dit (default: all)",
    )
    parser.add_argument(
        "--precision", choices=["fp32", "fp16"], default="fp32", help="storage of weights (default: fp32)"
    )
    parser.add_argument("--ema", action="store_true", help="export the moving averages of a training run")
    parser.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="merge a LoRA (.safetensors) into the DiT; may be repeated (scale: 1)",
    )
    parser.add_argument("--license", type=Path, metavar="FILE", help="text of the checkpoint's licence")
    parser.add_argument(
        "--overrides", type=Path, metavar="FILE.json", help="constructor arguments and settings that no layout carries"
    )
    parser.add_argument("--force", action="store_true", help="replace a package that exists")
    parser.add_argument(
        "--threads", type=threads, default=bounded_threads(None), metavar="N", help="default: usable cores"
    )
    add_print_options(parser)
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:  # which would mean all of them
        raise argparse.ArgumentTypeError(f"{text!r} names no subnetwork")
    return names


def _lora(text: str) -> tuple[Path, float]:
    try:
        return parse_lora(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _progress(asked: bool) -> Any:
    """Print the part that is being worked on, on stderr, if somebody is looking."""
    if not asked and not sys.stderr.isatty():
        return lambda _: None
    started = time.monotonic()
    return lambda part: print(f"{time.monotonic() - started:6.0f} s  {part}", file=sys.stderr, flush=True)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'graph':22} {'parameters':>14} {'size':>11} {'seconds':>8} {'max abs':>9} {'max rel':>9}"]
    for row in rows:
        size = f"{row['size_bytes'] / 1e6:.2f} MB"
        lines.append(
            f"{row['graph']:22} {row['parameters']:14,} {size:>11} {row['seconds']:8.1f} "
            f"{row['max_abs']:9.1e} {row['max_rel']:9.1e}"
        )
    return "\n".join(lines)
