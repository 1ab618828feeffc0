# SPDX-License-Identifier: Apache-2.0
"""What is read from a machine, on machines that are unlike this one: folders that look like theirs."""

import os
import platform
from pathlib import Path

import pytest

from edgereels.runtime import engine, machine
from edgereels.runtime.machine import (
    intel_graphics,
    machine_facts,
    memory_facts,
    processor_facts,
    resident_bytes,
    usable_cores,
)

CPUINFO = """processor\t: 0
model name\t: Intel(R) N100
flags\t\t: fpu sse2 avx avx2 avx_vnni

processor\t: 1
model name\t: another one
flags\t\t: fpu avx512f
"""
MEMINFO = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    6000000 kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    return tmp_path / "nowhere"


# ── Processor ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_processor_is_described_by_its_first_core(tmp_path: Path, nowhere: Path) -> None:
    found = processor_facts(proc=write(tmp_path, {"cpuinfo": CPUINFO}), cgroup=nowhere)
    assert (found.name, found.int8, found.bf16) == ("Intel(R) N100", True, False)
    assert found.abilities["avx2"] and not found.abilities["avx512f"]


@pytest.mark.parametrize(
    ("flags", "int8", "bf16"),
    [
        ("avx2", False, False),
        ("avx2 avx512f avx512_vnni", True, False),
        ("avx2 avx512f avx512_vnni avx512_bf16", True, True),
        ("avx2 amx_int8 amx_bf16", True, True),
    ],
    ids=["AVX2 alone", "VNNI", "VNNI and bf16", "AMX"],
)
def test_abilities_follow_from_flags(tmp_path: Path, nowhere: Path, flags: str, int8: bool, bf16: bool) -> None:
    proc = write(tmp_path, {"cpuinfo": f"model name : x\nflags : {flags}\n"})
    found = processor_facts(proc=proc, cgroup=nowhere)
    assert (found.int8, found.bf16) == (int8, bf16)


def test_an_arm_processor_has_its_own_abilities(tmp_path: Path, nowhere: Path) -> None:
    """Its cpuinfo has no name, and calls flags features."""
    proc = write(tmp_path, {"cpuinfo": "processor : 0\nFeatures : fp asimd asimddp i8mm bf16\n"})
    found = processor_facts(proc=proc, cgroup=nowhere)
    assert (found.int8, found.bf16, "avx2" in found.abilities) == (True, True, False)
    assert found.name


def test_without_proc_nothing_is_known_and_nothing_fails(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    found = processor_facts(proc=nowhere, cgroup=nowhere)
    assert (found.int8, found.bf16, found.quota_cores) == (None, None, None)
    assert found.name == platform.machine()
    assert found.usable_cores >= 1


def test_the_cap_on_instructions_is_shown(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert processor_facts(proc=nowhere, cgroup=nowhere).isa_cap == "AVX2"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert processor_facts(proc=nowhere, cgroup=nowhere).isa_cap is None


# ── Control groups ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_narrowest_quota_counts(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/a/b\n"})
    cgroup = write(tmp_path / "cgroup", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "150000 100000\n"})
    assert processor_facts(proc=proc, cgroup=cgroup).quota_cores == 1.5


def test_a_quota_of_version_1_counts(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": "4:memory:/x\n1:cpu,cpuacct:/box\n"})
    files = {"cpu/box/cpu.cfs_quota_us": "50000\n", "cpu/box/cpu.cfs_period_us": "100000\n"}
    found = processor_facts(proc=proc, cgroup=write(tmp_path / "cgroup", files))
    assert (found.quota_cores, found.usable_cores) == (0.5, 1)


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("20000", 1), ("100000", 1), ("150000", 2), ("400000", 4), ("900000", 8), ("max", 8)],
    ids=["a fifth", "one", "one and a half", "four", "more than there are", "none"],
)
@pytest.mark.parametrize("version", [1, 2], ids=["version 1", "version 2"])
def test_threads_follow_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, usable: int, version: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)
    if version == 1:
        proc = write(tmp_path / "proc", {"self/cgroup": "2:cpu,cpuacct:/box\n"})
        files = {"cpu/box/cpu.cfs_quota_us": f"{'-1' if quota == 'max' else quota}\n"}
        files["cpu/box/cpu.cfs_period_us"] = "100000\n"
    else:
        proc = write(tmp_path / "proc", {"self/cgroup": "0::/box\n"})
        files = {"box/cpu.max": f"{quota} 100000\n"}
    cgroup = write(tmp_path / "cgroup", files)
    assert usable_cores(proc=proc, cgroup=cgroup) == usable
    assert processor_facts(proc=proc, cgroup=cgroup).usable_cores == usable


def test_sessions_use_no_more_threads_than_the_quota_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, and what is asked for too."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/box\n"})
    cgroup = write(tmp_path / "cgroup", {"box/cpu.max": "250000 100000\n"})
    monkeypatch.setattr(engine, "usable_cores", lambda: usable_cores(proc=proc, cgroup=cgroup))
    assert (engine.bounded_threads(None), engine.bounded_threads(2), engine.bounded_threads(6)) == (3, 2, 3)


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense\n"], ids=["none", "empty", "nonsense"])
def test_no_quota_is_none(tmp_path: Path, text: str) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/a\n"})
    found = processor_facts(proc=proc, cgroup=write(tmp_path / "cgroup", {"a/cpu.max": text}))
    assert found.quota_cores is None
    assert found.usable_cores == usable_cores(proc=tmp_path / "nowhere")


def test_memory_without_a_limit_is_the_machines(tmp_path: Path, nowhere: Path) -> None:
    found = memory_facts(proc=write(tmp_path, {"meminfo": MEMINFO}), cgroup=nowhere)
    assert (found.total_bytes, found.free_bytes, found.limit_bytes) == (8_000_000 << 10, 6_000_000 << 10, None)


def test_a_limit_bounds_what_is_free_and_a_file_cache_counts_as_free(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/a\n", "meminfo": MEMINFO})
    files = {"a/memory.max": f"{1 << 30}\n", "a/memory.current": f"{900 << 20}\n"}
    files["a/memory.stat"] = f"anon 5\ninactive_file {400 << 20}\n"
    found = memory_facts(proc=proc, cgroup=write(tmp_path / "cgroup", files))
    assert (found.total_bytes, found.free_bytes) == (1 << 30, (1024 - 500) << 20)


def test_a_limit_of_version_1_beyond_the_machine_is_none(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": "4:memory:/x\n", "meminfo": MEMINFO})
    cgroup = write(tmp_path / "cgroup", {"memory/x/memory.limit_in_bytes": "9223372036854771712\n"})
    assert memory_facts(proc=proc, cgroup=cgroup).limit_bytes is None


def test_memory_that_is_not_told_is_none(nowhere: Path) -> None:
    found = memory_facts(proc=nowhere, cgroup=nowhere)
    assert (found.total_bytes, found.free_bytes) == (None, None)


# ── This process and this machine ────────────────────────────────────────────────────────────────────────────────────


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    held = bytearray(64 << 20)
    after = resident_bytes()
    assert before is not None and after is not None and len(held) == 64 << 20
    assert after[1] - before[0] >= 60 << 20
    assert after[1] >= after[0]


def test_resident_memory_without_proc_is_the_peak_or_unknown(nowhere: Path) -> None:
    found = resident_bytes(proc=nowhere)
    assert found is None or found[0] == found[1] > 1 << 20


@pytest.mark.parametrize(("vendor", "expected"), [("0x8086\n", True), ("0x10de\n", False)], ids=["Intel", "NVIDIA"])
def test_intel_graphics_are_seen_by_their_vendor(tmp_path: Path, vendor: str, expected: bool) -> None:
    assert intel_graphics(drm=write(tmp_path, {"card0/device/vendor": vendor})) is expected


def test_graphics_are_unknown_where_linux_does_not_tell(nowhere: Path) -> None:
    assert intel_graphics(drm=nowhere) is None


def test_facts_name_no_user_host_or_folder() -> None:
    text = repr(machine_facts())
    assert not any(secret and secret in text for secret in (platform.node(), os.environ.get("HOME"), os.getcwd()))


def test_facts_are_those_of_the_machine() -> None:
    facts = machine_facts()
    assert facts["usable_cores"] == machine.usable_cores()
    assert facts["processor"] == machine.processor()
