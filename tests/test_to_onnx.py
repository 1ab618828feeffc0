# SPDX-License-Identifier: Apache-2.0
"""Tracing without weights, binding weights, fusing, comparing: on networks small enough to trace in a second."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgereels.export.fuse import Link, fuse
from edgereels.export.graph_spec import GraphSpec, dynamic_axes
from edgereels.export.lazy_weights import (
    ALIGNMENT_BYTES,
    Binding,
    Wanted,
    bind,
    lay_out,
    materialised,
    parameters_on_meta,
    pieces,
    streamed,
    wanted_by,
)
from edgereels.export.parity import compare
from edgereels.export.to_onnx import TracedGraph, UnsuitableGraphError, parameter_names, trace
from edgereels.runtime.engine import open_engine
from edgereels.runtime.errors import CheckpointError, VerificationError
from edgereels.runtime.golden import F32, load_golden

WIDTH = 72
Values = dict[str, npt.NDArray[np.float32]]


class Block(nn.Module):
    """A layer whose parameters meet everything that the tracer does with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.modulation = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.register_buffer("table", torch.arange(WIDTH, dtype=torch.float32) / WIDTH, persistent=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        # `1 + modulation` depends on nothing but weights: an optimiser that saw them would fold it.
        return (tokens + self.norm(self.linear(tokens)) * (1 + self.modulation) + self.table,)


def spec_of(module: nn.Module, **changes: Any) -> GraphSpec:
    first, second = (torch.randn(1, n, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (3, 5))
    axes = {"tokens": (1, "tokens", WIDTH), "tokens_out": (1, "tokens", WIDTH)}
    given: dict[str, Any] = {
        "name": "block",
        "subnetwork": "tiny",
        "module": module,
        "input_names": ("tokens",),
        "output_names": ("tokens_out",),
        "examples": ((first,), (second,)),
        "dynamic_shapes": (dynamic_axes(axes["tokens"]),),
        "shape_names": axes,
    }
    return GraphSpec(**(given | changes))


def values_of(seed: int) -> Values:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in Block().named_parameters()}
    return {name: torch.randn(shape, generator=generator).numpy() for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def empty_block() -> Block:
    with parameters_on_meta():
        return Block()


@pytest.fixture(scope="module")
def traced(empty_block: Block) -> TracedGraph:
    return trace(spec_of(empty_block))


def write(traced: TracedGraph, values: Values, folder: Path, *, prefix: str = "", precision: str = "fp32") -> Path:
    """Write a graph and its weights file as a package would hold them."""
    names = {name: prefix + name for name in values}
    slots = lay_out(wanted_by(traced, names), precision=precision)
    content = pieces(slots, read=lambda name: values[name.removeprefix(prefix)].copy())
    (folder / f"{prefix}w.bin").write_bytes(b"".join(bytes(memoryview(piece).cast("B")) for piece in content))
    path = folder / f"{prefix}{traced.name}.onnx"
    path.write_bytes(bind(traced, Binding(names, slots, f"{prefix}w.bin")).SerializeToString())
    return path


def run(graph: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    engine = open_engine(graph, threads=1, compute="f32")
    try:
        return engine.run(feeds)
    finally:
        engine.close()


def reference(values: Values, tokens: Tensor) -> npt.NDArray[np.float32]:
    block = Block()
    block.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
    with torch.no_grad():
        return block(tokens)[0].numpy()


def test_one_trace_serves_any_weights(traced: TracedGraph, tmp_path: Path) -> None:
    tokens = torch.randn(1, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    outputs: list[npt.NDArray[Any]] = []
    for seed in (1, 2):
        values = values_of(seed)
        outputs.append(
            run(write(traced, values, tmp_path, prefix=f"{seed}."), {"tokens": tokens.numpy()})["tokens_out"]
        )
        np.testing.assert_allclose(outputs[-1], reference(values, tokens), rtol=0, atol=2e-5)  # values of about 10
    assert np.abs(outputs[0] - outputs[1]).max() > 1  # negative control: the weights matter


def test_nothing_that_depends_on_a_weight_is_folded(traced: TracedGraph) -> None:
    assert {parameter.name for parameter in traced.parameters} == {name for name, _ in Block().named_parameters()}
    assert all(np.prod(tensor.dims) <= WIDTH for tensor in traced.body.graph.initializer)


def test_a_transposed_weight_is_stored_transposed(traced: TracedGraph) -> None:
    weight = next(parameter for parameter in traced.parameters if parameter.name == "linear.weight")
    assert (weight.order, weight.place.endswith(".T")) == ((1, 0), True)
    assert "Transpose" not in {node.op_type for node in traced.body.graph.node}


def test_constants_keep_their_values(traced: TracedGraph) -> None:
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in traced.body.graph.initializer]
    table = np.arange(WIDTH, dtype=np.float32) / WIDTH
    assert any(constant.shape == table.shape and (constant == table).all() for constant in constants)


def test_a_graph_tells_nothing_of_the_machine_that_made_it(traced: TracedGraph) -> None:
    data = traced.body.SerializeToString()
    assert b"/" + b"home" not in data
    assert b".py" not in data
    assert not traced.body.metadata_props
    assert not traced.body.graph.value_info
    assert not any(value.metadata_props for value in [*traced.body.graph.input, *traced.body.graph.output])


def test_tracing_twice_gives_the_same_bytes(empty_block: Block, traced: TracedGraph) -> None:
    again = trace(spec_of(empty_block))
    assert again.body.SerializeToString(deterministic=True) == traced.body.SerializeToString(deterministic=True)


def test_shapes_are_called_as_the_manifest_calls_them(traced: TracedGraph) -> None:
    dims = traced.body.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == [1, "tokens", WIDTH]


def test_nodes_are_named_after_their_modules(traced: TracedGraph) -> None:
    assert "linear/MatMul" in {node.name for node in traced.body.graph.node}


def test_tracing_leaves_the_module_without_values(empty_block: Block, traced: TracedGraph) -> None:
    assert traced.name == "block"
    assert all(parameter.is_meta for parameter in empty_block.parameters())


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


class InDouble(nn.Module):
    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (tokens.double().cumsum(1).float(),)


class WithBranch(nn.Module):
    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (torch.cond(tokens.sum() > 0, torch.sin, torch.cos, (tokens,)),)


class WithFixedLength(nn.Module):
    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (tokens.reshape(1, 3, WIDTH) * 2,)


@pytest.mark.parametrize(
    ("module", "message"),
    [(InDouble, "float64"), (WithBranch, "If|graph of its own"), (WithFixedLength, "was fixed to 3")],
    ids=["float64", "a branch", "a fixed axis"],
)
def test_a_graph_that_engines_cannot_run_everywhere_is_refused(module: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnsuitableGraphError, match=message):
        trace(spec_of(module()))


def test_parameters_of_a_part_are_found_under_their_name_in_the_whole() -> None:
    whole = nn.ModuleDict({"first": Block(), "second": Block()})
    assert parameter_names(whole["second"], whole)["linear.weight"] == "second.linear.weight"


# ── Storage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_large_tensors_begin_on_pages_and_each_is_stored_once() -> None:
    small, large = Wanted("bias", None, (100,)), Wanted("weight", None, (64, 64))
    slots = lay_out([small, large, large, small, Wanted("weight", (1, 0), (64, 64))], precision="fp32")
    assert len(slots) == 3
    assert (slots[small].offset, slots[large].offset) == (0, ALIGNMENT_BYTES)
    pairs = itertools.pairwise(slots.values())
    assert all(before.offset + before.length <= after.offset for before, after in pairs)


def test_the_content_is_as_long_as_the_layout_says() -> None:
    slots = lay_out([Wanted("bias", None, (100,)), Wanted("weight", (1, 0), (64, 80))], precision="fp16")
    read = {"bias": np.ones(100, np.float32), "weight": np.ones((80, 64), np.float32)}
    content = b"".join(bytes(memoryview(piece).cast("B")) for piece in pieces(slots, read=read.__getitem__))
    assert len(content) == ALIGNMENT_BYTES + 64 * 80 * 2


def test_half_precision_halves_large_tensors_and_stays_near(traced: TracedGraph, tmp_path: Path) -> None:
    values = values_of(3)
    tokens = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(4))
    path = write(traced, values, tmp_path, precision="fp16")
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    assert stored["linear.weight.T.fp16"] == onnx.TensorProto.FLOAT16
    assert stored["norm.weight"] == onnx.TensorProto.FLOAT
    ours, theirs = run(path, {"tokens": tokens.numpy()})["tokens_out"], reference(values, tokens)
    # 2^-11 per weight of magnitude 1, summed over 72 inputs and normalised: some 1e-3 on values of about 10.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-2)
    assert np.abs(ours - theirs).max() > 1e-5  # negative control: rounding did happen


def test_a_weight_beyond_float16_is_refused_by_name() -> None:
    slots = lay_out([Wanted("weight", None, (64, 64))], precision="fp16")
    with pytest.raises(CheckpointError, match="weight reaches 1e\\+05"):
        list(pieces(slots, read=lambda _: np.full((64, 64), 1e5, np.float32)))


# ── Modules without values ───────────────────────────────────────────────────────────────────────────────────────────


def test_buffers_keep_their_values_where_parameters_have_none() -> None:
    with parameters_on_meta():
        block = Block()
    assert all(parameter.is_meta for parameter in block.parameters())
    assert block.get_buffer("table")[1] == 1 / WIDTH
    assert not any(parameter.is_meta for parameter in Block().parameters())


@pytest.mark.parametrize("lend", [streamed, materialised], ids=["layer by layer", "all at once"])
def test_a_module_without_values_borrows_them(empty_block: Block, lend: Any) -> None:
    values = values_of(5)
    tokens = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(6))
    names = {name: name for name in values}
    with lend(empty_block, names=names, read=lambda name: values[name].copy()), torch.no_grad():
        ours = empty_block(tokens)[0].numpy()
    np.testing.assert_array_equal(ours, reference(values, tokens))
    assert all(parameter.is_meta for parameter in empty_block.parameters())


def test_layer_by_layer_means_one_layer_at_a_time() -> None:
    with parameters_on_meta():
        chain = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    most = 0

    def read(name: str) -> npt.NDArray[np.float32]:
        nonlocal most
        most = max(most, sum(not parameter.is_meta for parameter in chain.parameters()))
        return np.zeros(chain.get_parameter(name).shape, np.float32)

    with streamed(chain, names={name: name for name, _ in chain.named_parameters()}, read=read):
        chain(torch.zeros(2, 8))
    assert most <= 1  # the weight, while the bias is read


def test_values_are_given_back_when_a_module_fails() -> None:
    with parameters_on_meta():
        layer = nn.Linear(8, 8)
    read = {"weight": np.zeros((8, 8), np.float32), "bias": np.zeros(8, np.float32)}.__getitem__
    with (
        pytest.raises(RuntimeError),
        streamed(layer, names={"weight": "weight", "bias": "bias"}, read=read),
    ):
        layer(torch.zeros(2, 9))
    assert all(parameter.is_meta for parameter in layer.parameters())


# ── Fusing and comparing ─────────────────────────────────────────────────────────────────────────────────────────────


def test_fused_graphs_compute_what_the_chain_computes(traced: TracedGraph, tmp_path: Path) -> None:
    models = [
        onnx.load(write(traced, values_of(seed), tmp_path, prefix=f"{seed}."), load_external_data=False)
        for seed in (1, 2, 3)
    ]
    links = [
        Link(f"part{index}", model, {"tokens": "tokens" if index == 0 else f"t{index}", "tokens_out": f"t{index + 1}"})
        for index, model in enumerate(models)
    ]
    axes = {"tokens": (1, "tokens", WIDTH), "t3": (1, "tokens", WIDTH)}
    fused = fuse(links, name="fused", inputs=["tokens"], outputs=["t3"], axes=axes)
    (tmp_path / "fused.onnx").write_bytes(fused.SerializeToString())
    tokens = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(0)).numpy()
    ours = run(tmp_path / "fused.onnx", {"tokens": tokens})["t3"]
    theirs = tokens
    for seed in (1, 2, 3):
        theirs = run(tmp_path / f"{seed}.block.onnx", {"tokens": theirs})["tokens_out"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)  # engines fuse across the joints


def test_a_chain_with_a_missing_link_is_refused(traced: TracedGraph) -> None:
    link = Link("part", traced.body, {"tokens": "t2"})
    with pytest.raises(ValueError, match="nothing before it makes"):
        fuse([link], name="fused", inputs=["tokens"], outputs=["tokens_out"], axes={})


def test_a_graph_with_other_weights_is_not_its_module(traced: TracedGraph, tmp_path: Path) -> None:
    block = Block()
    spec = spec_of(block)
    own = {name: parameter.detach().numpy() for name, parameter in block.named_parameters()}

    def graph(values: Values) -> Any:
        path = write(traced, values, tmp_path)
        return lambda feeds: run(path, feeds)

    near = compare(spec, run=graph(own), module=lambda inputs: block(*inputs), precision="fp32")
    assert near.max_rel < 1e-5
    assert near.shapes == 2
    altered = own | {"linear.weight": own["linear.weight"] * np.float32(1.001)}
    with pytest.raises(VerificationError, match="tokens_out"):
        compare(spec, run=graph(altered), module=lambda inputs: block(*inputs), precision="fp32")


@pytest.mark.parametrize(("precision", "strict"), [("fp32", True), ("fp16", False)])
def test_golden_vectors_allow_what_storage_costs_and_no_more(
    traced: TracedGraph, tmp_path: Path, precision: str, strict: bool
) -> None:
    block = Block()
    own = {name: parameter.detach().numpy() for name, parameter in block.named_parameters()}
    path = write(traced, own, tmp_path, precision=precision)
    found = compare(
        spec_of(block), run=lambda feeds: run(path, feeds), module=lambda inputs: block(*inputs), precision=precision
    )
    (tmp_path / "golden").write_bytes(found.golden)
    assert (load_golden(tmp_path / "golden").tolerance.rel_l2 == F32.rel_l2) == strict
    rounded = {name: value.astype(np.float16).astype(np.float32) for name, value in own.items()}
    block.load_state_dict({name: torch.from_numpy(value) for name, value in rounded.items()})
    path = write(traced, rounded, tmp_path, precision=precision)
    exact = compare(
        spec_of(block), run=lambda feeds: run(path, feeds), module=lambda inputs: block(*inputs), precision=precision
    )
    (tmp_path / "golden").write_bytes(exact.golden)
    assert load_golden(tmp_path / "golden").tolerance.rel_l2 == F32.rel_l2


def test_a_module_that_gives_nan_is_an_error(traced: TracedGraph) -> None:
    with pytest.raises(VerificationError, match="NaN"):
        compare(spec_of(Block()), run=dict, module=lambda inputs: (inputs[0] * torch.nan,), precision="fp32")
