# SPDX-License-Identifier: Apache-2.0
"""The way round OpenVINO's group normalisation: the same values, and alive where the kernel dies."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgereels.runtime import engine_openvino_norms
from edgereels.runtime.engine_openvino_library import compile_graph, core
from edgereels.runtime.engine_openvino_norms import is_needed, spell_out
from edgereels.runtime.machine import processor_facts

pytest.importorskip("openvino")

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
AUDIO_ENCODER = Path(engine_openvino_norms.__file__).parent / "embedded" / "default.edgereels" / "audio_encoder.onnx"
COMPILES = """
import sys
from pathlib import Path
import numpy as np
from edgereels.runtime.engine_openvino_library import compile_graph
from edgereels.runtime.engine_openvino_norms import spell_out
compiled = compile_graph(
    Path(sys.argv[1]), shapes={"waveform": (1, 128000), "positions": (200,)}, target="CPU",
    properties={"INFERENCE_PRECISION_HINT": "f32"}, change=spell_out if sys.argv[2] == "spelt" else None,
)
compiled({"waveform": np.zeros((1, 128000), np.float32), "positions": np.arange(200, dtype=np.float32)})
print("alive")
"""


def write(path: Path, shape: list[int | str], *, groups: int, channels: int) -> Path:
    generator = np.random.default_rng(0)
    scale, shift = (numpy_helper.from_array(generator.normal(size=channels).astype(np.float32), one) for one in "sb")
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=groups, epsilon=1e-5)
    either = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([node], "g", [next(either)], [next(either)], [scale, shift])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("shape", "given", "groups"),
    [([1, 8, "n"], (1, 8, 399), 8), ([2, 8, 50], (2, 8, 50), 2), (["n", 8, "h", 6], (3, 8, 4, 6), 4)],
)
def test_the_values_are_the_same(tmp_path: Path, shape: list[int | str], given: tuple[int, ...], groups: int) -> None:
    graph = write(tmp_path / "g.onnx", shape, groups=groups, channels=8)
    values = (5 + np.random.default_rng(1).normal(size=given)).astype(np.float32)
    plain, spelt = (
        compile_graph(graph, shapes=None, target="CPU", properties=F32, change=change)({"x": values})["y"]
        for change in (None, spell_out)
    )
    np.testing.assert_allclose(spelt, plain, atol=5e-6 * np.abs(plain).max())


def test_none_is_left(tmp_path: Path) -> None:
    model = core().read_model(write(tmp_path / "g.onnx", [1, 8, "n"], groups=8, channels=8))
    assert spell_out(model) == 1
    assert "GroupNormalization" not in {node.get_type_name() for node in model.get_ops()} and spell_out(model) == 0


@pytest.mark.parametrize(
    ("abilities", "cap", "target", "needed"),
    [
        ({"avx2": True, "avx512f": False}, None, "CPU", True),
        ({"avx2": True, "avx512f": True}, "AVX2", "CPU", True),
        ({"avx2": True, "avx512f": True}, None, "CPU", False),
        ({"avx2": True, "avx512f": True}, "AVX512_CORE", "CPU", False),
        ({"avx2": True, "avx512f": False}, None, "GPU", False),
        ({"asimd": True}, None, "CPU", False),
    ],
)
def test_it_is_needed_with_avx2_alone(
    monkeypatch: pytest.MonkeyPatch, abilities: dict[str, bool], cap: str | None, target: str, *, needed: bool
) -> None:
    facts = replace(processor_facts(), abilities=abilities, isa_cap=cap)
    for module in ("engine_openvino_norms", "engine_openvino_library"):
        monkeypatch.setattr(f"edgereels.runtime.{module}.processor_facts", lambda: facts)
    assert is_needed(target) is needed


@pytest.mark.slow
@pytest.mark.skipif(not processor_facts().abilities.get("avx2"), reason="the fault is one of AVX2 kernels")
@pytest.mark.parametrize("way", ["spelt", "plain"])
def test_the_audio_encoder_survives_only_spelt_out(way: str) -> None:
    """Once the plain one survives, OpenVINO has mended its kernel, and the way round can go."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILES, str(AUDIO_ENCODER), way],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ("alive" in done.stdout, done.returncode < 0) == ((True, False) if way == "spelt" else (False, True))
