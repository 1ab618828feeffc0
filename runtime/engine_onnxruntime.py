# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on CPUs and on CUDA."""

import ctypes
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .engine import Device, Shapes, Value, endable, one_graph_at_a_time
from .errors import EngineError, MissingExtraError


def _import_onnxruntime(extra: str) -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra=extra, purpose="running a package on this machine") from error
    return onnxruntime


def cuda_is_offered() -> bool:
    """Tell whether the installed ONNX Runtime was built for CUDA, and there is a card."""
    return "CUDAExecutionProvider" in _import_onnxruntime("cpu").get_available_providers() and _card_count() > 0


def _card_count() -> int:
    """Return how many cards NVIDIA's driver finds; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    is_well = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if is_well else 0


class OnnxRuntimeEngine:
    """One graph in one `InferenceSession`."""

    def __init__(self, graph: Path, *, device: Device, threads: int, compute: str) -> None:
        onnxruntime = _import_onnxruntime("cuda" if device.kind == "cuda" else "cpu")
        if compute not in ("auto", "f32"):
            raise EngineError(
                f"{compute} arithmetic was asked for; ONNX Runtime computes this package in f32: "
                "use --compute f32 or auto"
            )
        self._new_run_options: Callable[[], Any] = onnxruntime.RunOptions
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors come back as exceptions; warnings would be printed over progress
        # Graphs run one after the other, so `threads` bounds them all together. Idle threads must sleep for that: eight
        # sessions whose threads spin while another works ran 3.3 times slower, with sleeping ones 1.1 times. ONNX
        # Runtime's one pool for the whole process is no choice for a library: once it exists, every session that the
        # host program opens in its own way fails ("use_per_session_threads must be false").
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted, provider_options = _provider(onnxruntime, device)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(graph), sess_options=options, providers=[(wanted, provider_options)]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no root of their own
            raise EngineError(f"ONNX Runtime refuses {graph.name}: {_first_line(error)}") from error
        got = self._session.get_providers()[0]
        if got != wanted:
            raise EngineError(
                f"{wanted} was asked for {graph.name}, ONNX Runtime gave {got}: "
                "use --device cpu, or install edgereels[cuda]"
            )
        self._provider = got
        self._inputs = tuple(value.name for value in self._session.get_inputs())
        self._outputs = tuple(value.name for value in self._session.get_outputs())

    @property
    def library(self) -> str:
        """Always "onnxruntime"."""
        return "onnxruntime"

    @property
    def node_counts(self) -> Mapping[str, int]:
        """Nothing yet."""
        return {}

    @property
    def provider(self) -> str:
        """Execution provider that runs the graph."""
        return self._provider

    @property
    def precision(self) -> str:
        """Always "f32": fp16 weights are cast when the session is made."""
        return "f32"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return self._inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return self._outputs

    def freeze(self, shapes: Sequence[Shapes]) -> None:
        """Do nothing: shapes cost ONNX Runtime little on a CPU."""

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        """Run the graph once.

        Raises:
            EngineError: the engine is closed, or ONNX Runtime refuses the feeds.
        """
        if self._session is None:
            raise EngineError("the engine is closed; open the session again")
        try:
            wanted = {name: feeds[name] for name in self._inputs}
        except KeyError as error:
            raise EngineError(f"the graph's input {error} was not given; got {', '.join(feeds)}") from error
        options = self._new_run_options()
        try:
            with one_graph_at_a_time, endable(lambda: setattr(options, "terminate", True)):
                values = self._session.run(list(self._outputs), wanted, options)
        except Exception as error:  # as above: no common root
            raise EngineError(f"ONNX Runtime failed while running: {_first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _provider(onnxruntime: ModuleType, device: Device) -> tuple[str, dict[str, str]]:
    """Return the provider and its options for a device, or raise where this build lacks it."""
    if device.kind != "cuda":
        return "CPUExecutionProvider", {}
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise EngineError(
            f"device {device} was asked for; ONNX Runtime offers {', '.join(onnxruntime.get_available_providers())}: "
            "pip uninstall onnxruntime && pip install 'edgereels[cuda]', or use --device cpu"
        )
    onnxruntime.preload_dlls()
    return "CUDAExecutionProvider", {"device_id": device.name, "arena_extend_strategy": "kSameAsRequested"}
