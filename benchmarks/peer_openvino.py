# SPDX-License-Identifier: Apache-2.0
"""OpenVINO as a user would call it in ten lines: default precision, dynamic shapes, arrays in and out.

With `precision` and `static` it is also what a profile is taken from: the same library set as edgereels sets it.
"""

import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .peer_onnxruntime import shares
from .peer_shapes import CONVOLUTION, MATRIX, PEAK_RUNS, rate
from .replay import Replay
from .workload import SUBNETWORKS, subnetwork_of

PRECISIONS = ("f32", "bf16", "int8")


def _openvino() -> Any:
    """Import OpenVINO with its import-time telemetry off."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


class PlainOpenVino(Replay):
    """One compiled model a graph; with `static`, one a graph and set of shapes."""

    def __init__(
        self,
        *,
        package: str,
        workload: str,
        threads: int,
        files: Mapping[str, str] | None = None,
        precision: Mapping[str, str] | None = None,
        static: bool = False,
        profile: bool = False,
    ) -> None:
        """Open nothing yet.

        Args:
            package: folder with the graphs.
            workload: folder that `workload.record` wrote.
            threads: the one option that is set: everybody gets as many.
            files: graph to another file in that folder.
            precision: subnetwork to arithmetic precision; default: OpenVINO's own choice.
            static: compile for each set of shapes.
            profile: count time per operator.
        """
        super().__init__(workload=workload, threads=threads)
        self._package = Path(package)
        self._files = files or {}
        self._precision = precision or {}
        self._static = static
        self._profile = profile
        self._requests: dict[tuple[str, str], Any] = {}
        self._core = _openvino().Core()
        self._spent: dict[str, dict[str, float]] = {}

    def call(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run one graph."""
        key = (graph, str([value.shape for value in feeds.values()]) if self._static else "")
        if key not in self._requests:
            self._requests[key] = self._open(graph, feeds)
        request = self._requests[key]
        results = request.infer(dict(feeds))
        if self._profile:
            self._count(graph, request)
        return {output.get_any_name(): value for output, value in results.items()}

    def _open(self, graph: str, feeds: Mapping[str, Any]) -> Any:
        model = self._core.read_model(self._package / self._files.get(graph, f"{graph}.onnx"))
        if self._static:
            model.reshape({name: list(value.shape) for name, value in feeds.items()})
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": self.threads}
        if subnetwork_of(graph) in self._precision:
            options["INFERENCE_PRECISION_HINT"] = self._precision[subnetwork_of(graph)]
        if self._profile:
            options["PERF_COUNT"] = True
        return self._core.compile_model(model, "CPU", options).create_infer_request()

    def _count(self, graph: str, request: Any) -> None:
        into = self._spent.setdefault(subnetwork_of(graph), {})
        for node in request.profiling_info:
            kind = f"{node.node_type} {node.exec_type}"
            into[kind] = into.get(kind, 0.0) + node.real_time.total_seconds()

    def profile(self) -> dict[str, dict[str, float]]:
        """Return subnetwork to operator (type and kernel) to its share of the time inside kernels."""
        for name in SUBNETWORKS:
            self.replay(name)  # compiles
        self._spent = {}
        for name in SUBNETWORKS:
            self.replay(name)
        return {name: shares(kinds) for name, kinds in self._spent.items()}

    def versions(self) -> dict[str, str]:
        """Return the library's version."""
        return {"openvino": _openvino().__version__}

    def peak(self) -> dict[str, float]:
        """Return billions of operations a second of a large product and a large convolution, by precision."""
        kinds = [(kind, precision) for kind in ("matmul", "conv3d") for precision in PRECISIONS]
        found: dict[str, float] = {}
        for kind, precision in kinds:
            try:
                found[f"openvino {precision} {kind}"] = self._peak(kind, precision)
            except RuntimeError:  # a capped instruction set has no bf16: then it has no peak there
                continue
        return found

    def _peak(self, kind: str, precision: str) -> float:
        import numpy as np

        openvino = _openvino()
        made = _peak_model(openvino, kind, is_int8=precision == "int8")
        hint = "f32" if precision == "int8" else precision
        options = {"INFERENCE_NUM_THREADS": self.threads, "INFERENCE_PRECISION_HINT": hint}
        request = self._core.compile_model(made, "CPU", options).create_infer_request()
        feeds = np.ones(list(made.input(0).shape), np.float32)
        times: list[float] = []
        for _ in range(PEAK_RUNS):
            start_s = time.perf_counter()
            request.infer([feeds], share_inputs=True, share_outputs=True)
            times.append(time.perf_counter() - start_s)
        return rate(kind, statistics.median(times[1:]))


def _peak_model(openvino: Any, kind: str, *, is_int8: bool) -> Any:
    """Return one operator as a model; for int8 with both sides on 8-bit grids, as quantized packages are."""
    import numpy as np

    ops = openvino.opset13
    shapes = (MATRIX, MATRIX) if kind == "matmul" else CONVOLUTION
    source = ops.parameter(list(shapes[0]), np.float32)
    generator = np.random.default_rng(0)
    if is_int8:
        ranges = [np.float32(value) for value in (0.0, 2.55, 0.0, 2.55)]
        data = ops.fake_quantize(source, *ranges, 256)
        grid = ops.convert(ops.constant(generator.integers(-127, 128, shapes[1]).astype(np.int8)), "f32")
        weights = ops.multiply(grid, ops.constant(np.float32(0.01)))
    else:
        data = source
        weights = ops.constant(generator.standard_normal(shapes[1]).astype(np.float32))
    ones = [1, 1, 1]
    made = (
        ops.matmul(data, weights, False, False)
        if kind == "matmul"
        else ops.convolution(data, weights, ones, ones, ones, ones)
    )
    return openvino.Model([made], [source], "peak")
