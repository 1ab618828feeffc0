# SPDX-License-Identifier: Apache-2.0
"""Recipe × engine on one package, what it costs and what it gives: measures, and writes docs/precision.md.

    python -m edgereels.benchmarks.precision --work FOLDER --checkpoint examples/train_avatar/checkpoint

Parts that are done lie in FOLDER and are not done again, so an interrupted run goes on where it stopped. `packages`,
`ladders`, `lip_sync`, `agreement` and `environments` are not about time and may run beside other work; `speed`, `host`
and the peers' parts want a machine that does nothing else. What the embedded avatar's evaluation and the fresh
environments need is in the README.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..runtime import UsageError
from .agreement import agreement
from .host_program import environments, host
from .ladders import ladders, speed
from .lip_sync import lip_sync
from .measurement import Part, Run, add_run_options, do_parts, record_workload, run_of
from .peers import PARTS as PEER_PARTS
from .precision_document import document
from .precision_plot import plot
from .recipe_packages import BEST, folder_of, made, packages
from .rounds import read_part

PARTS: dict[str, Part] = {
    "packages": packages,
    "agreement": agreement,
    "ladders": ladders,
    "lip_sync": lip_sync,
    "environments": environments,
    "speed": speed,
    "host": host,
    **PEER_PARTS,
}
"""In the order in which they are done."""


def measured(run: Run) -> dict[str, Any]:
    """Return every part that is there."""
    found = {name: read_part(run.work / f"{name}.json") for name in PARTS}
    return {name: part for name, part in found.items() if part is not None}


def write_document(parts: Mapping[str, Any], *, docs: Path) -> None:
    """Write precision.md, its plot and the figures behind both."""
    (docs / "precision.md").write_text(document(parts), encoding="utf-8")
    (docs / "precision.svg").write_text(plot(parts), encoding="utf-8")
    (docs / "precision.json").write_text(json.dumps(parts, separators=(",", ":")) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Measure what is missing and write the document."""
    parser = argparse.ArgumentParser(prog="precision", description=(__doc__ or "").splitlines()[0])
    add_run_options(parser)
    parser.add_argument("--only", help=f"measure only some of {', '.join(PARTS)}; '' for none")
    parser.add_argument("--docs", type=Path, help="folder for precision.md, .svg and .json (default: write nothing)")
    arguments = parser.parse_args(argv)
    if arguments.docs:
        arguments.docs.mkdir(parents=True, exist_ok=True)  # now, not after half an hour
    run = run_of(arguments)
    asked = list(PARTS) if arguments.only is None else [name for name in arguments.only.split(",") if name]
    if unknown := [name for name in asked if name not in PARTS]:
        parser.error(f"--only {unknown[0]} is unknown; expected some of {', '.join(PARTS)}")
    wanted = {name: part for name, part in PARTS.items() if name in asked}  # in this order: some read what others found
    if "packages" not in wanted and wanted.keys() & {"ladders", "speed"}:
        _require_packages(run, parser)
    if wanted:
        record_workload(run, audio=arguments.audio, seconds=arguments.seconds)
    for name, part in wanted.items():
        best = Path(folder_of(run, BEST))
        with_best = replace(run, quantized={BEST: best}) if best.exists() and not run.quantized else run
        if name == "trials" and run.checkpoint is None:
            print("no --checkpoint: PyTorch is left out", file=sys.stderr)
            continue
        do_parts(with_best, {name: part}, again=arguments.again)
    if arguments.docs:
        write_document(measured(run), docs=arguments.docs)
    return 0


def _require_packages(run: Run, parser: argparse.ArgumentParser) -> None:
    try:
        made(run)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
