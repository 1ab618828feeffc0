# SPDX-License-Identifier: Apache-2.0
"""Operations counted from graphs: by hand where they are small, against what ONNX Runtime makes where they are not."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from edgereels.benchmarks.graph_nodes import read_graph
from edgereels.benchmarks.operation_counts import Operations, PackageOperations, count, input_shapes, walk
from edgereels.runtime import ModelPackage, PackageError

from .stand_in_package import write_stand_in

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'


def counted(text: str, **shapes: tuple[int, ...]) -> Operations:
    """Count a graph that is given as text."""
    return count(read_graph(onnx.parser.parse_model(HEADER + text).SerializeToString()), shapes)


QUANTIZED = """
g (float[r,3] x, int8[3,5] w, float s, int8 zero, float[1] more) => (float[r,5] y)
{
  whole, scale, level = DynamicQuantizeLinear(x)
  sums = MatMulInteger(whole, w, level, zero)
  floats = Cast<to = 1>(sums)
  y = Mul(floats, s)
}"""
STORED = """
g (float[r,3] x, int8[3,5] w, float s) => (float[r,5] y)
{
  floats = DequantizeLinear(w, s)
  y = MatMul(x, floats)
}"""
SMALL = [
    pytest.param("g (float[r,3] x, float[3,5] w) => (float[r,5] y) { y = MatMul(x, w) }",
                 {"x": (4, 3), "w": (3, 5)}, Operations(2 * 4 * 3 * 5), id="product"),
    pytest.param("g (float[b,r,3] x, float[3,5] w) => (float[b,r,5] y) { y = MatMul(x, w) }",
                 {"x": (7, 4, 3), "w": (3, 5)}, Operations(2 * 7 * 4 * 3 * 5), id="batch-of-products"),
    pytest.param("g (float[3,r] x, float[5,3] w) => (float[r,5] y) { y = Gemm<transA = 1, transB = 1>(x, w) }",
                 {"x": (3, 4), "w": (5, 3)}, Operations(2 * 4 * 3 * 5), id="turned-product"),
    pytest.param("g (float[1,6,h,w] x, float[8,3,3,3] k) => (float[1,8,a,b] y) "
                 "{ y = Conv<group = 2, pads = [1,1,1,1], strides = [2,1]>(x, k) }",
                 {"x": (1, 6, 10, 12), "k": (8, 3, 3, 3)}, Operations(2 * 8 * 5 * 12 * 3 * 9), id="convolution"),
    pytest.param("g (float[1,4,h] x, float[4,6,2] k) => (float[1,6,a] y) { y = ConvTranspose<strides = [2]>(x, k) }",
                 {"x": (1, 4, 5), "k": (4, 6, 2)}, Operations(2 * 4 * 5 * 6 * 2), id="transposed-convolution"),
    pytest.param("g (float[1,2,n,8] q, float[1,2,m,8] k, float[1,2,m,8] v) => (float[1,2,n,8] y) "
                 "{ y = Attention(q, k, v) }",
                 {"q": (1, 2, 5, 8), "k": (1, 2, 7, 8), "v": (1, 2, 7, 8)}, Operations(2 * 2 * 5 * 7 * 16),
                 id="attention"),
    pytest.param("g (float[r,3] x, float[3] s) => (float[r,3] y) { a = Mul(x, s) y = Add(a, s) }",
                 {"x": (4, 3), "s": (3,)}, Operations(0, 2 * 12), id="element-wise"),
    pytest.param("g (float[r,3] x) => (float[3,r] y) { y = Transpose(x) }", {"x": (4, 3)}, Operations(), id="moved"),
    pytest.param(QUANTIZED, {"x": (4, 3), "w": (3, 5), "s": (), "zero": (), "more": (1,)},
                 Operations(2 * 4 * 3 * 5, 12 + 20), id="quantized-on-the-fly"),
    pytest.param(STORED, {"x": (4, 3), "w": (3, 5), "s": ()}, Operations(2 * 4 * 3 * 5, 15), id="stored-in-int8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "shapes", "expected"), SMALL)
def test_operations_are_those_counted_by_hand(
    text: str, shapes: dict[str, tuple[int, ...]], expected: Operations
) -> None:
    assert counted(text, **shapes) == expected


COMPUTED_SHAPE = """
g (float[n,4,6] x, float[12,2] w) => (float[m,2] y)
<int64[1] last = {-1}, int64 nothing = {0}, int64[1] half = {2}, int64[1] front = {0}>
{
  sizes = Shape(x)
  rows = Gather(sizes, nothing)
  row = Unsqueeze(rows, front)
  twice = Mul(row, half)
  wanted = Concat<axis = 0>(twice, last)
  flat = Reshape(x, wanted)
  y = MatMul(flat, w)
}"""


def test_shapes_that_a_graph_computes_are_followed() -> None:
    assert counted(COMPUTED_SHAPE, x=(5, 4, 6), w=(12, 2)).products == 2 * 10 * 12 * 2


def test_a_shape_that_is_not_known_beforehand_is_an_error() -> None:
    """Negative control: the same, with a size that only running tells."""
    text = "g (float[n,4] x, int64[2] sizes) => (float[a,b] y) { y = Reshape(x, sizes) }"
    with pytest.raises(ValueError, match="not known before the graph runs"):
        counted(text, x=(5, 4), sizes=(2,))


def test_an_operator_without_a_rule_is_an_error() -> None:
    text = "g (float[n,4] x) => (float[n,4] y) { y = Det(x) }"
    with pytest.raises(ValueError, match="Det has no rule"):
        counted(text, x=(5, 4))


def test_a_missing_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="input w is missing"):
        counted("g (float[r,3] x, float[3,5] w) => (float[r,5] y) { y = MatMul(x, w) }", x=(4, 3))


# ── Packages ─────────────────────────────────────────────────────────────────────────────────────────────────────────

KNOWN = {
    "audio_encoder": {"waveform": (1, 16000), "positions": (25,)},
    "vae_encoder_first": {"frames": (1, 3, 1, 32, 48)},
    "vae_encoder_next": {"frames": (1, 3, 8, 32, 48)},
    "vae_decoder_first": {"latents": (1, 16, 1, 4, 6)},
    "vae_decoder_next": {"latents": (1, 16, 2, 4, 6)},
    "finish": {"frames": (1, 3, 4, 32, 48)},
    "dit": {"latents": (1, 16, 3, 4, 6), "audio_rest": (2, 8, 4, 128), "rope_cos": (18, 24), "rope_sin": (18, 24)},
}
OBSERVED = ("MatMul", "Conv", "Attention", "Gemm", "Reshape", "Resize", "Slice", "Concat", "Pad", "Gather")


@pytest.mark.parametrize("graph", KNOWN)
def test_shapes_inside_the_embedded_graphs_are_those_that_run(graph: str, embedded: ModelPackage) -> None:
    """Every product's result, and every result that a rule could get wrong, is made an output and really computed."""
    import onnxruntime

    entry = embedded.graph(graph)
    shapes = input_shapes({spec.name: spec.shape for spec in entry.inputs}, KNOWN[graph])
    path = embedded.graph_path(graph)
    ours = {
        node.outputs[0]: made[0].shape
        for node, _inputs, made in walk(read_graph(path.read_bytes()), shapes)
        if node.operator in OBSERVED
    }
    model = onnx.load(str(path))
    there = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ours if name not in there)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    theirs = dict(zip(ours, session.run(list(ours), feeds), strict=True))
    assert ours
    assert ours == {name: value.shape for name, value in theirs.items()}


def test_the_transformer_is_counted_as_its_formula_says(embedded: ModelPackage) -> None:
    """Tokens times twice the weights that multiply them, and attention's four times tokens squared times the width."""
    dit = embedded.manifest.dit
    assert dit is not None
    operations = PackageOperations(embedded, library="onnxruntime")

    def products(frames: int) -> int:
        tokens = frames * 4
        shapes = {
            "latents": (1, 16, frames, 4, 4),
            "audio_rest": (frames - 1, 8, 4, 128),
            "rope_cos": (tokens, dit.head_dim // 2),
            "rope_sin": (tokens, dit.head_dim // 2),
        }
        return operations.of("dit", shapes).products

    # What grows with the square of the tokens is the self-attention alone.
    second = products(9) - 2 * products(6) + products(3)
    assert second == 2 * 12**2 * 4 * dit.blocks * dit.dim


def test_shapes_that_a_package_does_not_take_are_an_error_of_ours(tmp_path: Path) -> None:
    package = ModelPackage.open(write_stand_in(tmp_path / "stand-in"))
    operations = PackageOperations(package, library="onnxruntime")
    with pytest.raises(PackageError, match="operations of vae_encoder_first in stand-in"):
        operations.of("vae_encoder_first", {"frames": (1, 4, 1, 32, 64)})
    assert operations.of("vae_encoder_first", {"frames": (1, 3, 1, 32, 64)}).products > 0


def test_axes_follow_from_those_that_are_known() -> None:
    symbolic = {"frames": (1, "4*k", "8*h"), "cache": (2, "2*h")}
    assert input_shapes(symbolic, {"frames": (1, 8, 128)}) == {"frames": (1, 8, 128), "cache": (2, 32)}
    with pytest.raises(ValueError, match="can't be 129"):
        input_shapes(symbolic, {"frames": (1, 8, 129)})
    with pytest.raises(ValueError, match="how long the axis k is"):
        input_shapes(symbolic, {})
