# SPDX-License-Identifier: Apache-2.0
"""What decides about speed on this machine: processor, cores this process may use, memory.

Everything is read from the system, without a native library of ours and without starting a process. What can't be read
is None; nothing here raises because a machine is unlike others.
"""

import ctypes
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
DRM = Path("/sys/class/drm")

# Instruction sets that decide which kernels an engine has, as /proc/cpuinfo spells them: first x86, then ARM.
ABILITIES = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
INT8_ABILITIES = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
"""Any of these multiplies int8 and adds in 32 bits; AVX2 alone adds in 16 bits, which saturate."""
BF16_ABILITIES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Any of these multiplies bfloat16."""
INTEL_VENDOR = "0x8086"


@dataclass(frozen=True)
class Processor:
    """The processor, and how much of it this process may use."""

    name: str
    """As the system calls it."""
    architecture: str
    """x86_64, aarch64."""
    cores: int
    """Logical cores of the machine."""
    usable_cores: int
    """Of those, what this process may use, see `usable_cores`: how many threads engines start by default."""
    quota_cores: float | None
    """What the control group grants in processor time, as cores; None: no quota, or none that could be read."""
    abilities: Mapping[str, bool]
    """Of `ABILITIES` those that could be looked up; absent: unknown."""
    isa_cap: str | None
    """ONEDNN_MAX_CPU_ISA: caps OpenVINO's kernels below what the processor has, nothing else's."""

    @property
    def int8(self) -> bool | None:
        """Whether it has instructions for int8 products; None: unknown."""
        return self._any(INT8_ABILITIES)

    @property
    def bf16(self) -> bool | None:
        """Whether it has instructions for bfloat16 products; None: unknown."""
        return self._any(BF16_ABILITIES)

    def _any(self, wanted: frozenset[str]) -> bool | None:
        known = [self.abilities[name] for name in wanted if name in self.abilities]
        return any(known) if known else None


@dataclass(frozen=True)
class Memory:
    """Memory of the machine, as far as this process may use it."""

    total_bytes: int | None
    """Of the machine, or the control group's limit where that is lower."""
    free_bytes: int | None
    """What can still be had without swapping."""
    limit_bytes: int | None
    """The control group's limit; None: none."""


def processor_facts(*, proc: Path = PROC, cgroup: Path = CGROUP) -> Processor:
    """Return what is known of the processor.

    Args:
        proc: where Linux shows processes; another folder in tests.
        cgroup: where it shows control groups.
    """
    return Processor(
        name=processor(proc=proc),
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(proc=proc, cgroup=cgroup),
        quota_cores=_quota_cores(proc, cgroup),
        abilities=_abilities(proc),
        isa_cap=os.environ.get("ONEDNN_MAX_CPU_ISA"),
    )


def usable_cores(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Return how many cores this process may use: those it may be scheduled on, or what its control group grants.

    A quota of 1.5 cores counts as 2, one of 0.2 as 1: more threads than that only wait for each other's turn.
    """
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # absent on Windows and macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota_cores(proc, cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def memory_facts(*, proc: Path = PROC, cgroup: Path = CGROUP) -> Memory:
    """Return how much memory there is and how much is free, in bytes."""
    total, free = _machine_memory(proc)
    limit, used = _memory_limit(proc, cgroup, below=total)
    if limit is None:
        return Memory(total, free, None)
    left = None if used is None else max(0, limit - used)
    return Memory(limit, left if free is None or left is None else min(free, left), limit)


def resident_bytes(*, proc: Path = PROC) -> tuple[int, int] | None:
    """Return (now, peak) of this process's resident memory; None where the system doesn't tell."""
    fields = _colon_table(_text(proc / "self" / "status"))
    try:
        return int(fields["VmRSS"].split()[0]) << 10, int(fields["VmHWM"].split()[0]) << 10
    except (KeyError, ValueError, IndexError):
        return _resident_elsewhere()


def processor(*, proc: Path = PROC) -> str:
    """Return what the system calls its processor."""
    named = _colon_table(_text(proc / "cpuinfo")).get("model name", "")
    return named or _name_elsewhere() or platform.processor() or platform.machine() or "unknown"


def processor_name() -> str:
    """Return what the system calls its processor, and how many cores this process may use."""
    return f"{processor()}, {usable_cores()} cores usable"


def intel_graphics(*, drm: Path = DRM) -> bool | None:
    """Tell whether there is graphics hardware by Intel; None where that can't be looked up (only Linux tells)."""
    if not drm.is_dir():
        return None
    return any(_text(path).strip() == INTEL_VENDOR for path in sorted(drm.glob("card*/device/vendor")))


def machine_facts() -> dict[str, Any]:
    """Return everything as plain values, for reports; no user, host or folder names."""
    found, memory = processor_facts(), memory_facts()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": found.architecture,
        "processor": found.name,
        "cores": found.cores,
        "usable_cores": found.usable_cores,
        "quota_cores": found.quota_cores,
        "abilities": [name for name, is_there in found.abilities.items() if is_there],
        "int8": found.int8,
        "bf16": found.bf16,
        "onednn_max_cpu_isa": found.isa_cap,
        "memory_total_bytes": memory.total_bytes,
        "memory_free_bytes": memory.free_bytes,
        "memory_limit_bytes": memory.limit_bytes,
        "python": platform.python_version(),
    }


# ── Linux ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system, or not for us to read
        return ""


def _colon_table(text: str) -> dict[str, str]:
    """Return `name: value` lines; of a name that stands several times (one processor after the other) the first."""
    table: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            table.setdefault(name.strip(), value.strip())
    return table


def _abilities(proc: Path) -> dict[str, bool]:
    fields = _colon_table(_text(proc / "cpuinfo"))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    if not flags:
        return _abilities_elsewhere()
    is_arm = "asimd" in flags or "fp" in flags
    ours = ABILITIES[ABILITIES.index("asimd") :] if is_arm else ABILITIES[: ABILITIES.index("asimd")]
    return {name: name in flags for name in ours}


def _groups(proc: Path, cgroup: Path, *, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and those around it, innermost first, version 2 then 1."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroup / controller if controllers else cgroup
        inner = root / path.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root) and folder.is_dir())


def _quota_cores(proc: Path, cgroup: Path) -> float | None:
    found: list[float] = []
    for folder in _groups(proc, cgroup, controller="cpu"):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota = _text(folder / "cpu.cfs_quota_us").strip()
            period = _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" and -1: no quota
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _machine_memory(proc: Path) -> tuple[int | None, int | None]:
    fields = _colon_table(_text(proc / "meminfo"))
    try:
        return int(fields["MemTotal"].split()[0]) << 10, int(fields["MemAvailable"].split()[0]) << 10
    except (KeyError, ValueError, IndexError):
        return _memory_elsewhere()


def _memory_limit(proc: Path, cgroup: Path, *, below: int | None) -> tuple[int | None, int | None]:
    """Return the lowest limit of the control groups and how much of it is used; a file cache counts as free."""
    tightest: tuple[int | None, int | None] = (None, None)
    for folder in _groups(proc, cgroup, controller="memory"):
        text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if not text.strip().isdecimal():  # "max", or no such file
            continue
        limit = int(text)
        if limit < (tightest[0] or below or 1 << 62):  # version 1 writes "no limit" as almost 2**63
            tightest = limit, _used_bytes(folder)
    return tightest


def _used_bytes(folder: Path) -> int | None:
    used = (_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")).strip()
    if not used.isdecimal():
        return None
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    cached = stat.get("total_inactive_file") or stat.get("inactive_file") or "0"
    return max(0, int(used) - (int(cached) if cached.isdecimal() else 0))


# ── Windows and macOS: written from their documentation and never run ────────────────────────────────────────────────


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *(
            (name, ctypes.c_uint64)
            for name in ("total", "free", "page", "page_free", "virtual", "virtual_free", "more")
        ),
    )


def _windows() -> Any:
    """Return kernel32, or None elsewhere."""
    return getattr(getattr(ctypes, "windll", None), "kernel32", None)


def _sysctl(name: str) -> bytes:
    """Return the raw bytes of a macOS system value; empty where there is none."""
    if sys.platform != "darwin":
        return b""
    try:
        call = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return b""
    size = ctypes.c_size_t(256)
    value = ctypes.create_string_buffer(size.value)
    return value.raw[: size.value] if call(name.encode(), value, ctypes.byref(size), None, 0) == 0 else b""


def _name_elsewhere() -> str:
    if sys.platform == "win32":
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            return ""
    return _sysctl("machdep.cpu.brand_string").rstrip(b"\0").decode("utf-8", "replace")


def _abilities_elsewhere() -> dict[str, bool]:
    kernel32 = _windows()
    if kernel32 is not None:  # PF_AVX2_INSTRUCTIONS_AVAILABLE, PF_AVX512F_INSTRUCTIONS_AVAILABLE; VNNI isn't told
        return {
            "avx2": bool(kernel32.IsProcessorFeaturePresent(40)),
            "avx512f": bool(kernel32.IsProcessorFeaturePresent(41)),
        }
    keys = {"avx2": "hw.optional.avx2_0", "avx512f": "hw.optional.avx512f", "asimddp": "hw.optional.arm.FEAT_DotProd"}
    keys |= {"i8mm": "hw.optional.arm.FEAT_I8MM", "bf16": "hw.optional.arm.FEAT_BF16"}
    found = {name: _sysctl(key) for name, key in keys.items()}
    return {name: any(value) for name, value in found.items() if value}


def _memory_elsewhere() -> tuple[int | None, int | None]:
    kernel32 = _windows()
    if kernel32 is not None:
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        return (status.total, status.free) if kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else (None, None)
    return int.from_bytes(_sysctl("hw.memsize"), sys.byteorder) or None, None


def _resident_elsewhere() -> tuple[int, int] | None:
    """Return the peak twice: macOS tells no more without its own headers, Windows nothing at all in this way."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
    return peak, peak
