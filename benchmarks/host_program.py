# SPDX-License-Identifier: Apache-2.0
"""What a host program lives by: waiting for the first frame, resident memory, threads, and what has to be installed."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from .measurement import Run
from .recipe_packages import BEST, NONE, folder_of, root_folder
from .rounds import Worker, figures

MOST_FIRST_FRAME_S = 3.0
MOST_MEMORY_MB = 600.0
MOST_THREADS = 1.05
"""Processor time over wall time, as a multiple of `threads=`."""
MOST_INSTALLED_MB = 450

MEASURED = (
    (NONE, "onnxruntime:CPU", "ONNX Runtime"),
    (BEST, "onnxruntime:CPU", "ONNX Runtime"),
    (BEST, "openvino:CPU", "OpenVINO"),
)
"""Recipe, device, and what runs it; `--device cpu` is the first and the last of them where both are installed."""
STARTS = 5
EXTRAS = ("cpu,video", "openvino,video", "cpu,openvino,video")
SAMPLING_S = 0.004


def host(run: Run) -> dict[str, Any]:
    """Return "recipe, engine" to what a host program waits for and holds."""
    return {f"{recipe}, {engine}": _host_figures(run, recipe, device) for recipe, device, engine in MEASURED}


def _host_figures(run: Run, recipe: str, device: str) -> dict[str, Any]:
    starts = [_start(run, recipe, device) for _ in range(STARTS + 1)][1:]  # the first one fills caches
    return {
        "first_frame_s": figures([start["first"]["total_s"] for start in starts]),
        "open_s": figures([start["first"]["open_s"] for start in starts]),
        "from_process_start_s": figures([start["process_s"] for start in starts]),
        "peak_mb": figures([start["memory"]["peak"] for start in starts]),
        "after_mb": figures([start["memory"]["now"] for start in starts]),
        "engines": starts[0]["got"],
        "threads": {str(count): _threads(run, recipe, device, count) for count in (1, 2)},
    }


def _settings(run: Run, recipe: str, device: str, *, threads: int) -> dict[str, Any]:
    folder = folder_of(run, recipe)
    return {"kind": "edgereels", "package": folder, "audio": run.sound, "threads": threads, "device": device}


def _start(run: Run, recipe: str, device: str) -> dict[str, Any]:
    """Start a process, wait for the first frames, render the clip three times."""
    start_s = time.perf_counter()
    with Worker(_settings(run, recipe, device, threads=run.threads)) as worker:
        first = worker.ask("first_frame")
        process_s = time.perf_counter() - start_s
        for _ in range(3):
            worker.ask("run")
        return {"first": first, "process_s": process_s, "memory": worker.ask("memory"), "got": worker.ask("got")}


def _threads(run: Run, recipe: str, device: str, count: int) -> dict[str, Any]:
    """Return processor time over wall time while rendering, and how many threads the system saw running at once."""
    with Worker(_settings(run, recipe, device, threads=count)) as worker:
        worker.ask("run")
        stop = threading.Event()
        seen: list[int] = []
        sampler = threading.Thread(target=sample, args=(worker.pid, stop, seen))
        sampler.start()
        try:
            busy = worker.ask("busy_threads")
        finally:
            stop.set()
            sampler.join()
    counts = {number: seen.count(number) / len(seen) for number in sorted(set(seen))} if seen else {}
    return busy | {"running_at_once": counts, "obeyed": busy["mean"] <= MOST_THREADS * count}


def sample(pid: int, stop: threading.Event, seen: list[int]) -> None:
    """Note how many threads of a process are running or ready to, every few milliseconds, until told to stop."""
    tasks = Path(f"/proc/{pid}/task")
    while not stop.wait(SAMPLING_S) and tasks.is_dir():
        states = [_state(task) for task in tasks.iterdir()]
        seen.append(states.count("R"))


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:  # it ended meanwhile
        return ""


# ── What has to be installed ─────────────────────────────────────────────────────────────────────────────────────────


def environments(_run: Run) -> dict[str, Any]:
    """Install edgereels with each set of extras into a fresh environment; return what that takes on disk."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = _wheel(Path(folder))
        return {extras: _environment(Path(folder), wheel, extras) for extras in EXTRAS}


def _wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, which building would leave its traces in."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "__pycache__", "docs", "examples")
    shutil.copytree(root_folder(), source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "wheel"), str(source)]
    subprocess.run(command, check=True)
    return next((folder / "wheel").glob("*.whl"))


def _environment(folder: Path, wheel: Path, extras: str) -> dict[str, Any]:
    place = folder / extras.replace(",", "-")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    start_s = time.perf_counter()
    subprocess.run([str(python), "-m", "pip", "install", "-q", f"{wheel}[{extras}]"], check=True)
    took_s = time.perf_counter() - start_s
    listed = subprocess.run([str(python), "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True)
    files = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    result = {
        "size_mb": sum(path.stat().st_blocks * 512 for path in files) / 1e6,
        "packages": len(listed.stdout.splitlines()),
        "took_s": took_s,
    }
    shutil.rmtree(place)
    return result
