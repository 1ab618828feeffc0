# SPDX-License-Identifier: Apache-2.0
"""The packages that are compared: one per recipe, made with `edgereels quantize`, and what each of them weighs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..runtime import ModelPackage, UsageError
from .measurement import Run
from .rounds import read_part, write_part

RECIPES = ("fp16", "bf16", "int8", "int4", "int8-dynamic", "w8a8")
FOUND = "found"
"""A recipe that the sensitivity pass writes: which parts to take to 4 bits for a package of `FOUND_MB`."""
FOUND_BASE, FOUND_MB = "int4", 8.5
"""Between the embedded package in int4, 7.8 MB, and in int8, 9.4 MB."""
BEST = "w8a8"
"""The int8 recipe that the CPU figures of the host program and of lip-sync are taken with."""
NONE = "none"
"""The package as it is: the reference."""


def command(verb: str, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run `edgereels VERB …`; return its exit code, what it printed, and its last line of complaint."""
    done = subprocess.run(
        [sys.executable, "-m", "edgereels.runtime.cli", verb, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    complaint = (done.stderr.strip().splitlines() or [""])[-1].removeprefix(f"edgereels {verb}: ")
    return done.returncode, done.stdout, complaint


def folder_of(run: Run, recipe: str) -> str:
    """Return the package of a recipe."""
    return run.package if recipe == NONE else str(run.work / "packages" / f"{recipe}.edgereels")


def made(run: Run) -> tuple[str, ...]:
    """Return the recipes whose packages are there, the reference first.

    Raises:
        UsageError: none was made yet.
    """
    known = read_part(run.work / "packages.json")
    if known is None:
        raise UsageError(f"{run.work} holds no packages yet; measure `packages` before what is measured on them")
    return tuple(name for name in (NONE, *RECIPES, FOUND) if "size_bytes" in known.get(name, {}))


def packages(run: Run) -> dict[str, Any]:
    """Make every package; return recipe to its size, what it covers, and how the gate went."""
    (run.work / "packages").mkdir(exist_ok=True)
    found: dict[str, Any] = {NONE: weighed(run, NONE)}
    for recipe in (*RECIPES, FOUND):
        record = run.work / "packages" / f"{recipe}.json"
        if not record.exists():
            write_part(record, make(run, recipe))
        found[recipe] = read_part(record)
        print(f"{recipe}: {found[recipe].get('outcome')}", file=sys.stderr, flush=True)
    return found


def make(run: Run, recipe: str) -> dict[str, Any]:
    """Quantize; where the gate is missed, say so and keep the package all the same."""
    options = ["--threads", str(run.threads), "--force", "--json"]
    searched = ["--budget-mb", str(FOUND_MB), "--write-recipe", str(run.work / "found-recipe.json")]
    wanted = [FOUND_BASE, *searched] if recipe == FOUND else [recipe]
    start_s = time.perf_counter()
    arguments = [run.package, folder_of(run, recipe), "--recipe", *wanted, *options]
    code, out, complaint = command("quantize", *arguments)
    outcome = "passed its gate"
    if code:
        outcome = complaint
        code, out, complaint = command("quantize", *arguments, "--no-gate")
    if code:
        return {"outcome": complaint}
    told = json.loads(out)
    return {
        "outcome": outcome,
        "took_s": time.perf_counter() - start_s,
        **{key: told.get(key) for key in ("coverage", "notes", "quality", "recipe_followed")},
        **weighed(run, recipe),
    }


def weighed(run: Run, recipe: str) -> dict[str, Any]:
    """Return a package's digest, what it takes on disk, and what its recipe covers."""
    package = ModelPackage.open(folder_of(run, recipe), verify="size")
    manifest = package.manifest
    quantization = manifest.quantization
    covered = None if quantization is None else quantization.covered
    return {
        "digest": package.digest,
        "size_bytes": sum(file.size_bytes for file in manifest.files.values()),
        "weights_bytes": sum(file.size_bytes for name, file in manifest.files.items() if name.startswith("weights/")),
        "covered": None if covered is None else asdict(covered),
    }


def root_folder() -> Path:
    """Return the project's folder, where it is run from a checkout."""
    return Path(__file__).parents[1]
