# SPDX-License-Identifier: Apache-2.0
"""Why export does not run onnxsim: what it removes, the engine removes by itself, and results stay the same."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgereels.runtime.golden import load_golden

onnxsim = pytest.importorskip("onnxsim")
pytestmark = [pytest.mark.golden, pytest.mark.slow]


def optimised_nodes(model: onnx.ModelProto, folder: Path) -> int:
    """Return how many nodes are left when ONNX Runtime has optimised a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return len(onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node)


@pytest.mark.parametrize("graph", ["vae_decoder_next", "dit"])
def test_onnxsim_leaves_the_engine_nothing_less_to_do(graph: str, tiny_package: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_package / f"{graph}.onnx")
    simplified, is_same = onnxsim.simplify(model)
    assert is_same
    assert len(simplified.graph.node) <= len(model.graph.node)
    vectors = load_golden(tiny_package / "golden" / f"{graph}.safetensors")
    session = onnxruntime.InferenceSession(simplified.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = session.run(list(vectors.outputs), dict(vectors.inputs))
    for value, theirs in zip(ours, vectors.outputs.values(), strict=True):
        np.testing.assert_allclose(value, theirs, atol=1e-4 * np.abs(theirs).max())
    ratio = optimised_nodes(simplified, tmp_path) / optimised_nodes(model, tmp_path)
    assert 0.95 < ratio < 1.05  # measured: 0 to 4 % apart
