# SPDX-License-Identifier: Apache-2.0
"""Every form in which a package may store weights is read by OpenVINO, gives the right values, and in which kernels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgereels.runtime import engine_openvino_library as openvino_library
from edgereels.runtime.engine import Device
from edgereels.runtime.engine_openvino import OpenVinoEngine
from edgereels.runtime.graph_identity import DYNAMIC_ACTIVATIONS

INNER, WIDTH, ROWS, BLOCK = 128, 64, 32, 64
EXACT = 1e-5  # float32 sums of 128 products in another order
RANDOM = np.random.default_rng(0)
WEIGHT = (RANDOM.standard_normal((INNER, WIDTH)) / 16).astype(np.float32)
VALUE = RANDOM.standard_normal((ROWS, INNER)).astype(np.float32)
SCALE = np.abs(WEIGHT).max(0) / 127
LEVELS = np.rint(WEIGHT / SCALE).astype(np.int8)
BLOCKED = WEIGHT.reshape(INNER // BLOCK, BLOCK, WIDTH)
SCALE_4 = np.abs(BLOCKED).max(1) / 7
LEVELS_4 = np.rint(BLOCKED / SCALE_4[:, None]).astype(np.int8).reshape(INNER, WIDTH)
WEIGHT_4 = (LEVELS_4.reshape(BLOCKED.shape) * SCALE_4[:, None]).reshape(INNER, WIDTH)

Node = onnx.NodeProto


def save(
    path: Path, nodes: list[Node], tensors: Mapping[str, Any], *, like: tuple[Any, Any] = (VALUE, VALUE @ WEIGHT)
) -> Path:
    """Write a graph from x to y; `tensors` are arrays, or made already."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in zip("xy", like, strict=True)
    ]
    made = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in tensors.items()
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], made)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def packed(levels: np.ndarray) -> bytes:
    """Return values of four bits, two in a byte, the first one low."""
    bits = levels.ravel().astype(np.uint8) & 15
    return (bits[0::2] | bits[1::2] << 4).tobytes()


def cast_from(kind: int) -> tuple[list[Node], dict[str, Any], np.ndarray]:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    stored = WEIGHT.astype(dtype)
    tensor = helper.make_tensor("w", kind, WEIGHT.shape, stored.tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    return nodes, {"w": tensor}, stored.astype(np.float32)


def int8() -> tuple[list[Node], dict[str, Any], np.ndarray]:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=1),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    return nodes, {"w": LEVELS, "scale": SCALE}, LEVELS * SCALE


def int4() -> tuple[list[Node], dict[str, Any], np.ndarray]:
    tensor = helper.make_tensor("w", TensorProto.INT4, WEIGHT.shape, packed(LEVELS_4), raw=True)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    return nodes, {"w": tensor, "scale": SCALE_4}, WEIGHT_4


def matmul_n_bits() -> tuple[list[Node], dict[str, Any], np.ndarray]:
    """ONNX Runtime's own operator: columns of blocks of unsigned levels around 8."""
    columns = (LEVELS_4.T.astype(np.int16) + 8).astype(np.uint8).reshape(WIDTH, INNER // BLOCK, BLOCK)
    blob = columns[..., 0::2] | columns[..., 1::2] << 4
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "scale"], ["y"], domain="com.microsoft", K=INNER, N=WIDTH, bits=4, block_size=BLOCK
    )
    return [node], {"w": blob, "scale": np.ascontiguousarray(SCALE_4.T).ravel()}, WEIGHT_4


FORMS = {
    "fp16": lambda: cast_from(TensorProto.FLOAT16),
    "bf16": lambda: cast_from(TensorProto.BFLOAT16),
    "int8 DequantizeLinear": int8,
    "int4 DequantizeLinear in blocks": int4,
    "int4 MatMulNBits": matmul_n_bits,
}


def opened(graph: Path, *, compute: str = "f32") -> OpenVinoEngine:
    return OpenVinoEngine(graph, device=Device("openvino", "CPU"), threads=1, compute=compute)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the norm of the difference over that of the reference."""
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("form", FORMS)
def test_stored_weights_are_read_and_activations_left_alone(form: str, tmp_path: Path) -> None:
    """OpenVINO's own default rounds activations of int8 and int4 products to 8 bits, in "f32" (0.5 %)."""
    nodes, tensors, weight = FORMS[form]()
    engine = opened(save(tmp_path / "g.onnx", nodes, tensors))
    engine.freeze([{"x": VALUE.shape}])
    assert distance(engine.run({"x": VALUE})["y"], VALUE @ weight) < EXACT
    assert distance(VALUE @ weight, VALUE @ WEIGHT) > 10 * EXACT, "the stored weights are others"
    assert engine.kernel_precisions == {"f32": 1}


@pytest.mark.parametrize("form", ["int8 DequantizeLinear", "int4 DequantizeLinear in blocks", "int4 MatMulNBits"])
def test_a_graph_that_asks_for_it_has_its_activations_rounded(form: str, tmp_path: Path) -> None:
    nodes, tensors, weight = FORMS[form]()
    path = save(tmp_path / "g.onnx", nodes, tensors)
    model = onnx.load(path)
    model.metadata_props.add(key=DYNAMIC_ACTIVATIONS[0], value=DYNAMIC_ACTIVATIONS[1])
    onnx.save(model, path)
    engine = opened(path)
    engine.freeze([{"x": VALUE.shape}])
    # 127 levels of activations, in groups: about 0.5 %.
    rounding = distance(engine.run({"x": VALUE})["y"], VALUE @ weight)
    if openvino_library.has_native_int8():
        assert 100 * EXACT < rounding < 0.02
        assert not engine.events[0]["code"].startswith("float")
    else:  # OpenVINO would refuse the graph
        assert rounding < EXACT
        assert engine.events[0]["code"] == "float_activations"


def static_tolerance() -> float:
    """Levels are multiplied exactly, so only halves are open, rounded either way; AVX2 alone saturates."""
    return 1e-3 if openvino_library.has_native_int8() else 0.03


def quantized(name: str, value: np.ndarray, *, kind: Any) -> tuple[list[Node], dict[str, Any], np.ndarray]:
    """Return nodes that round a value to 256 levels, their constants, and what comes out."""
    low = float(value.min()) if kind is np.uint8 else -float(np.abs(value).max())
    scale = np.float32((float(np.abs(value).max() if kind is np.int8 else value.max()) - low) / 255)
    zero = kind(round(-low / float(scale))) if kind is np.uint8 else kind(0)
    info = np.iinfo(kind)
    levels = np.clip(np.rint(value / scale) + int(zero), info.min, info.max)
    nodes = [
        helper.make_node("QuantizeLinear", [name, "range", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "range", "zero"], ["rounded"]),
    ]
    return nodes, {"range": scale, "zero": zero}, (levels - int(zero)) * scale


@pytest.mark.parametrize("kind", [np.uint8, np.int8], ids=["uint8", "int8"])
@pytest.mark.parametrize("compute", ["f32", "bf16"])
def test_products_with_static_ranges_run_in_int8(kind: Any, compute: str, tmp_path: Path) -> None:
    check_compute(compute)
    nodes, tensors, rounded = quantized("x", VALUE, kind=kind)
    nodes += [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=1),
        helper.make_node("MatMul", ["rounded", "wide"], ["y"]),
    ]
    engine = opened(save(tmp_path / "g.onnx", nodes, {**tensors, "w": LEVELS, "scale": SCALE}), compute=compute)
    engine.freeze([{"x": VALUE.shape}])
    assert distance(engine.run({"x": VALUE})["y"], rounded @ (LEVELS * SCALE)) < static_tolerance()
    assert engine.kernel_precisions == {"int8": 1}


def check_compute(compute: str) -> None:
    if compute == "bf16" and not openvino_library.has_native_bf16():
        pytest.skip("this CPU has no bf16")


FRAMES = RANDOM.standard_normal((1, 16, 3, 12, 12)).astype(np.float32)
KERNEL = (RANDOM.standard_normal((16, 16, 3, 3, 3)) / 20).astype(np.float32)


@pytest.mark.parametrize("kind", [np.uint8, np.int8], ids=["uint8", "int8"])
@pytest.mark.parametrize("compute", ["f32", "bf16"])
def test_convolutions_with_static_ranges_run_in_int8(kind: Any, compute: str, tmp_path: Path) -> None:
    check_compute(compute)
    scale = np.abs(KERNEL).max((1, 2, 3, 4)) / 127
    levels = np.rint(KERNEL / scale[:, None, None, None, None]).astype(np.int8)
    nodes, tensors, rounded = quantized("x", FRAMES, kind=kind)
    nodes += [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=0),
        helper.make_node("Conv", ["rounded", "wide"], ["y"], pads=[1] * 6),
    ]
    path = save(tmp_path / "g.onnx", nodes, {**tensors, "w": levels, "scale": scale}, like=(FRAMES, FRAMES))
    engine = opened(path, compute=compute)
    engine.freeze([{"x": FRAMES.shape}])
    expected = plain_convolution(tmp_path, rounded.astype(np.float32), levels * scale[:, None, None, None, None])
    assert distance(engine.run({"x": FRAMES})["y"], expected) < static_tolerance() + (0 if compute == "f32" else 5e-3)
    assert engine.kernel_precisions == {"int8": 1}


def plain_convolution(folder: Path, frames: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return what a float convolution gives."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6)
    path = save(folder / "plain.onnx", [node], {"w": kernel.astype(np.float32)}, like=(FRAMES, FRAMES))
    engine = opened(path)
    made = engine.run({"x": frames})["y"]
    assert engine.kernel_precisions == {"f32": 1}, "negative control: a float convolution doesn't count as int8"
    return made


def test_dynamic_quantization_in_operators_of_its_own_falls_back_to_float(tmp_path: Path) -> None:
    """ONNX Runtime's form of it gives the right values here, in float32 and slower than without: not for OpenVINO."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["levels", "range", "zero"]),
        helper.make_node("MatMulInteger", ["levels", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["range", "scale"], ["both"]),
        helper.make_node("Mul", ["wide", "both"], ["y"]),
    ]
    engine = opened(save(tmp_path / "g.onnx", nodes, {"w": LEVELS, "scale": SCALE}))
    engine.freeze([{"x": VALUE.shape}])
    assert distance(engine.run({"x": VALUE})["y"], VALUE @ (LEVELS * SCALE)) < 0.02
    assert engine.kernel_precisions == {"f32": 1}
