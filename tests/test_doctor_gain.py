# SPDX-License-Identifier: Apache-2.0
"""Engines are compared in interleaved rounds, call by call on the same inputs, as often as a window calls them."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.doctor_gain import FEWEST_ROUNDS, ROUNDS, Load, LoadRecorder, interleave, ratio, window_ms


class Clock:
    """Seconds that pass only while an engine runs."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now_s


class TimedEngine:
    """An engine that takes as long as it is told."""

    library, provider, precision = "stand-in", "Stand-in", "f32"
    node_counts: Mapping[str, int] = {}
    input_names, output_names = ("x",), ("y",)

    def __init__(self, clock: Clock, name: str, *, takes_s: float) -> None:
        self._clock, self._name, self._takes_s = clock, name, takes_s

    def freeze(self, shapes: object) -> None:
        pass

    def run(self, feeds: Mapping[str, Any], *, keep: Collection[str] = ()) -> dict[str, Any]:
        self._clock.calls.append(self._name)
        self._clock.now_s += self._takes_s
        return {}

    def close(self) -> None:
        pass


LOADS = {"dit": Load({"x": np.zeros(1)}, 2), "vae_decoder_next": Load({"x": np.zeros(1)}, 10)}


def contenders(clock: Clock, **takes_s: float) -> dict[str, dict[str, TimedEngine]]:
    return {name: {graph: TimedEngine(clock, name, takes_s=each) for graph in LOADS} for name, each in takes_s.items()}


def test_calls_count_as_often_as_a_window_makes_them() -> None:
    assert window_ms({"dit": 30.0, "vae_decoder_next": 5.0}, LOADS) == 110.0


def test_a_ratio_pairs_rounds() -> None:
    found = ratio([10.0, 20.0, 30.0], [5.0, 20.0, 10.0])
    assert (found.n, found.median, found.low, found.high, found.wins) == (3, 2.0, 1.0, 3.0, 2)


def test_every_contender_runs_every_graph_once_a_round() -> None:
    clock = Clock()
    rounds = interleave(contenders(clock, ours=0.01, theirs=0.02), LOADS, clock_s=clock)
    assert {name: len(taken) for name, taken in rounds.items()} == {"ours": ROUNDS, "theirs": ROUNDS}
    assert clock.calls.count("ours") == (ROUNDS + 1) * len(LOADS)  # and one round of warm-up
    assert rounds["theirs"][0] == pytest.approx({"dit": 20.0, "vae_decoder_next": 20.0})


def test_the_order_changes_from_call_to_call() -> None:
    clock = Clock()
    interleave(contenders(clock, ours=0.01, theirs=0.01), LOADS, clock_s=clock)
    firsts = clock.calls[::2]
    assert {"ours", "theirs"} == set(firsts)


def test_slow_engines_get_fewer_rounds_but_never_too_few() -> None:
    clock = Clock()
    rounds = interleave(contenders(clock, ours=60.0, theirs=60.0), LOADS, clock_s=clock)
    assert len(rounds["ours"]) == FEWEST_ROUNDS


def test_a_slow_spell_of_the_machine_does_not_show_in_the_median() -> None:
    """Both are slowed by the same factor in a round, so the ratio of that round is that of the others."""
    ours, theirs = [10.0, 10.0, 40.0, 10.0, 10.0], [20.0, 20.0, 80.0, 20.0, 20.0]
    assert ratio(theirs, ours).median == ratio(theirs, ours).high == 2.0


def test_the_recorder_keeps_the_inputs_of_the_shape_that_comes_most_often() -> None:
    recorder = LoadRecorder()
    for frames in (4, 8, 8):
        recorder("vae_decoder_next", {"latents": np.full(frames, frames)}, {})
    recorder("finish", {"frames": np.zeros(3)}, {})
    loads = recorder.loads()
    assert loads.keys() == {"vae_decoder_next"}
    assert loads["vae_decoder_next"].calls == 3
    assert loads["vae_decoder_next"].shapes == {"latents": (8,)}
    assert recorder.calls == {"vae_decoder_next": 3, "finish": 1}


def test_the_recorder_copies_what_it_keeps() -> None:
    recorder, latents = LoadRecorder(), np.ones(4)
    recorder("dit", {"latents": latents}, {})
    latents[:] = 0
    assert recorder.loads()["dit"].feeds["latents"].tolist() == [1, 1, 1, 1]
