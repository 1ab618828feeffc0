# SPDX-License-Identifier: Apache-2.0
"""Engines' libraries: installed, in conflict, broken. Broken ones are real modules, imported in a real process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgereels.runtime import engine_libraries
from edgereels.runtime.cuda_driver import Card, CudaDriver
from edgereels.runtime.doctor_trial_process import Answer, ask_trial
from edgereels.runtime.engine_libraries import Library, find_libraries, library_findings, machine_findings
from edgereels.runtime.engine_wheels import Finding, installed_wheels, media_findings, wheel_findings
from edgereels.runtime.machine import Processor

NO_CUDA = CudaDriver(False, None, None, ())
ONE_CARD = CudaDriver(True, "580.65", "13.0", (Card(0, "NVIDIA Stand-in", 24 << 30, 20 << 30, (8, 9)),))
WORKING = {"onnxruntime": Library("onnxruntime", {"onnxruntime": "1.32.0"}, "1.32.0", ("CPUExecutionProvider",))}
WORKING |= {"openvino": Library("openvino", {"openvino": "2026.4.1"}, "2026.4.1", devices=({"name": "CPU"},))}


def findings(
    changes: Mapping[str, Library] = {}, *, cuda: CudaDriver = NO_CUDA, graphics: bool | None = False
) -> list[Finding]:
    return list(library_findings({**WORKING, **changes}, cuda=cuda, has_intel_graphics=graphics))


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def test_two_working_engines_are_no_finding() -> None:
    assert findings() == []


# ── Wheels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_engine_at_all_is_an_error_with_the_line_that_installs_one() -> None:
    nothing: Mapping[str, Mapping[str, str]] = {"onnxruntime": {}, "openvino": {}}
    found = only(list(wheel_findings(nothing, is_there=lambda _module: False)))
    assert (found.level, found.command) == ("error", "pip install 'edgereels[cpu]'")


@pytest.mark.parametrize(
    ("cuda", "extra"), [(NO_CUDA, "cpu"), (ONE_CARD, "cuda")], ids=["without a card", "with a card"]
)
def test_two_wheels_of_one_module_are_a_conflict(cuda: CudaDriver, extra: str) -> None:
    wheels = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}
    library = Library("onnxruntime", wheels, "1.32.0", ("CUDAExecutionProvider", "CPUExecutionProvider"))
    found = findings({"onnxruntime": library}, cuda=cuda)[0]
    assert "overwrite each other" in found.text
    assert found.command == f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edgereels[{extra}]'"


def test_a_module_without_a_wheel_is_named() -> None:
    wheels: Mapping[str, Mapping[str, str]] = {"onnxruntime": {}, "openvino": {"openvino": "2026.4.1"}}
    found = only(list(wheel_findings(wheels, is_there=lambda module: module == "onnxruntime")))
    assert "belongs to no wheel" in found.text and "--force-reinstall" in found.command


@pytest.mark.parametrize(("version", "is_old"), [("1.19.2", True), ("1.30.1", False), ("1.32.0", False)])
def test_a_wheel_older_than_asked_for_is_named(version: str, is_old: bool) -> None:
    wheels = {"onnxruntime": {"onnxruntime": version}, "openvino": {"openvino": "2026.4.1"}}
    found = [finding.text for finding in wheel_findings(wheels, is_there=lambda _module: True)]
    assert any("older than edgereels asks for" in text for text in found) is is_old


def test_wheels_are_looked_up_by_the_names_of_their_distributions() -> None:
    """Not by module: `onnxruntime-gpu` is no module, and a search for one finds nothing."""
    numbers = {"onnxruntime-gpu": "1.32.0"}
    assert installed_wheels("onnxruntime", find_version=numbers.get) == numbers


def test_a_conflict_is_found_in_what_is_really_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second wheel beside the real one, as pip leaves it: real metadata, real imports."""
    record = tmp_path / "onnxruntime_gpu-1.32.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.32.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    libraries = find_libraries()
    assert libraries["onnxruntime"].works and set(libraries["onnxruntime"].wheels) == {"onnxruntime", "onnxruntime-gpu"}
    found = list(library_findings(libraries, cuda=NO_CUDA, has_intel_graphics=None))
    assert any("both installed" in finding.text for finding in found)


# ── Devices that lie idle ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cuda_wheel_without_a_card_is_pointed_out() -> None:
    library = Library("onnxruntime", {"onnxruntime-gpu": "1.32.0"}, "1.32.0", ("CPUExecutionProvider",))
    found = only(findings({"onnxruntime": library}))
    assert (found.level, "no NVIDIA driver" in found.text) == ("advice", True)


def test_a_card_without_the_cuda_wheel_is_pointed_out() -> None:
    found = only(findings(cuda=ONE_CARD))
    assert "NVIDIA Stand-in lies idle" in found.text
    assert found.command == "pip uninstall -y onnxruntime && pip install 'edgereels[cuda]'"


def test_a_cuda_wheel_without_its_provider_is_broken() -> None:
    library = Library("onnxruntime", {"onnxruntime-gpu": "1.32.0"}, "1.32.0", ("CPUExecutionProvider",))
    found = only(findings({"onnxruntime": library}, cuda=ONE_CARD))
    assert (found.level, "no CUDAExecutionProvider" in found.text) == ("warning", True)


def test_a_cuda_wheel_with_its_provider_and_a_card_is_no_finding() -> None:
    library = Library("onnxruntime", {"onnxruntime-gpu": "1.32.0"}, "1.32.0", ("CUDAExecutionProvider",))
    assert findings({"onnxruntime": library}, cuda=ONE_CARD) == []


def test_a_driver_that_fails_is_a_warning() -> None:
    assert "803" in only(findings(cuda=CudaDriver(True, None, None, (), "error 803"))).text


@pytest.mark.parametrize("graphics", [True, False, None], ids=["with graphics", "without", "unknown"])
def test_openvino_is_offered_where_it_is_missing(graphics: bool | None) -> None:
    found = only(findings({"openvino": Library("openvino", {})}, graphics=graphics))
    assert found.command == "pip install 'edgereels[openvino]'"
    assert ("Intel graphics" in found.text) is (graphics is True)


def test_intel_graphics_that_openvino_does_not_see_want_a_driver() -> None:
    assert "compute driver is missing" in only(findings(graphics=True)).text


@pytest.mark.parametrize(("there", "count"), [(True, 0), (False, 1)], ids=["there", "missing"])
def test_what_writes_mp4_files_is_offered_where_it_is_missing(there: bool, count: int) -> None:
    found = list(media_findings(is_there=lambda _module: there))
    assert [finding.command for finding in found] == ["pip install 'edgereels[video]'"] * count


# ── The machine ──────────────────────────────────────────────────────────────────────────────────────────────────────


def processor(*, isa_cap: str | None = None) -> Processor:
    return Processor("x", "x86_64", 8, 8, None, {}, isa_cap)


def test_a_cap_on_instructions_is_mentioned() -> None:
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in only(list(machine_findings(processor(isa_cap="AVX2")))).text


def test_a_plain_machine_is_no_finding() -> None:
    assert list(machine_findings(processor())) == []


# ── Importing, in a process of its own ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def broken_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(code: str) -> None:
        (tmp_path / "onnxruntime").mkdir()
        (tmp_path / "onnxruntime" / "__init__.py").write_text(code, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("raise ImportError('libcublas.so.12: cannot open shared object file')", "ImportError: libcublas.so.12"),
        ("", "its files are incomplete"),
        ("import os; os.kill(os.getpid(), 11)", "trying to import onnxruntime ended the process by SIGSEGV"),
        ("import os; os._exit(3)", "trying to import onnxruntime ended the process with exit code 3"),
        ("print('noise'); raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    ],
    ids=["library missing", "left-over folder", "crash", "exit", "noise"],
)
def test_a_library_that_can_not_be_imported_is_reported_and_ends_nothing(
    broken_onnxruntime: Any, code: str, fault: str
) -> None:
    broken_onnxruntime(code)
    answer = ask_trial({"job": "library", "library": "onnxruntime"}, timeout_s=60)
    assert answer.events == () or answer.first("library") is None
    assert answer.fault.startswith(fault) or fault in answer.fault


def test_what_a_library_prints_is_not_taken_for_an_answer(broken_onnxruntime: Any) -> None:
    """Not even what it prints past Python, or when the process ends."""
    broken_onnxruntime("import atexit, os; atexit.register(os.write, 1, b'bye\\n{}\\n'); os.write(1, b'hello\\n'); x")
    answer = ask_trial({"job": "library", "library": "onnxruntime"}, timeout_s=60)
    assert answer.fault.startswith("NameError")
    assert {event["event"] for event in answer.events} == {"fault"}


@pytest.mark.slow
def test_a_library_that_hangs_is_given_up(broken_onnxruntime: Any) -> None:
    broken_onnxruntime("import time; time.sleep(60)")
    answer = ask_trial({"job": "library", "library": "onnxruntime"}, timeout_s=2)
    assert answer.fault == "trying to import onnxruntime took more than 2 s" or answer.fault.endswith(
        "took more than 2 s"
    )


def test_a_broken_library_comes_with_the_line_that_repairs_it() -> None:
    library = Library("onnxruntime", {"onnxruntime": "1.32.0"}, fault="ImportError: no libcublas")
    found = only(findings({"onnxruntime": library}))
    assert "can't be imported: ImportError: no libcublas" in found.text
    assert found.command == "pip install --force-reinstall --no-deps 'onnxruntime==1.32.0'"


def test_the_libraries_of_this_machine_work() -> None:
    found = find_libraries()
    assert found["onnxruntime"].works and "CPUExecutionProvider" in found["onnxruntime"].providers
    assert found["openvino"].works and [device["name"] for device in found["openvino"].devices][:1] == ["CPU"]


def test_a_library_that_is_not_there_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_be_asked(*_: object, **__: object) -> Answer:
        raise AssertionError("a trial was started")

    monkeypatch.setattr(engine_libraries, "installed_wheels", lambda _name: {})
    monkeypatch.setattr(engine_libraries, "module_is_there", lambda _name: False)
    assert not any(library.works or library.fault for library in find_libraries(ask=must_not_be_asked).values())
