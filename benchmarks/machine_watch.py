# SPDX-License-Identifier: Apache-2.0
"""What the machine did while something was measured on it: memory, other processes, other machines, energy.

Everything is read from the system's own counters, without a native library and without rights. What can't be read is
None, and for energy the reason is written down beside it; a missing figure is never 0.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..runtime import machine_facts, processor_name, resident_bytes
from .latency_trace import Contention, Energy, Memory

PROC = Path("/proc")
SYS = Path("/sys")
LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "soxr", "av", "sounddevice", "opencv-python")
"""Whose versions a report names, where they are installed."""
TOLD_VARIABLES = ("OMP_", "ORT_", "OV_", "OPENVINO_", "ONEDNN_", "MKL_", "KMP_")
"""Beginnings of the names of variables that change what an engine does."""

Write = Callable[[Any], None]


def environment(*, proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """Return what a reader needs to judge figures of this machine; no user, host or folder names.

    Args:
        proc: where Linux shows processes; another folder in tests.
        sys: where it shows devices.
    """
    cores = sys / "devices/system/cpu/cpu0/cpufreq"
    return {
        "machine": processor_name(),
        **machine_facts(),
        "governor": _text(cores / "scaling_governor").strip() or None,
        "power_source": _power_source(sys / "class/power_supply"),
        "virtual_machine": "hypervisor" in _text(proc / "cpuinfo") if _text(proc / "cpuinfo") else None,
        "container": (Path("/.dockerenv").exists() or "container" in os.environ) if proc == PROC else None,
        "kernel": platform.release(),
        "libraries": dict(_versions()),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(TOLD_VARIABLES)},
    }


def process_began_s(*, proc: Path = PROC) -> float:
    """Return when this process began, as a reading of `time.perf_counter`; where the system doesn't tell, now."""
    fields = _text(proc / "self/stat").rpartition(")")[2].split()
    uptime = _text(proc / "uptime").split()
    now_s = time.perf_counter()
    if len(fields) < 20 or not uptime:
        return now_s
    return now_s - max(0.0, float(uptime[0]) - int(fields[19]) * _tick_s())


@dataclass(frozen=True)
class ProcessorTimes:
    """Processor time since the machine started, seconds of all processors together."""

    total_s: float
    """Of every kind, idle included."""
    busy_s: float
    """In which some process of this machine ran."""
    stolen_s: float
    """In which another machine on the host ran."""
    own_s: float
    """In which this process or its children ran."""


class MachineWatch:
    """Writes lines of kind memory, contention and energy. Call it from one thread."""

    def __init__(self, write: Write, *, now_s: Callable[[], float], proc: Path = PROC, sys: Path = SYS) -> None:
        """Begin to count; nothing is written yet.

        Args:
            write: takes every line.
            now_s: the clock of the trace.
            proc: where Linux shows processes.
            sys: where it shows devices.
        """
        self._write, self._now_s, self._proc = write, now_s, proc
        self._times = processor_times(proc=proc)
        self._energy = _EnergyCounter(sys / "class/powercap")
        self._energy_from_s = now_s()

    def contention(self, *, before: bool = False) -> Contention:
        """Write, and return, what else ran since the last call.

        Args:
            before: whether the measurement has not begun: only then the pressure of the last minute isn't our own.
        """
        then, now = self._times, processor_times(proc=self._proc)
        psi = _pressure(self._proc) if before else None
        self._times = now
        steal = others = None
        if then is not None and now is not None and now.total_s > then.total_s:
            length_s = now.total_s - then.total_s
            others_s = (now.busy_s - then.busy_s) - (now.own_s - then.own_s)
            steal = 100 * max(0.0, now.stolen_s - then.stolen_s) / length_s
            others = 100 * min(1.0, max(0.0, others_s / length_s))
        line = Contention(self._now_s(), psi, steal, others)
        self._write(line)
        return line

    def memory(self) -> None:
        """Write how much memory this process and its children hold; nothing where the system doesn't tell."""
        self._energy.look()
        found = resident_bytes()
        if found is None:
            return
        children = sum(_resident_of(child, self._proc) for child in _children(self._proc))
        self._write(Memory(self._now_s(), found[0] + children, found[1], _free_share(self._proc)))

    def energy_begins(self) -> None:
        """Count joules from here."""
        self._energy.look()
        self._energy.joules = 0.0
        self._energy_from_s = self._now_s()

    def energy(self) -> None:
        """Write what was used since `energy_begins`, or why it can't be known."""
        self._energy.look()
        counter = self._energy
        joules = counter.joules if counter.why_none is None else None
        source = counter.source if counter.why_none is None else None
        self._write(Energy(self._energy_from_s, self._now_s(), joules, source, counter.why_none))


class _EnergyCounter:
    """Intel's and AMD's running counters (RAPL) of whole processor packages, which wrap around within hours."""

    def __init__(self, powercap: Path) -> None:
        self.joules = 0.0
        self.why_none: str | None = None
        self._zones = sorted(path for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1)
        self.source = "RAPL: " + ", ".join(_text(zone / "name").strip() or zone.name for zone in self._zones)
        if not self._zones:
            self.why_none = "this system shows no energy counter (powercap, RAPL)"
        self._last = self._read()

    def look(self) -> None:
        """Add what was used since the last look."""
        now = self._read()
        for zone, (before, after) in enumerate(zip(self._last, now, strict=True)):
            wrapped = 0 if after >= before else int(_text(self._zones[zone] / "max_energy_range_uj") or 0)
            self.joules += max(0, after + wrapped - before) * 1e-6
        self._last = now

    def _read(self) -> list[int]:
        if self.why_none is not None:
            return []
        try:
            return [int((zone / "energy_uj").read_text(encoding="ascii")) for zone in self._zones]
        except PermissionError:
            self.why_none = "the energy counter (RAPL) may be read by root only"
        except (OSError, ValueError) as error:
            self.why_none = f"the energy counter (RAPL) can't be read: {error.__class__.__name__}"
        self._last = []
        return []


def processor_times(*, proc: Path = PROC) -> ProcessorTimes | None:
    """Return the machine's counters; None where the system doesn't tell."""
    fields = _text(proc / "stat").split("\n", 1)[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    user, nice, system, idle, waiting, irq, soft, stolen = (int(field) * _tick_s() for field in fields[1:9])
    busy = user + nice + system + irq + soft
    own = _own_s(proc / "self")
    own += sum(_own_s(proc / child) for child in _children(proc))
    return ProcessorTimes(busy + idle + waiting + stolen, busy, stolen, own)


def _own_s(process: Path) -> float:
    fields = _text(process / "stat").rpartition(")")[2].split()
    if len(fields) < 15:  # it has ended meanwhile
        return 0.0
    return sum(int(field) for field in fields[11:15]) * _tick_s()


def _children(proc: Path) -> list[str]:
    """Return the ids of all processes below this one."""
    found: list[str] = []
    waiting = ["self"]
    while waiting:
        for task in (proc / waiting.pop() / "task").glob("*"):
            born = _text(task / "children").split()
            found += born
            waiting += born
    return found


def _resident_of(process: str, proc: Path) -> int:
    for line in _text(proc / process / "status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def _free_share(proc: Path) -> float | None:
    fields = {line.partition(":")[0]: line.split() for line in _text(proc / "meminfo").splitlines()}
    try:
        return int(fields["MemAvailable"][1]) / int(fields["MemTotal"][1])
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None


def _pressure(proc: Path) -> float | None:
    """Return percent of the last minute in which some process waited for a processor."""
    for line in _text(proc / "pressure/cpu").splitlines():
        if line.startswith("some"):
            return float(dict(field.split("=") for field in line.split()[1:])["avg60"])
    return None


def _power_source(supplies: Path) -> str | None:
    online = [_text(path).strip() == "1" for path in sorted(supplies.glob("*/online"))]
    if online:
        return "mains" if any(online) else "battery"
    return "battery" if any(supplies.glob("BAT*")) else None


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _tick_s() -> float:
    return 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system, a process that has ended, or not for us to read
        return ""
