# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime as a user would call it in ten lines: default options, dynamic shapes, arrays in and out."""

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .peer_shapes import CONVOLUTION, MATRIX, PEAK_RUNS, rate
from .replay import Replay
from .workload import SUBNETWORKS, subnetwork_of


class PlainOnnxRuntime(Replay):
    """One `InferenceSession` a graph."""

    def __init__(self, *, package: str, workload: str, threads: int, profile_to: str = "") -> None:
        """Open nothing yet.

        Args:
            package: folder with the graphs.
            workload: folder that `workload.record` wrote.
            threads: `intra_op_num_threads`, the one option that is set: everybody gets as many.
            profile_to: folder for ONNX Runtime's own profiles; empty: none.
        """
        super().__init__(workload=workload, threads=threads)
        self._package = Path(package)
        self._profile_to = profile_to
        self._sessions: dict[str, Any] = {}

    def call(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run one graph."""
        session = self._sessions.get(graph) or self._open(graph)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    def _open(self, graph: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        if self._profile_to:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profile_to) / graph)
        self._sessions[graph] = onnxruntime.InferenceSession(
            str(self._package / f"{graph}.onnx"), options, providers=["CPUExecutionProvider"]
        )
        return self._sessions[graph]

    def versions(self) -> dict[str, str]:
        """Return the library's version."""
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__}

    def profile(self) -> dict[str, dict[str, float]]:
        """Return subnetwork to operator type to its share of the time inside kernels."""
        for name in SUBNETWORKS:
            self.replay(name)
        spent: dict[str, dict[str, float]] = {}
        for graph, session in self._sessions.items():
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            into = spent.setdefault(subnetwork_of(graph), {})
            for event in events:
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    kind = event["args"]["op_name"]
                    into[kind] = into.get(kind, 0.0) + event["dur"]
        return {name: shares(kinds) for name, kinds in spent.items()}

    def peak(self) -> dict[str, float]:
        """Return billions of floating-point operations a second of a large product and a large convolution."""
        return {f"onnxruntime f32 {kind}": _peak(kind, threads=self.threads) for kind in ("matmul", "conv3d")}


def shares(spent: Mapping[str, float]) -> dict[str, float]:
    """Return each entry's share of the sum, largest first."""
    whole = sum(spent.values()) or 1.0
    return {kind: value / whole for kind, value in sorted(spent.items(), key=lambda item: -item[1])}


def _peak(kind: str, *, threads: int) -> float:
    """Time one operator in a graph of its own."""
    import numpy as np
    import onnx
    import onnxruntime

    shapes = (MATRIX, MATRIX) if kind == "matmul" else CONVOLUTION
    node = (
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        if kind == "matmul"
        else onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6)
    )
    graph = onnx.helper.make_graph(
        [node],
        kind,
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shapes[0])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.ones(shapes[1], np.float32), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.onnx"
        onnx.save(model, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones(shapes[0], np.float32)}
    times: list[float] = []
    for _ in range(PEAK_RUNS):
        start_s = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start_s)
    return rate(kind, statistics.median(times[1:]))
