# SPDX-License-Identifier: Apache-2.0
"""Layers are found, whatever stands between them and their weight, and called alike in every graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgereels.quant.layers import Layer, find_layers, layer_name, read_model, read_values
from edgereels.runtime.errors import PackageError

from .layered_package import weights_of, write_layered


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layered(tmp_path_factory.mktemp("layers") / "layered", half=True, golden=False).root


def layers_of(package: Path, graph: str) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(read_model(package / f"{graph}.onnx"), graph=graph)}


def one_weight(*nodes: onnx.NodeProto, shape: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a graph around one stored tensor called `layer.weight`, and a few constants."""
    tensor = TensorProto(name="layer.weight", dims=shape, data_type=dtype, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights/x.bin"), ("offset", 0), ("length", 4)):
        tensor.external_data.add(key=key, value=str(value))
    constants = {"zero": 0, "axes": [0], "starts": [0], "ends": [2], "flat": [-1, 4]}
    initializers = [onnx.numpy_helper.from_array(np.asarray(v, np.int64), k) for k, v in constants.items()]
    graph = helper.make_graph(
        list(nodes), "one", [], [helper.make_empty_tensor_value_info("y")], [tensor, *initializers]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def test_fused_and_single_blocks_name_a_layer_alike_and_share_its_tensor(package: Path) -> None:
    fused, block = layers_of(package, "dit"), layers_of(package, "dit_block_01")
    assert fused["blocks.1.self_attn.q"].stored == block["blocks.1.self_attn.q"].stored
    assert fused["blocks.0.self_attn.q"].stored != block["blocks.1.self_attn.q"].stored


def test_operators_axes_and_activations_are_told(package: Path) -> None:
    found = layers_of(package, "dit")
    q, gemm = found["blocks.0.self_attn.q"], found["audio.gemm"]
    assert (q.operator, q.output_axis, q.input_axis, q.activation, q.stored.dtype) == (
        "MatMul",
        1,
        0,
        "tokens",
        "float16",
    )
    assert (gemm.operator, gemm.output_axis, gemm.input_axis) == ("Gemm", 0, 1)
    assert found["embedding"].operator == "Parameter"
    assert found["blocks.0.ffn.2.bias"].operator == "Parameter"


def test_a_kernel_is_found_through_the_tap_that_is_taken(package: Path) -> None:
    first, following = layers_of(package, "vae_decoder_first"), layers_of(package, "vae_decoder_next")
    assert first["decoder.conv1"].stored == following["decoder.conv1"].stored
    assert (first["decoder.conv1"].rank, following["decoder.conv1"].rank) == (4, 5)
    assert first["decoder.conv1"].output_axis == 0


def test_values_are_read_in_their_own_type(package: Path) -> None:
    values = read_values(package, layers_of(package, "dit")["blocks.0.self_attn.k"].stored)
    expected = weights_of()["block_00"]["blocks.0.self_attn.k.weight.T"].astype(np.float16)
    assert values.dtype == np.float16
    assert np.array_equal(values, expected)


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/x.bin").write_bytes(np.array([0x3F80, 0xC000], np.uint16).tobytes())
    model = one_weight(node("MatMul", "x layer.weight", "y"), shape=(1, 2), dtype=TensorProto.BFLOAT16)
    assert read_values(tmp_path, find_layers(model, graph="one")[0].stored).tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize(
    ("nodes", "shape", "ends"),
    [
        ([node("Transpose", "layer.weight", "w", perm=[1, 0])], (8, 4), (0, 1)),
        ([node("Cast", "layer.weight", "a", to=1), node("Transpose", "a", "w", perm=[1, 0])], (8, 4), (0, 1)),
        ([node("Squeeze", "layer.weight axes", "w")], (1, 8, 4), (2, 1)),
        ([node("Gather", "layer.weight zero", "w", axis=0)], (3, 8, 4), (2, 1)),
        ([node("Slice", "layer.weight starts ends axes", "a"), node("Squeeze", "a axes", "w")], (3, 8, 4), (2, 1)),
    ],
    ids=["transposed", "cast and transposed", "squeezed", "gathered", "sliced and squeezed"],
)
def test_axes_are_followed_through_what_moves_values(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], ends: tuple[int, int]
) -> None:
    layer = find_layers(one_weight(*nodes, node("MatMul", "x w", "y"), shape=shape), graph="one")[0]
    assert (layer.operator, layer.output_axis, layer.input_axis) == ("MatMul", *ends)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("Reshape", "layer.weight flat", "w"), node("MatMul", "x w", "y")], (2, 8)),
        ([node("Slice", "layer.weight starts ends axes", "w"), node("MatMul", "x w", "y")], (8, 4)),
        ([node("MatMul", "x layer.weight", "y")], (2, 8, 4)),
        ([node("Gemm", "x layer.weight", "y", transA=1)], (8, 4)),
        ([node("MatMul", "layer.weight x", "y")], (8, 4)),
    ],
    ids=["reshaped", "half of the inputs", "batched", "turned activation", "first input"],
)
def test_other_uses_of_a_weight_are_no_layers(nodes: list[onnx.NodeProto], shape: tuple[int, ...]) -> None:
    found = find_layers(one_weight(*nodes, shape=shape), graph="one")
    assert [layer.operator for layer in found] == ["Parameter"]


def test_a_weight_that_is_also_used_otherwise_is_listed_for_both() -> None:
    model = one_weight(node("MatMul", "x layer.weight", "a"), node("Add", "a layer.weight", "y"), shape=(4, 4))
    assert [layer.operator for layer in find_layers(model, graph="one")] == ["MatMul", "Parameter"]


def test_two_parameters_of_one_name_are_refused() -> None:
    model = one_weight(node("MatMul", "x layer.weight", "a"), node("MatMul", "a layer.weight.T", "y"), shape=(4, 4))
    other = model.graph.initializer.add()
    other.CopyFrom(model.graph.initializer[0])
    other.name = "layer.weight.T"
    other.external_data[1].value = "64"
    with pytest.raises(PackageError, match="two parameters called layer"):
        find_layers(model, graph="one")


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        ("blocks.3.self_attn.q.weight.T.fp16", "blocks.3.self_attn.q"),
        ("block_03/blocks.3.ffn.0.weight.T", "blocks.3.ffn.0"),
        ("decoder.upsamples.6.residual.2.weight", "decoder.upsamples.6.residual.2"),
        ("patch_embedding.weight.bf16", "patch_embedding"),
        ("blocks.3.ffn.0.bias", "blocks.3.ffn.0.bias"),
        ("conv.weight.20134", "conv"),
    ],
)
def test_a_layer_is_called_after_its_parameter(tensor: str, name: str) -> None:
    assert layer_name(tensor) == name
