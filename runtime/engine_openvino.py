# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on CPUs, Intel GPUs and NPUs.

A graph is compiled once for each set of input shapes that `freeze` names, and once for any shapes when others come:
with fixed shapes it runs up to 1.9 times as fast. What was compiled is kept (`engine_openvino_cache`); what was never
compiled before is compiled in a child process first (`engine_openvino_compile`).

**Who owns what.** Outputs of fixed shapes are written by OpenVINO straight into arrays that are handed to the caller:
nothing is copied, and a later run never writes to an array that anybody still refers to. Values in `keep` are such
arrays too; on a CPU they need no further care. Inputs are read where they lie.

**Ending a run.** OpenVINO cannot stop a run on a CPU. `end_runs` and Ctrl-C stop *waiting* for it within 0.05 s; a run
that ends within another 0.5 s is waited for. A longer one is left alone: it keeps its memory and works on until it is
done, and the end of the process doesn't wait for it.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from .engine import Array, Device, Shapes, Value, one_graph_at_a_time
from .engine_openvino_cache import Bytes, OnEvent, compile_key, open_cache
from .engine_openvino_compile import CompileJob, Made, Progress, compile_ahead, compile_here
from .engine_openvino_library import (
    available_devices,
    chosen_precision,
    core,
    device_facts,
    device_identity,
    flat,
    has_native_int8,
    import_openvino,
    is_out_of_memory,
    library_version,
    operator_precisions,
    precision_of,
    reason_of,
    target_of,
)
from .engine_openvino_norms import is_needed
from .engine_openvino_runner import RunEndedError, Runner
from .errors import EngineError, PackageError
from .graph_identity import identify

__all__ = ["OpenVinoEngine", "available_devices", "device_facts", "freeze_all", "library_version"]

Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""Input names and shapes, in the order of the names; `ANY` stands for whatever comes."""
ANY: Signature = ()


class OpenVinoEngine:
    """One graph on one device, compiled for several sets of shapes."""

    def __init__(
        self,
        graph: Path,
        *,
        device: Device,
        threads: int,
        compute: str,
        cache: Path | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """Look at the graph and the device; nothing is compiled yet.

        Args:
            graph: the .onnx file; its weights lie beside it.
            device: cpu, or openvino and one of its devices.
            threads: at most this many on a CPU.
            compute: see `engine_openvino_library.chosen_precision`.
            cache: folder of compiled graphs; default: `engine_openvino_cache.cache_folder`.
            on_event: told of compilations, cache hits and repairs as they happen; `events` keeps them too.

        Raises:
            EngineError: OpenVINO doesn't see the device or lacks the precision, or no package may hold such a graph.
            MissingExtraError: OpenVINO is not installed.
        """
        import_openvino()
        self._target = target_of(device)
        try:
            self._graph = identify(graph)
        except (PackageError, OSError) as error:
            raise EngineError(f"{graph.name} can not be opened: {error}") from error
        self._precision = chosen_precision(self._graph.name, target=self._target, compute=compute)
        self._threads = threads
        self._on_event = on_event
        self.events: list[dict[str, Any]] = []
        """Every event so far: its `code` and its fields."""
        self._rounds_activations = self._graph.dynamic_activations and has_native_int8()
        if self._graph.dynamic_activations and not self._rounds_activations:
            self._note("float_activations", graph=graph.name, reason="no instructions for int8 products")
        self._cache = open_cache(cache, on_event=self._note)
        self._runners: dict[Signature, Runner] = {}
        self._operators: tuple[int, dict[str, int]] = (0, {})
        self._is_closed = False
        self._busy = threading.RLock()

    @property
    def library(self) -> str:
        """Always "openvino"."""
        return "openvino"

    @property
    def provider(self) -> str:
        """The device: "OpenVINO CPU"."""
        return f"OpenVINO {self._target}"

    @property
    def precision(self) -> str:
        """Arithmetic precision; every graph that is compiled or taken from the cache is asked whether it has it."""
        return self._precision

    @property
    def node_counts(self) -> Mapping[str, int]:
        """Operators after optimisation of what was compiled last; empty before `freeze` or the first run."""
        return {self.provider: self._operators[0]} if self._operators[0] else {}

    @property
    def kernel_precisions(self) -> Mapping[str, int]:
        """Matrix products and convolutions by what they compute in, of what was compiled last: {"int8": 21, "f32": 2}.

        Layers of a statically quantized graph that stand under "f32" run, but not as they were meant to. Products of
        int8 weights with float activations count as float: that is what they compute in.
        """
        return dict(self._operators[1])

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return tuple(value.name for value in self._graph.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(value.name for value in self._graph.outputs)

    def freeze(self, shapes: Sequence[Shapes]) -> None:
        """Compile for these shapes, or take what the cache has.

        Raises:
            EngineError: OpenVINO refuses the graph, ends its process over it, or lacks memory.
        """
        freeze_all([(self, shapes)])

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        """Run the graph once; everything returned is an array that belongs to the caller.

        Raises:
            EngineError: the engine is closed, the feeds don't fit, OpenVINO fails, or the run was ended.
        """
        self._check_open()
        given = self._given(feeds)
        with self._busy:
            signature = self._signature({name: value.shape for name, value in given.items()})
            if signature not in self._runners:
                signature = ANY
            try:
                return self._run(signature, given)
            except MemoryError as error:
                # A compiled graph that ran out of memory once fails from then on, at every size.
                self._note("engine_reopened", graph=self._graph.path.name, reason=str(error))
            try:
                return self._run(signature, given)
            except MemoryError as error:
                raise EngineError(
                    f"not enough memory to run {self._where(given)}, tried twice ({error}): ask for a smaller size or "
                    "window, or close other programs"
                ) from error

    def close(self) -> None:
        """Free everything that was compiled."""
        self._is_closed = True
        with self._busy:
            self._runners.clear()

    # ── Running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _given(self, feeds: Mapping[str, Value]) -> dict[str, Array]:
        """Return the inputs as OpenVINO can read them where they lie."""
        given: dict[str, Array] = {}
        for spec in self._graph.inputs:
            if spec.name not in feeds:
                raise EngineError(f"the graph's input {spec.name!r} was not given; got {', '.join(feeds)}")
            value = np.asarray(feeds[spec.name])
            if value.dtype.name != spec.dtype or value.ndim != len(spec.shape):
                raise EngineError(
                    f"the input {spec.name!r} is {value.dtype} {value.shape}; {self._graph.path.name} takes "
                    f"{spec.dtype} {tuple(spec.shape)}"
                )
            # Its tensors share writeable memory only, though inputs are never written to; others are copied here.
            given[spec.name] = np.require(value, requirements=["C", "A", "W"])
        return given

    def _run(self, signature: Signature, given: dict[str, Array]) -> dict[str, Value]:
        """Run what was compiled for a signature; where that fails it is not used again.

        Raises:
            MemoryError: OpenVINO ran out of memory.
        """
        if signature not in self._runners:
            freeze_all([(self, [dict(signature)])])
        runner = self._runners.pop(signature)
        try:
            with self._turn():
                made = runner.run(given)
        except RunEndedError as error:
            raise EngineError(f"the run of {self._graph.path.name} was ended") from error
        except (RuntimeError, MemoryError) as error:  # all that OpenVINO raises
            if is_out_of_memory(error):
                raise MemoryError(reason_of(error)) from error
            raise EngineError(f"OpenVINO failed while running {self._where(given)}: {reason_of(error)}") from error
        self._runners[signature] = runner
        return dict(made)

    def _turn(self) -> AbstractContextManager[object]:
        return one_graph_at_a_time if self._target == "CPU" else nullcontext()

    def _where(self, given: Mapping[str, Array]) -> str:
        return f"{self._graph.path.name} at {flat({name: value.shape for name, value in given.items()})}"

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("the engine is closed; open the session again")

    # ── Compiling ────────────────────────────────────────────────────────────────────────────────────────────────────

    def jobs(self, shapes: Sequence[Shapes]) -> list[CompileJob]:
        """Return what has to be there for these shapes, cached or not; what is open already is left out."""
        self._check_open()
        signatures = dict.fromkeys(self._signature(each) for each in shapes)
        return [self._job(signature) for signature in signatures if signature not in self._runners]

    def is_known(self, job: CompileJob) -> bool:
        """Tell whether the cache has it, or it was compiled before and is too large for the cache."""
        return self._cache.has(job.key) or self._cache.is_safe(job.key)

    def take(self, job: CompileJob, *, made: Made | None) -> None:
        """Open a graph from the cache, or compile it where the cache has none; `made`: what the child said of it."""
        compiled, blob = self._opened(job, made=made)
        runner = Runner(compiled, inputs=self.input_names, outputs=self.output_names, backing=blob)
        with self._busy:
            self._runners[self._signature(job.shapes or {})] = runner
            self._operators = operator_precisions(compiled)

    def _opened(self, job: CompileJob, *, made: Made | None) -> tuple[Any, Bytes | None]:
        """Return a compiled graph and the memory it was imported from."""
        if made:
            self._note("compiled", graph=job.where, seconds=made.seconds, isolated=True)
        blob = self._cache.load(job.key, on_event=self._note)
        compiled = None if blob is None else self._imported(job, blob)
        if compiled is not None:
            if not made:
                self._note("cache_hit", graph=job.where)
            return compiled, blob
        is_unknown = not made and not self._cache.is_safe(job.key)  # what was there was rejected
        if is_unknown and (again := compile_ahead([job]).get(job.key)):
            return self._opened(job, made=again)
        # There was no room for it in the cache, or there can be no child process here.
        started_s = time.perf_counter()
        compiled = compile_here(job)
        self._note("compiled", graph=job.where, seconds=round(time.perf_counter() - started_s, 3), isolated=False)
        return compiled, None

    def _imported(self, job: CompileJob, blob: Bytes) -> Any:
        try:
            tensor = import_openvino().Tensor(blob, shared_memory=True)
            compiled = core().import_model(tensor, self._target, job.properties)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise EngineError(
                    f"not enough memory to open {job.where} ({reason_of(error)}): ask for a smaller size or window"
                ) from error
            self._cache.reject(job.key, reason=f"OpenVINO refuses it: {reason_of(error)}", on_event=self._note)
            return None
        if (got := precision_of(compiled)) != job.precision:
            self._cache.reject(job.key, reason=f"computes in {got}, not in {job.precision}", on_event=self._note)
            return None
        return compiled

    def _job(self, signature: Signature) -> CompileJob:
        settings = {
            "target": self._target,
            "precision": self._precision,
            "threads": self._threads,
            "dynamic_activations": self._rounds_activations,
            "spells_norms": is_needed(self._target),
        }
        made_of = {
            "graph": self._graph.digest,
            "weights": self._graph.weights,
            "shapes": signature,
            "device": device_identity(self._target),
            **settings,
        }
        return CompileJob(
            key=compile_key(made_of),
            folder=str(self._cache.folder),
            graph=str(self._graph.path),
            weights=self._graph.named_weights,
            shapes=dict(signature) or None,
            **settings,
        )

    def _signature(self, shapes: Shapes) -> Signature:
        """Return the inputs' shapes in the graph's order; none at all is `ANY`."""
        if not shapes:
            return ANY
        if missing := [name for name in self.input_names if name not in shapes]:
            raise EngineError(f"{self._graph.path.name} has the input {missing[0]!r}, whose shape was not given")
        return tuple((name, tuple(shapes[name])) for name in self.input_names)

    def _note(self, code: str, /, **fields: Any) -> None:
        self.events.append({"code": code, **fields})
        if self._on_event:
            self._on_event(code, **fields)


def freeze_all(wanted: Sequence[tuple[OpenVinoEngine, Sequence[Shapes]]], *, progress: Progress | None = None) -> None:
    """Freeze many engines at once: whatever was never compiled before is compiled in one child process.

    Args:
        wanted: engines and the shapes that will come; {} stands for any shapes.
        progress: told before each graph that has to be compiled, and at the end.

    Raises:
        EngineError: OpenVINO refuses a graph, ends its process over it, or lacks memory.
    """
    jobs = [(engine, job) for engine, shapes in wanted for job in engine.jobs(shapes)]
    made = compile_ahead([job for engine, job in jobs if not engine.is_known(job)], progress=progress)
    for engine, job in jobs:
        engine.take(job, made=made.get(job.key))
