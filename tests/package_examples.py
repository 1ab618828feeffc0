# SPDX-License-Identifier: Apache-2.0
"""A real package of a few kilobytes, made on the spot: graphs over one file of weights, golden vectors, an avatar."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save

from edgereels.runtime.golden import golden_bytes
from edgereels.runtime.manifest import digest_of
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.package_writer import PackageWriter

WIDTH = 4
WEIGHTS = np.random.default_rng(7).standard_normal((WIDTH, WIDTH), dtype=np.float32)
LOCATION = f"weights/{hashlib.sha256(WEIGHTS.tobytes()).hexdigest()}.bin"
TOKENS = np.linspace(-1, 1, 3 * WIDTH, dtype=np.float32).reshape(1, 3, WIDTH)


def external_tensor(
    name: str = "weight",
    *,
    dims: Sequence[int] = (WIDTH, WIDTH),
    dtype: int = TensorProto.FLOAT,
    entries: Sequence[tuple[str, str]] = (("location", LOCATION), ("offset", "0"), ("length", str(WEIGHTS.nbytes))),
) -> onnx.TensorProto:
    """Return a tensor whose values lie in a file, with any external entries, sensible or not."""
    tensor = onnx.TensorProto(name=name, data_type=dtype, data_location=TensorProto.EXTERNAL, dims=dims)
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    return tensor


def matmul_model(
    *,
    weight: onnx.TensorProto | None = None,
    nodes: Sequence[onnx.NodeProto] | None = None,
    more_tensors: Sequence[onnx.TensorProto] = (),
    opsets: Sequence[tuple[str, int]] = (("", 23),),
    ir_version: int = 10,
) -> onnx.ModelProto:
    """Return velocity = tokens x weight, [1, frames, 4] to the same; each part can be replaced by a bad one."""
    axes = [1, "frames", WIDTH]
    graph = helper.make_graph(
        list(nodes) if nodes is not None else [helper.make_node("MatMul", ["tokens", "weight"], ["velocity"])],
        "matmul",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("velocity", TensorProto.FLOAT, axes)],
        [weight or external_tensor(), *more_tensors],
    )
    opset_imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_model(graph, opset_imports=opset_imports, ir_version=ir_version)


def pixels_model() -> onnx.ModelProto:
    """Return pixels = uint8(round(clip(tokens x weight, 0, 1) x 255))."""
    constants = [
        helper.make_tensor("low", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("high", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("levels", TensorProto.FLOAT, [], [255.0]),
    ]
    nodes = [
        helper.make_node("MatMul", ["tokens", "weight"], ["product"]),
        helper.make_node("Clip", ["product", "low", "high"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["pixels"], to=TensorProto.UINT8),
    ]
    axes = [1, "frames", WIDTH]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, axes)],
        [external_tensor(), *constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def graph_entry(name: str, *, subnetwork: str, output: str, dtype: str) -> dict[str, Any]:
    """Return a graph's entry in the manifest."""
    return {
        "file": f"{name}.onnx",
        "subnetwork": subnetwork,
        "parameters": WEIGHTS.size,
        "inputs": [{"name": "tokens", "dtype": "float32", "shape": [1, "frames", WIDTH]}],
        "outputs": [{"name": output, "dtype": dtype, "shape": [1, "frames", WIDTH]}],
        "parity": {"max_abs": 1e-7, "max_rel": 1e-7, "shapes": 2},
    }


def manifest_fields() -> dict[str, Any]:
    """Return everything in a manifest but `format`, `format_version`, `files` and `digest`."""
    return {
        "name": "tiny",
        "task": "talking-avatar",
        "precision": "fp32",
        "made_with": {"edgereels": "0.1.0", "torch": "2.13.0"},
        "sources": {"dit": [{"file": "model.safetensors", "size_bytes": 64, "sha256": "0" * 64}]},
        "licences": {"dit": "Apache-2.0", "finish": "unknown"},
        "graphs": {
            "dit_block_00": graph_entry("dit_block_00", subnetwork="dit", output="velocity", dtype="float32"),
            "dit_block_01": graph_entry("dit_block_01", subnetwork="dit", output="velocity", dtype="float32"),
            "finish": graph_entry("finish", subnetwork="finish", output="pixels", dtype="uint8"),
        },
        "settings": {
            "fps": 25,
            "sample_rate": 16000,
            "window": 33,
            "motion": 5,
            "drop": 4,
            "steps": 1,
            "shift": 11.0,
            "max_offline_s": 200,
        },
        "sizes": {"480P": {"1.00": [128, 128]}},
        "default_size": "480P",
        "portraits": "listed",
        "avatars": {"anna": "avatars/anna.safetensors"},
        "mouth_box": [0.55, 0.3, 0.8, 0.7],
        "audio": None,
        "dit": {
            "dim": WIDTH,
            "heads": 1,
            "head_dim": WIDTH,
            "blocks": 2,
            "in_channels": 36,
            "out_channels": 16,
            "freq_dim": 256,
            "has_text": False,
            "has_image": False,
            "has_audio": True,
            "text_length": 0,
            "text_width": 0,
        },
        "text": None,
        "tables": "tables.safetensors",
        "golden": {
            "dit_block_00": "golden/dit_block_00.safetensors",
            "dit_block_01": "golden/dit_block_01.safetensors",
            "finish": "golden/finish.safetensors",
        },
    }


def add_dit(writer: PackageWriter) -> None:
    """Write the graphs of the transformer with their golden vectors and the tables."""
    assert writer.add_weights([WEIGHTS[:1], WEIGHTS[1:].tobytes()]) == LOCATION
    for block in ("dit_block_00", "dit_block_01"):
        writer.add_file(f"{block}.onnx", matmul_model().SerializeToString())
        writer.add_file(f"golden/{block}.safetensors", golden_bytes({"tokens": TOKENS}, {"velocity": TOKENS @ WEIGHTS}))
    writer.add_file("tables.safetensors", save({"timesteps": np.array([1000], np.float32)}))


def add_rest(writer: PackageWriter) -> None:
    """Write the finishing graph, an avatar and a licence."""
    levels = np.round(np.clip(TOKENS @ WEIGHTS, 0, 1) * 255).astype(np.uint8)
    writer.add_file("finish.onnx", pixels_model().SerializeToString())
    writer.add_file("golden/finish.safetensors", golden_bytes({"tokens": TOKENS}, {"pixels": levels}))
    writer.add_file("avatars/anna.safetensors", save({"portrait": np.zeros((2, 2, 3), np.uint8)}))
    writer.add_file("licences/dit.txt", b"Apache License 2.0\n")


def write_package(target: Path) -> ModelPackage:
    """Write the whole package."""
    with PackageWriter(target) as writer:
        add_dit(writer)
        add_rest(writer)
        return writer.finish(manifest_fields())


def change_manifest(package: Path, change: Callable[[dict[str, Any]], None], *, resign: bool = True) -> None:
    """Change a package's manifest; `resign` gives it the digest that belongs to the new content."""
    path = package / "manifest.json"
    fields = json.loads(path.read_bytes())
    change(fields)
    if resign:
        fields["digest"] = digest_of(fields)
    path.write_text(json.dumps(fields))


def replace_file(package: Path, name: str, content: bytes) -> None:
    """Replace a file and list it anew, as somebody would who makes a bad package on purpose."""
    (package / name).write_bytes(content)
    listing = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(package, lambda fields: fields["files"].update({name: listing}))


def copy_of(package: Path, target: Path) -> Path:
    """Copy a package to change it."""
    return shutil.copytree(package, target)
