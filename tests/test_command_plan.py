# SPDX-License-Identifier: Apache-2.0
"""`edgereels plan`: on a package that stands in for a real one; slowly on the embedded one, against what it takes."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgereels.benchmarks import plan_calibration
from edgereels.benchmarks.call_operations import CallOperations
from edgereels.benchmarks.command_plan import face_of, grey_portrait, main
from edgereels.benchmarks.live_plan import Setting
from edgereels.benchmarks.plan_calibration import calibrate
from edgereels.runtime import AvatarSession, ModelPackage, PackageError, UsageError
from edgereels.runtime.canvas import Canvas

from .stand_in_package import write_stand_in

QUICK = ["--threads", "1", "--size", "32x64", "--size", "64x128", "--window", "17", "--window", "33", "--steps", "1"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    still = np.full((96, 160, 3), 90, np.uint8)
    canvas = Canvas(still, (16, 16, 80, 144), 4)
    return write_stand_in(tmp_path_factory.mktemp("plan") / "stand-in", canvases={"still": canvas})


def test_a_plan_is_printed_as_a_table_and_a_sentence(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(package), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stand-in on CPUExecutionProvider in f32, asked for cpu; ")
    rows = [line.split() for line in lines if line[:2].isdecimal()]
    assert [row[:2] for row in rows] == [["64x128", "17"], ["64x128", "33"], ["32x64", "17"], ["32x64", "33"]]
    assert lines[-1].startswith("live at 25 fps with 32x64, window 17, 1 step: ")
    assert lines[-1].endswith(" % to spare")


def test_a_plan_for_machines_says_what_it_comes_from(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(package), *QUICK, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["format"] == "edgereels-plan/1"
    assert plan["package"]["digest"] == ModelPackage.open(package).digest
    assert plan["verdict"]["live"] and plan["verdict"]["setting"]["size"] == [32, 64]
    points = plan["calibration"]["points"]
    assert points and all(0 < one["min_s"] <= one["median_s"] <= one["max_s"] and one["n"] for one in points)
    for one in plan["settings"]:
        assert one["real_time_factor"] == pytest.approx(one["cost_s"] * 25 / one["chunk_frames"])
        assert one["cost_s"] == pytest.approx(sum(one["stages_s"].values()))
        assert one["stages_s"]["canvas"] > 0, "the first avatar is a still, and its box has this shape"
        assert one["look_ahead_s"] == (one["window"] - one["motion"] + 2) / 25
        assert one["live"] == (one["real_time_factor"] <= 1)


def test_a_star_stands_at_what_ran_and_not_at_other_steps_of_it(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(package), *QUICK, "--steps", "2", "--seconds", "60"]
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    names = ("size", "window", "motion", "drop", "steps")
    ran = [[point[name] for name in names] for point in plan["calibration"]["points"]]
    starred = [[one[name] for name in names] for one in plan["settings"] if one["is_measured"]]
    assert sorted(starred) == sorted(ran) and {one[-1] for one in ran} == {1}
    assert {one["steps"] for one in plan["settings"]} == {1, 2}
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("* ") == len(ran) + 1, "one in the legend"
    assert "; * ran with these steps, the rest follows from operations" in said


@pytest.mark.parametrize("others", [None, 1.0, 40.0])
def test_a_machine_that_was_busy_is_told_of(
    others: float | None, package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_calibration, "others_percent", lambda _watch: others)
    assert main([str(package), *QUICK]) == 0
    assert ("others took 40 % of the processors" in capsys.readouterr().out) == (others == 40.0)


def test_without_options_the_packages_own_setting_is_judged(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(package), "--threads", "1", "--seconds", "0.5", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    own = plan["verdict"]["setting"]
    assert (own["size"], own["window"], own["steps"]) == ([32, 64], 13, 1)
    assert {one["window"] for one in plan["settings"]} == {13, 17, 33, 49, 81}
    assert {one["steps"] for one in plan["settings"]} == {1, 2, 4}
    assert own in plan["settings"]


def test_progress_is_said_on_stderr_only_where_it_is_asked_for(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(package), *QUICK, "--progress"]) == 0
    assert "measuring 32x64, window 17, 1 step" in capsys.readouterr().err
    assert main([str(package), *QUICK]) == 0
    assert capsys.readouterr().err == ""


WRONG = {
    "--size 30x64": "multiples of 16",
    "--size 64": "expected HEIGHTxWIDTH",
    "--steps 0": "at least 1",
    "--seconds nan": "more than 0",
    "--device tpu": "'tpu'",
    "--loud": "--loud",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_usage_is_one_line_and_exit_2(options: str, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(package), *options.split()])
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1 and WRONG[options] in said


IMPOSSIBLE = {"--window 18": "not 18", "--window 9": "no room", "--drop 3": "drop is 3"}


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_a_window_that_can_not_be_is_wrong_usage(options: str, package: Path) -> None:
    with pytest.raises(UsageError, match=IMPOSSIBLE[options]):
        main([str(package), *options.split()])


def test_a_package_or_avatar_that_is_not_there_is_an_error(package: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="does not exist"):
        main([str(tmp_path / "nothing")])
    with pytest.raises(PackageError, match="its avatars"):
        main([str(package), "--avatar", "nobody"])


def test_an_avatars_size_is_that_at_which_it_is_shown(package: Path) -> None:
    opened = ModelPackage.open(package)
    assert face_of(opened, "still").size == (32, 64) and face_of(opened, "still").box == (64, 128)
    with AvatarSession.open(package, threads=1) as session:
        for name in opened.manifest.avatars:
            chunk = next(iter(session.stream(audio=np.ones(8000, np.float32) * 0.1, avatar=name, canvas=False)))
            assert face_of(opened, name).size == chunk.frames.shape[1:3]


def test_a_package_that_brings_nobody_is_planned_for_somebody(package: Path) -> None:
    nobody = grey_portrait()
    point = Setting(32, 32, 17, 1, 5, 0)
    with AvatarSession.open(package, threads=1) as session:
        operations = CallOperations(session.package)
        found = calibrate(session, [point], operations=operations.window, avatar=nobody, canvas_at=None, budget_s=5)
    assert found.is_measured(point)
