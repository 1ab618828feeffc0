# SPDX-License-Identifier: Apache-2.0
"""The same work in other hands, in one run: PyTorch, plain ONNX Runtime, plain OpenVINO, and edgereels.

    python -m edgereels.benchmarks.peers --work FOLDER --checkpoint examples/train_avatar/checkpoint \
        --quantized w8a8=NAME.edgereels --rounds 7

Everybody computes the calls of one recorded render, with as many threads, interleaved in random order. Parts that are
done lie in FOLDER and are not done again (unless `--again`): `trials` (PyTorch's variants, each in a process of limited
time), `rounds`, `parts` (the DiT fused and split) and `profiles`. `precision` makes the document from them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from ..runtime import ModelPackage, processor_name
from .circumstances import circumstances
from .measurement import Part, Run, add_run_options, do_parts, record_workload, run_of
from .rounds import ContenderError, Worker, figures, interleave, read_part
from .workload import SUBNETWORKS

EAGER, BEST = "PyTorch eager f32", "PyTorch's best"
PLAIN_ONNXRUNTIME, PLAIN_OPENVINO = "plain ONNX Runtime", "plain OpenVINO"
PEERS = (EAGER, BEST, PLAIN_ONNXRUNTIME, PLAIN_OPENVINO)
TRIED_IN = tuple(name for name in SUBNETWORKS if name != "finish")
"""Subnetworks for which PyTorch's variants are tried; colours are bound by memory, in float32."""
EAGER_ONLY = ("audio_encoder",)
"""Heard once for the whole sound, under one percent of the work: not worth minutes of compiling."""
FAITHFUL_DB = 30.0
"""A variant counts only above this SQNR, the gate of a DiT with 8-bit weights; bfloat16 reaches 39 to 49 here."""


# ── PyTorch's variants ───────────────────────────────────────────────────────────────────────────────────────────────


def trials(run: Run) -> dict[str, Any]:
    """Try every variant of PyTorch on every subnetwork; return subnetwork to variant to what was found."""
    from .peer_torch import EAGER_VARIANTS, VARIANTS

    found: dict[str, Any] = {}
    for subnetwork in TRIED_IN:
        for variant in EAGER_VARIANTS if subnetwork in EAGER_ONLY else VARIANTS:
            found.setdefault(subnetwork, {})[variant] = _trial(run, subnetwork, variant)
            print(f"PyTorch {subnetwork} {variant}: {found[subnetwork][variant]}", file=sys.stderr, flush=True)
    return found


def _trial(run: Run, subnetwork: str, variant: str) -> dict[str, Any]:
    start_s = time.perf_counter()
    settings = _torch_settings(run, variants={subnetwork: variant})
    with Worker(settings) as worker:
        try:
            answer = worker.ask("trial", subnetwork=subnetwork, timeout_s=run.trial_limit_s)
        except ContenderError as error:
            return {"error": str(error), "took_s": time.perf_counter() - start_s}
    return {
        "seconds": figures(answer["seconds"]),
        "sqnr_db": answer["sqnr_db"],
        "took_s": time.perf_counter() - start_s,
    }


def best_variants(tried: Mapping[str, Any]) -> dict[str, str]:
    """Return subnetwork to the fastest variant that still computes the same."""
    best: dict[str, str] = {}
    for subnetwork, variants in tried.items():
        usable = {
            name: result["seconds"]["median"]
            for name, result in variants.items()
            if "error" not in result and result["sqnr_db"] >= FAITHFUL_DB
        }
        best[subnetwork] = min(usable, key=lambda name, times=usable: times[name]) if usable else "f32"
    return best


def _torch_settings(run: Run, *, variants: Mapping[str, str]) -> dict[str, Any]:
    common = {"workload": run.workload, "threads": run.threads}
    return {"kind": "torch", "checkpoint": str(run.checkpoint), "variants": dict(variants), **common}


# ── Everybody, round by round ────────────────────────────────────────────────────────────────────────────────────────


def own_settings(run: Run) -> dict[str, dict[str, Any]]:
    """Return edgereels' contenders: name to settings."""
    common = {"kind": "edgereels", "audio": run.sound, "threads": run.threads}
    plain = common | {"package": run.package}
    named = {
        "edgereels, ONNX Runtime f32": plain | {"device": "onnxruntime:CPU", "compute": "f32"},
        "edgereels, OpenVINO f32": plain | {"device": "openvino:CPU", "compute": "f32"},
        "edgereels, OpenVINO auto": plain | {"device": "openvino:CPU", "compute": "auto"},
    }
    for recipe, folder in run.quantized.items():
        ours = common | {"package": str(folder), "device": "openvino:CPU"}
        named[f"edgereels, OpenVINO {recipe}, f32 rest"] = ours | {"compute": "f32"}
        named[f"edgereels, OpenVINO {recipe}, auto rest"] = ours | {"compute": "auto"}
    return named


def peer_settings(run: Run, *, best: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the others: name to settings."""
    common = {"package": run.folder, "workload": run.workload, "threads": run.threads}
    named: dict[str, dict[str, Any]] = {
        PLAIN_ONNXRUNTIME: {"kind": "onnxruntime", **common},
        PLAIN_OPENVINO: {"kind": "openvino", **common},
    }
    if run.checkpoint is not None:
        named[EAGER] = _torch_settings(run, variants={})
        named[BEST] = _torch_settings(run, variants=best)
    return named


def rounds(run: Run) -> dict[str, Any]:
    """Run everybody `rounds` times, interleaved; peaks are measured in the same rounds."""
    tried = read_part(run.work / "trials.json") or {}
    best = best_variants(tried)
    peers = peer_settings(run, best=best)
    before = circumstances()
    with ExitStack() as stack:
        settings = {**peers, **own_settings(run)}
        workers = {name: stack.enter_context(Worker(given)) for name, given in settings.items()}
        fidelity = {name: workers[name].ask("fidelity", timeout_s=900) for name in peers}
        jobs: dict[str, Callable[[], Any]] = {name: _asking(worker, "run") for name, worker in workers.items()}
        measuring = [name for name in (EAGER, PLAIN_ONNXRUNTIME, PLAIN_OPENVINO) if name in peers]
        jobs |= {f"peak of {name}": _asking(workers[name], "peak") for name in measuring}
        measured = interleave(jobs, rounds=run.rounds)
        peaks = {name: measured.pop(f"peak of {name}") for name in measuring}
        return {
            "machine": processor_name(),
            "threads": run.threads,
            "circumstances": {"before": before, "after": circumstances()},
            "best": best,
            "rounds": measured,
            "peaks": _by_name([each for several in zip(*peaks.values(), strict=True) for each in several]),
            "fidelity_db": fidelity,
            "operations": workers[EAGER].ask("operations") if EAGER in workers else {},
            "got": {name: workers[name].ask("got") for name in workers if name not in peers},
            "memory_mb": {name: worker.ask("memory") for name, worker in workers.items()},
            "versions": {key: value for name in peers for key, value in workers[name].ask("versions").items()},
        }


def _asking(worker: Worker, job: str) -> Callable[[], Any]:
    return lambda: worker.ask(job)


def _by_name(measured: list[dict[str, float]]) -> dict[str, list[float]]:
    """Gather equal names of several mappings."""
    gathered: dict[str, list[float]] = {}
    for each in measured:
        for name, value in each.items():
            gathered.setdefault(name, []).append(value)
    return gathered


def parts(run: Run) -> dict[str, Any]:
    """Time the DiT fused and in parts, on each engine; return engine to one result a round."""
    common = {"kind": "parts", "workload": run.workload, "threads": run.threads, "package": run.package}
    settings = {
        "ONNX Runtime f32": common | {"device": "onnxruntime:CPU", "compute": "f32"},
        "OpenVINO f32": common | {"device": "openvino:CPU", "compute": "f32"},
        "OpenVINO auto": common | {"device": "openvino:CPU", "compute": "auto"},
    }
    for recipe, folder in run.quantized.items():
        own = {"package": str(folder), "device": "openvino:CPU", "compute": "auto"}
        settings[f"OpenVINO {recipe}"] = common | own
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(given)) for name, given in settings.items()}
        jobs: dict[str, Callable[[], Any]] = {name: _asking(worker, "run") for name, worker in workers.items()}
        return interleave(jobs, rounds=run.rounds)


def profiles(run: Run) -> dict[str, Any]:
    """Return contender, without "edgereels, ", to subnetwork to operator to its share of the time inside kernels."""
    folder = run.work / "profiles"
    folder.mkdir(exist_ok=True)
    common = {"workload": run.workload, "threads": run.threads}
    plain = common | {"package": run.folder}
    f32 = dict.fromkeys(SUBNETWORKS, "f32")
    auto = {name: ("bf16" if name in ("vae_encoder", "dit", "vae_decoder") else "f32") for name in SUBNETWORKS}
    settings: dict[str, dict[str, Any]] = {
        "ONNX Runtime f32": {"kind": "onnxruntime", "profile_to": str(folder), **plain},
        "OpenVINO f32": {"kind": "openvino", "precision": f32, **plain},
        "OpenVINO auto": {"kind": "openvino", "precision": auto, **plain},
    }
    for recipe, package in run.quantized.items():
        opened = ModelPackage.open(package, verify="size")
        files = {name: opened.graph_path(name, "openvino").name for name in opened.manifest.graphs}
        own = {"kind": "openvino", "package": str(package), "files": files, **common}
        settings[f"OpenVINO {recipe}, f32 rest"] = {"precision": f32, **own}
        settings[f"OpenVINO {recipe}, auto rest"] = {"precision": auto, **own}
    found: dict[str, Any] = {}
    for name, given in settings.items():
        with Worker(given | ({"static": True, "profile": True} if given["kind"] == "openvino" else {})) as worker:
            found[name] = worker.ask("profile")
    return found


PARTS: dict[str, Part] = {"trials": trials, "rounds": rounds, "parts": parts, "profiles": profiles}


def main(argv: list[str] | None = None) -> int:
    """Measure, and leave the parts in the folder."""
    parser = argparse.ArgumentParser(prog="peers", description=(__doc__ or "").splitlines()[0])
    add_run_options(parser)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)} (default: all)")
    arguments = parser.parse_args(argv)
    run = run_of(arguments)
    record_workload(run, audio=arguments.audio, seconds=arguments.seconds)
    wanted = {name: PARTS[name] for name in arguments.only.split(",")}
    if run.checkpoint is None:
        wanted.pop("trials", None)
    do_parts(run, wanted, again=arguments.again)
    return 0


if __name__ == "__main__":
    sys.exit(main())
