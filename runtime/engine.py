# SPDX-License-Identifier: Apache-2.0
"""What an engine must do: run one graph on one device.

An engine is opened by `open_engine`, which imports the library behind it at that moment and not before. What was
asked for and what was got are never allowed to differ silently: where a device or a precision can't be had, opening
raises `EngineError`.
"""

import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from .engine_openvino_cache import OnEvent
from .machine import usable_cores

Array = npt.NDArray[Any]
Resident = Any
"""A value that stayed on an engine's device: fed back to engines of that device, never looked into."""
Value = Array | Resident
Shapes = Mapping[str, tuple[int, ...]]
"""Input name to its shape."""

COMPUTE_CHOICES = ("auto", "f32", "bf16", "f16")
DEVICE_CHOICES = "cpu, onnxruntime:CPU, cuda:N, openvino:CPU, openvino:GPU, openvino:NPU or auto"

one_graph_at_a_time = threading.Lock()
"""Held by every engine while it runs a graph on the CPU: each has as many threads as all may use together."""


class Engine(Protocol):
    """One graph, ready to run. `run` may be called from any thread and lets go of the interpreter lock."""

    @property
    def library(self) -> str:
        """What runs the graph: "onnxruntime" or "openvino"."""
        ...

    @property
    def provider(self) -> str:
        """The part of the library that runs it, as it names it: "CPUExecutionProvider", "OpenVINO GPU"."""
        ...

    @property
    def precision(self) -> str:
        """Arithmetic precision in use, read back from the library: "f32", "bf16" or "f16"."""
        ...

    @property
    def node_counts(self) -> Mapping[str, int]:
        """Provider to how many operators it runs, after optimisation; empty where the library doesn't tell."""
        ...

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that `run` expects, in the graph's order."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names that `run` returns, in the graph's order."""
        ...

    def freeze(self, shapes: Sequence[Shapes]) -> None:
        """Make ready for inputs of these shapes, the only ones expected; others still run, more slowly.

        Raises:
            EngineError: the graph can't be had at these shapes.
        """
        ...

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        """Run the graph once.

        Args:
            feeds: by input name; read only.
            keep: outputs that may stay on the device, to be fed back to engines there.

        Returns:
            Every output by name: what is not in `keep` as an array that belongs to the caller.

        Raises:
            EngineError: the library refuses or fails.
        """
        ...

    def close(self) -> None:
        """Free the graph. Running afterwards is an error; closing twice is not."""
        ...


@runtime_checkable
class Holding(Protocol):
    """An engine whose device is worth being given once what several runs need."""

    def hold(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Return the same inputs as values on the device, good until the next call."""
        ...


def held(engine: Engine, feeds: Mapping[str, Value]) -> Mapping[str, Value]:
    """Return inputs as an engine reads them fastest, run after run: on its device, or as they are."""
    return engine.hold(feeds) if isinstance(engine, Holding) else feeds


@dataclass(frozen=True)
class Device:
    """A device as it is asked for on a command line."""

    kind: str
    """"cpu" (whichever library is best there), "onnxruntime", "cuda" or "openvino"."""
    name: str
    """Which of them: "" for the CPU, "0" for the first card, "GPU" for OpenVINO."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


def parse_device(text: str) -> Device:
    """Read one of `DEVICE_CHOICES`.

    Raises:
        ValueError: anything else.
    """
    kind, _, name = text.partition(":")
    if text == "auto":
        return _best_device()
    if kind == "cpu" and not name:
        return Device("cpu", "")
    if kind == "cuda" and (name or "0").isdecimal():
        return Device("cuda", name or "0")
    if kind == "openvino" and name in ("CPU", "GPU", "NPU"):
        return Device("openvino", name)
    if text == "onnxruntime:CPU":
        return Device("onnxruntime", "CPU")
    raise ValueError(f"device {text!r} is unknown; expected {DEVICE_CHOICES}")


def _best_device() -> Device:
    """Return the first card, else Intel's GPU, else the CPU."""
    if find_spec("onnxruntime"):
        from .engine_onnxruntime import cuda_is_offered

        if cuda_is_offered():
            return Device("cuda", "0")
    if find_spec("openvino"):
        from .engine_openvino import available_devices

        if any(name.startswith("GPU") for name in available_devices()):
            return Device("openvino", "GPU")
    return Device("cpu", "")


def library_of(device: Device, *, siblings: bool) -> str:
    """Return the library that runs graphs on a device: "onnxruntime" or "openvino".

    On plain "cpu" it is OpenVINO for a package that was quantized for it, where it is installed, and ONNX Runtime for
    any other: there the results are those of the package's golden vectors, float32.

    Args:
        device: where.
        siblings: whether the package holds graphs made for OpenVINO.
    """
    if device.kind != "cpu":
        return "openvino" if device.kind == "openvino" else "onnxruntime"
    has_openvino, has_onnxruntime = (find_spec(module) is not None for module in ("openvino", "onnxruntime"))
    return "openvino" if has_openvino and (siblings or not has_onnxruntime) else "onnxruntime"


def bounded_threads(asked: int | None) -> int:
    """Return how many threads to use: as many as asked for, but no more than there are cores for them."""
    return min(asked or usable_cores(), usable_cores())


_ends_of_runs: list[tuple[int, Callable[[], None]]] = []  # of whose thread, and how


@contextmanager
def endable(end: Callable[[], None]) -> Generator[None]:
    """Let `end_runs` end the body, a run inside a native library, by calling `end` from another thread."""
    own = (threading.get_ident(), end)
    _ends_of_runs.append(own)
    try:
        yield
    finally:
        _ends_of_runs.remove(own)


def end_runs(*, of_thread: int | None = None) -> None:
    """End every run in progress, or those that one thread waits for; it raises `EngineError` there.

    Args:
        of_thread: its `threading.get_ident()`.
    """
    for thread, end in _ends_of_runs.copy():
        if of_thread in (None, thread):
            end()


def require_device(device: str, *, siblings: bool = False) -> None:
    """Import the library behind a device, and ask it for the device; nothing is opened.

    Args:
        device: one of `DEVICE_CHOICES`.
        siblings: see `library_of`.

    Raises:
        EngineError: the device can't be had, or the library is broken.
        MissingExtraError: the library is not installed.
        ValueError: a device that does not exist.
    """
    asked = parse_device(device)
    if library_of(asked, siblings=siblings) == "openvino":
        from .engine_openvino_library import target_of

        target_of(asked)
    else:
        from .engine_onnxruntime import require_device as require_provider

        require_provider(asked)


def open_engine(
    graph: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    compute: str = "auto",
    siblings: bool = False,
    on_event: OnEvent | None = None,
) -> Engine:
    """Open one graph file on a device.

    Args:
        graph: the .onnx file; its weights lie beside it.
        device: one of `DEVICE_CHOICES`.
        threads: at most this many for all engines of the process together, and at most the cores this process may use,
            which are the default.
        compute: arithmetic precision, one of `COMPUTE_CHOICES`; "auto" takes what the device does best.
        siblings: see `library_of`.
        on_event: told of compilations, cache hits and repairs, by engines that have them.

    Raises:
        EngineError: the library, the device or the precision is not to be had, or the graph is refused.
        MissingExtraError: the library is not installed.
        ValueError: a device or precision that does not exist, or fewer than one thread.
    """
    if compute not in COMPUTE_CHOICES:
        raise ValueError(f"compute {compute!r} is unknown; expected one of {', '.join(COMPUTE_CHOICES)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; expected at least 1")
    asked = parse_device(device)
    if library_of(asked, siblings=siblings) == "openvino":
        from .engine_openvino import OpenVinoEngine

        return OpenVinoEngine(graph, device=asked, threads=bounded_threads(threads), compute=compute, on_event=on_event)
    from .engine_onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, device=asked, threads=bounded_threads(threads), compute=compute)
