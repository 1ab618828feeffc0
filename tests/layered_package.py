# SPDX-License-Identifier: Apache-2.0
"""A package whose graphs hold every kind of layer that a recipe can name, over shared weights; it renders nothing.

Two blocks of a transformer as parts and fused, a head, a Gemm, a layer whose inputs are no multiple of 64, both graphs
of a decoder (the first takes one tap of the kernel), an embedding, and half-precision storage where asked for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgereels.runtime.golden import golden_bytes
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.package_writer import PackageWriter

from .package_examples import manifest_fields

DIM = 64
ODD = 40
CHANNELS = 8
Arrays = dict[str, np.ndarray]


def weights_of(*, dim: int = DIM, seed: int = 3) -> dict[str, Arrays]:
    """Return file (by its role) to parameter name to values."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(shape[-2] if len(shape) == 2 else 72)).astype(np.float32)

    blocks = {
        f"block_{index:02d}": {
            **{f"blocks.{index}.self_attn.{part}.weight.T": matrix(dim, dim) for part in "qkv"},
            f"blocks.{index}.ffn.0.weight.T": matrix(dim, 2 * dim),
            f"blocks.{index}.ffn.2.weight.T": matrix(2 * dim, dim),
            f"blocks.{index}.ffn.2.bias": matrix(1, dim)[0],
        }
        for index in (0, 1)
    }
    return blocks | {
        "head": {
            "head.head.weight.T": matrix(dim, 16),
            "audio.odd.weight.T": matrix(ODD, dim),
            "audio.gemm.weight": matrix(dim, 2 * dim),
            "audio.gemm.bias": matrix(1, dim)[0],
            "embedding": matrix(9, dim),
        },
        "decoder": {
            "decoder.conv1.weight": matrix(CHANNELS, 4, 3, 3, 3),
            "decoder.conv1.bias": matrix(1, CHANNELS)[0],
            "decoder.head.weight": matrix(3, CHANNELS, 3, 3),
        },
    }


class Parts:
    """Nodes of a graph being built, and the stored tensors that they refer to."""

    def __init__(self, places: Mapping[str, tuple[str, int, np.ndarray]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._places = places

    def weight(self, name: str) -> str:
        """Refer to a parameter, cast where it is stored in half precision; return the value that holds it."""
        location, offset, values = self._places[name]
        half = values.dtype == np.float16
        stored = f"{name}.fp16" if half else name
        if stored not in self.initializers:
            tensor = TensorProto(name=stored, dims=values.shape, data_location=TensorProto.EXTERNAL)
            tensor.data_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            for key, value in (("location", location), ("offset", offset), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            self.initializers[stored] = tensor
            if half:
                self.nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
        return name

    def constant(self, name: str, value: Any) -> str:
        """Hold a small constant inside the graph."""
        self.initializers[name] = onnx.numpy_helper.from_array(np.asarray(value, np.int64), name)
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node; return its output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def block(self, index: int, tokens: str, *, prefix: str = "") -> str:
        """Append a block: q, k and v of one input, multiplied, then a feed-forward; return its output."""
        name = f"blocks.{index}"
        q, k, v = (
            self.add("MatMul", [tokens, self.weight(f"{name}.self_attn.{part}.weight.T")], f"{prefix}{part}")
            for part in "qkv"
        )
        gated = self.add("Mul", [self.add("Tanh", [q], f"{prefix}gate"), k], f"{prefix}gated")
        mixed = self.add("Add", [self.add("Add", [gated, v], f"{prefix}mixed"), tokens], f"{prefix}attended")
        wide = self.add("MatMul", [mixed, self.weight(f"{name}.ffn.0.weight.T")], f"{prefix}wide")
        back = self.add(
            "MatMul", [self.add("Tanh", [wide], f"{prefix}on"), self.weight(f"{name}.ffn.2.weight.T")], f"{prefix}back"
        )
        return self.add("Add", [back, self.weight(f"{name}.ffn.2.bias")], f"{prefix}tokens_out")

    def ends(self, tokens: str, audio: str) -> str:
        """Append what only the fused graph has: the odd layer, the Gemm, the embedding and the head."""
        odd = self.add("MatMul", [audio, self.weight("audio.odd.weight.T")], "odd")
        twice = self.add("Concat", [odd, odd], "twice", axis=1)
        gemm = self.add(
            "Gemm", [twice, self.weight("audio.gemm.weight"), self.weight("audio.gemm.bias")], "gemm", transB=1
        )
        row = self.add("Gather", [self.weight("embedding"), self.constant("row", 2)], "row_values", axis=0)
        summed = self.add("Add", [self.add("Add", [tokens, gemm], "heard"), row], "summed")
        return self.add("MatMul", [summed, self.weight("head.head.weight.T")], "velocity")

    def model(self, name: str, inputs: Mapping[str, list[Any]], outputs: Mapping[str, list[Any]]) -> onnx.ModelProto:
        """Return the graph."""
        taken, given = (
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in table.items()]
            for table in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, name, taken, given, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def models_of(places: Mapping[str, tuple[str, int, np.ndarray]], *, dim: int = DIM) -> dict[str, onnx.ModelProto]:
    """Return graph name to its model."""
    tokens, audio = [1, "rows", dim], ["rows", ODD]
    models: dict[str, onnx.ModelProto] = {}
    for index in (0, 1):
        parts = Parts(places)
        parts.block(index, "tokens")
        models[f"dit_block_{index:02d}"] = parts.model(
            f"dit_block_{index:02d}", {"tokens": tokens}, {"tokens_out": tokens}
        )
    fused = Parts(places)
    first = fused.block(0, "tokens", prefix="block_00/")
    second = fused.block(1, first, prefix="block_01/")
    fused.ends(second, "audio")
    models["dit"] = fused.model("dit", {"tokens": tokens, "audio": audio}, {"velocity": [1, "rows", 16]})
    for name, is_first in (("vae_decoder_first", True), ("vae_decoder_next", False)):
        parts = Parts(places)
        kernel = parts.weight("decoder.conv1.weight")
        shape: list[Any] = [1, 4, "height", "width"] if is_first else [1, 4, 3, "height", "width"]
        pads = [1, 1, 1, 1] if is_first else [0, 1, 1, 0, 1, 1]
        if is_first:
            kernel = parts.add("Gather", [kernel, parts.constant("tap", 2)], "kernel", axis=2)
        made = parts.add("Conv", ["latents", kernel, parts.weight("decoder.conv1.bias")], "made", pads=pads)
        if not is_first:
            made = parts.add("Squeeze", [made, parts.constant("time", [2])], "flat")
        on = parts.add("Relu", [made], "on")
        parts.add("Conv", [on, parts.weight("decoder.head.weight")], "frames", pads=[1, 1, 1, 1])
        models[name] = parts.model(name, {"latents": shape}, {"frames": [1, 3, "height", "width"]})
    return models


def feeds_of(graph: str, *, seed: int = 0, dim: int = DIM) -> Arrays:
    """Return inputs for a graph."""
    random = np.random.default_rng(seed)
    shapes = {
        "dit": {"tokens": (1, 6, dim), "audio": (6, ODD)},
        "vae_decoder_first": {"latents": (1, 4, 5, 6)},
        "vae_decoder_next": {"latents": (1, 4, 3, 5, 6)},
    }.get(graph, {"tokens": (1, 6, dim)})
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_layered(target: Path, *, half: bool = False, dim: int = DIM, golden: bool = True) -> ModelPackage:
    """Write the package; `half` stores matrices as float16."""
    with PackageWriter(target) as writer:
        places: dict[str, tuple[str, int, np.ndarray]] = {}
        for tensors in weights_of(dim=dim).values():
            stored = {name: _stored(values, half=half) for name, values in tensors.items()}
            location = writer.add_weights(list(stored.values()))
            offset = 0
            for name, values in stored.items():
                places[name] = (location, offset, values)
                offset += values.nbytes
        models = models_of(places, dim=dim)
        for name, model in models.items():
            path = writer.add_file(f"{name}.onnx", model.SerializeToString())
            if golden:
                writer.add_file(f"golden/{name}.safetensors", _vectors(path, name, dim=dim))
        writer.add_file("licences/dit.txt", b"Apache License 2.0\n")
        return writer.finish(_fields(models, golden=golden))


def _stored(values: np.ndarray, *, half: bool) -> np.ndarray:
    return values.astype(np.float16) if half and values.ndim > 1 else values


def _vectors(path: Path, name: str, *, dim: int) -> bytes:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    feeds = feeds_of(name, dim=dim)
    outputs = dict(zip([end.name for end in session.get_outputs()], session.run(None, feeds), strict=True))
    return golden_bytes(feeds, outputs)


def _fields(models: Mapping[str, onnx.ModelProto], *, golden: bool) -> dict[str, Any]:
    def ends(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": "float32",
                "shape": [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]

    graphs = {
        name: {
            "file": f"{name}.onnx",
            "subnetwork": "vae_decoder" if name.startswith("vae") else "dit",
            "parameters": 0,
            "inputs": ends(model.graph.input),
            "outputs": ends(model.graph.output),
            "parity": None,
        }
        for name, model in models.items()
    }
    return manifest_fields() | {
        "graphs": graphs,
        "sources": {},
        "licences": {"dit": "Apache-2.0", "vae_decoder": "Apache-2.0"},
        "avatars": {},
        "portraits": "any",
        "dit": None,
        "tables": None,
        "mouth_box": None,
        "golden": {name: f"golden/{name}.safetensors" for name in graphs} if golden else {},
    }
