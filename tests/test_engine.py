# SPDX-License-Identifier: Apache-2.0
"""Opening an engine: what is asked for is what is got, or an error."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgereels.runtime.engine import Device, open_engine, parse_device
from edgereels.runtime.errors import EngineError


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A graph that doubles its input."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([node], "doubling", [ends[0]], [ends[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_a_graph_runs_and_says_where(doubling: Path) -> None:
    engine = open_engine(doubling, device="cpu")
    assert engine.run({"x": np.ones(3, np.float32)})["y"].tolist() == [2, 2, 2]
    assert (engine.provider, engine.precision) == ("CPUExecutionProvider", "f32")


def test_a_closed_engine_does_not_run(doubling: Path) -> None:
    engine = open_engine(doubling)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"x": np.ones(3, np.float32)})


def test_a_missing_input_is_named(doubling: Path) -> None:
    with pytest.raises(EngineError, match="'x'"):
        open_engine(doubling).run({"z": np.ones(3, np.float32)})


def test_a_card_that_is_not_there_is_an_error_and_not_a_silent_cpu(doubling: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime was built for CUDA")
    with pytest.raises(EngineError, match="CPUExecutionProvider"):
        open_engine(doubling, device="cuda:0")


@pytest.mark.parametrize("compute", ["bf16", "f16"])
def test_a_precision_that_is_not_to_be_had_is_an_error(doubling: Path, compute: str) -> None:
    with pytest.raises(EngineError, match="f32"):
        open_engine(doubling, compute=compute)


def test_openvino_is_an_error_until_its_engine_is_here(doubling: Path) -> None:
    with pytest.raises(EngineError, match="ONNX Runtime"):
        open_engine(doubling, device="openvino:CPU")


@pytest.mark.parametrize(
    ("text", "device"),
    [("cpu", Device("cpu", "")), ("cuda:1", Device("cuda", "1")), ("openvino:GPU", Device("openvino", "GPU"))],
)
def test_devices_are_read(text: str, device: Device) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "openvino", "cpu:1", ""])
def test_devices_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected cpu, cuda:N"):
        parse_device(text)


def test_all_sessions_share_one_pool_of_threads(doubling: Path) -> None:
    """Three sessions at threads=3 add two threads once; a smaller number afterwards is refused, not ignored."""
    code = f"""
import os
from pathlib import Path
from edgereels.runtime.engine import open_engine
from edgereels.runtime.errors import EngineError
def count(): return len(os.listdir("/proc/self/task"))
import onnxruntime
before = count()
graph = Path({str(doubling)!r})
engines = [open_engine(graph, threads=3) for _ in range(3)]
print(count() - before)
try:
    open_engine(graph, threads=2)
except EngineError as error:
    print("refused", "another process" in str(error))
"""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads are counted in /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added, refused = done.stdout.splitlines()
    assert int(added) <= 2
    assert refused == "refused True"
