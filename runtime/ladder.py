# SPDX-License-Identifier: Apache-2.0
"""Climb the quality ladder: blocks, graphs, one window, a clip of several windows, each against a reference.

The reference computes in float32; a candidate is another form of the same package (a recipe's), another engine, or
both. Blocks and graphs are judged alone, on inputs that the reference recorded; window and clip run away from the same
noise, which is what a viewer sees. Faults that are made on purpose go through the same gates (`ladder_controls`): a
ladder that does not notice them is refused.
"""

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

from . import ladder_controls as faults
from .engine import Engine, open_engine, parse_device
from .errors import UsageError
from .ladder_recording import Recording, Trial, prepare_trial, record
from .ladder_rungs import Findings, Prepared, Progress, climb_clip, climb_tensors, climb_window, one_window
from .machine import machine_facts
from .metrics import Array
from .model_package import ModelPackage
from .placement import Asked
from .quality import Quality, graph_digests, table
from .split_dit import FIRST_PART, parts_of
from .verification import versions

__all__ = ["RUNGS", "Prepared", "climb", "prepare", "reference_device", "table"]

RUNGS = ("block", "graph", "window", "clip")
REFERENCE_DEVICES = ("onnxruntime:CPU", "openvino:CPU")
"""Where the reference runs, the first that is installed: golden vectors are held by ONNX Runtime at float32."""


def climb(
    candidate: ModelPackage,
    reference: ModelPackage,
    *,
    device: str = "cpu",
    threads: int | None = None,
    compute: str = "auto",
    sound: str | Path | Array | None = None,
    size: tuple[int, int] | None = None,
    rungs: Collection[str] = RUNGS,
    prepared: Prepared | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Measure a candidate on a device against a reference, which runs in float32 on the CPU.

    Args:
        candidate: the package that is judged; the reference itself to compare engines.
        reference: the package that it was made from, stored in float32 or as exported.
        device: where the candidate runs.
        threads: all engines together use at most this many; None: the cores this process may use.
        compute: arithmetic precision asked for the candidate.
        sound: a file, or samples at 16 kHz, at least two windows long; None: the embedded speech, silence, and the
            speech again louder, 16.6 s, or two windows of it where the package has no avatar.
        size: (height, width) in pixels; None: the package's own, that of the embedded face where it has no avatar.
        rungs: which of `RUNGS`; the others are left out, and their controls.
        prepared: what `prepare` made of the same reference, so that several engines share it; `sound` and `size` are
            then its own.
        progress: called with a line before each piece of work.

    Returns:
        The record; `verdict` says whether every gate was passed, `misses` which were not.

    Raises:
        VerificationError: a fault made on purpose passed its gate: this ladder proves nothing.
        UsageError: as `check_pair`, or a sound that is too short.
        PackageError: a subnetwork is missing.
        EngineError: the device is not to be had, or a graph could not be run.
    """
    check_pair(candidate, reference, rungs=rungs)
    say = progress or (lambda _line: None)
    ours = Asked(device=device, threads=threads or 0, compute=compute)
    if prepared is None:
        prepared = prepare(reference, threads=threads, sound=sound, size=size, rungs=rungs, progress=say)
    if prepared.digest != reference.digest:
        raise UsageError(f"what was prepared is of another package than {reference.name}; prepare that one")
    if "window" in rungs and not prepared.window_latents:
        raise UsageError("what was prepared has no window; prepare it for that rung too")
    recording, trial = prepared.recording, prepared.trial
    found = Findings(candidate, reference)
    if {"block", "graph"} & set(rungs):
        climb_tensors(found, recording, asked=ours, rungs=rungs, say=say)
        say("control: scaled weights")
        measured = {graph: found.gate_of(graph) for graph in found.got}
        opener = partial(_open_copy, found, asked=ours)
        found.controls.append(faults.scaled_weights(reference, recording, gates=measured, open_copy=opener))
    if "window" in rungs:
        say("one window")
        climb_window(found, prepared, asked=ours)
    if "clip" in rungs:
        say("a clip of several windows")
        climb_clip(found, recording, trial, asked=ours, say=say)
    return _quality(found, trial, asked=ours, recording=recording)


def _open_copy(found: Findings, graph: str, path: Path, *, asked: Asked) -> Engine:
    """Open a copy of a graph of the reference as the candidate's own was opened."""
    got = found.got[graph]
    compute = got.precision if got.library == "openvino" else "auto"  # ONNX Runtime: what the copy is written in
    siblings = found.candidate.has_siblings()
    return open_engine(path, device=got.asked, threads=asked.threads or None, compute=compute, siblings=siblings)


def prepare(
    reference: ModelPackage,
    *,
    threads: int | None = None,
    sound: str | Path | Array | None = None,
    size: tuple[int, int] | None = None,
    rungs: Collection[str] = RUNGS,
    progress: Progress | None = None,
) -> Prepared:
    """Let the reference render what its candidates are compared with; arguments and errors as for `climb`."""
    say = progress or (lambda _line: None)
    asked = Asked(device=reference_device(), threads=threads or 0, compute="f32")
    trial = prepare_trial(reference, sound=sound, size=size)
    say("the reference speaks")
    recording = record(reference, trial, asked=asked)
    if "window" not in rungs:
        return Prepared(reference.digest, trial, asked, recording, (), recording.frames[:0])
    latents, frames, _got = one_window(reference, trial, asked=asked)
    return Prepared(reference.digest, trial, asked, recording, tuple(latents), frames)


def check_pair(candidate: ModelPackage, reference: ModelPackage, *, rungs: Collection[str] = RUNGS) -> None:
    """Refuse what makes no ladder; no engine is needed to tell.

    Raises:
        UsageError: an unknown rung, or a reference that is another model: not the package that the candidate was
            quantized from; for one that is not quantized, neither itself nor an export of the same checkpoint.
    """
    unknown = sorted(set(rungs) - set(RUNGS))
    if unknown or not rungs:
        raise UsageError(f"rungs {', '.join(unknown) or 'are none'}; expected some of {', '.join(RUNGS)}")
    if set(rungs) == {"block"} and not parts_of(candidate):
        raise UsageError(f"{candidate.name} holds its transformer whole, without blocks; expected another rung as well")
    _check_origin(candidate, reference)
    for name, entry in candidate.manifest.graphs.items():
        known = reference.manifest.graphs.get(name)
        if known is None or (known.inputs, known.outputs) != (entry.inputs, entry.outputs):
            raise UsageError(
                f"{candidate.name} has a graph {name} that {reference.name} has not, or takes other inputs; expected "
                "the package that it was made from"
            )
    if candidate.manifest.settings != reference.manifest.settings:
        raise UsageError(
            f"{candidate.name} is sampled in another way than {reference.name} (window, steps, ...); expected the "
            "package that it was made from"
        )


def _check_origin(candidate: ModelPackage, reference: ModelPackage) -> None:
    """Raise `UsageError` for a reference that the candidate was not made from."""
    done = candidate.manifest.quantization
    if done is not None and done.source != reference.digest:
        raise UsageError(
            f"the reference {reference.name} has the digest {reference.digest[:16]}; expected {done.source[:16]}, the "
            f"package that {candidate.name} was quantized from: name that one as --reference"
        )
    if done is not None or candidate.digest == reference.digest:
        return
    if reference.manifest.quantization is not None:
        raise UsageError(
            f"the reference {reference.name} is quantized ({reference.manifest.quantization.recipe}); expected the "
            f"package that it was made from, {reference.manifest.quantization.source[:16]}"
        )
    ours, theirs = _checkpoint_of(candidate), _checkpoint_of(reference)
    if not ours or any(theirs.get(subnetwork) != files for subnetwork, files in ours.items()):
        raise UsageError(
            f"the reference {reference.name} (digest {reference.digest[:16]}) is another model than {candidate.name} "
            f"({candidate.digest[:16]}), which is not quantized: leave --reference out, or name an export of the same "
            "checkpoint"
        )


def _checkpoint_of(package: ModelPackage) -> dict[str, set[str]]:
    """Return subnetwork to the digests of the files that it was exported from; those without any are left out."""
    return {name: {file.sha256 for file in files} for name, files in package.manifest.sources.items() if files}


def reference_device() -> str:
    """Return where float32 is a package's own reference: the first of `REFERENCE_DEVICES` that is installed."""
    from importlib.util import find_spec

    return next((name for name in REFERENCE_DEVICES if find_spec(name.partition(":")[0])), REFERENCE_DEVICES[0])


# ── The record ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _quality(found: Findings, trial: Trial, *, asked: Asked, recording: Recording) -> Quality:
    main = found.got["dit" if "dit" in found.got else FIRST_PART]
    height, width = recording.frames.shape[1:3]
    return Quality(
        source=found.reference.digest,
        graphs=graph_digests(found.candidate, library=main.library),
        engine={
            "library": main.library,
            "provider": main.provider,
            "compute_got": main.precision,
            "device": str(parse_device(asked.device)),
            "compute": asked.compute,
            "threads": asked.threads or None,
            "precision": {graph: got.precision for graph, got in found.got.items()},
            "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        },
        machine=machine_facts(),
        versions=versions(),
        counts={
            "seed": trial.arguments()["seed"],
            "height": height,
            "width": width,
            "frames": len(recording.frames),
            "windows": len(trial.plan.windows),
            "sound_s": trial.plan.audio_frames / found.fps,
            "sound_sha256": trial.sound_sha256(),
        },
        rungs=found.rungs,
        gates=tuple(found.results),
        controls=tuple(found.controls),
    )
