# SPDX-License-Identifier: Apache-2.0
"""Interleaved rounds, child processes that measure, and the workload that everybody computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.benchmarks.rounds import ContenderError, Worker, figures, interleave, paired, read_part, write_part
from edgereels.benchmarks.sound import read_sound
from edgereels.benchmarks.worker import answer
from edgereels.benchmarks.workload import carried, read_workload, record, sqnr_db, subnetwork_of, without_caches

from .stand_in_package import write_stand_in


def test_figures_are_count_median_and_spread() -> None:
    assert figures([3.0, 1.0, 2.0]) == {"n": 3, "median": 2.0, "min": 1.0, "max": 3.0}


def test_a_ratio_pairs_the_runs_of_one_round() -> None:
    ours, theirs = [1.0, 10.0, 2.0], [2.0, 20.0, 4.0]  # the machine was slow in the second round
    assert paired(theirs, ours) == {"n": 3, "median": 2.0, "min": 2.0, "max": 2.0}


def test_runs_of_different_rounds_are_not_paired() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


def test_every_contender_runs_once_a_round_in_changing_order_and_the_warm_up_is_not_counted() -> None:
    seen: list[str] = []

    def run(name: str) -> Any:
        return lambda: seen.append(name) or len(seen)

    results = interleave({name: run(name) for name in "abc"}, rounds=20)
    rounds = [tuple(seen[at : at + 3]) for at in range(0, len(seen), 3)]
    assert all(set(each) == set("abc") for each in rounds)
    assert len(set(rounds)) > 1
    assert {name: len(values) for name, values in results.items()} == dict.fromkeys("abc", 20)
    assert min(min(values) for values in results.values()) > 3


def test_a_part_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    assert read_part(path) is None
    with pytest.raises(TypeError):
        write_part(path, {"not": {"json"}})
    assert read_part(path) is None
    write_part(path, {"figure": 1})
    assert read_part(path) == {"figure": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["part.json"]


# ── Child processes ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_contender_that_does_not_exist_says_so_and_the_process_lives_on() -> None:
    with Worker({"kind": "abacus"}) as worker:
        for _ in range(2):
            with pytest.raises(ContenderError, match="contender 'abacus' is unknown"):
                worker.ask("run")


def test_a_job_that_takes_too_long_ends_the_process() -> None:
    with Worker({"kind": "abacus"}) as worker, pytest.raises(ContenderError, match="without an answer"):
        worker.ask("run", timeout_s=0.0)


def test_an_answer_is_a_result_or_one_line_about_what_went_wrong() -> None:
    class Fails:
        def run(self) -> None:
            raise OSError("first line\nsecond line")

        def add(self, a: int, b: int) -> int:
            return a + b

    assert answer(Fails, {"job": "add", "a": 1, "b": 2}) == {"result": 3}
    assert answer(Fails, {"job": "run"}) == {"error": "OSError: first line"}


def test_a_variable_reaches_the_contender_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    seen: dict[str, Any] = {}

    def remember(*_arguments: Any, **given: Any) -> Any:
        seen.update(given)
        raise InterruptedError

    monkeypatch.setattr("edgereels.benchmarks.rounds.subprocess.Popen", remember)
    with pytest.raises(InterruptedError):
        Worker({}, environment={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert seen["env"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "PATH" in seen["env"]


# ── The workload ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package that stands in for a real one, and the recorded calls of one render."""
    folder = tmp_path_factory.mktemp("workload")
    package = write_stand_in(folder / "stand-in")
    sound = (np.sin(np.arange(8000) * 0.1) * 0.3).astype(np.float32)
    np.save(folder / "sound.npy", sound)
    record(package, folder / "workload", audio=sound, threads=1)
    return package, folder


def test_a_recording_holds_every_subnetwork_and_no_caches(recorded: tuple[Path, Path]) -> None:
    workload = read_workload(recorded[1] / "workload")
    assert workload.media_s > 0
    assert all(workload.calls.values())
    names = {name for calls in workload.calls.values() for call in calls for name in (*call.feeds, *call.results)}
    assert not [name for name in names if "cache" in name]


def test_replaying_with_carried_caches_gives_what_was_recorded(recorded: tuple[Path, Path]) -> None:
    settings = {"kind": "onnxruntime", "package": str(recorded[0]), "workload": str(recorded[1] / "workload")}
    with Worker(settings | {"threads": 1}) as worker:
        fidelity, run = worker.ask("fidelity"), worker.ask("run")
    assert min(fidelity.values()) > 100  # the same library; 200 would be the same bits
    assert run["total"] == pytest.approx(sum(run["seconds"].values()))


def test_a_session_accounts_for_its_whole_time(recorded: tuple[Path, Path]) -> None:
    settings = {"kind": "edgereels", "package": str(recorded[0]), "audio": str(recorded[1] / "sound.npy"), "threads": 1}
    with Worker(settings) as worker:
        first, run = worker.ask("first_frame"), worker.ask("run")
        got = worker.ask("got")
    assert first["total_s"] == pytest.approx(first["open_s"] + first["first_chunk_s"])
    assert run["whole"] == pytest.approx(run["total"] + run["outside"])
    assert 0 < run["outside"] < run["whole"]
    assert got["dit"] == ["CPUExecutionProvider", "f32"]


@pytest.mark.parametrize(
    ("graph", "expected"),
    [("vae_decoder_next", "vae_decoder"), ("dit", "dit"), ("finish", "finish")],
    ids=lambda value: str(value),
)
def test_a_graph_belongs_to_its_subnetwork(graph: str, expected: str) -> None:
    assert subnetwork_of(graph) == expected


def test_caches_travel_under_the_next_calls_names() -> None:
    results = {"frames": 0, "next_cache_03": 3, "cache_10": 10}
    assert carried(results) == {"cache_03": 3, "cache_10": 10}
    assert set(without_caches({name: np.zeros(1) for name in results})) == {"frames"}


def test_signal_over_noise_in_decibels() -> None:
    reference = [np.full(10, 10.0), np.full(5, 10.0)]
    assert sqnr_db([values + 1 for values in reference], reference) == pytest.approx(20)
    assert sqnr_db(reference, reference) == 200
    with pytest.raises(ValueError, match="shape"):
        sqnr_db([np.zeros(9), np.zeros(5)], reference)


def test_sound_is_the_beginning_of_a_wav_file(tmp_path: Path) -> None:
    import wave

    for name, rate in (("good", 16000), ("other", 44100)):
        with wave.open(str(tmp_path / name), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(np.arange(-8000, 8000).astype("<i2").tobytes())
    samples = read_sound(tmp_path / "good", seconds=0.5)
    assert (samples.dtype, len(samples), samples[0]) == (np.float32, 8000, np.float32(-8000 / 32768))
    with pytest.raises(ValueError, match="44100"):
        read_sound(tmp_path / "other", seconds=1)


def test_settings_of_a_contender_are_json() -> None:
    """What a parent sends must survive the command line."""
    from edgereels.benchmarks.measurement import Run
    from edgereels.benchmarks.peers import own_settings, peer_settings

    run = Run(work=Path("work"), checkpoint=Path("checkpoint"), quantized={"w8a8": Path("w8a8.edgereels")})
    settings = own_settings(run) | peer_settings(run, best={"dit": "bf16"})
    assert json.loads(json.dumps(settings)) == settings
    assert {given["threads"] for given in settings.values()} == {2}
