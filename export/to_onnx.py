# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch module to an ONNX graph without its weights.

A module is traced on the meta device (or with its real weights, where it has them: no value is ever read here), its
parameters become open places, and only then is the graph optimised: nothing that depends on a weight can be folded
into it. The result is a body that any set of weights of the same shapes can be bound to (`lazy_weights.bind`), which
is how one trace of a DiT block serves all blocks.

onnxsim is not run. Measured on seven graphs of the tiny checkpoint (onnxsim 0.8.1, ONNX Runtime 1.32, one thread): it
takes 0 to 13 % of the nodes, ONNX Runtime takes the same ones when it opens a graph (0 to 4 % then tell the two apart),
outputs agree to 5e-6 and run times to 4 %, which is their noise. And it wants weights inside the graph.
tests/test_onnxsim.py measures it again.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ..runtime.errors import CheckpointError
from .graph_spec import Axes, GraphSpec

OPSET = 23
"""Has Attention and RMSNormalization natively; both engines read it."""

# What must not be in any graph: the runtime's engines either lack it, run it slowly, or can't freeze its shapes.
_FORBIDDEN_OPS = frozenset({"If", "Loop", "Scan", "NonZero", "Unique"})
_FORBIDDEN_TYPES = frozenset({onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128})


@dataclass(frozen=True)
class Parameter:
    """An open place for a weight in a traced graph."""

    place: str
    """Name of the value in the graph."""
    name: str
    """Name of the parameter in the traced module."""
    order: tuple[int, ...] | None
    """Axes of the parameter in the order in which the place holds them; None: as they are."""
    shape: tuple[int, ...]
    """Shape of the place."""


@dataclass(frozen=True)
class TracedGraph:
    """A graph whose weights are open places."""

    name: str
    """Name of the graph."""
    body: onnx.ModelProto
    """The graph; the places are used in it and defined nowhere."""
    parameters: tuple[Parameter, ...]
    """The places, in the order in which the module has the parameters."""


class UnsuitableGraphError(CheckpointError):
    """A network was traced into something that engines can't run everywhere."""


class _Holder(nn.Module):
    """The module one level down: its parameters can't be called like the graph's inputs then."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network."""
        return tuple(self.network(*inputs))


def trace(spec: GraphSpec) -> TracedGraph:
    """Trace a graph; the module's parameters may lie on the meta device and are never read.

    Raises:
        UnsuitableGraphError: the graph holds float64, complex numbers or data-dependent control flow.
    """
    with _quiet(), torch.no_grad(), _faked(spec.module, spec.examples[0]) as example:
        exported = torch.export.export(
            _Holder(spec.module).eval(),
            example,
            dynamic_shapes=(tuple(_left_to_tracer(axes) for axes in spec.dynamic_shapes),),
            strict=False,
        )
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.input_names),
            output_names=list(spec.output_names),
            optimize=False,
            verbose=False,
        )
    if program is None:  # the exporter's signature allows it where it is asked to write a file
        raise UnsuitableGraphError(f"graph {spec.name}: the exporter returned nothing")
    model = program.model
    _require_dynamic(model.graph, spec)
    names = {f"network.{name}": name for name, _ in spec.module.named_parameters(remove_duplicate=False)}
    parameters = _open_places(model.graph, names)
    with _quiet():
        optimizer.optimize_ir(model)
    _name_nodes(model.graph)
    body = _without_places(ir.to_proto(model), parameters, spec=spec)
    _refuse_unsuitable(body.graph, name=spec.name)
    used = {name for node in body.graph.node for name in node.input}
    return TracedGraph(spec.name, body, tuple(parameter for parameter in parameters if parameter.place in used))


@contextlib.contextmanager
def _faked(module: nn.Module, example: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Let parameters on the meta device pass for ones on the CPU while they are traced; yields inputs to go with them.

    Buffers have values and stay as they are: the tracer notes them as constants.
    """
    mode = FakeTensorMode()
    borrowed: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for owner in module.modules():
            for leaf, parameter in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
                if parameter.is_meta:
                    fake = FakeTensor(mode, parameter.data, torch.device("cpu"))
                    setattr(owner, leaf, nn.Parameter(fake, requires_grad=False))
                    borrowed.append((owner, leaf, parameter))
        yield tuple(mode.from_tensor(tensor) for tensor in example) if borrowed else example
    finally:
        for owner, leaf, parameter in borrowed:
            setattr(owner, leaf, parameter)


def _left_to_tracer(axes: Mapping[int, Any]) -> dict[int, Any]:
    """Leave relations between dynamic axes (``2*rows``, tokens a multiple of frames) to the tracer to find.

    Told by hand, they must be complete down to the smallest size allowed; `_require_dynamic` sees that none got lost.
    """
    return {axis: torch.export.Dim.AUTO for axis in axes}


def _require_dynamic(graph: ir.Graph, spec: GraphSpec) -> None:
    """Refuse a graph in which the tracer fixed an axis that must stay open."""
    for value in graph.inputs:
        wanted = spec.shape_names.get(str(value.name), ())
        for index, (axis, found) in enumerate(zip(wanted, value.shape or (), strict=False)):
            # A size that the tracer found to be fixed comes as the name "3".
            if isinstance(axis, str) and str(getattr(found, "value", found)).isdigit():
                raise UnsuitableGraphError(
                    f"graph {spec.name}: axis {index} of {value.name} was fixed to {found}, expected the dynamic {axis}"
                )


def _open_places(graph: ir.Graph, names: Mapping[str, str]) -> list[Parameter]:
    """Turn the parameters' initializers into graph inputs without a value, transposed ones already transposed."""
    places: list[Parameter] = []
    for initializer in [initializer for initializer in graph.initializers if initializer in names]:
        name = names[initializer]
        value = graph.initializers.pop(initializer)
        value.const_value = None
        shape = _static_shape(value)
        for node in [user for user, _ in value.uses() if user.op_type == "Transpose"]:
            order = tuple(node.attributes["perm"].as_ints())
            place = f"{initializer}.T" if order == (1, 0) else f"{initializer}.{''.join(str(axis) for axis in order)}"
            twin = next((known for known in graph.inputs if known.name == place), None)
            if twin is None:
                twin = ir.Value(name=place, type=value.type, shape=ir.Shape([shape[axis] for axis in order]))
                graph.inputs.append(twin)
                places.append(Parameter(place, name, order, tuple(shape[axis] for axis in order)))
            ir.convenience.replace_all_uses_with(node.outputs[0], twin)
            graph.remove(node, safe=True)
        if value.uses():
            graph.inputs.append(value)
            places.append(Parameter(initializer, name, None, shape))
    return places


def _static_shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None  # parameters always have one
    return tuple(int(size) for size in value.shape)  # pyright: ignore[reportArgumentType]


def _name_nodes(graph: ir.Graph) -> None:
    """Name nodes after the module that they come from, and drop the tracer's notes (they hold local file paths)."""
    seen: dict[str, int] = {}
    for node in graph.all_nodes():
        scopes = _scopes(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
        scope = scopes[-2].removeprefix("network").removeprefix(".") if len(scopes) > 1 else ""
        scope = "" if scope.startswith("_") else scope  # the tracer's own
        stem = f"{scope}/{node.op_type}" if scope else node.op_type
        count = seen[stem] = seen.get(stem, 0) + 1
        node.name = stem if count == 1 else f"{stem}_{count}"
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()


def _scopes(text: str) -> list[str]:
    return [scope.strip().strip("'\"") for scope in text.strip("[]").split(",")]


def _without_places(model: onnx.ModelProto, parameters: list[Parameter], *, spec: GraphSpec) -> onnx.ModelProto:
    """Take the open places off the inputs again, and give inputs and outputs the shapes of the manifest."""
    places = {parameter.place for parameter in parameters}
    graph = model.graph
    inputs = [value for value in graph.input if value.name not in places]
    del graph.input[:]
    graph.input.extend(inputs)
    found = tuple(value.name for value in graph.input), tuple(value.name for value in graph.output)
    if found != (spec.input_names, spec.output_names):
        raise UnsuitableGraphError(
            f"graph {spec.name}: the exporter gave inputs and outputs {found}, "
            f"expected {(spec.input_names, spec.output_names)}; is an input without effect?"
        )
    for value in [*graph.input, *graph.output]:
        set_axes(value, spec.shape_names[value.name])
        del value.metadata_props[:]
    # Shapes noted by the tracer name its own symbols; engines infer better ones, and quantisers trip over stale ones.
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    graph.doc_string = ""
    graph.name = spec.name
    model.producer_name, model.producer_version, model.doc_string = "edgereels", "", ""
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return model


def set_axes(value: onnx.ValueInfoProto, axes: Axes) -> None:
    """Replace the shape of an input or output by sizes and axis names."""
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for axis in axes:
        if isinstance(axis, int):
            shape.dim.add().dim_value = axis
        else:
            shape.dim.add().dim_param = axis


def _refuse_unsuitable(graph: onnx.GraphProto, *, name: str) -> None:
    for node in graph.node:
        if node.op_type in _FORBIDDEN_OPS or "Sequence" in node.op_type or node.domain:
            raise UnsuitableGraphError(f"graph {name} holds the operator {node.domain or 'ai.onnx'}.{node.op_type}")
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise UnsuitableGraphError(f"graph {name}: node {node.name} holds a graph of its own")
            casts = node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FORBIDDEN_TYPES
            if casts or (attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in _FORBIDDEN_TYPES):
                raise UnsuitableGraphError(f"graph {name}: node {node.name} makes float64 or complex numbers")
    for tensor in graph.initializer:
        if tensor.data_type in _FORBIDDEN_TYPES:
            raise UnsuitableGraphError(f"graph {name}: constant {tensor.name} is float64 or complex")


def parameter_names(module: nn.Module, root: nn.Module) -> Mapping[str, str]:
    """Return for each parameter name in `module` the name that the same tensor has in `root`."""
    by_identity = {id(tensor): name for name, tensor in root.named_parameters()}
    return {name: by_identity[id(tensor)] for name, tensor in module.named_parameters(remove_duplicate=False)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its notes about libraries that are not installed off the terminal."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(level)
