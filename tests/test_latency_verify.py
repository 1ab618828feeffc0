# SPDX-License-Identifier: Apache-2.0
"""Anybody can compute a report again; a line less or a figure changed shows."""

import json
import re
from pathlib import Path

import pytest

from edgereels.benchmarks.latency_report import report_of, write_report
from edgereels.benchmarks.latency_trace_file import read_trace
from edgereels.benchmarks.latency_verify import differences, leaves, verify
from edgereels.runtime import VerificationError

from .latency_traces import lines_of, write

LINES = lines_of([0.4] * 20)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    trace, report = write(tmp_path / "trace.jsonl", LINES), tmp_path / "report.json"
    write_report(report, report_of(read_trace(trace)))
    return trace, report


def test_a_true_report_agrees(files: tuple[Path, Path]) -> None:
    assert verify(*files) > 250


def test_a_trace_with_one_line_removed_fails(files: tuple[Path, Path]) -> None:
    lines = files[0].read_bytes().splitlines(keepends=True)
    files[0].write_bytes(b"".join(lines[:40] + lines[41:]))
    with pytest.raises(VerificationError, match="its last line counts"):
        verify(*files)


def test_a_line_removed_and_sealed_anew_fails_too(files: tuple[Path, Path]) -> None:
    write(files[0], LINES[:40] + LINES[41:])
    with pytest.raises(VerificationError, match="trace_sha256 is"):
        verify(*files)


def test_every_figure_that_is_changed_is_named(files: tuple[Path, Path]) -> None:
    true = json.loads(files[1].read_text(encoding="utf-8"))
    false = json.loads(files[1].read_text(encoding="utf-8"))
    false["figures"]["chunk_latency_ms"]["max"] -= 1
    false["verdict"]["sentence"] = "live with 99 % to spare"
    false["validity"]["reasons"] = []
    found = list(differences(false, true))
    assert [one.split(" is ")[0] for one in found] == [
        "figures.chunk_latency_ms.max",
        "validity.reasons",
        "verdict.sentence",
    ]
    write_report(files[1], false)
    with pytest.raises(VerificationError, match=re.escape("figures.chunk_latency_ms.max is 399")):
        verify(*files)


def test_missing_and_added_fields_are_named() -> None:
    assert list(differences({"a": 1}, {"a": 1, "b": 2})) == ["b is in the trace alone"]
    assert list(differences({"a": 1, "c": 2}, {"a": 1})) == ["c is in the report alone"]


def test_a_truth_is_no_number_and_none_no_zero() -> None:
    assert list(differences([True, None], [1, 0]))
    assert not list(differences([1.0, None], [1, None]))
    assert list(leaves({"a": [1, {"b": None}]})) == [1, None]


def test_a_report_that_is_no_json_is_refused(files: tuple[Path, Path]) -> None:
    files[1].write_text("{", encoding="utf-8")
    with pytest.raises(VerificationError, match="no JSON"):
        verify(*files)
