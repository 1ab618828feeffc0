# SPDX-License-Identifier: Apache-2.0
"""A folder in which changed graphs of a package lie beside its weights, so that engines can open them.

Weights are copied, once each. Engines refuse links out of a folder, and a hard link would give the package's own files
a second name, for which everybody who opens the package meanwhile refuses it.
"""

import hashlib
from pathlib import Path

import onnx
from onnx import TensorProto

from ..runtime.model_package import ModelPackage
from .stored_weights import copied


class Workbench:
    """Takes graphs of one package."""

    def __init__(self, package: ModelPackage, root: Path) -> None:
        """Begin in a folder that is made unless it is there."""
        self._package = package
        self._root = root
        (root / "weights").mkdir(parents=True, exist_ok=True)

    def write(self, name: str, model: onnx.ModelProto) -> Path:
        """Write a graph, beside it the weights that it refers to, and return its path; one of that name is replaced."""
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                location = next(entry.value for entry in tensor.external_data if entry.key == "location")
                if not (self._root / location).exists():
                    copied(self._package.root / location, self._root / location)
        path = self._root / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def add_weights(self, content: bytes) -> str:
        """Write a file of weights and return its location, as graphs refer to it; the same content lies there once."""
        location = f"weights/{hashlib.sha256(content).hexdigest()}.bin"
        if not (self._root / location).exists():
            (self._root / location).write_bytes(content)
        return location
