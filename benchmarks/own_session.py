# SPDX-License-Identifier: Apache-2.0
"""edgereels on the same work: a session that renders the clip, its time by stage read from its own trace."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime import AvatarSession, ModelPackage, Trace, open_engine
from .replay import memory_mb
from .workload import SUBNETWORKS, read_workload

STAGES = {
    "audio_encoder": "audio_encode",
    "vae_encoder": "vae_encode",
    "dit": "dit",
    "vae_decoder": "vae_decode",
    "finish": "finish",
}
"""Subnetwork to the trace's name for its runs."""


class OwnSession:
    """An open session that renders the same clip again and again."""

    def __init__(
        self,
        *,
        package: str,
        audio: str,
        threads: int,
        device: str = "cpu",
        compute: str = "auto",
        verify: str = "full",
    ) -> None:
        """Open the package.

        Args:
            package: its folder, or "default".
            audio: a .npy file of mono samples at 16 kHz.
            threads: all engines together.
            device: as on the command line.
            compute: as on the command line.
            verify: as `AvatarSession.open`.
        """
        self._audio: npt.NDArray[np.float32] = np.load(audio)
        start_s = time.perf_counter()
        self._session = AvatarSession.open(package, device=device, threads=threads, compute=compute, verify=verify)
        self._opened_s = time.perf_counter() - start_s

    def run(self, frames: str = "") -> dict[str, Any]:
        """Render once.

        Args:
            frames: .npy file for the frames; empty: they are dropped.

        Returns:
            Per second of video: `seconds` by subnetwork, `total` their sum, `whole` from the call to the last chunk,
            `outside` what of it no stage accounts for, `processor` the time that all threads together computed.
        """
        trace = Trace()
        chunks: list[npt.NDArray[np.uint8]] = []
        media_s = 0.0
        start_s, processor_s = time.perf_counter(), _processor_s()
        for chunk in self._session.stream(audio=self._audio, trace=trace, canvas=False):
            media_s = chunk.stop_s
            chunks.append(chunk.frames)
        wall_s, used_s = time.perf_counter() - start_s, _processor_s() - processor_s
        if frames:
            np.save(frames, np.concatenate(chunks))
        spent = {name: trace.total_s(stage) / media_s for name, stage in STAGES.items()}
        total = sum(spent.values())
        whole = wall_s / media_s
        return {
            "seconds": spent,
            "total": total,
            "whole": whole,
            "outside": whole - total,
            "processor": used_s / media_s,
        }

    def first_frame(self) -> dict[str, float]:
        """Return seconds from the session's opening to the first chunk; asked as the first job of a process."""
        start_s = time.perf_counter()
        stream = self._session.stream(audio=self._audio, canvas=False)
        first = next(iter(stream))
        waited_s = time.perf_counter() - start_s
        stream.close()  # type: ignore[attr-defined]  # a generator
        return {
            "open_s": self._opened_s,
            "first_chunk_s": waited_s,
            "total_s": self._opened_s + waited_s,
            "frames": len(first.frames),
        }

    def got(self) -> dict[str, list[str]]:
        """Return graph to provider and precision, as read back from the engines."""
        return {graph: list(engine) for graph, engine in self._session.engines.items()}

    def memory(self) -> dict[str, float]:
        """Return resident memory now and at its peak, MB."""
        return memory_mb()

    def busy_threads(self, seconds: float = 3.0) -> dict[str, float]:
        """Return how many threads computed at once while rendering for some seconds, as the system counts them.

        `mean` is processor time over wall time; `above` the number of threads that were busy more than a tenth of it.
        """
        before = _thread_times_s()
        start_s, processor_s = time.perf_counter(), _processor_s()
        while time.perf_counter() - start_s < seconds:
            self.run()
        wall_s = time.perf_counter() - start_s
        busy = {thread: spent - before.get(thread, 0.0) for thread, spent in _thread_times_s().items()}
        return {
            "wall_s": wall_s,
            "mean": (_processor_s() - processor_s) / wall_s,
            "above": sum(1 for spent in busy.values() if spent > 0.1 * wall_s),
            "threads": len(busy),
        }


class DitParts:
    """The fused DiT against prologue, blocks and epilogue, on edgereels' engines with shapes frozen."""

    def __init__(self, *, package: str, workload: str, threads: int, device: str, compute: str) -> None:
        opened = ModelPackage.open(package, verify="size")
        blocks = sorted(name for name in opened.manifest.graphs if name.startswith("dit_block"))
        self._order = ("dit_prologue", *blocks, "dit_epilogue")
        library = "openvino" if device.startswith("openvino") else "onnxruntime"
        self._engines = {
            name: open_engine(opened.graph_path(name, library), device=device, threads=threads, compute=compute)
            for name in ("dit", *self._order)
        }
        self._calls = read_workload(Path(workload)).calls["dit"]
        self._freeze()

    def _freeze(self) -> None:
        """Tell every engine the shapes that will come, which the first call's values show."""
        self._engines["dit"].freeze([_shapes(self._calls[0].feeds, self._engines["dit"].input_names)])
        values: dict[str, Any] = dict(self._calls[0].feeds)
        for name in self._order:
            engine = self._engines[name]
            engine.freeze([_shapes(values, engine.input_names)])
            values |= self._step(name, values, keep=())

    def _step(self, name: str, values: dict[str, Any], *, keep: Sequence[str]) -> dict[str, Any]:
        engine = self._engines[name]
        results = engine.run({given: values[given] for given in engine.input_names}, keep=keep)
        return {"tokens" if made == "tokens_out" else made: value for made, value in results.items()}

    def run(self) -> dict[str, float]:
        """Return seconds of all calls: fused, and in parts whose values stay where the engine keeps them."""
        start_s = time.perf_counter()
        for call in self._calls:
            self._engines["dit"].run(call.feeds)
        fused_s = time.perf_counter() - start_s
        start_s = time.perf_counter()
        for call in self._calls:
            values: dict[str, Any] = dict(call.feeds)
            for name in self._order:
                keep = () if name == "dit_epilogue" else self._engines[name].output_names
                values |= self._step(name, values, keep=keep)
        return {"fused": fused_s, "split": time.perf_counter() - start_s}


def _shapes(values: dict[str, Any] | Any, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values[name].shape) for name in names}


def _processor_s() -> float:
    """Return the processor time of this process, all threads, seconds."""
    return time.process_time()


def _thread_times_s() -> dict[str, float]:
    """Return thread id to its processor time so far, seconds; empty where the system doesn't tell."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.0
    found: dict[str, float] = {}
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.is_dir() else ():
        fields = (task / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        found[task.name] = (int(fields[11]) + int(fields[12])) * tick_s
    return found


assert set(STAGES) == set(SUBNETWORKS)
