# SPDX-License-Identifier: Apache-2.0
"""Every reason not to publish is found, and a clean run has none."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgereels.benchmarks.latency_trace import Chunk, Contention, Event, Frame, Memory, Run, SoundBlock, SoundOut, Turn
from edgereels.benchmarks.latency_validity import contention, peeks, validity

from .latency_traces import RUN, lines_of, recorded, with_run

LINES = [one for one in lines_of([0.4] * 760, block_s=0.16) if not isinstance(one, Frame | SoundOut)]


def each(kind: type[Any], **fields: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda lines: [replace(one, **fields) if isinstance(one, kind) else one for one in lines]


def test_a_clean_run_may_be_published() -> None:
    assert validity(recorded(LINES)) == {"status": "publishable", "reasons": []}


SUBSTITUTE = [{**RUN.engines[0], "provider_asked": "CUDA"}]
ROUNDED = [{**RUN.engines[0], "precision": "bf16"}]
VOIDS: dict[str, tuple[Run, Callable[[list[Any]], list[Any]], str]] = {
    "wall clock": (with_run(clock="wall"), list, "wall clock"),
    "another provider": (with_run(engines=SUBSTITUTE), list, "dit ran with provider CPU; asked for CUDA"),
    "another precision": (with_run(engines=ROUNDED), list, "dit ran with precision bf16; asked for f32"),
    "lost time": (
        RUN,
        each(Chunk, waits={"queue": 0.1}),
        "work and waits of 758 chunks miss their length, by up to 25",
    ),
    "time counted twice": (
        RUN,
        each(Chunk, stages={"dit": 0.4 + 0.3, "between": -0.3}),
        "a stage of 758 chunks took less than no time",
    ),
    "peeking": (RUN, each(Chunk, needed_sound_s=1e6), "made from sound that had not arrived"),
    "sound said to have been there": (RUN, each(Chunk, audio_ready_s=0.0), "made from sound that had not arrived"),
    "begun too early": (RUN, each(Chunk, audio_ready_s=1e6), "made from sound that had not arrived"),
    "closed loop": (RUN, each(SoundBlock, arrived_s=0.0), "handed over before their time"),
    "busy before": (RUN, each(Contention, psi=86.0), "86.0 % of the minute before"),
    "stolen time": (RUN, each(Contention, steal=3.0), "3.0 % of processor time went to other machines"),
    "other processes": (RUN, each(Contention, others_cpu=20.0), "20.0 % of processor time went to other processes"),
    "unwatched": (RUN, lambda lines: [one for one in lines if not isinstance(one, Contention)], "was not recorded"),
    "little memory": (RUN, each(Memory, free_share=0.05), "only 5.0% of memory was free"),
    "NaN": (RUN, lambda lines: [*lines, Event("nonfinite_latent", "M", 1.0)], "a latent held NaN"),
    "a lost chunk": (RUN, lambda lines: [*lines, Event("chunk_lost", "S_NONFINITE", 1.0)], "a chunk was lost"),
    "a broken viewer": (RUN, lambda lines: [*lines, Event("sink_failed", "S_FAILED", 1.0)], "were shown to broke"),
    "a failed session": (RUN, lambda lines: [*lines, Event("given_up", "S_FAILED", 1.0)], "the session failed"),
    "throttled": (RUN, lambda lines: [*lines, Event("throttled", None, 1.0)], "was throttled (1 times)"),
    "nothing": (RUN, lambda lines: [one for one in lines if not isinstance(one, Chunk)], "no chunk was measured"),
}


@pytest.mark.parametrize("name", VOIDS)
def test_a_run_is_void(name: str) -> None:
    run, change, reason = VOIDS[name]
    found = validity(recorded(change(LINES), run=run))
    assert found["status"] == "invalid"
    assert [one for one in found["reasons"] if reason in one], found["reasons"]


def test_unstated_wishes_are_not_missed() -> None:
    engine = {**RUN.engines[0], "provider_asked": "", "precision_asked": ""}
    assert validity(recorded(LINES, run=with_run(engines=[engine])))["status"] == "publishable"


def test_a_short_run_is_quick() -> None:
    found = validity(recorded(lines_of([0.4] * 50)))
    assert found["status"] == "quick"
    assert [reason.split(":")[0] for reason in found["reasons"]] == ["too short", "too few chunks"]


def test_turns_are_counted_and_not_timed() -> None:
    run, lines = with_run(scenario="turns"), lines_of([0.4] * 20)
    assert validity(recorded(lines, run=run))["reasons"] == ["too few turns: 0 (least: 64, which carry a p90)"]
    turns = [Turn(float(i), i + 0.4) for i in range(64)]
    assert validity(recorded([*lines, *turns], run=run))["status"] == "publishable"


def test_one_chunk_that_peeks_by_a_block_is_caught() -> None:
    """The chunk that begins 160 ms before the last block that it is made from is there."""
    found = recorded(LINES)
    assert peeks(found) == []
    chunk = found.chunks[7]
    found.chunks[7] = replace(chunk, needed_sound_s=chunk.needed_sound_s + 0.16)  # type: ignore[operator]
    assert peeks(found) == [7]
    found.chunks[7] = chunk


def test_load_of_the_measured_process_itself_is_no_contention() -> None:
    """Waiting for a processor during the run is what two busy threads on two cores do to each other."""
    found = contention(recorded(LINES))
    assert (found["psi_before"], found["samples_before"]) == (0.5, 1)
    assert found["others_cpu_during"] == pytest.approx(0.4)


def test_a_machine_that_does_not_show_whether_it_is_free_gives_a_quick_report() -> None:
    blind = each(Contention, psi=None, steal=None, others_cpu=None)(LINES)
    assert validity(recorded(blind)) == {
        "status": "quick",
        "reasons": ["nobody can tell whether the machine was free: it doesn't show pressure, steal, other processes"],
    }
    one = validity(recorded(each(Contention, steal=None)(LINES)))
    assert one["status"] == "quick" and one["reasons"][0].endswith("it doesn't show steal")


def test_where_time_is_made_up_nothing_else_runs() -> None:
    blind = each(Contention, psi=None, steal=None, others_cpu=None)(LINES)
    assert validity(recorded(blind, run=with_run(clock="virtual")))["status"] == "publishable"


def test_what_is_broken_off_at_the_end_was_not_lost() -> None:
    lost, ended = Event("chunk_lost", "S_UNEXPECTED", 50.0), Event("asked_to_end", "S_STOPPED", 50.5)
    assert validity(recorded([*LINES, lost, ended]))["status"] == "publishable"
    assert validity(recorded([*LINES, Event("chunk_lost", "S_UNEXPECTED", 40.0), ended]))["status"] == "invalid"
