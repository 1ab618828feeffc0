# SPDX-License-Identifier: Apache-2.0
"""Opening an engine: what is asked for is what is got, or an error."""

import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from edgereels.runtime import engine_onnxruntime_library as onnxruntime_library
from edgereels.runtime.engine import (
    Device,
    Engine,
    bounded_threads,
    end_runs,
    endable,
    open_engine,
    parse_device,
    usable_cores,
)
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


@pytest.mark.parametrize(
    ("said", "heard"), [("", "RuntimeError"), ("no luck\nat all", "no luck")], ids=["nothing", "lines"]
)
def test_a_run_that_fails_is_one_line_whatever_the_library_says(
    said: str, heard: str, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError(said)

    engine = open_engine(doubling)
    monkeypatch.setattr(engine, "_session", Failing())
    with pytest.raises(EngineError, match=f"{heard}$"):
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


@pytest.mark.parametrize(("cards", "asked"), [(0, "cuda:0"), (1, "cuda:1")])
def test_a_card_that_the_driver_does_not_find_is_an_error(
    cards: int, asked: str, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime_library, "_card_count", lambda: cards)
    with pytest.raises(EngineError, match=f"{asked} was asked for; NVIDIA's driver finds {cards} cards"):
        open_engine(doubling, device=asked)


@pytest.mark.parametrize("compute", ["bf16", "f16"])
def test_a_precision_that_is_not_to_be_had_is_an_error(doubling: Path, compute: str) -> None:
    with pytest.raises(EngineError, match="f32"):
        open_engine(doubling, compute=compute)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device("cpu", "")),
        ("cuda:1", Device("cuda", "1")),
        ("openvino:GPU", Device("openvino", "GPU")),
        ("onnxruntime:CPU", Device("onnxruntime", "CPU")),
    ],
)
def test_devices_are_read(text: str, device: Device) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize(("cards", "kind"), [(0, "cpu"), (1, "cuda")])
def test_auto_takes_a_card_only_where_there_is_one(cards: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime built for CUDA says that it offers CUDA on machines without a card, too."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime_library, "_card_count", lambda: cards)
    assert parse_device("auto").kind == kind


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "cuda:²", "openvino", "cpu:1", ""])
def test_devices_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected cpu, onnxruntime:CPU, cuda:N"):
        parse_device(text)


def test_threads_bound_the_work_of_all_graphs_together(doubling: Path) -> None:
    """Eight graphs at threads=1, run in turn, take no more processor time than wall time; idle ones must not spin."""
    engines = [open_engine(doubling, threads=1) for _ in range(8)]
    big = {"x": np.ones(1 << 22, np.float32)}
    for engine in engines:
        engine.run(big)
    wall_s, processor_s = time.perf_counter(), time.process_time()
    for engine in engines * 5:
        engine.run(big)
    wall_s, processor_s = time.perf_counter() - wall_s, time.process_time() - processor_s
    assert processor_s < 1.2 * wall_s


def test_no_more_threads_are_made_than_there_are_cores(doubling: Path) -> None:
    """A hundred thousand threads for each graph would end the process."""
    assert bounded_threads(100_000) == usable_cores()
    assert bounded_threads(1) == 1
    before = threading.active_count()
    open_engine(doubling, threads=100_000).run({"x": np.ones(3, np.float32)})
    assert threading.active_count() == before


def test_the_host_program_keeps_its_own_sessions(doubling: Path) -> None:
    """Opening ours leaves ONNX Runtime's process-wide settings alone: a session with its own threads still opens."""
    import onnxruntime

    open_engine(doubling, threads=2)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 3
    onnxruntime.InferenceSession(str(doubling), options, providers=["CPUExecutionProvider"])


ENDLESS = """
<ir_version: 10, opset_import: ["" : 23]>
endless (float[n] x) => (float[n] y)
<int64 turns = {1000000000}, bool go = {1}>
{
  y = Loop<body = turn (int64 i, bool before, float[n] a) => (bool after, float[n] b) {
    after = Identity(before)
    b = Cos(a)
  }>(turns, go, x)
}
"""


def test_a_graph_that_would_run_for_hours_can_be_ended(tmp_path: Path) -> None:
    """By another thread: the interpreter lock is free while a graph runs, or the timer would never be heard."""
    onnx.save(onnx.parser.parse_model(ENDLESS), tmp_path / "g.onnx")
    engine = open_engine(tmp_path / "g.onnx", threads=1)
    timer = threading.Timer(0.3, end_runs)
    timer.start()
    began_s = time.monotonic()
    with pytest.raises(EngineError, match="terminate"):
        engine.run({"x": np.ones(8, np.float32)})
    assert time.monotonic() - began_s < 30
    timer.join()


def test_only_the_runs_of_one_thread_can_be_ended() -> None:
    ended, others = threading.Event(), threading.Event()
    with endable(ended.set):
        is_waiting, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            with endable(others.set):
                is_waiting.set()
                go_on.wait(10)

        thread = threading.Thread(target=wait)
        thread.start()
        is_waiting.wait(10)
        end_runs(of_thread=thread.ident)
        assert others.is_set() and not ended.is_set()
        end_runs()
        assert ended.is_set()
        go_on.set()
        thread.join()


def test_one_graph_runs_at_a_time_whoever_asks(doubling: Path) -> None:
    """Two threads with an engine of one thread each take no more than one processor."""
    engines = [open_engine(doubling, threads=1) for _ in range(2)]
    big = {"x": np.ones(1 << 22, np.float32)}

    def work(engine: Engine) -> None:
        for _ in range(20):
            engine.run(big)

    workers = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    wall_s, processor_s = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall_s, processor_s = time.perf_counter() - wall_s, time.process_time() - processor_s
    assert processor_s < 1.2 * wall_s
