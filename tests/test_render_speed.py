# SPDX-License-Identifier: Apache-2.0
"""The benchmark of render speed, on a package that stands in for a real one."""

import json
import wave

import numpy as np
import pytest

from edgereels.benchmarks.render_speed import STAGES, Measured, baseline, main
from edgereels.runtime import AvatarSession, processor_name

from .stand_in_package import write_stand_in


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("speed")
    with wave.open(str(folder / "s.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(8000) * 0.1) * 9000).astype("<i2").tobytes())
    package = write_stand_in(folder / "stand-in")
    settings = ["--setting", "default", "--setting", "window=9,motion=1"]
    return ["--package", str(package), "--audio", str(folder / "s.wav"), "--runs", "2", "--threads", "1", *settings]


def test_figures_come_with_their_count_spread_and_machine(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["machine"], report["threads"]) == (processor_name(), 1)
    first, second = report["results"]
    assert (first["settings"], second["settings"]) == ({}, {"window": 9, "motion": 1})
    for result in (first, second):
        assert result["n"] == 2
        assert (result["device"], result["provider"], result["precision"]) == ("cpu", "CPUExecutionProvider", "f32")
        assert set(result["stages"]) == set(STAGES)
        factor = result["real_time_factor"]
        assert 0 < factor["min"] <= factor["median"] <= factor["max"]
        assert sum(stage["min"] for stage in result["stages"].values()) <= factor["max"]


def test_the_table_names_the_machine_and_every_setting(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in (processor_name(), "window=9,motion=1", "CPUExecutionProvider"))


def test_packages_and_devices_are_measured_in_one_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    twice = [*arguments, *arguments[:2], "--device", "onnxruntime:CPU", "--device", "openvino:CPU", "--json"]
    assert main(twice) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(result["device"], result["provider"]) for result in results] == 2 * (
        2 * [("onnxruntime:CPU", "CPUExecutionProvider")] + 2 * [("openvino:CPU", "OpenVINO CPU")]
    )
    assert {result["n"] for result in results} == {2}


def test_a_ratio_compares_cases_that_differ_in_one_thing(arguments: list[str]) -> None:
    with AvatarSession.open(arguments[1]) as session:
        settings: list[dict[str, int]] = [{}, {"window": 9}]
        cases = [
            Measured(session, package, device, setting)
            for package in ("a", "b")
            for device in ("cpu", "openvino:CPU")
            for setting in settings
        ]
        found = [cases.index(baseline(case, cases)) for case in cases]
    assert found == [0, 0, 0, 1, 0, 1, 2, 3]
