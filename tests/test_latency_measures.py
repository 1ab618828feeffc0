# SPDX-License-Identifier: Apache-2.0
"""Figures of streams whose every time is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgereels.benchmarks.latency_measures import counts, figures, measured, occupied_s, span_s, unaccounted
from edgereels.benchmarks.latency_trace import Chunk, Energy, Frame, Turn

from .latency_traces import CHUNK_S, FPS, chunks_of, lines_of, recorded, with_run

EVEN = [0.4] * 30


@pytest.fixture(scope="module")
def even() -> dict[str, Any]:
    return figures(recorded(lines_of(EVEN, mb_per_min=2.0)))


def test_an_even_stream_has_even_figures(even: dict[str, Any]) -> None:
    assert (even["chunk_latency_ms"]["min"], even["chunk_latency_ms"]["max"]) == pytest.approx((400, 400))
    assert even["misses"]["hits"] == even["stalls"]["count"] == even["freezes"]["count"] == 0
    assert even["real_time_factor_in_total"] == pytest.approx(0.5)
    assert even["needed_speed"] == pytest.approx(0.5)
    assert even["chunk_interval_deviation_ms"]["mad"] == pytest.approx(0, abs=1e-9)
    assert even["look_ahead_ms"]["max"] == pytest.approx(160)
    assert even["stages_ms"]["denoise"]["p50"]["value"] == pytest.approx(240)
    assert even["outside_graphs_share"] == pytest.approx(0.05)
    assert even["unaccounted_share"] == pytest.approx(0, abs=1e-9)


def test_sound_before_picture_counts_positive(even: dict[str, Any]) -> None:
    assert (even["av_offset_ms"]["min"], even["av_offset_ms"]["max"]) == pytest.approx((10, 10))
    early_picture = figures(recorded(lines_of(EVEN, offset_s=-0.03)))
    assert early_picture["av_offset_ms"]["max"] == pytest.approx(-30)


def test_a_drift_is_found_and_none_is_not(even: dict[str, Any]) -> None:
    assert even["av_drift_ms_per_h"]["low"] <= 1e-6
    assert even["av_drift_ms_per_h"]["high"] >= -1e-6
    lines = lines_of(EVEN)
    slow = [replace(one, shown_s=one.shown_s + one.media_s * 1e-4) if isinstance(one, Frame) else one for one in lines]
    assert figures(recorded(slow))["av_drift_ms_per_h"]["value"] == pytest.approx(360, rel=1e-3)


def test_a_machine_that_gets_busier_is_no_drift_and_a_slow_clock_beneath_it_is() -> None:
    """Lateness that grows from 0 to 20 ms in two frames out of three; then the same over a clock that parts."""
    lines = [one for one in lines_of(EVEN) if not isinstance(one, Frame) or one.shown_s is not None]
    last_s = max(one.media_s for one in lines if isinstance(one, Frame))
    random = np.random.default_rng(5)

    def drift(parting_ms_per_h: float) -> dict[str, float]:
        moved = list[Any]()
        for one in lines:
            if isinstance(one, Frame) and one.shown_s is not None:
                busy_s = 0.02 * one.media_s / last_s * (random.random() > 1 / 3)
                one = replace(one, shown_s=one.shown_s + busy_s + one.media_s * parting_ms_per_h / 3.6e6)
            moved.append(one)
        return figures(recorded(moved))["av_drift_ms_per_h"]

    busy, parting = drift(0.0), drift(360.0)
    assert busy["low"] <= 1e-6 <= busy["high"] + 1e-3
    assert busy["high"] < 100
    assert parting["low"] > 100
    assert parting["low"] <= 360 <= parting["high"] + 1e-3


def test_memory_that_grows_is_seen(even: dict[str, Any]) -> None:
    grown = even["memory"]["slope_mb_per_min"]
    assert grown["low"] <= 2 <= grown["high"]
    assert grown["value"] == pytest.approx(2, rel=1e-3)
    assert even["memory"]["peak_bytes"] > 2e8


def test_a_stall_of_two_seconds_appears_as_the_misses_that_it_caused() -> None:
    """The control against coordinated omission: a closed loop would see one slow chunk."""
    work = [*[0.3] * 20, 2.3, *[0.3] * 20]
    found = figures(recorded(lines_of(work)))
    # The stalled chunk is late, and so are those that had to wait for it, until 0.5 s a chunk have caught up.
    late_ms = [1500, 1000, 500]
    assert found["misses"]["hits"] == 3
    assert found["chunk_lateness_ms"]["max"] == pytest.approx(late_ms[0])
    latencies = sorted((one.ready_s - one.intended_s) * 1000 for one in chunks_of(work))[-4:]
    assert latencies == pytest.approx([300 + 500, *(800 + late for late in reversed(late_ms))])
    assert found["stalls"] == {"count": 1, "total_ms": pytest.approx(1500), "longest_ms": pytest.approx(1500)}
    assert found["freezes"]["count"] == 1
    closed_loop = [one for one in work if one > CHUNK_S]
    assert len(closed_loop) == 1


def test_a_closed_loop_would_have_hidden_it() -> None:
    """Each chunk timed from when its work began: the same stream, and all but one miss are gone."""
    honest = chunks_of([*[0.3] * 20, 2.3, *[0.3] * 20])
    flattered = [replace(one, intended_s=one.start_s, due_s=one.start_s + 0.8) for one in honest]
    assert figures(recorded(flattered))["misses"]["hits"] == 1
    assert figures(recorded(honest))["misses"]["hits"] == 3


def test_warm_up_is_reported_apart() -> None:
    lines = lines_of([5.0, 0.4, *[0.1] * 20])
    found = recorded(lines, run=with_run(warm_up_chunks=10))
    assert figures(found)["misses"]["hits"] == 0
    assert figures(found)["warm_up_work_ms"]["max"] == pytest.approx(5000)
    assert counts(found)["warm_up_chunks"] == 10
    assert len(measured(found).frames) == 12 * 20
    assert figures(recorded(lines, run=with_run(warm_up_chunks=0)))["misses"]["hits"] > 0


def test_held_and_dropped_frames_are_missed_and_stall() -> None:
    frames = [Frame(i / FPS, i / FPS, i / FPS, "speech") for i in range(100)]
    frames[50:60] = [replace(one, kind="held") for one in frames[50:60]]
    frames[70] = replace(frames[70], shown_s=None)
    found = figures(recorded(frames))
    assert found["missed_frames"]["hits"] == 11
    assert found["stalls"] == {"count": 2, "total_ms": pytest.approx(440), "longest_ms": pytest.approx(400)}
    assert counts(recorded(frames))["frames_never_shown"] == 1


def test_a_frame_that_is_lost_behind_a_late_one_is_a_stall_and_a_held_one_there_is_none() -> None:
    frames = [Frame(i / FPS, i / FPS, i / FPS + 0.012 * (i == 49), "speech") for i in range(100)]
    lost = [replace(one, shown_s=None) if one is frames[50] else one for one in frames]
    assert figures(recorded(lost))["stalls"]["count"] == 1
    held = [replace(one, kind="held") if one is frames[50] else one for one in frames]
    assert figures(recorded(held))["stalls"]["count"] == 0


@pytest.mark.parametrize("tremble_s", [0.0, 0.003, -0.003])
def test_a_frame_that_is_lost_while_all_are_a_slot_late_is_one_stall_and_not_two(tremble_s: float) -> None:
    """Its line says when it was due by the plan, which is before the frame ahead of it was shown."""
    late = [Frame((i + 1) / FPS, i / FPS, (i + 1) / FPS + tremble_s * (i % 2), "speech") for i in range(100)]
    assert figures(recorded(late))["stalls"]["count"] == 1, "the first"
    for place in (50, 51):
        lost = [replace(one, shown_s=None) if number == place else one for number, one in enumerate(late)]
        found = figures(recorded(lost))["stalls"]
        assert found["count"] == 2 and 80 - 1e-6 <= found["total_ms"] < 85, (place, found)


def test_streams_are_kept_apart() -> None:
    lines = [*chunks_of(EVEN), *chunks_of([0.7] * 30, stream=1)]
    found = figures(recorded(lines, run=with_run(streams=2)))
    assert found["misses"]["n"] == 56
    assert found["needed_speed"] == pytest.approx(0.875)  # of the slower one
    assert found["chunk_interval_deviation_ms"]["mad"] == pytest.approx(0, abs=1e-9)


def test_a_turn_is_told_apart_from_its_look_ahead() -> None:
    turns = [Turn(float(i), i + 0.4, "turn", 0.25) for i in range(11)] + [Turn(0.0, 3.0, "cold")]
    found = figures(recorded(turns))["first_frame_ms"]
    assert found["turn"]["p50"]["value"] == pytest.approx(400)
    assert found["turn_look_ahead"]["max"] == pytest.approx(250)
    assert found["turn_beyond_look_ahead"]["max"] == pytest.approx(150)
    assert (found["cold"]["n"], found["warm"]["n"]) == (1, 0)


def test_power_is_given_or_the_reason_why_not() -> None:
    lines = [Energy(0, 10, 50.0, "RAPL package"), Energy(0, 10, None, None, "the counter is root's")]
    known, unknown = figures(recorded(lines))["energy"]
    assert (known["watts"], unknown["watts"], unknown["why_none"]) == (5.0, None, "the counter is root's")


def test_a_chunk_holds_up_the_next_only_while_it_is_worked_on() -> None:
    made = chunks_of([0.3, 1.5, 0.3])
    starts, ends = (np.array([getattr(one, name) for one in made]) for name in ("start_s", "ready_s"))
    np.testing.assert_allclose(occupied_s(starts, ends), [0.3, 1.5, 0.3])


def test_time_that_nobody_accounts_for_is_found() -> None:
    whole: Chunk = chunks_of([0.5])[0]
    assert unaccounted(whole) == pytest.approx(0, abs=1e-9)
    assert unaccounted(replace(whole, stages={**whole.stages, "denoise": 0.2})) == pytest.approx(0.2)


def test_nothing_measured_gives_nothing() -> None:
    found = figures(recorded([]))
    assert found["misses"]["share"] is found["needed_speed"] is found["av_drift_ms_per_h"] is None
    assert span_s(recorded([])) == 0


def test_a_rest_loop_that_stands_in_for_speech_is_no_new_frame() -> None:
    """Two seconds late: held for one, resting for the other, then all of the speech, late by the plan."""
    period_s = 1 / FPS
    rest = [Frame(i * period_s, i * period_s, i * period_s, "rest") for i in range(10)]
    late_s = 2.0
    slots = [10 + i for i in range(round(late_s * FPS))]
    waiting = [Frame(i * period_s, i * period_s, i * period_s, "held" if i < 35 else "rest") for i in slots]
    speech = [
        Frame(0.4 + late_s + i * period_s, 0.4 + i * period_s, 0.4 + late_s + i * period_s, "speech") for i in range(50)
    ]
    found = figures(recorded([*rest, *waiting, *speech], run=with_run(warm_up_chunks=0)))
    assert found["stalls"]["count"] == 1
    assert found["stalls"]["longest_ms"] == pytest.approx(2000, abs=1)
    assert found["missed_frames"]["hits"] == 100
    after = [Frame(9.0 + i * period_s, 9.0 + i * period_s, 9.0 + i * period_s, "rest") for i in range(10)]
    again = figures(recorded([*rest, *waiting, *speech, *after], run=with_run(warm_up_chunks=0)))
    assert again["missed_frames"]["hits"] == 100, "rest that was due is new"
