# SPDX-License-Identifier: Apache-2.0
"""Interleaved rounds: every contender once a round, in a new order, each in a process of its own.

A machine that slows down half-way then slows everybody, and a ratio pairs two runs of one round. A process of its own
keeps one contender's thread pools, allocator and environment from the others, and makes its peak memory its own.
"""

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Caps oneDNN, which OpenVINO and PyTorch compute with; ONNX Runtime has kernels of its own and ignores it."""


class ContenderError(Exception):
    """A contender could not do its work; the text is its own."""


def figures(values: Sequence[float]) -> dict[str, float]:
    """Return count, median, minimum and maximum."""
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def paired(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Return how many times longer theirs took than ours, round by round, with count and spread."""
    return figures([their / our for their, our in zip(theirs, ours, strict=True)])


class Worker:
    """A contender in a child process: asked for one job at a time, it answers with one line of JSON."""

    def __init__(self, settings: Mapping[str, Any], *, environment: Mapping[str, str] | None = None) -> None:
        """Start the process.

        Args:
            settings: what `worker.contender` makes the contender from.
            environment: variables on top of this process's own.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", json.dumps(dict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            text=True,
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, job: str, *, timeout_s: float = 600.0, **arguments: Any) -> Any:
        """Let the contender do a job and return its answer.

        Raises:
            ContenderError: the job failed, the process ended, or it took longer than `timeout_s`; then it is killed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        killer = threading.Timer(timeout_s, self._process.kill)
        killer.start()
        try:
            self._process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            killer.cancel()
        if not line:
            raise ContenderError(f"{job} ended without an answer (exit code {self._process.wait()}, {timeout_s:g} s)")
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(f"{job}: {answer['error']}")
        return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # a process that is gone never took what was written last
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def interleave(
    contenders: Mapping[str, Callable[[], Any]], *, rounds: int, warm_up: int = 1, seed: int = 0
) -> dict[str, list[Any]]:
    """Run every contender once a round, in a new order each time; return what each returned, round by round.

    Args:
        contenders: name to what runs it once.
        rounds: how many count.
        warm_up: how many are thrown away before.
        seed: of the orders.
    """
    order = random.Random(seed)
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for index in range(-warm_up, rounds):
        for name in order.sample(sorted(contenders), len(contenders)):
            result = contenders[name]()
            if index >= 0:
                results[name].append(result)
        print(f"round {index + 1} of {rounds}" if index >= 0 else "warm-up", file=sys.stderr, flush=True)
    return results


def write_part(path: Path, content: Any) -> None:
    """Write JSON aside and then rename it: a part that exists is whole."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    aside.replace(path)


def read_part(path: Path) -> Any:
    """Return what `write_part` wrote, or None where nothing is."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
