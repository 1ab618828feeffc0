# SPDX-License-Identifier: Apache-2.0
"""A measurement's folder is there whole, or not at all; and nothing that isn't a measurement is ever replaced."""

from pathlib import Path

import pytest

from edgereels.benchmarks.report_folder import check_folder, report_folder, write_reports
from edgereels.runtime import OutputError

from .latency_traces import lines_of, write


def test_the_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    with report_folder(tmp_path / "out", force=False) as folder:
        (folder / "trace.jsonl").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/trace.jsonl").read_text() == "x"


def test_an_error_leaves_nothing_and_what_was_there_before(tmp_path: Path) -> None:
    with report_folder(tmp_path / "out", force=False) as folder:
        (folder / "report.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), report_folder(tmp_path / "out", force=True) as folder:
        (folder / "report.json").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/report.json").read_text() == "old"
    with report_folder(tmp_path / "out", force=True) as folder:
        (folder / "report.html").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/trace.jsonl.partial").write_text("half")
    with report_folder(tmp_path / "out", force=False):
        pass
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "force", "words"),
    [
        ("there", False, "exists; expected a new folder"),
        ("other", True, "holds thesis.txt, which bench did not write"),
        ("file", True, "is no folder"),
        ("none/out", False, "there is no folder"),
        ("link", True, "is no folder"),
    ],
)
def test_a_folder_that_may_not_be_made_is_refused(tmp_path: Path, name: str, force: bool, words: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(OutputError, match=words):
        check_folder(tmp_path / name, force=force)
    with pytest.raises(OutputError), report_folder(tmp_path / name, force=force):
        pytest.fail("nothing runs")
    assert (tmp_path / "other/thesis.txt").exists()


def test_reports_stand_beside_the_trace(tmp_path: Path) -> None:
    write(tmp_path / "trace.jsonl", lines_of([0.4] * 5))
    report = write_reports(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "trace.jsonl"]
    assert report["verdict"]["sentence"] in (tmp_path / "report.html").read_text().replace("Live", "live")
