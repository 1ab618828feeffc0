# SPDX-License-Identifier: Apache-2.0
"""What an engine must do: run one graph on one device.

An engine is opened by `open_engine`, which imports the library behind it at that moment and not before. What was
asked for and what was got are never allowed to differ silently: where a device or a precision can't be had, opening
raises `EngineError`.
"""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from .errors import EngineError

Array = npt.NDArray[Any]

COMPUTE_CHOICES = ("auto", "f32", "bf16", "f16")


class Engine(Protocol):
    """One graph, ready to run. `run` may be called from any thread and lets go of the interpreter lock."""

    @property
    def provider(self) -> str:
        """What runs the graph, as the library names it: "CPUExecutionProvider"."""
        ...

    @property
    def precision(self) -> str:
        """Arithmetic precision in use: "f32", "bf16" or "f16"."""
        ...

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that `run` expects, in the graph's order."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names that `run` returns, in the graph's order."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once. `feeds` are read only; the returned arrays belong to the caller."""
        ...

    def close(self) -> None:
        """Free the graph. Running afterwards is an error; closing twice is not."""
        ...


@dataclass(frozen=True)
class Device:
    """A device as it is asked for on a command line."""

    kind: str
    """"cpu", "cuda" or "openvino"."""
    name: str
    """Which of them: "" for the CPU, "0" for the first card, "GPU" for OpenVINO."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


def parse_device(text: str) -> Device:
    """Read `cpu`, `cuda:N`, `openvino:NAME` or `auto`.

    Raises:
        ValueError: anything else.
    """
    kind, _, name = text.partition(":")
    if text == "auto":
        from .engine_onnxruntime import cuda_is_offered

        return Device("cuda", "0") if cuda_is_offered() else Device("cpu", "")
    if kind == "cpu" and not name:
        return Device("cpu", "")
    if kind == "cuda" and (name or "0").isdigit():
        return Device("cuda", name or "0")
    if kind == "openvino" and name in ("CPU", "GPU", "NPU"):
        return Device("openvino", name)
    raise ValueError(
        f"device {text!r} is unknown; expected cpu, cuda:N, openvino:CPU, openvino:GPU, openvino:NPU or auto"
    )


def usable_cores() -> int:
    """Return how many cores this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # absent on Windows and macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def bounded_threads(asked: int | None) -> int:
    """Return how many threads to use: as many as asked for, but no more than there are cores for them."""
    return min(asked or usable_cores(), usable_cores())


_ends_of_runs: list[Callable[[], None]] = []


@contextmanager
def endable(end: Callable[[], None]) -> Generator[None]:
    """Let `end_runs` end the body, a run inside a native library, by calling `end` from another thread."""
    _ends_of_runs.append(end)
    try:
        yield
    finally:
        _ends_of_runs.remove(end)


def end_runs() -> None:
    """End every run in progress, on whatever thread it is; it raises `EngineError` there."""
    for end in _ends_of_runs.copy():
        end()


def open_engine(graph: Path, *, device: str = "cpu", threads: int | None = None, compute: str = "auto") -> Engine:
    """Open one graph file on a device.

    Args:
        graph: the .onnx file; its weights lie beside it.
        device: see `parse_device`.
        threads: at most this many for all engines of the process together, and at most the cores this process may use,
            which are the default.
        compute: arithmetic precision, one of `COMPUTE_CHOICES`; "auto" takes what the device does best.

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
    if asked.kind == "openvino":
        raise EngineError(
            f"device {device!r} was asked for; this version has the ONNX Runtime engines only: use cpu or cuda:N"
        )
    from .engine_onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, device=asked, threads=bounded_threads(threads), compute=compute)
