# SPDX-License-Identifier: Apache-2.0
"""The first compilation of a graph, in a process of its own: OpenVINO can end its process over a valid graph.

`compile_ahead` starts one child (`python -m edgereels.runtime.engine_openvino_compile`) for a batch. The child
puts what it compiles into the cache and tells of each graph, one JSON object a line. A child that dies takes nothing
along; what killed it is remembered in the cache, so that the next try fails at once.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from .engine import endable
from .engine_openvino_cache import CompileCache
from .engine_openvino_library import (
    compile_graph,
    flat,
    is_out_of_memory,
    library_version,
    precision_of,
    reason_of,
    settings,
)
from .engine_openvino_norms import spell_out
from .errors import EngineError
from .package_files import sha256_of

TIMEOUT_S = 900.0  # per graph; the embedded package's take 0.1 to 0.4 s, a fused transformer of 40 blocks minutes
START_S = 60.0  # until the child has imported OpenVINO: 0.5 s, many times that on a busy machine
STEP_S = 0.2

WAY_OUT = "--device onnxruntime:CPU runs the same package"

# Signals that say something about the graph. The others come from people and from a system short of memory.
CRASHES = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP", "SIGSYS")

Progress = Callable[[int, int, str], None]
"""Called with (graphs compiled, graphs in all, name of the one that is next or was the last)."""


@dataclass(frozen=True)
class CompileJob:
    """One graph to be compiled, for one set of shapes."""

    key: str
    """Its name in the cache."""
    folder: str
    """The cache."""
    graph: str
    """The .onnx file."""
    weights: tuple[str, ...]
    """Files called after their own SHA-256 that its weights lie in, relative to it; compared before it is kept."""
    shapes: dict[str, tuple[int, ...]] | None
    """Input shapes; None: any."""
    target: str
    """OpenVINO's name of the device."""
    precision: str
    """"f32", "bf16" or "f16"."""
    threads: int
    """At most this many while it runs."""
    dynamic_activations: bool
    """See `graph_identity.DYNAMIC_ACTIVATIONS`."""
    spells_norms: bool
    """See `engine_openvino_norms`."""

    @property
    def name(self) -> str:
        """What people call the graph."""
        return Path(self.graph).name

    @property
    def where(self) -> str:
        """The graph and its shapes, for messages."""
        return f"{self.name} at {flat(self.shapes)}" if self.shapes else self.name

    @property
    def properties(self) -> dict[str, Any]:
        """What it is compiled with."""
        return settings(
            target=self.target,
            precision=self.precision,
            threads=self.threads,
            dynamic_activations=self.dynamic_activations,
        )


@dataclass(frozen=True)
class Made:
    """What the child said of a graph that it compiled."""

    seconds: float
    """How long it took, reading included."""
    kept: bool
    """Whether the cache had room for it."""


def compile_here(job: CompileJob) -> Any:
    """Compile a graph in this process.

    Raises:
        EngineError: OpenVINO refuses it, lacks memory, or gives another precision than was asked for.
    """
    try:
        compiled = compile_graph(
            Path(job.graph),
            shapes=job.shapes,
            target=job.target,
            properties=job.properties,
            change=spell_out if job.spells_norms else None,
        )
    except Exception as error:  # OpenVINO raises RuntimeError for everything
        raise EngineError(_refusal(job, error)) from error
    if (got := precision_of(compiled)) != job.precision:
        raise EngineError(f"{job.precision} was asked for {job.where}, OpenVINO gave {got}: use --compute {got}")
    return compiled


def _refusal(job: CompileJob, error: Exception) -> str:
    if is_out_of_memory(error):
        return f"not enough memory to compile {job.where} ({reason_of(error)}): ask for a smaller size or window"
    return f"OpenVINO refuses {job.where}: {reason_of(error)}; {WAY_OUT}"


def check_crashes(jobs: Sequence[CompileJob]) -> None:
    """Raise `EngineError` where compiling one of the graphs has ended a process before."""
    for job in jobs:
        if crash := CompileCache(Path(job.folder)).crash(job.key):
            raise EngineError(_crash_line(job, crash.signal, forget=crash.path))


def _crash_line(job: CompileJob, ended_by: str, *, forget: Path) -> str:
    return (
        f"OpenVINO {library_version()} ended its process ({ended_by}) compiling {job.where}: {WAY_OUT}; "
        f"to let OpenVINO try again, delete {forget}"
    )


def compile_ahead(
    jobs: Sequence[CompileJob], *, progress: Progress | None = None, timeout_s: float = TIMEOUT_S
) -> dict[str, Made]:
    """Compile graphs into the cache, in a child process, and return what was made by key.

    Nothing is made where no child can be started (a frozen program, a system that forbids it), nor of jobs whose key
    appears twice; jobs that are in the cache are the caller's to leave out.

    Args:
        jobs: what to compile.
        progress: told before each graph, and at the end.
        timeout_s: for each graph; the child is ended when one takes longer.

    Raises:
        EngineError: OpenVINO refuses a graph, ends its process over it, or takes too long.
    """
    check_crashes(jobs)
    wanted = list({job.key: job for job in jobs}.values())
    if not wanted or (command := _command()) is None:
        return {}
    with tempfile.TemporaryFile() as complaints:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, env=_environment()
            )
        except OSError:
            return {}
        batch = _Batch(wanted, child, timeout_s=timeout_s, progress=progress)
        try:
            return batch.watch()
        except _NotStartedError:
            return {}
        finally:
            batch.close()


def _command() -> list[str] | None:
    """Return what starts the child; None where `sys.executable` is not Python: it would start the host program."""
    if getattr(sys, "frozen", False) or not sys.executable or "python" not in Path(sys.executable).name.lower():
        return None
    # -P: a file in the current folder must not pass for a module.
    return [sys.executable, "-P", "-m", "edgereels.runtime.engine_openvino_compile"]


def _environment() -> dict[str, str]:
    """Return the environment with this process's module path: a host program may have changed it."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class _NotStartedError(Exception):
    """The child ended before its first word."""


class _Batch:
    """The parent's view of one child."""

    def __init__(
        self,
        jobs: Sequence[CompileJob],
        child: "subprocess.Popen[bytes]",
        *,
        timeout_s: float,
        progress: Progress | None,
    ) -> None:
        self._jobs = jobs
        self._child = child
        self._timeout_s = timeout_s
        self._progress = progress
        self._made: dict[str, Made] = {}
        self._is_ended = False
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._talker = threading.Thread(target=self._talk, daemon=True)
        self._talker.start()

    def close(self) -> None:
        """End the child, if it still runs, and wait for it."""
        self._child.kill()
        self._child.wait()
        self._talker.join()

    def watch(self) -> dict[str, Made]:
        """Hand the jobs over and listen until the child is done."""
        with endable(self._end):
            if self._heard(within_s=START_S) is None:
                self._raise_if_ended()
                raise _NotStartedError
            for at, job in enumerate(self._jobs):
                if self._progress:
                    self._progress(at, len(self._jobs), job.name)
                self._take(job, self._heard(within_s=self._timeout_s))
        if self._progress:
            self._progress(len(self._jobs), len(self._jobs), self._jobs[-1].name)
        return self._made

    def _talk(self) -> None:
        """Write the jobs, read the answers; a queue, unlike a pipe, can be waited on for a while on every system."""
        assert self._child.stdin and self._child.stdout
        with contextlib.suppress(OSError), self._child.stdin as questions:  # a child that died shows by its silence
            questions.write(json.dumps([asdict(job) for job in self._jobs]).encode())
        with self._child.stdout as answers:
            for line in answers:
                self._lines.put(line)
        self._lines.put(None)

    def _heard(self, *, within_s: float) -> dict[str, Any] | None:
        """Return the child's next answer; None where it ended or took too long."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=min(STEP_S, within_s))
                return json.loads(line) if line else None
        return None

    def _take(self, job: CompileJob, answer: dict[str, Any] | None) -> None:
        if answer is None:
            raise self._loss(job)
        if "fault" in answer:
            raise EngineError(answer["fault"])
        self._made[job.key] = Made(seconds=answer["seconds"], kept=answer["kept"])

    def _loss(self, job: CompileJob) -> EngineError:
        """Return the error for a child that gave no answer."""
        self._raise_if_ended()
        try:
            code = self._child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return EngineError(f"compiling {job.where} took longer than {self._timeout_s:.0f} s: {WAY_OUT}")
        ended_by = _ending(code)
        if ended_by in CRASHES:
            crash = CompileCache(Path(job.folder)).remember_crash(job.key, graph=job.name, signal=ended_by)
            return EngineError(_crash_line(job, ended_by, forget=crash.path))
        return EngineError(
            f"the process that compiled {job.where} was ended ({ended_by}), perhaps for want of memory: "
            f"ask for a smaller size or window, or try again"
        )

    def _end(self) -> None:
        self._is_ended = True
        self._child.kill()

    def _raise_if_ended(self) -> None:
        if self._is_ended:
            raise EngineError("compiling was ended")


def _ending(code: int) -> str:
    """Return how a process ended: "SIGSEGV", "code 1"; Windows has codes for crashes."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    windows = {0xC0000005: "SIGSEGV", 0xC000001D: "SIGILL", 0xC0000094: "SIGFPE", 0xC0000409: "SIGABRT"}
    return windows.get(code & 0xFFFFFFFF, f"code {code}")


# ── The child ────────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> int:
    """Compile the jobs that come on standard input; answer on standard output, one line each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    _leave_no_core()
    with _own_output() as output:
        jobs = [CompileJob(**fields) for fields in json.load(sys.stdin)]
        _say(output, ready=True)
        for job in jobs:
            _say(output, **_answer(job))
    return 0


def _answer(job: CompileJob) -> dict[str, Any]:
    started_s = time.perf_counter()
    try:
        _check_weights(job)
        compiled = compile_here(job)
    except (EngineError, OSError) as error:
        return {"fault": " ".join(str(error).split())}
    cache = CompileCache(Path(job.folder))
    try:
        kept = cache.store(job.key, compiled.export_model().getbuffer())
    except (RuntimeError, MemoryError):  # a device or a graph that can't be exported still runs
        kept = False
    if not kept:
        cache.remember_safe(job.key)
    return {"seconds": round(time.perf_counter() - started_s, 3), "kept": kept}


def _check_weights(job: CompileJob) -> None:
    """Refuse weights that are not what their name says: the cache would go on serving them after they are mended."""
    for name in job.weights:
        file = Path(job.graph).parent / name
        if sha256_of(file) != file.stem:
            raise EngineError(f"{name} of {job.name} is damaged: its SHA-256 is not its name; copy the package again")


@contextlib.contextmanager
def _own_output() -> Iterator[IO[str]]:
    """Yield standard output to write answers to; what libraries print there goes to standard error instead."""
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w", encoding="utf-8") as stream:
        yield stream


def _say(output: IO[str], **fields: Any) -> None:
    print(json.dumps(fields), file=output, flush=True)


def _leave_no_core() -> None:
    """Keep the system from writing the memory of a crash to disk."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
