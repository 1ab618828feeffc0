# SPDX-License-Identifier: Apache-2.0
"""What the machine says about itself, on machines that were made up."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgereels.benchmarks import machine_watch
from edgereels.benchmarks.machine_watch import MachineWatch, environment, process_began_s, processor_times

TICKS = round(1 / machine_watch._tick_s())


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def process(own_s: float, children_s: float = 0.0) -> str:
    fields = (
        ["S"] + ["0"] * 10 + [str(round(own_s * TICKS)), "0", str(round(children_s * TICKS)), "0", *["0"] * 4, "700"]
    )
    return f"7 (a (very) odd name) {' '.join(fields)}\n"


def machine(
    folder: Path, *, busy_s: float, idle_s: float, stolen_s: float = 0.0, own_s: float = 0.0, child_s: float = 0.0
) -> Path:
    ticks = [round(seconds * TICKS) for seconds in (busy_s, 0, 0, idle_s, 0, 0, 0, stolen_s)]
    write(
        folder,
        {
            "stat": f"cpu  {' '.join(map(str, ticks))} 0 0\ncpu0 1 2 3\n",
            "pressure/cpu": "some avg10=1.00 avg60=12.50 avg300=0.10 total=1\nfull avg10=0.00 avg60=0.00 total=0\n",
            "meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n",
            "self/stat": process(own_s),
            "self/task/7/children": "8 ",
            "8/stat": process(child_s),
            "8/status": "Name:\tchild\nVmRSS:\t  100 kB\n",
            "8/task/8/children": "9",
            "9/stat": process(0.0),
            "9/status": "VmRSS:\t 11 kB\n",
        },
    )
    return folder


def watched(proc: Path, sys: Path) -> tuple[MachineWatch, list[Any]]:
    lines: list[Any] = []
    return MachineWatch(lines.append, now_s=lambda: 5.0, proc=proc, sys=sys), lines


def test_what_others_took_is_what_was_not_ours_nor_our_childrens(tmp_path: Path) -> None:
    proc = machine(tmp_path, busy_s=100, idle_s=100)
    watch, lines = watched(proc, tmp_path / "sys")
    machine(tmp_path, busy_s=106, idle_s=110, stolen_s=4, own_s=2, child_s=1)
    watch.contention(before=True)
    (line,) = lines
    assert line.psi == 12.5
    assert line.steal == pytest.approx(20.0)
    assert line.others_cpu == pytest.approx(15.0)  # 6 busy, 3 of them ours, of 20


def test_pressure_is_our_own_once_we_run(tmp_path: Path) -> None:
    watch, lines = watched(machine(tmp_path, busy_s=1, idle_s=1), tmp_path / "sys")
    watch.contention()
    assert lines[0].psi is None
    assert lines[0].others_cpu is None, "nothing has passed, so nothing can be said"


def test_a_system_that_tells_nothing_gets_none_and_not_0(tmp_path: Path) -> None:
    watch, lines = watched(tmp_path / "none", tmp_path / "none")
    watch.contention(before=True)
    watch.energy()
    contention, energy = lines
    assert (contention.psi, contention.steal, contention.others_cpu) == (None, None, None)
    assert energy.joules is None and "no energy counter" in energy.why_none
    assert processor_times(proc=tmp_path / "none") is None


def test_memory_is_that_of_the_process_and_all_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, lines = watched(machine(tmp_path, busy_s=1, idle_s=1), tmp_path / "sys")
    monkeypatch.setattr(machine_watch, "resident_bytes", lambda: (1000, 2000))
    watch.memory()
    (line,) = lines
    assert (line.rss_bytes, line.peak_rss_bytes, line.free_share) == (1000 + (111 << 10), 2000, 0.25)
    monkeypatch.setattr(machine_watch, "resident_bytes", lambda: None)
    watch.memory()
    assert len(lines) == 1


def rapl(sys: Path, joules: float, *, zone: int = 0, most: float = 100.0) -> None:
    folder = f"class/powercap/intel-rapl:{zone}"
    write(
        sys,
        {
            f"{folder}/name": f"package-{zone}\n",
            f"{folder}/energy_uj": str(round(joules * 1e6)),
            f"{folder}/max_energy_range_uj": str(round(most * 1e6)),
            f"class/powercap/intel-rapl:{zone}:0/energy_uj": "99",
        },
    )


def test_joules_of_all_packages_are_added_and_a_counter_may_wrap_around(tmp_path: Path) -> None:
    rapl(tmp_path, 90.0)
    rapl(tmp_path, 5.0, zone=1)
    watch, lines = watched(tmp_path / "none", tmp_path)
    rapl(tmp_path, 94.0)
    watch.energy_begins()  # what was used before doesn't count
    rapl(tmp_path, 3.0)
    rapl(tmp_path, 6.0, zone=1)
    watch.energy()
    assert lines[0].joules == pytest.approx(9.0 + 1.0)
    assert lines[0].source == "RAPL: package-0, package-1"
    assert lines[0].why_none is None


def test_a_counter_for_root_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl(tmp_path, 1.0)

    def refuse(self: Path, **_options: Any) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    watch, lines = watched(tmp_path / "none", tmp_path)
    watch.energy()
    assert lines[0].joules is None and lines[0].source is None
    assert "root only" in lines[0].why_none


def test_the_process_began_before_now_and_after_the_machine(tmp_path: Path) -> None:
    machine(tmp_path, busy_s=1, idle_s=1)
    write(tmp_path, {"uptime": f"{700 / TICKS + 3:.2f} 1.0\n"})
    assert time.perf_counter() - process_began_s(proc=tmp_path) == pytest.approx(3.0, abs=0.5)
    assert time.perf_counter() - process_began_s(proc=tmp_path / "none") == pytest.approx(0.0, abs=0.5)


def test_the_environment_names_the_machine_and_no_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOME", "/home/somebody")
    found = environment()
    assert found["machine"] and found["libraries"]["numpy"]
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert "somebody" not in json.dumps(found)


def test_where_power_comes_from(tmp_path: Path) -> None:
    assert environment(sys=tmp_path)["power_source"] is None
    write(tmp_path, {"class/power_supply/BAT0/status": "Discharging", "class/power_supply/AC/online": "0\n"})
    assert environment(sys=tmp_path)["power_source"] == "battery"
    write(tmp_path, {"class/power_supply/AC/online": "1\n"})
    assert environment(sys=tmp_path)["power_source"] == "mains"
