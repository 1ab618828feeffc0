# SPDX-License-Identifier: Apache-2.0
"""Put quantized weights into a graph: from a layer with floating-point weights to the standard form both engines read.

============== =======================================================================================================
form           what stands in the graph
============== =======================================================================================================
fp16, bf16     Cast(w16) where the weight entered
int8, int4     DequantizeLinear(w8, scales) where the weight entered, per output channel or in blocks of 64
int8           of a Conv or Gemm: Cast(w8) times scales, which engines compute once, when they load
int8-static    as int8 of a MatMul, and QuantizeLinear, DequantizeLinear (uint8, one scale) around the activation
int8-dynamic   ONNX Runtime: DynamicQuantizeLinear(x), MatMulInteger, Cast, Mul, which it fuses into one kernel;
               OpenVINO: as int8 of a MatMul, in a graph that asks for rounded activations (`DYNAMIC_ACTIVATIONS`)
============== =======================================================================================================

Layers that share an input (q, k and v) share its quantization. What moves values between a stored weight and its layer
(Gather of one tap of a kernel) moves integers instead and stands before the DequantizeLinear, so that engines see
integers right at the layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.graph_identity import DYNAMIC_ACTIVATIONS
from .codecs import INT4_BLOCK
from .layers import Layer
from .recipes import Rule

INT4_OPSET = 21
"""The first that has INT4 and blocks."""


@dataclass(frozen=True, order=True)
class Storage:
    """How the values of a parameter are stored; one parameter may be wanted in several ways."""

    kind: str
    """keep, fp16, bf16, int8 or int4."""
    bits: int = 0
    """Of an int8: 8 or 7."""
    axis: int = -1
    """Of the stored tensor: int8 has a scale for each index of it, int4 blocks along it; -1 for floats."""

    @classmethod
    def of(cls, rule: Rule, layer: Layer) -> "Storage":
        """Return the storage that a rule asks for."""
        if rule.form.startswith("int8"):
            return cls("int8", rule.weight_bits, layer.output_axis)
        return cls("int4", 4, layer.input_axis) if rule.form == "int4" else cls(rule.form)


KEPT = Storage("keep")


@dataclass(frozen=True)
class Place:
    """Where values lie in a weights file."""

    location: str
    """File, as graphs refer to it."""
    offset: int
    """First byte."""
    length: int
    """Bytes."""
    dtype: int
    """ONNX element type."""
    shape: tuple[int, ...]
    """Sizes."""

    def initializer(self, name: str) -> onnx.TensorProto:
        """Return an initializer that refers here."""
        tensor = TensorProto(name=name, dims=self.shape)
        tensor.data_type = self.dtype
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", self.offset), ("length", self.length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


@dataclass(frozen=True)
class StoredWeight:
    """A parameter as it lies in the new package."""

    values: Place
    """Its values."""
    scales: Place | None
    """Its scales; None where the values are floating-point."""


@dataclass(frozen=True)
class Range:
    """The values an activation takes, from a calibration; made to include 0."""

    low: float
    """Smallest."""
    high: float
    """Largest."""

    def quantization(self) -> tuple[np.float32, np.uint8]:
        """Return scale and zero point of uint8 values that cover the range."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = np.float32((high - low) / 255) or np.float32(1)
        return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


@dataclass(frozen=True)
class Decided:
    """A layer and what a recipe says about it."""

    layer: Layer
    """Which."""
    rule: Rule
    """The rule that decides, after fallbacks."""
    range: Range | None
    """Of its activation, for int8-static."""


def rewrite(
    model: onnx.ModelProto,
    decided: Sequence[Decided],
    *,
    place: Callable[[Layer, Storage], StoredWeight],
    library: str = "onnxruntime",
) -> onnx.ModelProto:
    """Return a new graph in which every layer stands in the form that was decided.

    Args:
        model: the source graph, weights on disk.
        decided: every layer and parameter of it.
        place: where the values of a layer lie in the new package, for a storage.
        library: the engine library that the graph is for.
    """
    rewriter = _Rewriter(model, place, library=library)
    for choice in decided:
        rewriter.apply(choice)
    return rewriter.result()


class _Rewriter:
    def __init__(
        self, model: onnx.ModelProto, place: Callable[[Layer, Storage], StoredWeight], *, library: str
    ) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._nodes = list(self._model.graph.node)
        self._place = place
        self._library = library
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._before: dict[int, list[onnx.NodeProto]] = {}
        """What must stand before a node, by its index; -1 and the number of nodes: before and after all."""
        self._first = {value: index for index, node in reversed(list(enumerate(self._nodes))) for value in node.input}
        """Value to the first node that takes it."""
        self._made: set[str] = set()

    def apply(self, choice: Decided) -> None:
        """Rewrite one layer."""
        layer, form = choice.layer, choice.rule.form
        storage = Storage.of(choice.rule, layer)
        stored = self._place(layer, storage)
        if storage.kind in ("keep", "fp16", "bf16"):
            self._float(layer, storage, stored)
        elif form == "int8-dynamic" and self._library == "openvino":
            self._weight_only(layer, storage, stored)
            helper.set_model_props(self._model, dict([DYNAMIC_ACTIVATIONS]))
        elif form == "int8-dynamic":
            self._dynamic(layer, storage, stored)
        elif form == "int8" and layer.operator != "MatMul":
            self._folded(layer, storage, stored)
        else:
            self._weight_only(layer, storage, stored)
            if form == "int8-static":
                self._static(layer, choice.range)

    def result(self) -> onnx.ModelProto:
        """Return the graph without what nothing needs any more."""
        nodes = list(self._before.get(-1, []))
        for index, node in enumerate(self._nodes):
            nodes += [*self._before.get(index, []), node]
        nodes += self._before.get(len(self._nodes), [])
        graph = self._model.graph
        kept, needed = [], {value.name for value in graph.output}
        for node in reversed(nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        graph.initializer.extend(tensor for name, tensor in self._initializers.items() if name in needed)
        return self._model

    # ── Forms ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _float(self, layer: Layer, storage: Storage, stored: StoredWeight) -> None:
        """Let the parameter refer to its new place, and cast it where it is not stored as the graph expects it."""
        expected = self._initializers[layer.tensor].data_type
        if stored.values.dtype == expected:
            self._initializers[layer.tensor] = stored.values.initializer(layer.tensor)
            return
        name = self._initializer(f"{_plain(layer.tensor)}.{storage.kind}", stored.values)
        for node in self._nodes:
            if node.op_type == "Cast" and node.input[0] == layer.tensor:  # it was stored in another 16-bit form
                node.input[0] = name
        cast = helper.make_node("Cast", [name], [layer.tensor], name=f"{layer.tensor}/Cast", to=expected)
        self._put_before(-1, cast)
        del self._initializers[layer.tensor]

    def _weight_only(self, layer: Layer, storage: Storage, stored: StoredWeight) -> None:
        integers, scales = self._integers(layer, storage, stored)
        attributes: dict[str, Any] = {"axis": self._axis_at(layer)}
        if storage.kind == "int4":
            attributes.update(axis=0, block_size=INT4_BLOCK)
            self._as_matmul(layer)
        floats = f"{integers}.dequantized"
        if floats not in self._made:
            self._made.add(floats)
            made = helper.make_node(
                "DequantizeLinear", [integers, scales], [floats], name=f"{floats}/DequantizeLinear", **attributes
            )
            self._put_before(layer.node, made)
        self._nodes[layer.node].input[1] = floats

    def _folded(self, layer: Layer, storage: Storage, stored: StoredWeight) -> None:
        """Multiply integers by scales in a way that ONNX Runtime folds.

        It leaves a DequantizeLinear before a Conv as it is, and without a constant weight the Conv loses its blocked
        layout: 78 ms against 61 for the embedded decoder. A MatMul it fuses with its DequantizeLinear instead.
        """
        integers, _ = self._integers(layer, storage, stored)
        floats = f"{integers}.floats"
        if stored.scales is not None and f"{floats}.scaled" not in self._made:
            self._made.add(f"{floats}.scaled")
            shape = [1] * layer.rank
            shape[self._axis_at(layer)] = stored.scales.shape[0]
            column = replace(stored.scales, shape=tuple(shape))
            scales = self._initializer(f"{floats}.scales", column)
            self._put_before(
                layer.node,
                helper.make_node("Cast", [integers], [floats], name=f"{floats}/Cast", to=TensorProto.FLOAT),
                helper.make_node("Mul", [floats, scales], [f"{floats}.scaled"], name=f"{floats}/Mul"),
            )
        self._nodes[layer.node].input[1] = f"{floats}.scaled"

    def _static(self, layer: Layer, found: Range | None) -> None:
        if found is None:
            raise ValueError(f"{layer.graph}: {layer.name} has no range")
        source = layer.activation
        result = f"{source}.static"
        if result not in self._made:
            self._made.add(result)
            scale, zero = found.quantization()
            ends = [self._constant(f"{source}.scale", scale), self._constant(f"{source}.zero", zero)]
            whole = f"{source}.uint8"
            self._put_before(
                self._first[source],
                helper.make_node("QuantizeLinear", [source, *ends], [whole], name=f"{source}/QuantizeLinear"),
                helper.make_node("DequantizeLinear", [whole, *ends], [result], name=f"{source}/DequantizeLinear"),
            )
        self._nodes[layer.node].input[0] = result

    def _dynamic(self, layer: Layer, storage: Storage, stored: StoredWeight) -> None:
        is_turned = self._axis_at(layer) == 0
        self._as_matmul(layer)
        integers, scales = self._integers(layer, storage, stored)
        source, name = layer.activation, self._nodes[layer.node].output[0]
        whole, scale, zero = f"{source}.uint8", f"{source}.scale", f"{source}.zero"
        if whole not in self._made:
            self._made.add(whole)
            quantize = helper.make_node(
                "DynamicQuantizeLinear", [source], [whole, scale, zero], name=f"{source}/DynamicQuantizeLinear"
            )
            self._put_before(self._first[source], quantize)
        if is_turned:  # as Gemm takes it; engines turn it back when they load
            turned = f"{integers}.T"
            self._put_before(
                layer.node, helper.make_node("Transpose", [integers], [turned], name=f"{turned}/Transpose", perm=[1, 0])
            )
            integers = turned
        sums, floats, both = f"{name}.sums", f"{name}.sums_f32", f"{name}.scales"
        self._put_before(
            layer.node,
            helper.make_node("MatMulInteger", [whole, integers, zero], [sums], name=f"{name}/MatMulInteger"),
            helper.make_node("Cast", [sums], [floats], name=f"{name}/Cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, scales], [both], name=f"{name}/Scales"),
        )
        self._nodes[layer.node].CopyFrom(helper.make_node("Mul", [floats, both], [name], name=f"{name}/Mul"))

    # ── Parts of forms ───────────────────────────────────────────────────────────────────────────────────────────────

    def _integers(self, layer: Layer, storage: Storage, stored: StoredWeight) -> tuple[str, str]:
        """Return the values that hold a layer's integers, moved as the layer takes them, and its scales."""
        plain = _plain(layer.tensor)
        suffix = f"int{storage.bits}" if storage.kind == "int8" else storage.kind
        if stored.scales is None:
            raise ValueError(f"{layer.name} has no scales")
        value = self._initializer(f"{plain}.{suffix}", stored.values)
        scales = self._initializer(f"{plain}.{suffix}_scales", stored.scales)
        if storage.kind == "int4":  # stored as it is needed
            return value, scales
        for index in layer.chain:
            mover = self._nodes[index]
            if mover.op_type == "Cast":
                continue
            moved = f"{mover.output[0]}.{suffix}"
            if moved not in self._made:
                self._made.add(moved)
                copied = onnx.NodeProto()
                copied.CopyFrom(mover)
                copied.name, copied.input[0], copied.output[0] = f"{moved}/{mover.op_type}", value, moved
                self._put_before(index, copied)
            value = moved
        return value, scales

    def _axis_at(self, layer: Layer) -> int:
        """Return the axis of the outputs in the weight as the layer takes it."""
        node = self._nodes[layer.node]
        if node.op_type == "Conv":
            return 0
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if transposed else 1

    def _as_matmul(self, layer: Layer) -> None:
        """Turn a Gemm into MatMul and Add, which is what fuses; its weight comes as (inputs, outputs) then."""
        node = self._nodes[layer.node]
        if node.op_type != "Gemm":
            return
        output = node.output[0]
        product = helper.make_node("MatMul", list(node.input[:2]), [output], name=node.name)
        if len(node.input) > 2 and node.input[2]:
            product.output[0] = f"{output}.product"
            add = helper.make_node("Add", [product.output[0], node.input[2]], [output], name=f"{node.name}/Add")
            self._put_before(layer.node + 1, add)
        node.CopyFrom(product)

    def _put_before(self, index: int, *nodes: onnx.NodeProto) -> None:
        self._before.setdefault(index, []).extend(nodes)

    def _initializer(self, name: str, place: Place) -> str:
        self._initializers.setdefault(name, place.initializer(name))
        return name

    def _constant(self, name: str, value: np.generic) -> str:
        self._initializers.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name


def _plain(tensor: str) -> str:
    return tensor.removesuffix(".fp16").removesuffix(".bf16")
