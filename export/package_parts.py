# SPDX-License-Identifier: Apache-2.0
"""One part of a package at a time: weights file, graphs, parity, golden vectors.

A part is what shares a weights file: an encoder, both graphs of half a VAE, one block of the DiT. Parts are finished
one after the other, each is noted by the package's writer, and a killed export continues after the last finished one.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from ..runtime.engine import open_engine
from ..runtime.package_writer import PackageWriter
from .dit import Dit, fused_graph
from .fuse import Link, fuse
from .graph_spec import GraphSpec
from .lazy_weights import Binding, bind, lay_out, pieces, streamed, wanted_by
from .parity import Module, Parity, Run, compare
from .subnetworks import Built, Subnetwork
from .to_onnx import TracedGraph, parameter_names, trace

_GOLDEN_BYTES = 1 << 20
"""Larger golden vectors are kept for the first block of the DiT only: 40 times its text context would be 400 MB."""


@dataclass(frozen=True)
class Options:
    """How to export."""

    precision: str = "fp32"
    """How weights are stored: fp32 or fp16."""
    threads: int = 1
    """For PyTorch and the engine."""
    fused_bytes: int = 4 << 30
    """Weights up to which the fused DiT is opened to compare it; beyond, its parts are, one at a time."""


@dataclass
class PartsWriter:
    """Writes the parts of subnetworks through a package's writer, and collects what the manifest says of them."""

    writer: PackageWriter
    """Where files go."""
    options: Options
    """How to export."""
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Graph -> its entry in the manifest."""
    golden: dict[str, str] = field(default_factory=dict)
    """Graph -> file of its golden vectors."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Graph -> how long it took, in this run or the one that was resumed."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Graph -> bytes of the graph and the tensors that it refers to."""

    def write(self, subnetwork: Subnetwork, *, key: str) -> Iterator[str]:
        """Export a subnetwork; yields the name of each part before it is worked on.

        Args:
            subnetwork: what to export.
            key: digest of everything that its parts are made from.

        Raises:
            EdgereelsError: a weight is damaged, a graph is not its module, ...
        """
        built = subnetwork.build()
        parts = _parts(built)
        body: TracedGraph | None = None
        for part, specs in parts.items():
            yield part
            if self._resumed(part, key=key):
                continue
            started = time.monotonic()
            if _is_block(part):
                body = body or trace(specs[0])
                traced = [body]
            else:
                traced = [trace(spec) for spec in specs]
            self._write_part(part, built=built, specs=specs, traced=traced, started=started, key=key)
        if isinstance(built.model, Dit):
            yield "dit"
            self._write_fused(built, model=built.model, key=key)

    def _write_part(
        self,
        part: str,
        *,
        built: Built,
        specs: Sequence[GraphSpec],
        traced: Sequence[TracedGraph],
        started: float,
        key: str,
    ) -> None:
        names = [parameter_names(spec.module, built.model) for spec in specs]
        wanted = [tensor for graph, known in zip(traced, names, strict=True) for tensor in wanted_by(graph, known)]
        slots = lay_out(wanted, precision=self.options.precision)
        location = self.writer.add_weights(pieces(slots, read=built.read)) if slots else ""
        for spec, graph, known in zip(specs, traced, names, strict=True):
            model = bind(graph, Binding(known, slots, location))
            model.graph.name = spec.name
            path = self.writer.add_file(f"{spec.name}.onnx", model.SerializeToString(deterministic=True))
            with self._running(path) as run:
                module = _streamed(spec.module, names=known, built=built)
                parity = compare(spec, run=run, module=module, precision=self.options.precision)
            self._note(spec, model, parity=parity, started=started, keep=_keeps_golden(part, parity))
            started = time.monotonic()
        self._complete(part, [spec.name for spec in specs], key=key)

    def _write_fused(self, built: Built, *, model: Dit, key: str) -> None:
        if self._resumed("dit", key=key):
            return
        started = time.monotonic()
        spec = fused_graph(model)
        parts = [part for part in built.graphs if part.name != "dit_time"]
        fused = fuse(
            self._links(parts),
            name=spec.name,
            inputs=spec.input_names,
            outputs=spec.output_names,
            axes=spec.shape_names,
        )
        path = self.writer.add_file(f"{spec.name}.onnx", fused.SerializeToString(deterministic=True))
        module = _chain(parts, spec, run_part=lambda part, inputs: self._module_outputs(part, inputs, built=built))
        whole = _external_bytes(fused) <= self.options.fused_bytes
        with self._running(path) if whole else self._running_chain(parts, spec) as run:
            parity = compare(spec, run=run, module=module, precision=self.options.precision)
        self._note(spec, fused, parity=parity, started=started, keep=True)
        self._complete("dit", [spec.name], key=key)

    def _links(self, specs: Sequence[GraphSpec]) -> list[Link]:
        """Chain prologue, blocks and epilogue, as their files lie in the package, by the tokens that pass between."""
        links: list[Link] = []
        for index, spec in enumerate(specs):
            ends = {"tokens_out": f"tokens_{index:02d}"}
            ends["tokens"] = "tokens_00" if index == 0 else f"tokens_{index - 1:02d}"
            model = onnx.load(self.writer.folder / f"{spec.name}.onnx", load_external_data=False)
            links.append(Link(spec.name.removeprefix("dit_"), model, ends))
        return links

    @contextlib.contextmanager
    def _running(self, graph: Path) -> Iterator[Run]:
        engine = open_engine(graph, device="cpu", threads=self.options.threads, compute="f32")
        try:
            yield engine.run
        finally:
            engine.close()

    @contextlib.contextmanager
    def _running_chain(self, parts: Sequence[GraphSpec], whole: GraphSpec) -> Iterator[Run]:
        """Run the graphs of the parts one after the other, each opened for its turn: what the fused graph computes."""

        def run_part(part: GraphSpec, inputs: Sequence[Any]) -> Sequence[Any]:
            with self._running(self.writer.folder / f"{part.name}.onnx") as run:
                outputs = run(dict(zip(part.input_names, inputs, strict=True)))
            return [outputs[name] for name in part.output_names]

        chain = _chain(parts, whole, run_part=run_part)

        def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            outputs = chain(tuple(feeds[name] for name in whole.input_names))
            return dict(zip(whole.output_names, outputs, strict=True))

        yield run

    @staticmethod
    def _module_outputs(part: GraphSpec, inputs: Sequence[Any], *, built: Built) -> Sequence[Any]:
        names = parameter_names(part.module, built.model)
        return _streamed(part.module, names=names, built=built)(tuple(inputs))

    def _note(self, spec: GraphSpec, model: onnx.ModelProto, *, parity: Parity, started: float, keep: bool) -> None:
        self.graphs[spec.name] = {
            "file": f"{spec.name}.onnx",
            "subnetwork": spec.subnetwork,
            "parameters": _parameter_count(model),
            "inputs": [_end(value) for value in model.graph.input],
            "outputs": [_end(value) for value in model.graph.output],
            "parity": parity.record(),
        }
        if keep:
            name = f"golden/{spec.name}.safetensors"
            self.writer.add_file(name, parity.golden)
            self.golden[spec.name] = name
        self.seconds[spec.name] = round(time.monotonic() - started, 2)
        self.sizes[spec.name] = model.ByteSize() + _external_bytes(model)

    def _complete(self, part: str, names: Sequence[str], *, key: str) -> None:
        tables = {"graphs": self.graphs, "golden": self.golden, "seconds": self.seconds, "sizes": self.sizes}
        record = {table: {name: values[name] for name in names if name in values} for table, values in tables.items()}
        self.writer.complete(part, key=key, record=record)

    def _resumed(self, part: str, *, key: str) -> bool:
        record = self.writer.resume(part, key=key)
        if record is None:
            return False
        self.graphs.update(record["graphs"])
        self.golden.update(record["golden"])
        self.seconds.update(record["seconds"])
        self.sizes.update(record["sizes"])
        return True


def part_key(**inputs: Any) -> str:
    """Return a digest of everything that a part is made from: sources, options, versions."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def _parts(built: Built) -> dict[str, list[GraphSpec]]:
    """Group graphs by weights file: the DiT's graphs each have one, those of any other subnetwork share one."""
    parts: dict[str, list[GraphSpec]] = {}
    for spec in built.graphs:
        parts.setdefault(spec.name if spec.subnetwork == "dit" else spec.subnetwork, []).append(spec)
    return parts


def _is_block(part: str) -> bool:
    return part.startswith("dit_block_")


def _keeps_golden(part: str, parity: Parity) -> bool:
    return len(parity.golden) <= _GOLDEN_BYTES or not _is_block(part) or part.endswith("_00")


def _streamed(module: nn.Module, *, names: Mapping[str, str], built: Built) -> Module:
    """Return a function that runs a module with the values of one layer in memory at a time."""

    def run(inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        with streamed(module, names=names, read=built.read):
            return module(*inputs)

    return run


def _chain(
    parts: Sequence[GraphSpec], whole: GraphSpec, *, run_part: Callable[[GraphSpec, Sequence[Any]], Sequence[Any]]
) -> Callable[[tuple[Any, ...]], Sequence[Any]]:
    """Return a function that computes the whole DiT part by part."""

    def run(inputs: tuple[Any, ...]) -> Sequence[Any]:
        values = dict(zip(whole.input_names, inputs, strict=True))
        for part in parts:
            outputs = run_part(part, [values[name] for name in part.input_names])
            values.update(zip(part.output_names, outputs, strict=True))
            values["tokens"] = values.pop("tokens_out", values["tokens"])
        return [values[name] for name in whole.output_names]

    return run


def _end(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _parameter_count(model: onnx.ModelProto) -> int:
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    return sum(math.prod(tensor.dims) for tensor in tensors)


def _external_bytes(model: onnx.ModelProto) -> int:
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return sum(int(entry.value) for entry in entries if entry.key == "length")
