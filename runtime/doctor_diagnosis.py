# SPDX-License-Identifier: Apache-2.0
"""Whether a package can run here, on what, and what would be better: the findings of `edgereels doctor`.

Whatever may end a process is tried in another one (`doctor_trial`): a library that crashes while it is imported, a
graph that crashes while it is compiled, memory that runs out.
"""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cuda_driver import CudaDriver, find_cards
from .doctor_memory import Need, estimated_needs, measured_needs
from .doctor_trial_process import Answer, Ask, ask_trial
from .engine import bounded_threads
from .engine_libraries import Library, find_libraries, library_findings, machine_findings
from .engine_wheels import Finding, install_line, media_findings
from .errors import PackageError
from .footprint import estimate
from .machine import Memory, Processor, intel_graphics, memory_facts, processor_facts
from .manifest import GraphEntry
from .model_package import ModelPackage
from .placement import Asked, Placement
from .report import InParts
from .seen_hardware import seen_on

PACKAGE_TIMEOUT_S = 300.0
"""For running a package once; a few seconds for what `WINDOW_BUDGET_S` lets through."""
MOST_HASHED_BYTES = 1 << 30
"""Digests of larger packages are not compared: 76 GB would take minutes."""
WINDOW_BUDGET_S = 5.0
"""A window that would take longer isn't run: golden vectors are, which are small."""
FLOPS_PER_THREAD = 20e9
"""What one thread of an ordinary processor reaches in f32, operations per second; only the above hangs on it."""
LEAST_GAIN = 1.1
"""An engine is called faster from this median on, where also all rounds but one were faster."""


@dataclass(frozen=True)
class GraphRow:
    """Where one graph runs."""

    graph: str
    """Name in the manifest."""
    subnetwork: str
    """Which one it belongs to."""
    library: str
    """"onnxruntime" or "openvino"."""
    provider: str
    """The part of the library that runs it."""
    precision: str
    """What it computes in."""
    file: str
    """File that the library opened: the graph's own or the library's sibling."""
    seen: str
    """On what hardware this path was ever run; empty: unverified."""
    fallback: str | None
    """Why it isn't where it was asked to be; None where it is."""
    in_parts: InParts | None = None
    """How a transformer was taken apart because memory is short; None where the graph runs whole."""


@dataclass(frozen=True)
class Gain:
    """What switching the heavy graphs to another device would bring."""

    device: str
    """What to ask for instead."""
    n: int
    """Paired rounds; 0 where it could not be measured."""
    median: float
    """How many times as fast as now."""
    low: float
    """Smallest of the rounds."""
    high: float
    """Largest of the rounds."""
    wins: int
    """Rounds that were faster."""
    graphs: Mapping[str, Mapping[str, Any]]
    """Graph to provider, precision, now_ms, then_ms and calls."""
    fault: str = ""
    """Why it could not be measured."""

    @property
    def is_faster(self) -> bool:
        """Whether it is faster by more than chance: one round may have met another program."""
        return self.n > 0 and self.median >= LEAST_GAIN and self.wins >= self.n - 1


@dataclass(frozen=True)
class Diagnosis:
    """Everything that doctor found."""

    processor: Processor
    """The processor."""
    memory: Memory
    """Memory before anything was tried."""
    cuda: CudaDriver
    """NVIDIA's driver and cards."""
    libraries: Mapping[str, Library]
    """By name."""
    asked: Mapping[str, Any]
    """What the package was asked to run on."""
    package: ModelPackage | None
    """None where it could not be opened."""
    rows: tuple[GraphRow, ...] = ()
    """Graphs that a render opens; empty where none was opened."""
    needs: tuple[Need, ...] = ()
    """Memory."""
    gains: tuple[Gain, ...] = ()
    """Other engines; empty where there is none or it was not asked for."""
    run: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the trial run was: mode, frames, size, wall_s."""
    findings: tuple[Finding, ...] = ()
    """What somebody should know or do, worst first."""
    fault: str = ""
    """Why the package can't run here; empty where it can."""

    @property
    def can_run(self) -> bool:
        """Whether the package runs here."""
        return not self.fault

    @property
    def verdict(self) -> str:
        """One sentence."""
        name = self.package.name if self.package else "the package"
        if self.fault:
            return f"{name} can not run here: {self.fault}"
        engines = sorted({f"{row.provider} ({row.precision})" for row in self.rows if row.subnetwork == "dit"})
        unverified = sorted({row.provider for row in self.rows if not row.seen})
        tail = f"; unverified on this kind of machine: {', '.join(unverified)}" if unverified else ""
        return f"{name} can run here, its transformer on {' and '.join(engines) or 'no engine'}{tail}"


# ── Trying a package ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Tried:
    """What came of trying a package."""

    fault: str = ""
    rows: tuple[GraphRow, ...] = ()
    needs: tuple[Need, ...] = ()
    gains: tuple[Gain, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict[str, Any])
    findings: tuple[Finding, ...] = ()


def diagnose(
    package: str,
    *,
    asked: Mapping[str, Any],
    quick: bool = False,
    progress: Callable[[str], None] = lambda _what: None,
    ask: Ask = ask_trial,
) -> Diagnosis:
    """Look at the machine, its engines, and try a package on them.

    Args:
        package: folder, or "default".
        asked: keyword arguments of `AvatarSession.open`: device, threads, compute, place, allow_fallback.
        quick: leave out what switching engines would gain.
        progress: told what comes next.
        ask: runs a trial; another one in tests.

    Raises:
        UsageError: what was asked makes no sense for this package.
    """
    opened, tried = None, _Tried()
    try:
        opened = _opened(package)
        Placement(opened, Asked(place=asked["place"]))  # opens nothing; refuses what the package doesn't have
        opened.require("audio_encoder", "vae_encoder", "vae_decoder", "dit", "finish")
    except PackageError as error:
        tried = _Tried(fault=str(error))
    progress("looking at the machine and its engines")
    processor, memory, cuda = processor_facts(), memory_facts(), find_cards()
    libraries = find_libraries(ask=ask)
    findings = [
        *library_findings(libraries, cuda=cuda, has_intel_graphics=intel_graphics()),
        *machine_findings(processor),
        *media_findings(),
    ]
    if opened and not tried.fault:
        progress(f"trying {opened.name}{'' if quick else ', and other engines against it'}")
        if any(library.works for library in libraries.values()):
            others = () if quick else tuple(_other_devices(libraries, cuda))
            tried = _try(opened, asked=asked, memory=memory, cuda=cuda, others=others, ask=ask)
        else:
            tried = _Tried(fault=_no_engine(libraries, cuda))
    order = {"error": 0, "warning": 1, "advice": 2}
    return Diagnosis(
        processor=processor,
        memory=memory,
        cuda=cuda,
        libraries=libraries,
        asked=asked,
        package=opened,
        rows=tried.rows,
        needs=tried.needs,
        gains=tried.gains,
        run=tried.run,
        findings=tuple(sorted((*findings, *tried.findings), key=lambda finding: order[finding.level])),
        fault=tried.fault,
    )


def _opened(package: str) -> ModelPackage:
    """Open a package; digests are compared where that takes seconds, `verify` does it in any case."""
    opened = ModelPackage.open(package, verify="size")
    if sum(entry.size_bytes for entry in opened.manifest.files.values()) > MOST_HASHED_BYTES:
        return opened
    return ModelPackage.open(package, verify="full")


def _no_engine(libraries: Mapping[str, Library], cuda: CudaDriver) -> str:
    broken = "; ".join(f"{library.name}: {library.fault}" for library in libraries.values() if library.fault)
    return f"no engine works ({broken or install_line('cuda' if cuda.cards else 'cpu')})"


def _other_devices(libraries: Mapping[str, Library], cuda: CudaDriver) -> Iterator[str]:
    """Yield every device that could run the package here."""
    onnxruntime, openvino = libraries["onnxruntime"], libraries["openvino"]
    if "CPUExecutionProvider" in onnxruntime.providers:
        yield "onnxruntime:CPU"
    if "CUDAExecutionProvider" in onnxruntime.providers and cuda.cards:
        yield "cuda:0"
    names = {str(device.get("name", "")).partition(".")[0] for device in openvino.devices}
    yield from (f"openvino:{name}" for name in ("CPU", "GPU", "NPU") if name in names)


def _try(
    package: ModelPackage,
    *,
    asked: Mapping[str, Any],
    memory: Memory,
    cuda: CudaDriver,
    others: Sequence[str],
    ask: Ask,
) -> _Tried:
    needs = estimated_needs(package, asked=asked, memory=memory, cuda=cuda)
    short = next((need for need in needs if not need.fits), None)
    if short is not None:
        assert short.free_bytes is not None
        return _Tried(
            fault=f"it needs about {short.needed_bytes / 1e9:.1f} GB of {short.where}, "
            f"{short.free_bytes / 1e9:.1f} GB are free (estimated, not tried): free some or take a smaller package",
            needs=needs,
        )
    work = estimate(package, graphs=("dit",))
    budget_flop = WINDOW_BUDGET_S * FLOPS_PER_THREAD * bounded_threads(asked.get("threads"))
    request = {
        "job": "package",
        "package": str(package.root),
        "asked": dict(asked),
        "whole_window": work.window_flop <= budget_flop,
        "others": others,
    }
    answer = ask(request, timeout_s=PACKAGE_TIMEOUT_S)
    ran = answer.first("ran")
    if ran is None:
        return _Tried(fault=answer.fault or "the trial said nothing", needs=needs)
    return _Tried(
        rows=tuple(_rows(package, ran["engines"])),
        needs=tuple(measured_needs(ran, estimated=needs, memory=memory, cuda=cuda)),
        gains=tuple(_gain(line) for line in answer.all("other")),
        findings=tuple(_trial_findings(answer)),
        run={key: ran[key] for key in ("mode", "wall_s", "frames", "size", "calls") if key in ran},
    )


def _trial_findings(answer: Answer) -> Iterator[Finding]:
    """Yield what went wrong after the package itself had run."""
    if answer.fault:
        yield Finding("warning", f"other engines could not be compared: {answer.fault}")


def _rows(package: ModelPackage, engines: Mapping[str, Mapping[str, Any]]) -> Iterator[GraphRow]:
    kind = processor_kind(processor_facts())
    for graph, got in engines.items():
        entry: GraphEntry = package.graph(graph)
        yield GraphRow(
            graph=graph,
            subnetwork=entry.subnetwork,
            library=got["library"],
            provider=got["provider"],
            precision=got["precision"],
            file=entry.file_for(got["library"]),
            seen=seen_on(provider=got["provider"], system=platform.system(), processor=kind),
            fallback=got.get("fallback"),
            in_parts=InParts(**parts) if (parts := got.get("in_parts")) else None,
        )


def processor_kind(processor: Processor) -> str:
    """Return the kind of processor as `seen_hardware` names it."""
    if processor.architecture.lower() in ("arm64", "aarch64"):
        return "arm"
    if processor.abilities.get("avx512f"):
        return "avx512"
    return "avx2" if processor.abilities.get("avx2") else "other x86"


def _gain(line: Mapping[str, Any]) -> Gain:
    if "fault" in line:
        return Gain(str(line["device"]), 0, 0.0, 0.0, 0.0, 0, {}, fault=str(line["fault"]))
    return Gain(device=str(line["device"]), graphs=line["graphs"], **line["gain"])
