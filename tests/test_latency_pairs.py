# SPDX-License-Identifier: Apache-2.0
"""Two recipes take turns, and a difference is told only where there is one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.benchmarks import latency_pairs
from edgereels.benchmarks.latency_compare import Pair
from edgereels.benchmarks.latency_pairs import Recipe, Side, read_recipe, run_compare, verify_comparison
from edgereels.benchmarks.latency_run import Surroundings
from edgereels.benchmarks.latency_trace import Contention
from edgereels.runtime import UsageError, VerificationError

from .fake_session import FakeSession, QuietWatch, drive
from .virtual_clock import VirtualClock

SPEECH = np.ones(16000 * 2, np.float32)


def test_a_recipe_is_text_or_a_file_and_the_options_fill_in_what_it_leaves_out(tmp_path: Path) -> None:
    defaults = {"device": "cpu", "threads": 2, "canvas": False, "avatar": None}
    text = read_recipe("device=openvino:CPU, latency=low,seed=3,canvas=on", defaults=defaults)
    assert text.session == {"device": "openvino:CPU", "threads": 2}
    assert text.live == {"canvas": True, "latency": "low", "seed": 3}
    (tmp_path / "r.json").write_text('{"threads": 1, "package": "/a/b.edgereels"}', encoding="utf-8")
    file = read_recipe(str(tmp_path / "r.json"), defaults=defaults)
    assert (file.package, file.session) == ("/a/b.edgereels", {"device": "cpu", "threads": 1})
    assert file.settings() == {"package": "b.edgereels", "device": "cpu", "threads": 1, "canvas": False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour=red", "holds colour; expected some of"),
        ("threads=many", "threads 'many'; expected a whole number"),
        ("canvas=maybe", "expected on or off"),
        ("missing.json", "can't be read"),
        ("broken.json", "is no JSON"),
        ("list.json", "no object"),
        ("device.json", "expected text"),
    ],
)
def test_a_recipe_that_is_none_is_refused(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{", encoding="utf-8")
    Path("list.json").write_text("[]", encoding="utf-8")
    Path("device.json").write_text('{"device": 3}', encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_recipe(text, defaults={})


def surroundings(clock: VirtualClock) -> Surroundings:
    return Surroundings(
        open_session=lambda package, **_asked: FakeSession(clock, work_s=float(package)), clock=clock, watch=QuietWatch
    )


def test_a_side_tells_its_own_work(tmp_path: Path) -> None:
    clock = VirtualClock(patience_s=2.0)

    def compare() -> dict[str, Any]:
        return run_compare(
            Recipe("0.1"), Recipe("0.2"), SPEECH, pairs=2, length_s=0.96, speed=5.0, around=surroundings(clock)
        )

    found = drive(clock, compare, waiting=3)
    assert found["verdict"] == "too few pairs"
    assert found["ratio"]["value"] == pytest.approx(2.0)
    assert found["noise"]["value"] == pytest.approx(1.0)
    assert found["pairs"][0] == pytest.approx([0.1 / 0.48, 0.2 / 0.48])
    assert len(found["pairs_of_first_with_itself"]) == 2
    assert found["first"] == {"package": "0.1"}


def test_noise_comes_first_and_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def opened(self: Side, _stack: Any) -> Side:
        return self

    def work(self: Side) -> float:
        order.append(self.recipe.package)
        return {"a": 1.0, "b": 1.1}[self.recipe.package] * (1 + 0.001 * (len(order) % 5))

    monkeypatch.setattr(Side, "open", opened)
    monkeypatch.setattr(Side, "work", work)
    around = Surroundings(clock=VirtualClock(), watch=QuietWatch)
    found = run_compare(Recipe("a"), Recipe("b"), SPEECH, pairs=64, length_s=1.0, speed=5.0, around=around)
    assert set(order[: 2 * 65]) == {"a"}
    assert {frozenset(pair) for pair in zip(order[130::2], order[131::2], strict=True)} == {frozenset("ab")}
    assert found["verdict"] == "regression"
    assert found["ratio"]["value"] == pytest.approx(1.1, abs=0.002)


def test_a_comparison_is_judged_again_from_its_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Side, "open", lambda self, _stack: self)
    monkeypatch.setattr(Side, "work", lambda self: 1.0)
    around = Surroundings(clock=VirtualClock(), watch=QuietWatch)
    found = run_compare(Recipe("a"), Recipe("b"), SPEECH, pairs=3, length_s=1.0, speed=5.0, around=around)
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    assert verify_comparison(path) == 6
    for damage in (
        {"verdict": "improvement"},
        {"pairs": [[1.0, 2.0]] * 3},
        {"pairs": "none"},
        {"ratio": {**found["ratio"], "low": 0.5}},
    ):
        path.write_text(json.dumps({**found, **damage}), encoding="utf-8")
        with pytest.raises(VerificationError):
            verify_comparison(path)


def test_work_of_lowered_quality_is_no_work_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Side, "open", lambda self, _stack: self)
    monkeypatch.setattr(Side, "work", lambda self: 1.0)
    monkeypatch.setattr(Side, "lowered", 1)
    around = Surroundings(clock=VirtualClock(), watch=QuietWatch)
    found = run_compare(Recipe("a"), Recipe("b"), SPEECH, pairs=3, length_s=1.0, speed=5.0, around=around)
    assert "void, since quality was lowered (times: 2)" in found["sentence"]
    assert found["verdict"] == "void"
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps({**found, "quality_lowered": {"first": 0, "second": 0}}), encoding="utf-8")
    with pytest.raises(VerificationError):
        verify_comparison(path)


class BusyWatch(QuietWatch):
    """A machine on which others do something."""

    psi, steal, others_cpu = 0.5, 0.1, 40.0

    def contention(self, *, before: bool = False) -> Contention:
        return Contention(0.0, self.psi if before else None, self.steal, self.others_cpu)


@pytest.mark.parametrize(
    ("ran", "reason"),
    [
        ({}, "40.0 % of processor time went to other processes (most: 5 %)"),
        ({"others_cpu": 1.0, "psi": 60.0}, "60.0 % of the minute before the run processes waited for a processor"),
        ({"others_cpu": 1.0, "steal": 2.0}, "2.0 % of processor time went to other machines on the host"),
    ],
    ids=["others", "pressure", "steal"],
)
def test_beside_too_much_else_there_is_no_comparison(
    ran: dict[str, float], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Side, "open", lambda self, _stack: self)
    monkeypatch.setattr(Side, "work", lambda self: 1.0)

    def compared(**ran: float) -> dict[str, Any]:
        around = Surroundings(clock=VirtualClock(), watch=type("Watch", (BusyWatch,), ran))
        return run_compare(Recipe("a"), Recipe("b"), SPEECH, pairs=3, length_s=1.0, speed=5.0, around=around)

    found, free = compared(**ran), compared(others_cpu=1.0)
    assert found["verdict"] == "void" and f"; void, since {reason}" in found["sentence"]
    assert free["verdict"] == "too few pairs" and "void" not in free["sentence"], "negative control"
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    assert verify_comparison(path) == 6
    path.write_text(json.dumps({**found, "contention": free["contention"]}), encoding="utf-8")
    with pytest.raises(VerificationError, match="void, since"):
        verify_comparison(path)


def test_a_comparison_that_does_not_say_what_else_ran_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Side, "open", lambda self, _stack: self)
    monkeypatch.setattr(Side, "work", lambda self: 1.0)
    around = Surroundings(clock=VirtualClock(), watch=QuietWatch)
    found = run_compare(Recipe("a"), Recipe("b"), SPEECH, pairs=3, length_s=1.0, speed=5.0, around=around)
    assert "nobody can tell whether the machine was free" in found["sentence"]
    del found["contention"]
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(VerificationError, match=r"doesn't say what else ran \(contention\); compare again"):
        verify_comparison(path)


def test_pairs_are_pairs() -> None:
    pair: Pair = latency_pairs._pair([1, 2])
    assert pair == (1.0, 2.0)
