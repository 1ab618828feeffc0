# SPDX-License-Identifier: Apache-2.0
"""What shape each operator's results have: enough of ONNX's rules to follow a talking avatar's graphs.

Shapes that a graph computes for itself ("Shape", "Gather", "Concat", "Reshape") are followed as values. An operator
without a rule is an error, never a guess.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .graph_nodes import Known, Node, Shape
from .operation_layout import LAYOUT, Inputs, Rule, first, integers

LIKE_FIRST = frozenset(
    """
    Abs BatchNormalization BiasGelu Ceil Cos CumSum DequantizeLinear Dropout Elu Erf Exp FastGelu Floor Gelu
    GroupNormalization HardSigmoid HardSwish InstanceNormalization IsNaN LayerNormalization LeakyRelu Log LogSoftmax
    MeanVarianceNormalization Mish Neg Not QuantizeLinear QuickGelu RMSNormalization Reciprocal Relu RotaryEmbedding
    Round Sigmoid Sign Sin SimplifiedLayerNormalization Softmax Softplus Sqrt Swish Tan Tanh Trilu
    """.split()  # noqa: SIM905 - quoted one by one they would fill the screen
)
BROADCAST = frozenset(
    """
    Add And Clip Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor
    """.split()  # noqa: SIM905 - quoted one by one they would fill the screen
)
COMPUTED: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Max": np.maximum,
    "Min": np.minimum,
    "Equal": np.equal,
    "Where": np.where,
    "Neg": np.negative,
    "Floor": np.floor,
    "Ceil": np.ceil,
}
"""Arithmetic that graphs do with shapes."""


def results(node: Node, inputs: Inputs) -> list[Known]:
    """Return what is known of a node's outputs.

    Args:
        node: the operator.
        inputs: what is known of its inputs; None where one is left out.

    Raises:
        ValueError: there is no rule for the operator, or it depends on values that are not known.
    """
    operator = node.operator
    if operator in LIKE_FIRST or operator in BROADCAST:
        return _elementwise(node, inputs)
    if operator.startswith("Reduce"):
        return [_reduced(node, inputs)]
    if operator not in RULES:
        raise ValueError(f"operator {operator} has no rule for the shape of its result")
    return RULES[operator](node, inputs)


def _elementwise(node: Node, inputs: Inputs) -> list[Known]:
    there = [known for known in inputs if known is not None]
    if node.operator in LIKE_FIRST:
        shape = there[0].shape
    else:
        shape = tuple(np.broadcast_shapes(*(known.shape for known in there)))
    values = [known.value for known in there]
    value = None
    if all(found is not None for found in values):
        if node.operator == "Div":
            floats = any(np.issubdtype(found.dtype, np.floating) for found in values if found is not None)
            value = np.true_divide(*values) if floats else np.floor_divide(*values)  # type: ignore[arg-type]
        elif node.operator in COMPUTED:
            value = COMPUTED[node.operator](*values)
    return [Known(shape, value)] * max(1, len(node.outputs))


def _reduced(node: Node, inputs: Inputs) -> Known:
    shape = first(inputs).shape
    axes = integers(inputs, 1) if len(inputs) > 1 else node.attributes.get("axes")
    if not axes:
        axes = [] if node.attributes.get("noop_with_empty_axes") else list(range(len(shape)))
    gone = {axis % len(shape) for axis in axes}
    kept = bool(node.attributes.get("keepdims", 1))
    made = tuple(1 if axis in gone else size for axis, size in enumerate(shape) if kept or axis not in gone)
    return Known(made)


# ── Products ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _matmul(_node: Node, inputs: Inputs) -> list[Known]:
    left, right = first(inputs).shape, first(inputs, 1).shape
    if len(left) < 2 or len(right) < 2:
        raise ValueError("a product with a vector has no rule")
    return [Known((*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1]))]


def _matmul_blocks(node: Node, inputs: Inputs) -> list[Known]:
    return [Known((*first(inputs).shape[:-1], node.attributes["N"]))]


def _gemm(node: Node, inputs: Inputs) -> list[Known]:
    left, right = first(inputs).shape, first(inputs, 1).shape
    rows = left[1] if node.attributes.get("transA") else left[0]
    return [Known((rows, right[0] if node.attributes.get("transB") else right[1]))]


def kernel_of(node: Node, inputs: Inputs) -> Shape:
    """Return the shape of a convolution's weights."""
    return first(inputs, 3 if node.operator == "QLinearConv" else 1).shape


def _spatial(node: Node, sizes: Shape, kernel: Sequence[int]) -> Shape:
    """Return the sizes that a kernel leaves."""
    count = len(sizes)
    strides = node.attributes.get("strides") or [1] * count
    if (padding := node.attributes.get("auto_pad", "NOTSET")).startswith("SAME"):
        return tuple(math.ceil(size / stride) for size, stride in zip(sizes, strides, strict=True))
    pads = [0] * 2 * count if padding == "VALID" else node.attributes.get("pads") or [0] * 2 * count
    dilations = node.attributes.get("dilations") or [1] * count
    return tuple(
        (size + pads[at] + pads[at + count] - dilations[at] * (kernel[at] - 1) - 1) // strides[at] + 1
        for at, size in enumerate(sizes)
    )


def _conv(node: Node, inputs: Inputs) -> list[Known]:
    shape, kernel = first(inputs).shape, kernel_of(node, inputs)
    return [Known((shape[0], kernel[0], *_spatial(node, shape[2:], kernel[2:])))]


def _conv_transposed(node: Node, inputs: Inputs) -> list[Known]:
    shape, kernel = first(inputs).shape, kernel_of(node, inputs)
    count = len(shape) - 2
    given = {name: node.attributes.get(name) for name in ("strides", "dilations", "output_padding", "pads")}
    strides, dilations = given["strides"] or [1] * count, given["dilations"] or [1] * count
    more, pads = given["output_padding"] or [0] * count, given["pads"] or [0] * 2 * count
    made = node.attributes.get("output_shape") or [
        strides[at] * (shape[2 + at] - 1) + more[at] + dilations[at] * (kernel[2 + at] - 1) + 1
        - pads[at] - pads[at + count]
        for at in range(count)
    ]  # fmt: skip
    return [Known((shape[0], kernel[1] * node.attributes.get("group", 1), *made))]


def attention_sizes(node: Node, inputs: Inputs) -> tuple[int, int, int, int, int, int]:
    """Return batch, heads, queries, keys, width of a query and of a value."""
    query, key, value = (first(inputs, index).shape for index in range(3))
    if len(query) == 4:
        return query[0], query[1], query[2], key[2], query[3], value[3]
    heads, shared = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
    return query[0], heads, query[1], key[1], query[2] // heads, value[2] // shared


def _attention(node: Node, inputs: Inputs) -> list[Known]:
    batch, heads, queries, _keys, _width, width = attention_sizes(node, inputs)
    is_split = len(first(inputs).shape) == 4
    return [Known((batch, heads, queries, width) if is_split else (batch, queries, heads * width))]


def _pooled(node: Node, inputs: Inputs) -> list[Known]:
    shape = first(inputs).shape
    return [Known((*shape[:2], *_spatial(node, shape[2:], node.attributes["kernel_shape"])))]


RULES: dict[str, Rule] = {
    "MatMul": _matmul, "MatMulInteger": _matmul, "MatMulNBits": _matmul_blocks, "Gemm": _gemm,
    "Conv": _conv, "ConvInteger": _conv, "QLinearConv": _conv, "ConvTranspose": _conv_transposed,
    "Attention": _attention, "MaxPool": _pooled, "AveragePool": _pooled, **LAYOUT,
}  # fmt: skip
"""Operator to its rule, beside the element-wise ones and the reductions."""
