# SPDX-License-Identifier: Apache-2.0
"""Look at the bytes of an ONNX graph before an engine does, without the onnx package.

Not a validator: a policy. It walks the protobuf wire format, and whatever it does not know it refuses. Engines have
read files outside a package, hung on endless loops and crashed on sizes that lie; a graph that passes here holds only
operators of a list, on tensors whose sizes agree with their bytes, with weights in listed files of the package.

There is no recursion: control flow, functions and every other construct that could nest are refused.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import PackageError
from .manifest import TensorSpec
from .package_files import NAME

MAX_NODES = 100_000  # 40 fused blocks have about 5 000
MAX_ELEMENTS = 1 << 34  # per tensor; the largest real one (umT5's embedding) has 1 << 30
MAX_FILLED_ELEMENTS = 1 << 28  # what one node may make out of a constant: 1 GB of float32
MAX_RANK = 16
IR_VERSIONS = range(8, 15)
OPSETS = {"": range(18, 27), "ai.onnx": range(18, 27), "com.microsoft": range(1, 2)}

# Tensors in, tensors out. Left out on purpose: control flow (Loop, Scan, If), sequences, optionals, strings, decoders
# of foreign formats, and whatever draws random numbers.
ONNX_OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitShift
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat
    Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DeformConv DepthToSpace
    DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor
    Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv
    QLinearMatMul QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
    RotaryEmbedding Round ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 - quoted one by one they would fill the screen
)
# What quantized and fused graphs need. Left out on purpose: EPContext (it carries or names a compiled blob).
MICROSOFT_OPERATORS = frozenset(
    """
    Attention BiasAdd BiasGelu BiasSplitGelu BlockQuantizedMatMul DequantizeLinear DynamicQuantizeMatMul FastGelu
    FusedConv FusedGemm FusedMatMul Gelu GroupNorm GroupQueryAttention MatMulInteger16 MatMulIntegerToFloat
    MatMulNBits MultiHeadAttention NhwcConv NhwcFusedConv PackedMultiHeadAttention QAttention QGemm QLinearAdd
    QLinearMul QuantizeLinear QuickGelu RotaryEmbedding SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization
    """.split()  # noqa: SIM905 - quoted one by one they would fill the screen
)
OPERATORS = {"": ONNX_OPERATORS, "ai.onnx": ONNX_OPERATORS, "com.microsoft": MICROSOFT_OPERATORS}
EXTERNAL_KEYS = ("location", "offset", "length", "checksum")


class ElementType(NamedTuple):
    """How one ONNX data type is stored."""

    name: str
    """As the manifest would call it."""
    bits: int
    """Of one element in raw bytes."""
    typed_field: int
    """Field of TensorProto that holds it when it is not raw."""


# Strings and complex numbers are not here: no graph of ours has them.
ELEMENT_TYPES = {
    1: ElementType("float32", 32, 4), 2: ElementType("uint8", 8, 5), 3: ElementType("int8", 8, 5),
    4: ElementType("uint16", 16, 5), 5: ElementType("int16", 16, 5), 6: ElementType("int32", 32, 5),
    7: ElementType("int64", 64, 7), 9: ElementType("bool", 8, 5), 10: ElementType("float16", 16, 5),
    11: ElementType("float64", 64, 10), 12: ElementType("uint32", 32, 11), 13: ElementType("uint64", 64, 11),
    16: ElementType("bfloat16", 16, 5), 17: ElementType("float8e4m3fn", 8, 5), 19: ElementType("float8e5m2", 8, 5),
    21: ElementType("uint4", 4, 5), 22: ElementType("int4", 4, 5), 23: ElementType("float4e2m1", 4, 5),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant of the graph: an initializer or the value of a Constant node."""

    name: str
    """Name of the initializer; empty inside a node."""
    dtype: str
    """Element type."""
    shape: tuple[int, ...]
    """Sizes."""
    location: str | None
    """File in the package, or None where the values lie in the graph."""
    offset: int
    """First byte: in that file, or in the graph's bytes (raw values only, else -1)."""
    size_bytes: int
    """Bytes from there."""


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """What a graph takes, gives and holds."""

    inputs: tuple[TensorSpec, ...]
    """In the graph's order; an axis without a size is "?"."""
    outputs: tuple[TensorSpec, ...]
    """The same."""
    tensors: tuple[Tensor, ...]
    """Its constants."""
    node_count: int
    """Operators."""
    opset: int
    """Version of the standard operators."""


@dataclass
class _Node:
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    operator: str = ""
    domain: str = ""
    constant: Tensor | None = None


def preflight(data: bytes, *, files: Mapping[str, int], where: str) -> GraphSummary:
    """Check the bytes of an .onnx file.

    Args:
        data: the whole file.
        files: size in bytes of every file that the graph may refer to, by path relative to the package.
        where: begins the message of an error.

    Raises:
        PackageError: `code` is one of proto, ir, opset, domain, operator, function, training, sparse, control-flow,
            dims, dtype, raw-size, external-key, external-path, external-range, nodes, graph.
    """
    return _Walker(data, files=files, where=where).model()


# ── Wire format ──────────────────────────────────────────────────────────────────────────────────────────────────────

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Wire(NamedTuple):
    """One field of a message: a number in `begin`, or bytes from `begin` to `end`."""

    number: int
    kind: int
    begin: int
    end: int


class _Walker:
    def __init__(self, data: bytes, *, files: Mapping[str, int], where: str) -> None:
        self.data = data
        self.files = files
        self.where = where

    def refuse(self, code: str, message: str) -> PackageError:
        return PackageError(f"{self.where}: {message}", code=code)

    def varint(self, at: int, end: int) -> tuple[int, int]:
        if at < end and self.data[at] < 0x80:  # nearly all keys and sizes are one byte long
            return self.data[at], at + 1
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
        raise self.refuse("proto", "not an ONNX graph: a number runs past its end")

    def fields(
        self, begin: int, end: int, *, message: str, known: Mapping[int, int], many: Sequence[int]
    ) -> Iterator[Wire]:
        """Yield the fields of a message; refuse what `known` lacks, a wrong wire type, or a single field twice."""
        seen: set[int] = set()
        data = self.data
        at = begin
        while at < end:
            if (key := data[at]) < 0x80:  # the same shortcut without the call saves a quarter of the time
                at += 1
            else:
                key, at = self.varint(at, end)
            number, kind = key >> 3, key & 7
            if number not in known:
                raise self.refuse("proto", f"{message} has the field {number}, which this build does not know")
            if kind != known[number] and not (kind == BYTES and number in many):  # repeated numbers may be packed
                raise self.refuse("proto", f"{message} is no valid protobuf: field {number} has wire type {kind}")
            if number not in many:
                if number in seen:
                    raise self.refuse("proto", f"{message} has the field {number} twice")
                seen.add(number)
            if kind == VARINT:
                value, at = self.varint(at, end)
                yield Wire(number, kind, value, 0)
                continue
            if kind == BYTES:
                size, at = self.varint(at, end)
            else:
                size = 8 if kind == FIXED64 else 4
            if size > end - at:
                raise self.refuse("proto", f"{message} is truncated")
            yield Wire(number, kind, at, at + size)
            at += size

    def text(self, wire: Wire) -> str:
        try:
            return self.data[wire.begin : wire.end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse("proto", "a name is not UTF-8") from error

    # ── Messages of ONNX ─────────────────────────────────────────────────────────────────────────────────────────────

    def model(self) -> GraphSummary:
        ir_version = 0
        opsets: dict[str, int] = {}
        graph: Wire | None = None
        for wire in self.fields(0, len(self.data), message="the model", known=MODEL_FIELDS, many=(8, 14, 20, 25, 26)):
            match wire.number:
                case 1:
                    ir_version = wire.begin
                case 7:
                    graph = wire
                case 8:
                    self.opset(wire, opsets)
                case 20:
                    raise self.refuse("training", "holds training information; export it for inference")
                case 25:
                    raise self.refuse("function", "holds functions of its own; inline them")
                case 26:
                    raise self.refuse("proto", "is split over several devices, which no engine here runs")
        if ir_version not in IR_VERSIONS:
            raise self.refuse("ir", f"has IR version {ir_version}; this build reads {_span(IR_VERSIONS)}")
        if graph is None:
            raise self.refuse("graph", "holds no graph")
        if not opsets.keys() & {"", "ai.onnx"}:
            raise self.refuse("opset", "does not say which opset it uses")
        return self.graph(graph, opset=opsets.get("", opsets.get("ai.onnx", 0)))

    def opset(self, outer: Wire, opsets: dict[str, int]) -> None:
        domain, version = "", 0
        known = {1: BYTES, 2: VARINT}
        for wire in self.fields(outer.begin, outer.end, message="an opset", known=known, many=()):
            if wire.number == 1:
                domain = self.text(wire)
            else:
                version = wire.begin
        if domain not in OPSETS:
            raise self.refuse("domain", f"uses operators of {domain!r}; only ONNX's own and com.microsoft are allowed")
        if version not in OPSETS[domain]:
            raise self.refuse(
                "opset", f"uses opset {version} of {domain or 'ONNX'}; this build reads {_span(OPSETS[domain])}"
            )
        if domain in opsets:
            raise self.refuse("opset", f"names the opset of {domain or 'ONNX'} twice")
        opsets[domain] = version

    def graph(self, outer: Wire, *, opset: int) -> GraphSummary:
        nodes: list[_Node] = []
        tensors: list[Tensor] = []
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for wire in self.fields(
            outer.begin, outer.end, message="the graph", known=GRAPH_FIELDS, many=(1, 5, 11, 12, 13, 14, 15, 16)
        ):
            match wire.number:
                case 1:
                    nodes.append(self.node(wire))
                    if len(nodes) > MAX_NODES:
                        raise self.refuse("nodes", f"has more than {MAX_NODES} nodes")
                case 5:
                    tensors.append(self.tensor(wire))
                case 11:
                    inputs.append(self.value_info(wire))
                case 12:
                    outputs.append(self.value_info(wire))
                case 15:
                    raise self.refuse("sparse", "has a sparse weight; only dense ones are allowed")
        _check_names(nodes, tensors, inputs, outputs, refuse=self.refuse)
        constants = {tensor.name: tensor for tensor in tensors}
        constants |= {node.outputs[0]: node.constant for node in nodes if node.constant and node.outputs}
        for node in nodes:
            self.check_constant_inputs(node, constants)
        held = (*tensors, *(node.constant for node in nodes if node.constant))
        return GraphSummary(tuple(inputs), tuple(outputs), held, len(nodes), opset)

    def node(self, outer: Wire) -> _Node:
        node = _Node()
        for wire in self.fields(outer.begin, outer.end, message="a node", known=NODE_FIELDS, many=(1, 2, 5, 9, 10)):
            match wire.number:
                case 1:
                    node.inputs.append(self.text(wire))
                case 2:
                    node.outputs.append(self.text(wire))
                case 4:
                    node.operator = self.text(wire)
                case 5:
                    node.constant = self.attribute(wire) or node.constant
                case 7:
                    node.domain = self.text(wire)
                case 8:
                    if wire.begin != wire.end:
                        raise self.refuse("function", "calls an overloaded function; inline it")
                case 10:
                    raise self.refuse("proto", "is split over several devices, which no engine here runs")
        if node.domain not in OPERATORS:
            raise self.refuse(
                "domain", f"uses {node.operator!r} of {node.domain!r}; only ONNX's own and com.microsoft are allowed"
            )
        if node.operator not in OPERATORS[node.domain]:
            raise self.refuse(
                "operator", f"uses the operator {node.operator!r} of {node.domain or 'ONNX'}, which is not on the list"
            )
        return node

    def attribute(self, outer: Wire) -> Tensor | None:
        tensor: Tensor | None = None
        for wire in self.fields(
            outer.begin, outer.end, message="an attribute", known=ATTRIBUTE_FIELDS, many=(7, 8, 9, 10, 11, 15, 23)
        ):
            match wire.number:
                case 5 | 10:
                    tensor = self.tensor(wire)
                case 6 | 11:
                    raise self.refuse("control-flow", "holds a graph within a graph; control flow is not allowed")
                case 14 | 15:
                    raise self.refuse("proto", "has a type as an attribute, which no allowed operator takes")
                case 21:
                    raise self.refuse("function", "refers to a function's attribute outside of a function")
                case 22 | 23:
                    raise self.refuse("sparse", "has a sparse constant; only dense ones are allowed")
        return tensor

    def tensor(self, outer: Wire) -> Tensor:
        shape: list[int] = []
        type_number = location = 0
        name = ""
        raw: Wire | None = None
        typed: dict[int, int] = {}
        external: dict[str, str] = {}
        for wire in self.fields(
            outer.begin, outer.end, message="a tensor", known=TENSOR_FIELDS, many=(1, 4, 5, 6, 7, 10, 11, 13, 16)
        ):
            match wire.number:
                case 1:
                    shape += self.numbers(wire)
                case 2:
                    type_number = wire.begin
                case 4 | 5 | 6 | 7 | 10 | 11:
                    typed[wire.number] = typed.get(wire.number, 0) + self.count(wire)
                case 8:
                    name = self.text(wire)
                case 9:
                    raw = wire
                case 13:
                    self.external_entry(wire, external)
                case 14:
                    location = wire.begin
        element, size_bytes = self.element(type_number, shape, name=name)
        if location not in (0, 1) or bool(external) != (location == 1):
            raise self.refuse("external-key", f"the tensor {name!r} is half inside and half outside of the graph")
        if location == 1:
            if raw or typed:
                raise self.refuse(
                    "external-key", f"the tensor {name!r} has values both inside and outside of the graph"
                )
            file, offset = self.external_place(external, size_bytes=size_bytes, name=name)
            return Tensor(name, element.name, tuple(shape), file, offset, size_bytes)
        self.check_values(raw, typed, element=element, shape=shape, name=name)
        return Tensor(name, element.name, tuple(shape), None, raw.begin if raw else -1, size_bytes)

    def numbers(self, wire: Wire) -> list[int]:
        """Return the integers of a field that may be packed."""
        if wire.kind == VARINT:
            return [_signed(wire.begin)]
        values: list[int] = []
        at = wire.begin
        while at < wire.end and len(values) <= MAX_RANK:
            value, at = self.varint(at, wire.end)
            values.append(_signed(value))
        return values

    def count(self, wire: Wire) -> int:
        """Return how many values a field of typed data holds."""
        if wire.kind != BYTES or wire.number == 6:
            return 1
        size = wire.end - wire.begin
        if wire.number in (4, 10):
            width = 4 if wire.number == 4 else 8
            return size // width if size % width == 0 else -1
        return sum(byte < 0x80 for byte in self.data[wire.begin : wire.end])

    def element(self, type_number: int, shape: Sequence[int], *, name: str) -> tuple[ElementType, int]:
        """Return a tensor's element type and its size in bytes."""
        if type_number not in ELEMENT_TYPES:
            raise self.refuse("dtype", f"the tensor {name!r} has the element type {type_number}, which is not allowed")
        if (
            len(shape) > MAX_RANK
            or any(side < 0 or side > MAX_ELEMENTS for side in shape)
            or math.prod(shape) > MAX_ELEMENTS
        ):
            raise self.refuse("dims", f"the tensor {name!r} has the sizes {list(shape)[:8]}, which can not be")
        element = ELEMENT_TYPES[type_number]
        return element, (math.prod(shape) * element.bits + 7) // 8

    def check_values(
        self, raw: Wire | None, typed: Mapping[int, int], *, element: ElementType, shape: Sequence[int], name: str
    ) -> None:
        if raw and typed:
            raise self.refuse("raw-size", f"the tensor {name!r} has its values twice")
        elements = math.prod(shape)
        if raw or not typed:
            found, expected = (raw.end - raw.begin if raw else 0), (elements * element.bits + 7) // 8
        else:
            # Elements of four bits come in pairs.
            found, expected = typed.get(element.typed_field, -1), (elements + 1) // 2 if element.bits == 4 else elements
            found = found if len(typed) == 1 else -1
        if found != expected:
            raise self.refuse(
                "raw-size",
                f"the tensor {name!r} of sizes {list(shape)} has {found} values or bytes instead of {expected}",
            )

    def external_entry(self, outer: Wire, external: dict[str, str]) -> None:
        key = value = ""
        known = {1: BYTES, 2: BYTES}
        for wire in self.fields(outer.begin, outer.end, message="an external entry", known=known, many=()):
            if wire.number == 1:
                key = self.text(wire)
            else:
                value = self.text(wire)
        if key not in EXTERNAL_KEYS:
            raise self.refuse(
                "external-key", f"external data has the key {key[:40]!r}; allowed: {', '.join(EXTERNAL_KEYS)}"
            )
        if key in external:
            raise self.refuse("external-key", f"external data has the key {key!r} twice")
        external[key] = value

    def external_place(self, external: Mapping[str, str], *, size_bytes: int, name: str) -> tuple[str, int]:
        """Return file and offset of a tensor's bytes outside of the graph."""
        file = external.get("location", "")
        # To engines a location that begins with an asterisk means "in my memory"; NAME excludes it, as well as .. and
        # absolute paths.
        if not file or not all(NAME.fullmatch(part) for part in file.split("/")):
            raise self.refuse(
                "external-path", f"the tensor {name!r} lies at {file[:80]!r}; expected a plain path in the package"
            )
        if file not in self.files:
            raise self.refuse("external-path", f"the tensor {name!r} lies in {file!r}, which the package does not list")
        offset = self.decimal(external.get("offset", "0"), name=name)
        length = self.decimal(external.get("length", str(size_bytes)), name=name)
        if length != size_bytes or offset + length > self.files[file]:
            raise self.refuse(
                "external-range",
                f"the tensor {name!r} takes {length} bytes from {offset} of {file!r}, which has {self.files[file]}; "
                f"its sizes ask for {size_bytes}",
            )
        return file, offset

    def decimal(self, text: str, *, name: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise self.refuse("external-range", f"the tensor {name!r} has the external number {text[:40]!r}")
        return int(text)

    def value_info(self, outer: Wire) -> TensorSpec:
        name, dtype, shape = "", "", ()
        known = {1: BYTES, 2: BYTES, 3: BYTES, 4: BYTES}
        for wire in self.fields(outer.begin, outer.end, message="an input or output", known=known, many=(4,)):
            if wire.number == 1:
                name = self.text(wire)
            elif wire.number == 2:
                dtype, shape = self.tensor_type(wire)
        return TensorSpec(name, dtype, shape)

    def tensor_type(self, outer: Wire) -> tuple[str, tuple[int | str, ...]]:
        """Return element type and shape of a TypeProto, which must be a dense tensor's with a known rank."""
        type_number = 0
        shape: tuple[int | str, ...] | None = None
        # 1 is the dense tensor; 4, 5, 7, 8, 9 are sequences, maps, opaque, sparse and optional values.
        for wire in self.fields(outer.begin, outer.end, message="a type", known={1: BYTES, 6: BYTES}, many=()):
            if wire.number != 1:
                continue
            for inner in self.fields(
                wire.begin, wire.end, message="a tensor type", known={1: VARINT, 2: BYTES}, many=()
            ):
                if inner.number == 1:
                    type_number = inner.begin
                else:
                    shape = self.shape(inner)
        if type_number not in ELEMENT_TYPES or shape is None:
            raise self.refuse("dtype", "an input or output is not a tensor of known element type and rank")
        return ELEMENT_TYPES[type_number].name, shape

    def shape(self, outer: Wire) -> tuple[int | str, ...]:
        sides: list[int | str] = []
        for wire in self.fields(outer.begin, outer.end, message="a shape", known={1: BYTES}, many=(1,)):
            side: int | str = "?"
            known = {1: VARINT, 2: BYTES, 3: BYTES}
            for inner in self.fields(wire.begin, wire.end, message="a dimension", known=known, many=()):
                if inner.number == 1:
                    side = _signed(inner.begin)
                    if side < 0:
                        raise self.refuse("dims", f"an input or output has the size {side}")
                elif inner.number == 2:
                    side = self.text(inner) or "?"
            sides.append(side)
        return tuple(sides)

    def check_constant_inputs(self, node: _Node, constants: Mapping[str, Tensor]) -> None:
        """Refuse what a constant alone makes harmful: a fill of terabytes, an index outside of a constant."""
        if node.operator in ("ConstantOfShape", "Expand") and node.inputs:
            sides = self.integers(constants.get(node.inputs[-1]))
            if sides and (min(sides) < 0 or math.prod(sides) > MAX_FILLED_ELEMENTS):
                raise self.refuse(
                    "dims", f"{node.operator} fills the sizes {sides[:8]}, more than {MAX_FILLED_ELEMENTS} values"
                )

    def integers(self, tensor: Tensor | None) -> list[int]:
        """Return the values of a short int64 constant that lies raw in the graph, else nothing."""
        if (
            tensor is None
            or tensor.dtype != "int64"
            or tensor.offset < 0
            or tensor.location
            or tensor.size_bytes > 8 * MAX_RANK
        ):
            return []
        raw = self.data[tensor.offset : tensor.offset + tensor.size_bytes]
        return [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]


def _check_names(
    nodes: Sequence[_Node],
    tensors: Sequence[Tensor],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    refuse: Callable[[str, str], PackageError],
) -> None:
    """Refuse a value that is made twice, or used before it is made (which a cycle always is)."""
    made: set[str] = set()
    for name in (*(spec.name for spec in inputs), *(tensor.name for tensor in tensors)):
        if not name or name in made:
            raise refuse("graph", f"defines the value {name!r} twice")
        made.add(name)
    for node in nodes:
        for name in node.inputs:
            if name and name not in made:
                raise refuse("graph", f"uses the value {name!r} before it is made")
        for name in node.outputs:
            if name and name in made:
                raise refuse("graph", f"makes the value {name!r} twice")
            made.add(name)
    for spec in outputs:
        if spec.name not in made:
            raise refuse("graph", f"gives {spec.name!r}, which nothing makes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _span(versions: range) -> str:
    return f"{versions.start} to {versions.stop - 1}" if len(versions) > 1 else str(versions.start)


# Fields of the messages and their wire types (onnx.proto, IR version 13). What is not here is refused.
MODEL_FIELDS = {
    1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES, 25: BYTES,
    26: BYTES,
}  # fmt: skip
GRAPH_FIELDS = {
    1: BYTES, 2: BYTES, 5: BYTES, 10: BYTES, 11: BYTES, 12: BYTES, 13: BYTES, 14: BYTES, 15: BYTES, 16: BYTES,
}  # fmt: skip
NODE_FIELDS = {1: BYTES, 2: BYTES, 3: BYTES, 4: BYTES, 5: BYTES, 6: BYTES, 7: BYTES, 8: BYTES, 9: BYTES, 10: BYTES}
ATTRIBUTE_FIELDS = {
    1: BYTES, 2: FIXED32, 3: VARINT, 4: BYTES, 5: BYTES, 6: BYTES, 7: FIXED32, 8: VARINT, 9: BYTES, 10: BYTES,
    11: BYTES, 13: BYTES, 14: BYTES, 15: BYTES, 20: VARINT, 21: BYTES, 22: BYTES, 23: BYTES,
}  # fmt: skip
TENSOR_FIELDS = {
    1: VARINT, 2: VARINT, 4: FIXED32, 5: VARINT, 6: BYTES, 7: VARINT, 8: BYTES, 9: BYTES, 10: FIXED64, 11: VARINT,
    12: BYTES, 13: BYTES, 14: VARINT, 16: BYTES,
}  # fmt: skip
