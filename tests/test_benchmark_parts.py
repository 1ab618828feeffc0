# SPDX-License-Identifier: Apache-2.0
"""Parts of the precision benchmark that need no measuring to be checked."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgereels.benchmarks import host_program, ladders, recipe_packages
from edgereels.benchmarks.ladders import ENGINES, is_of
from edgereels.benchmarks.markdown_tables import wrapped
from edgereels.benchmarks.measurement import Run, do_parts
from edgereels.benchmarks.peer_shapes import operations, rate

RECORD = {"device": "openvino:CPU", "library": "openvino", "compute": "auto", "compute_got": "bf16"}
RECORD |= {"onednn_max_cpu_isa": None}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(work=tmp_path, checkpoint=None)


def test_a_part_is_done_once_and_again_only_when_asked(run: Run) -> None:
    done: list[str] = []

    def part(_run: Run) -> Any:
        done.append("part")
        return len(done)

    for again in (False, False, True):
        do_parts(run, {"part": part}, again=again)
    assert len(done) == 2
    assert json.loads((run.work / "part.json").read_text(encoding="utf-8")) == 2


def test_a_part_that_fails_leaves_nothing_to_be_taken_for_done(run: Run) -> None:
    def part(_run: Run) -> Any:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        do_parts(run, {"part": part})
    assert not list(run.work.iterdir())


@pytest.mark.parametrize(
    ("change", "engine", "expected"),
    [
        ({}, "OpenVINO auto", True),
        ({}, "OpenVINO f32", False),
        ({}, "ONNX Runtime f32", False),
        ({"onednn_max_cpu_isa": "AVX2"}, "OpenVINO auto", False),
        (
            {"device": "onnxruntime:CPU", "library": "onnxruntime", "compute_got": "f32"},
            "ONNX Runtime f32",
            True,
        ),
    ],
    ids=["the same", "another precision", "another engine", "capped", "auto of ONNX Runtime is f32"],
)
def test_a_recorded_ladder_stands_for_its_own_engine_only(change: dict[str, Any], engine: str, expected: bool) -> None:
    device, compute, _environment = ENGINES[engine]
    assert is_of(RECORD | change, device=device, compute=compute) is expected


def test_a_ladder_that_says_nothing_is_an_error_in_the_figures(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladders, "command", lambda *_given, **_named: (1, "", "edgereels verify: no such device"))
    assert ladders.climbed(run, "none", "OpenVINO f32") == {"error": "edgereels verify: no such device"}


def test_a_recipe_that_misses_its_gate_is_kept_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def command(_verb: str, *arguments: str) -> tuple[int, str, str]:
        asked.append(arguments)
        return (0, "{}", "") if "--no-gate" in arguments else (1, "", "missed by 1.2 dB")

    monkeypatch.setattr(recipe_packages, "command", command)
    monkeypatch.setattr(recipe_packages, "weighed", lambda _run, _recipe: {"size_bytes": 7})
    (run.work / "packages").mkdir()
    made = recipe_packages.make(run, "int4")
    assert (made["outcome"], made["size_bytes"], len(asked)) == ("missed by 1.2 dB", 7, 2)


def test_busy_threads_are_counted_as_the_system_shows_them() -> None:
    """Two threads spin, in Python one at a time: one or two are running or ready whenever it is looked."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("this system does not show threads")
    stop, seen = threading.Event(), list[int]()

    def spin() -> None:
        while not stop.is_set():
            pass

    spinning = threading.Thread(target=spin)
    sampler = threading.Thread(target=host_program.sample, args=(os.getpid(), stop, seen))
    for thread in (spinning, sampler):
        thread.start()
    limit_s = time.monotonic() + 30  # the sampler shares the interpreter with what it watches
    while len(seen) < 6 and time.monotonic() < limit_s:
        time.sleep(0.01)
    stop.set()
    for thread in (spinning, sampler):
        thread.join()
    assert len(seen) > 5
    assert max(seen) >= 1


def test_a_peak_counts_a_product_with_its_sum_as_two() -> None:
    assert operations("matmul") == 2 * 1536**3
    assert operations("conv3d") == 2 * 64 * 64 * 27 * 8 * 64 * 64
    assert rate("matmul", 1.0) == pytest.approx(7.25, abs=0.01)


def test_paragraphs_are_wrapped_and_tables_are_not() -> None:
    row = "| " + "cell " * 40 + "|"
    text = wrapped("word " * 60 + "\n\n" + row)
    assert max(map(len, text.splitlines()[:-1])) <= 120
    assert text.endswith(row)
