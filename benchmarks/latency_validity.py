# SPDX-License-Identifier: Apache-2.0
"""Whether a run may be published, and if not, why not: every reason is a sentence with its numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .latency_figures import carries
from .latency_gaps import lacking
from .latency_measures import by_stream, measured, span_s, unaccounted
from .latency_pieces import are_sound
from .latency_trace import Contention
from .latency_trace_file import Recorded

MOST_PSI, MOST_STEAL, MOST_OTHERS_CPU = 10.0, 1.0, 5.0
"""Percent: processes waiting for a processor before the run; time taken by other machines on the host, and by other
processes of this one, during it."""
CROWDED = {
    "psi_before": (MOST_PSI, "of the minute before the run processes waited for a processor", "pressure"),
    "steal_during": (MOST_STEAL, "of processor time went to other machines on the host", "steal"),
    "others_cpu_during": (MOST_OTHERS_CPU, "of processor time went to other processes", "other processes"),
}
"""Figures of `contention`: the most of each, what it is, and its name where a machine doesn't show it."""
LEAST_FREE_SHARE = 0.10
"""Of memory: below, the system may reclaim pages of the model."""
MOST_UNACCOUNTED = 0.02
"""Of a chunk's own time that work and waits may leave unexplained."""
LEAST_SPAN_S = 600.0
"""MLPerf's shortest run."""
LEAST_CHUNKS = LEAST_TURNS = 64
"""The count that carries a p90."""
TOLERANCE_S = 1e-3
"""By which a block's time stamp may lie before its schedule, or a stage below nothing: clocks are read, not obeyed."""
VOIDING_EVENTS = {
    "nonfinite_latent": "a latent held NaN or infinity",
    "throttled": "the processor was throttled",
    "chunk_lost": "a chunk was lost to a fault and the picture before it shown in its place",
    "sink_failed": "what the frames were shown to broke, and saw nothing from then on",
    "given_up": "the session failed before the end",
}
"""Names of events after which the figures are of something else than what was asked."""
ASKED_TO_END, ENDING_S = "asked_to_end", 2.0
"""Event: the process was told to end. A run of a graph is broken off then, up to so long before it is noted here."""


def validity(recorded: Recorded) -> dict[str, Any]:
    """Return status (publishable, quick or invalid) and the reasons; a quick run is compared with nothing."""
    voids, shortcomings = list(_voids(recorded)), list(_shortcomings(recorded))
    status = "invalid" if voids else "quick" if shortcomings else "publishable"
    return {"status": status, "reasons": voids + shortcomings}


def contention(recorded: Recorded) -> dict[str, Any]:
    """Return what else ran: before the first sound, and during the measurement (means over time)."""
    first_s = _first_s(recorded)
    before = [one for one in recorded.contention if one.at_s <= first_s]
    psi = [one.psi for one in before if one.psi is not None]
    return {
        "psi_before": max(psi, default=None),
        "steal_during": _mean(recorded.contention, "steal", first_s),
        "others_cpu_during": _mean(recorded.contention, "others_cpu", first_s),
        "samples_before": len(before),
        "samples_during": len(recorded.contention) - len(before),
    }


def peeks(recorded: Recorded) -> list[int]:
    """Return the indices of chunks made from sound that had not arrived when they say it had, or work on them began."""
    found: list[int] = []
    blocks = by_stream(recorded.sound_blocks)
    for stream, chunks in by_stream(recorded.chunks).items():
        own = sorted(blocks.get(stream, []), key=lambda block: block.arrived_s)
        arrived_s = np.array([block.arrived_s for block in own])
        held_s = np.concatenate([[0.0], np.cumsum([block.samples / block.sample_rate for block in own])])
        for chunk in chunks:
            ready_s = min(chunk.start_s, chunk.audio_ready_s)
            had_s = held_s[np.searchsorted(arrived_s, ready_s + TOLERANCE_S, side="right")]
            too_much = chunk.needed_sound_s is not None and chunk.needed_sound_s > had_s + TOLERANCE_S
            if too_much or chunk.start_s < chunk.audio_ready_s - TOLERANCE_S:
                found.append(chunk.index)
    return found


def _voids(recorded: Recorded) -> Iterator[str]:
    run, chunks = recorded.run, measured(recorded).chunks
    if run.clock == "wall":
        yield "times are of the wall clock, which can jump; use a monotonic one"
    yield from _substitutes(run.engines)
    if not chunks:
        yield "no chunk was measured"
    yield from lacking(recorded)
    off = [chunk.index for chunk in chunks if unaccounted(chunk) > MOST_UNACCOUNTED]
    if off:
        worst = max(map(unaccounted, chunks))
        most = f"most: {MOST_UNACCOUNTED:.0%}"
        yield f"work and waits of {len(off)} chunks miss their length, by up to {worst:.1%} ({most})"
    if doubled := [chunk.index for chunk in chunks if min(chunk.stages.values(), default=0.0) < -TOLERANCE_S]:
        yield f"a stage of {len(doubled)} chunks took less than no time, so something was counted twice or elsewhere"
    if odd := [chunk.index for chunk in chunks if not are_sound(chunk)]:
        yield f"the pieces of {len(odd)} chunks don't make up the chunk; the first: chunk {odd[0]}"
    if peeking := peeks(recorded):
        yield f"{len(peeking)} chunks were made from sound that had not arrived; the first: chunk {peeking[0]}"
    early = sum(block.arrived_s < block.intended_s - TOLERANCE_S for block in recorded.sound_blocks)
    if early:
        yield f"{early} blocks of sound were handed over before their time: the loop was not open"
    yield from _crowded(recorded)
    ended_s = min((event.at_s for event in recorded.events if event.name == ASKED_TO_END), default=math.inf)
    counted = [event.name for event in recorded.events if event.at_s < ended_s - ENDING_S]
    for name, meaning in VOIDING_EVENTS.items():
        if times := counted.count(name):
            yield f"{meaning} ({times} times)"


def _substitutes(engines: Sequence[dict[str, str]]) -> Iterator[str]:
    for engine in engines:
        for what in ("provider", "precision"):
            asked, got = engine.get(f"{what}_asked", ""), engine.get(what, "an unknown one")
            if asked and asked != got:
                yield f"{engine.get('graph', 'a graph')} ran with {what} {got}; asked for {asked}"


def _crowded(recorded: Recorded) -> Iterator[str]:
    found = contention(recorded)
    if recorded.run.clock != "virtual" and not (found["samples_before"] and found["samples_during"]):
        yield "what else the machine did was not recorded before and during the run"
    yield from crowding(found)
    free = [one.free_share for one in recorded.memory if one.free_share is not None]
    if free and min(free) < LEAST_FREE_SHARE:
        yield f"only {min(free):.1%} of memory was free (least: {LEAST_FREE_SHARE:.0%})"


def crowding(found: Mapping[str, float | None]) -> Iterator[str]:
    """Say what else ran beyond what figures bear, of the figures of `contention` that could be read."""
    for name, (most, meaning, _short) in CROWDED.items():
        share = found[name]
        if share is not None and share > most:
            yield f"{share:.1f} % {meaning} (most: {most:.0f} %)"


def unread(found: Mapping[str, float | None]) -> Iterator[str]:
    """Say which of the same figures could not be read; nothing where all were."""
    if names := [short for name, (_most, _meaning, short) in CROWDED.items() if found[name] is None]:
        yield f"nobody can tell whether the machine was free: it doesn't show {', '.join(names)}"


def _shortcomings(recorded: Recorded) -> Iterator[str]:
    scenario, chunks = recorded.run.scenario, measured(recorded).chunks
    length_s, turns = span_s(recorded), sum(turn.kind == "turn" for turn in recorded.turns)
    if scenario in ("paced", "multi", "soak") and length_s < LEAST_SPAN_S:
        yield f"too short: {length_s:.0f} s were measured (least: {LEAST_SPAN_S:.0f} s)"
    if scenario == "turns" and turns < LEAST_TURNS:
        yield f"too few turns: {turns} (least: {LEAST_TURNS}, which carry a p90)"
    if recorded.run.clock != "virtual" and recorded.contention:
        yield from unread(contention(recorded))
    if scenario != "turns" and not carries(90, len(chunks)):
        yield f"too few chunks: {len(chunks)} (least: {LEAST_CHUNKS}, which carry a p90)"


def _first_s(recorded: Recorded) -> float:
    starts = [block.arrived_s for block in recorded.sound_blocks]
    starts += [chunk.intended_s for chunk in recorded.chunks]
    return min(starts, default=0.0)


def _mean(samples: Sequence[Contention], name: str, first_s: float) -> float | None:
    """Return the mean of a figure that each line gives for the time since the line before it."""
    total = length_s = 0.0
    ordered = sorted(samples, key=lambda one: one.at_s)
    for before, after in pairwise(ordered):
        value = getattr(after, name)
        if after.at_s > first_s and value is not None:
            total += value * (after.at_s - before.at_s)
            length_s += after.at_s - before.at_s
    return total / length_s if length_s else None
