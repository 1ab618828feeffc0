# SPDX-License-Identifier: Apache-2.0
"""Recipe × engine: the quality ladder of each, and seconds per generated second, paired in one run."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from ..runtime import ModelPackage
from .circumstances import circumstances
from .measurement import Run
from .recipe_packages import NONE, command, folder_of, made
from .rounds import AVX2, ContenderError, Worker, interleave, read_part, write_part

ENGINES = {
    "ONNX Runtime f32": ("onnxruntime:CPU", "f32", {}),
    "OpenVINO f32": ("openvino:CPU", "f32", {}),
    "OpenVINO auto": ("openvino:CPU", "auto", {}),
    "OpenVINO f32, AVX2": ("openvino:CPU", "auto", AVX2),
}
"""Name to device, compute and environment; under the cap "auto" is f32, which has no bfloat16."""
CONTROL = {"ONNX Runtime f32, AVX2": ("onnxruntime:CPU", "f32", AVX2)}
"""ONNX Runtime ignores the cap, so this is the same twice: what it differs by is the noise of a pair."""
KEPT = ("verdict", "engine", "counts", "rungs", "gates", "controls", "machine")
"""What of a ladder goes into the figures."""
REFERENCE = (NONE, "ONNX Runtime f32")
"""What every ratio is taken to."""


def ladders(run: Run) -> dict[str, Any]:
    """Climb the ladder with every package on every engine; return recipe to engine to what `verify` reports."""
    folder = run.work / "ladders"
    folder.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    for recipe in made(run):
        for engine in ENGINES:
            part = folder / f"{recipe}, {engine}.json"
            if not part.exists():
                write_part(part, climbed(run, recipe, engine))
                print(part.name, file=sys.stderr, flush=True)
            found.setdefault(recipe, {})[engine] = read_part(part)
    return found


def climbed(run: Run, recipe: str, engine: str) -> dict[str, Any]:
    """Take what `quantize` recorded in the package, on this machine a moment ago; climb where it did not."""
    device, compute, environment = ENGINES[engine]
    recorded = ModelPackage.open(folder_of(run, recipe), verify="size").quality() or {}
    for ladder in recorded.get("ladders", []):
        if not environment and is_of(ladder["engine"], device=device, compute=compute):
            return {key: ladder[key] for key in KEPT} | {"recorded": True}
    if environment:
        return _in_environment(run, recipe, engine)
    options = ["--ladder", "--reference", run.package, "--device", device, "--compute", compute]
    options += ["--threads", str(run.threads), "--json"]
    _code, out, complaint = command("verify", folder_of(run, recipe), *options)
    try:
        ladder = json.loads(out)["ladder"]
    except json.JSONDecodeError:
        return {"error": complaint}
    return {key: ladder[key] for key in KEPT}


def _in_environment(run: Run, recipe: str, engine: str) -> dict[str, Any]:
    """Climb on the benchmark's clip in a process that has the environment; `verify` would run golden vectors first."""
    device, compute, environment = ENGINES[engine]
    settings = {"kind": "ladder", "package": folder_of(run, recipe), "reference": run.package, "audio": run.sound}
    settings |= {"threads": run.threads, "device": device, "compute": compute}
    with Worker(settings, environment=environment) as worker:
        try:
            ladder = worker.ask("climb")
        except ContenderError as error:
            return {"error": str(error)}
    return {key: ladder[key] for key in KEPT}


def is_of(engine: Mapping[str, Any], *, device: str, compute: str) -> bool:
    """Tell whether a record is of an engine; "auto" on ONNX Runtime's CPU is f32."""
    is_asked = engine["compute"] == compute or (engine["library"], engine["compute_got"]) == ("onnxruntime", "f32")
    return (engine["device"], engine["onednn_max_cpu_isa"]) == (device, None) and is_asked


def speed(run: Run) -> dict[str, Any]:
    """Render the clip with every package on every engine; return recipe to engine to one result a round.

    A group of processes for each recipe, so that they fit into memory; the reference is in every group, and every
    ratio pairs within a group.
    """
    folder = run.work / "speed"
    folder.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    for recipe in made(run):
        part = folder / f"{recipe}.json"
        if not part.exists():
            write_part(part, _group(run, recipe))
            print(part.name, file=sys.stderr, flush=True)
        found[recipe] = read_part(part)
    return found


def _group(run: Run, recipe: str) -> dict[str, Any]:
    wanted = {(recipe, engine): settings for engine, settings in ENGINES.items()}
    if recipe == NONE:
        wanted |= {(recipe, engine): settings for engine, settings in CONTROL.items()}
    wanted[REFERENCE] = ENGINES[REFERENCE[1]]
    before = circumstances()
    errors: dict[str, str] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for (package, engine), (device, compute, environment) in wanted.items():
            settings = {"kind": "edgereels", "package": folder_of(run, package), "audio": run.sound}
            settings |= {"threads": run.threads, "device": device, "compute": compute}
            name = engine if package == recipe else "reference"
            workers[name] = stack.enter_context(Worker(settings, environment=environment))
        for name in list(workers):
            try:
                workers[name].ask("run")  # compiles what is not compiled yet; counts for nothing
            except ContenderError as error:
                errors[name] = str(error)
                del workers[name]
        jobs: dict[str, Callable[[], Any]] = {name: _asking(worker) for name, worker in workers.items()}
        measured = interleave(jobs, rounds=run.rounds)
        return {
            "rounds": measured,
            "errors": errors,
            "memory_mb": {name: worker.ask("memory") for name, worker in workers.items()},
            "got": {name: worker.ask("got") for name, worker in workers.items()},
            "circumstances": {"before": before, "after": circumstances()},
        }


def _asking(worker: Worker) -> Callable[[], Any]:
    return lambda: worker.ask("run")
