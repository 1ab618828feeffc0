# SPDX-License-Identifier: Apache-2.0
"""Graphs that an engine must never see are refused from their bytes alone."""

import random
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgereels.runtime.errors import PackageError
from edgereels.runtime.onnx_preflight import preflight

from .package_examples import LOCATION, WEIGHTS, external_tensor, matmul_model, pixels_model

FILES = {LOCATION: WEIGHTS.nbytes}


def check(model: onnx.ModelProto | bytes) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    preflight(data, files=FILES, where="tiny/dit.onnx")


def located(location: str, *, offset: str = "0", length: str = str(WEIGHTS.nbytes)) -> onnx.ModelProto:
    entries = (("location", location), ("offset", offset), ("length", length))
    return matmul_model(weight=external_tensor(entries=entries))


def with_node(
    operator: str, *, domain: str = "", inputs: Sequence[str] = ("tokens",), **attributes: object
) -> onnx.ModelProto:
    node = helper.make_node(operator, list(inputs), ["velocity"], domain=domain, **attributes)
    opsets = [("", 23), (domain, 1)] if domain else [("", 23)]
    return matmul_model(nodes=[node], opsets=opsets)


def with_tensor(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return matmul_model(more_tensors=[tensor])


def subgraph(depth: int = 0) -> onnx.GraphProto:
    node = helper.make_node("If", ["tokens"], ["out"], then_branch=subgraph(depth - 1)) if depth else None
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    return helper.make_graph([node or helper.make_node("Identity", ["tokens"], ["out"])], "inner", [], [value])


def with_function() -> onnx.ModelProto:
    model = matmul_model()
    body = [helper.make_node("Twice", ["x"], ["y"], domain="")]
    model.functions.append(helper.make_function("", "Twice", ["x"], ["y"], body, [helper.make_opsetid("", 23)]))
    return model


def with_training() -> onnx.ModelProto:
    model = matmul_model()
    model.training_info.add()
    return model


def sparse_tensor() -> onnx.SparseTensorProto:
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4])


def with_sparse_initializer() -> onnx.ModelProto:
    model = matmul_model()
    model.graph.sparse_initializer.append(sparse_tensor())
    return model


def raw_tensor(dims: Sequence[int], raw: bytes, *, dtype: int = TensorProto.FLOAT) -> onnx.TensorProto:
    return onnx.TensorProto(name="extra", data_type=dtype, dims=dims, raw_data=raw)


def with_cycle() -> onnx.ModelProto:
    return matmul_model(nodes=[
        helper.make_node("Add", ["tokens", "behind"], ["velocity"]),
        helper.make_node("Relu", ["velocity"], ["behind"]),
    ])  # fmt: skip


def constant_with(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return matmul_model(nodes=[
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("Add", ["tokens", "c"], ["velocity"]),
    ])  # fmt: skip


def filled(sides: Sequence[int]) -> onnx.ModelProto:
    shape = numpy_helper.from_array(np.array(sides, np.int64), "sides")
    nodes = [
        helper.make_node("ConstantOfShape", ["sides"], ["filled"]),
        helper.make_node("Add", ["tokens", "filled"], ["velocity"]),
    ]
    return matmul_model(nodes=nodes, more_tensors=[shape])


def mixed_tensor() -> onnx.TensorProto:
    tensor = external_tensor("extra")
    tensor.raw_data = WEIGHTS.tobytes()
    return tensor


def without_opset() -> onnx.ModelProto:
    model = matmul_model()
    del model.opset_import[:]
    return model


def with_device_split() -> onnx.ModelProto:
    model = matmul_model()
    model.graph.node[0].device_configurations.add(configuration_id="two cards")
    return model


def string_input() -> onnx.ModelProto:
    model = matmul_model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    return model


def sequence_output() -> onnx.ModelProto:
    model = matmul_model()
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(model.graph.input[0].type))
    return model


def with_bad_utf8() -> bytes:
    data = matmul_model().SerializeToString()
    return data.replace(b"MatMul", b"Mat\xff\xfe\xfd")


GOOD = matmul_model().SerializeToString()
REFUSED: dict[str, tuple[onnx.ModelProto | bytes, str]] = {
    # Places outside of the package (LT02-04, LT25).
    "parent folder": (located("../../etc/passwd"), "external-path"),
    "absolute path": (located("/etc/passwd"), "external-path"),
    "path through the parent": (located("weights/../../../etc/passwd"), "external-path"),
    "drive letter": (located("C:secret"), "external-path"),
    "backslash": (located("weights\\secret"), "external-path"),
    "memory marker": (located("*/_ORT_MEM_ADDR_/*"), "external-path"),
    "memory marker of the other engine": (located("*openvino"), "external-path"),
    "no location": (matmul_model(weight=external_tensor(entries=[("offset", "0")])), "external-path"),
    "empty location": (located(""), "external-path"),
    "null byte": (located("weights/a\0b"), "external-path"),
    "unlisted file": (located("weights/other.bin"), "external-path"),
    "current folder": (located("./" + LOCATION), "external-path"),
    # Ranges that lie (LT10-12, LT35).
    "offset beyond the file": (located(LOCATION, offset="65"), "external-range"),
    "negative offset": (located(LOCATION, offset="-1"), "external-range"),
    "length of another tensor": (located(LOCATION, length="32"), "external-range"),
    "offset plus length beyond the file": (located(LOCATION, offset="4"), "external-range"),
    "thirty-digit length": (located(LOCATION, length="9" * 30), "external-range"),
    "hexadecimal offset": (located(LOCATION, offset="0x0"), "external-range"),
    "unknown external key": (
        matmul_model(weight=external_tensor(entries=[("location", LOCATION), ("__class__", "x")])),
        "external-key",
    ),
    "external key twice": (
        matmul_model(weight=external_tensor(entries=[("location", LOCATION), ("location", LOCATION)])),
        "external-key",
    ),
    "values inside and outside": (with_tensor(mixed_tensor()), "external-key"),
    "external place of a string tensor": (with_tensor(external_tensor("extra", dtype=TensorProto.STRING)), "dtype"),
    # Sizes that lie (LT13-14, LT26-27, LT39-40).
    "huge dims": (matmul_model(weight=external_tensor(dims=[1 << 40, 1 << 40])), "dims"),
    "negative dims": (matmul_model(weight=external_tensor(dims=[-4, 4])), "dims"),
    "dims that overflow 64 bits to 0": (with_tensor(raw_tensor([1 << 36, 1 << 36], b"")), "dims"),
    "raw data shorter than dims": (with_tensor(raw_tensor([4], b"\0" * 12)), "raw-size"),
    "raw data longer than dims": (with_tensor(raw_tensor([4], b"\0" * 20)), "raw-size"),
    "no data at all": (with_tensor(raw_tensor([4], b"")), "raw-size"),
    "typed data shorter than dims": (
        with_tensor(onnx.TensorProto(name="extra", data_type=1, dims=[4], float_data=[1.0, 2.0])),
        "raw-size",
    ),
    "typed data in the wrong field": (
        with_tensor(onnx.TensorProto(name="extra", data_type=1, dims=[2], int64_data=[1, 2])),
        "raw-size",
    ),
    "complex numbers": (with_tensor(raw_tensor([1], b"\0" * 8, dtype=TensorProto.COMPLEX64)), "dtype"),
    "fill of four terabytes": (filled([1 << 20, 1 << 20]), "dims"),
    "fill of negative size": (filled([-1]), "dims"),
    # Bytes that are no graph (LT16-19).
    "empty file": (b"", "ir"),
    "random bytes": (random.Random(3).randbytes(4096), "proto"),
    "truncated": (GOOD[:-7], "proto"),
    "a name that is not UTF-8": (with_bad_utf8(), "proto"),
    "two graphs": (GOOD + onnx.ModelProto(graph=matmul_model().graph).SerializeToString(), "proto"),
    "an unknown field": (GOOD + b"\xf8\x07\x01", "proto"),
    "no graph": (
        onnx.ModelProto(ir_version=10, opset_import=[helper.make_opsetid("", 23)]).SerializeToString(),
        "graph",
    ),
    # Versions (LT21).
    "IR version 99": (matmul_model(ir_version=99), "ir"),
    "opset 99": (matmul_model(opsets=[("", 99)]), "opset"),
    "opset 7": (matmul_model(opsets=[("", 7)]), "opset"),
    "no opset": (without_opset(), "opset"),
    "opset twice": (matmul_model(opsets=[("", 23), ("", 22)]), "opset"),
    # Operators (LT20, LT28-29, LT34, LT41).
    "custom domain in a node": (
        matmul_model(nodes=[helper.make_node("MatMul", ["tokens", "weight"], ["velocity"], domain="my.ops")]),
        "domain",
    ),
    "custom domain among the opsets": (matmul_model(opsets=[("", 23), ("my.ops", 1)]), "domain"),
    "classical machine learning": (matmul_model(opsets=[("", 23), ("ai.onnx.ml", 3)]), "domain"),
    "compiled blob": (with_node("EPContext", domain="com.microsoft", ep_cache_context=b"blob"), "operator"),
    "loop": (with_node("Loop", inputs=["", "tokens", "tokens"], body=subgraph()), "control-flow"),
    "scan": (with_node("Scan", body=subgraph(), num_scan_inputs=1), "control-flow"),
    "loop without a body": (with_node("Loop", inputs=["", "tokens", "tokens"]), "operator"),
    "nested branches": (with_node("If", then_branch=subgraph(25), else_branch=subgraph()), "control-flow"),
    "random numbers": (with_node("RandomNormalLike"), "operator"),
    "decoder of pictures": (with_node("ImageDecoder"), "operator"),
    "sequences": (with_node("SequenceConstruct"), "operator"),
    "recursive function": (with_function(), "function"),
    "overloaded function": (with_node("Relu", overload="mine"), "function"),
    "training information": (with_training(), "training"),
    "split over devices": (with_device_split(), "proto"),
    # Constants (LT22-24).
    "sparse initializer": (with_sparse_initializer(), "sparse"),
    "sparse constant": (
        matmul_model(nodes=[helper.make_node("Constant", [], ["velocity"], sparse_value=sparse_tensor())]),
        "sparse",
    ),
    "constant outside of the package": (
        constant_with(external_tensor("", dims=[1], entries=[("location", "../x"), ("length", "4")])),
        "external-path",
    ),
    # Wiring (LT32).
    "cycle": (with_cycle(), "graph"),
    "input that nothing makes": (matmul_model(nodes=[helper.make_node("Relu", ["nothing"], ["velocity"])]), "graph"),
    "output that nothing makes": (matmul_model(nodes=[helper.make_node("Relu", ["tokens"], ["other"])]), "graph"),
    "weight that shadows an input": (with_tensor(raw_tensor([1], b"\0" * 4)), "graph"),
    "input of strings": (string_input(), "dtype"),
    "output of sequences": (sequence_output(), "proto"),
}
REFUSED["weight that shadows an input"][0].graph.initializer[1].name = "tokens"  # type: ignore[union-attr]


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_graph_that_breaks_a_rule_is_refused(case: tuple[onnx.ModelProto | bytes, str]) -> None:
    model, code = case
    with pytest.raises(PackageError) as refusal:
        check(model)
    assert refusal.value.code == code, str(refusal.value)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_is_one_line_that_names_the_file(case: tuple[onnx.ModelProto | bytes, str]) -> None:
    with pytest.raises(PackageError) as refusal:
        check(case[0])
    message = str(refusal.value)
    assert message.startswith("tiny/dit.onnx: ")
    assert message.isprintable()


ACCEPTED = {
    "external weights": matmul_model(),
    "inline weights": matmul_model(weight=numpy_helper.from_array(WEIGHTS, "weight")),
    "typed weights": matmul_model(
        weight=helper.make_tensor("weight", TensorProto.FLOAT, [4, 4], WEIGHTS.ravel().tolist())
    ),
    "typed fp16 scalars": with_tensor(helper.make_tensor("extra", TensorProto.FLOAT16, [2], [1.0, 2.0])),
    "typed integers": with_tensor(helper.make_tensor("extra", TensorProto.INT64, [3], [-1, 0, 1 << 40])),
    "four-bit weights": with_tensor(helper.make_tensor("extra", TensorProto.INT4, [3], [1, 2, 3])),
    "an empty tensor": with_tensor(raw_tensor([0], b"")),
    "offset left out": matmul_model(weight=external_tensor(entries=[("location", LOCATION)])),
    "uint8 output": pixels_model(),
    "a constant node": constant_with(numpy_helper.from_array(np.ones(4, np.float32))),
    "a small fill": filled([1, 1, 4]),
    "quantized product": matmul_model(
        nodes=[helper.make_node("MatMulNBits", ["tokens", "weight"], ["velocity"], domain="com.microsoft", K=4, N=4)],
        opsets=[("", 23), ("com.microsoft", 1)],
    ),
}


@pytest.mark.parametrize("model", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_an_ordinary_graph_passes(model: onnx.ModelProto) -> None:
    check(model)


def test_a_summary_gives_ends_constants_and_counts() -> None:
    summary = preflight(GOOD, files=FILES, where="tiny")
    (tensor,) = summary.tensors
    assert [(spec.name, spec.dtype, spec.shape) for spec in summary.inputs] == [("tokens", "float32", (1, "frames", 4))]
    assert [(spec.name, spec.dtype, spec.shape) for spec in summary.outputs] == [
        ("velocity", "float32", (1, "frames", 4))
    ]
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.location, tensor.offset, tensor.size_bytes) == (
        "weight", "float32", (4, 4), LOCATION, 0, 64,
    )  # fmt: skip
    assert (summary.node_count, summary.opset) == (1, 23)


def test_the_place_of_an_inline_constant_is_its_bytes() -> None:
    data = matmul_model(weight=numpy_helper.from_array(WEIGHTS, "weight")).SerializeToString()
    (tensor,) = preflight(data, files={}, where="tiny").tensors
    assert data[tensor.offset : tensor.offset + tensor.size_bytes] == WEIGHTS.tobytes()


def test_no_damaged_graph_raises_anything_but_our_error() -> None:
    """A thousand graphs with random bytes changed: each passes or is refused, none hangs or crashes the walker."""
    source = random.Random(20261122)
    refused = 0
    for _ in range(1000):
        data = bytearray(GOOD)
        for _ in range(source.randint(1, 6)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            check(bytes(data))
        except PackageError:
            refused += 1
    assert refused > 500
