# SPDX-License-Identifier: Apache-2.0
"""From a trace to figures: what is counted, from when to when.

Latency is counted from the intended time, not from when a late session got round to it: a stall shows as all the
chunks that it made wait. Lateness is what is beyond the time at which something was due; a miss is any lateness.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .latency_figures import (
    Showing,
    Values,
    distribution,
    freezes_of,
    interval_deviations,
    needed_speed,
    share_of,
    slope,
    stalls_of,
)
from .latency_pieces import deadlines, lateness_s, pieces_of
from .latency_trace import Chunk, Frame, Memory, SoundOut, Turn
from .latency_trace_file import Recorded

MS = 1000.0
SETTLING_SHARE = 0.25
"""Of the time, from its beginning, that the memory's slope leaves out: caches and pools fill."""
DRIFT_STRETCHES = 60
"""Stretches of the run whose earliest picture, beside its sound, counts for the drift; 10 s each in ten minutes."""
MEGABYTE = 1e6


def measured(recorded: Recorded) -> Recorded:
    """Return the trace without the warm-up: its first chunks, and what was due before the first that counts."""
    kept = [chunk for chunk in recorded.chunks if chunk.index >= recorded.run.warm_up_chunks]
    if len(kept) == len(recorded.chunks):
        return recorded
    from_s: dict[int, float] = {}
    for chunk in kept:
        from_s[chunk.stream] = min(chunk.due_s, from_s.get(chunk.stream, chunk.due_s))
    frames = [frame for frame in recorded.frames if frame.due_s >= from_s.get(frame.stream, float("inf"))]
    return replace(recorded, lines={**recorded.lines, Chunk: kept, Frame: frames})


def figures(recorded: Recorded) -> dict[str, Any]:
    """Compute every figure of a report."""
    kept, fps = measured(recorded), recorded.run.fps
    chunks, frames = kept.chunks, without_stand_ins(kept.frames, fps=fps)
    warm_up = [_work_s(chunk) * MS for chunk in recorded.chunks if chunk.index < recorded.run.warm_up_chunks]
    return {
        "chunk_latency_ms": _ms(chunk.ready_s - chunk.intended_s for chunk in chunks),
        "first_piece_latency_ms": _ms(pieces_of(chunk)[0][0] - chunk.intended_s for chunk in chunks),
        "chunk_lateness_ms": _ms(max(0.0, lateness_s(chunk, fps=fps)) for chunk in chunks),
        "misses": share_of(sum(lateness_s(chunk, fps=fps) > 0 for chunk in chunks), len(chunks)),
        "needed_speed": _needed_speed(chunks, fps=fps),
        "frame_lateness_ms": _ms(
            max(0.0, frame.shown_s - frame.due_s) for frame in frames if frame.shown_s is not None
        ),
        "missed_frames": share_of(sum(_is_missed(frame, fps) for frame in frames), len(frames)),
        **_interruptions(frames, fps=fps),
        **_jitters(chunks, frames, fps=fps),
        **_offsets(frames, recorded.sound_out),
        **_work(chunks, recorded.run.graph_stages, fps=fps),
        "look_ahead_ms": _ms(chunk.look_ahead_s for chunk in chunks),
        "first_frame_ms": _first_frames(recorded.turns),
        "sound_lateness_ms": _ms(max(0.0, block.arrived_s - block.intended_s) for block in recorded.sound_blocks),
        "memory": _memory(recorded.memory),
        "energy": [_power(one.joules, one.stop_s - one.start_s, one.source, one.why_none) for one in recorded.energy],
        "warm_up_work_ms": distribution(warm_up, unit="ms"),
    }


def counts(recorded: Recorded) -> dict[str, Any]:
    """Count what there is in the trace, warm-up left out of chunks and frames."""
    kept = measured(recorded)
    return {
        "chunks": len(kept.chunks),
        "warm_up_chunks": len(recorded.chunks) - len(kept.chunks),
        "frames": dict(sorted(Counter(frame.kind for frame in kept.frames).items())),
        "frames_never_shown": sum(frame.shown_s is None for frame in kept.frames),
        "turns": len(recorded.turns),
        "events": dict(sorted(Counter(event.name for event in recorded.events).items())),
    }


def span_s(recorded: Recorded) -> float:
    """Return the length of what was measured: from the first intended time to the last chunk or frame."""
    kept = measured(recorded)
    begins = [chunk.intended_s for chunk in kept.chunks] + [frame.due_s for frame in kept.frames]
    ends = [chunk.ready_s for chunk in kept.chunks]
    ends += [frame.due_s if frame.shown_s is None else frame.shown_s for frame in kept.frames]
    return max(ends) - min(begins) if begins else 0.0


def without_stand_ins(frames: Sequence[Frame], *, fps: float) -> list[Frame]:
    """Return the frames, those of the rest loop that stood in for speech as held: they are new, and not what was due.

    A session that has nothing to show of an utterance for long lets the face rest; whoever waits for it to speak sees
    that it doesn't.
    """
    owed_s = {
        stream: np.sort([one.due_s for one in own if one.kind == "speech" and _is_missed(one, fps)])
        for stream, own in by_stream(frames).items()
    }
    return [
        replace(one, kind="held") if one.kind == "rest" and _is_near(one.due_s, owed_s[one.stream], 0.5 / fps) else one
        for one in frames
    ]


def _is_near(at_s: float, sorted_s: Values, within_s: float) -> bool:
    place = int(np.searchsorted(sorted_s, at_s - within_s))
    return place < len(sorted_s) and bool(sorted_s[place] <= at_s + within_s)


def unaccounted(chunk: Chunk) -> float:
    """Return what work and waits leave unexplained, or explain twice, as a share of the chunk's own time."""
    explained_s = _work_s(chunk) + sum(chunk.waits.values())
    own_s = max(chunk.ready_s - chunk.start_s, 1e-6)
    return abs(explained_s - (chunk.ready_s - chunk.audio_ready_s)) / own_s


def by_stream(items: Iterable[Any]) -> dict[int, list[Any]]:
    """Return the lines of each stream, in their order."""
    grouped: dict[int, list[Any]] = defaultdict(list)
    for item in items:
        grouped[item.stream].append(item)
    return dict(sorted(grouped.items()))


def _ms(seconds: Iterable[float]) -> dict[str, Any]:
    return distribution(np.fromiter(seconds, np.float64) * MS, unit="ms")


def _work_s(chunk: Chunk) -> float:
    return sum(chunk.stages.values())


def _is_new(frame: Frame) -> bool:
    return frame.shown_s is not None and frame.kind != "held"


def _is_missed(frame: Frame, fps: float) -> bool:
    """Tell whether a frame was not on the screen while it should have been."""
    return frame.shown_s is None or frame.kind == "held" or frame.shown_s - frame.due_s >= 1 / fps


def occupied_s(starts: Values, ends: Values) -> Values:
    """Return how long each piece of work of a stream held up the next, in order, from when it began and ended."""
    free_from = np.concatenate([[-np.inf], ends[:-1]])
    return np.maximum(0.0, ends - np.maximum(starts, free_from))


def _needed_speed(chunks: Sequence[Chunk], *, fps: float) -> float | None:
    needed: list[float | None] = []
    for own in by_stream(sorted(chunks, key=lambda chunk: chunk.index)).values():
        pieces = [deadlines(chunk, fps=fps) for chunk in own]
        ready, due = np.array([piece for several in pieces for piece in several]).T
        counts = [len(several) for several in pieces]
        arrivals, starts = (
            np.repeat([getattr(chunk, name) for chunk in own], counts) for name in ("intended_s", "start_s")
        )
        needed.append(needed_speed(arrivals, occupied_s(starts, ready), due))
    known = [one for one in needed if one is not None]
    return max(known) if known and len(known) == len(needed) else None


def _interruptions(frames: Sequence[Frame], *, fps: float) -> dict[str, Any]:
    stalls, freezes = list[float](), list[float]()
    for own in by_stream(frames).values():
        own.sort(key=lambda one: one.media_s)  # as they were seen; a lost one has its slot, whatever was late
        stalls += stalls_of([_showing(one) for one in own], fps=fps)
        freezes += freezes_of(list(np.diff([one.shown_s for one in own if _is_new(one)])))
    return {"stalls": _lengths(stalls), "freezes": _lengths(freezes)}


def _showing(frame: Frame) -> Showing:
    return Showing(frame.due_s, frame.shown_s if _is_new(frame) else None, is_lost=frame.shown_s is None)


def _lengths(seconds: Sequence[float]) -> dict[str, float]:
    return {"count": len(seconds), "total_ms": sum(seconds) * MS, "longest_ms": max(seconds, default=0.0) * MS}


def _jitters(chunks: Sequence[Chunk], frames: Sequence[Frame], *, fps: float) -> dict[str, Any]:
    utterances: dict[tuple[int, int], list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        utterances[chunk.stream, chunk.utterance].append(chunk)
    made = [
        interval_deviations([one.ready_s for one in own], [one.frames / fps for one in own])
        for own in utterances.values()
    ]
    shown = [
        interval_deviations([one.shown_s for one in own if _is_new(one)], [1 / fps for one in own if _is_new(one)])
        for own in by_stream(frames).values()
    ]
    return {
        "chunk_interval_deviation_ms": distribution(np.concatenate([[], *made]) * MS, unit="ms"),
        "frame_interval_deviation_ms": distribution(np.concatenate([[], *shown]) * MS, unit="ms"),
    }


def _offsets(frames: Sequence[Frame], sound_out: Sequence[SoundOut]) -> dict[str, Any]:
    """Return how much earlier the sound of a moment came than its picture, and how that changes."""
    heard, all_ms = by_stream(sound_out), list[Values]()
    drifts: list[dict[str, float]] = []
    for stream, own in by_stream(frame for frame in frames if _is_new(frame)).items():
        marks = sorted((one.media_s, one.played_s) for one in heard.get(stream, []))
        if len(marks) < 2:
            continue
        media, played = np.array(marks).T
        at, shown = (np.array([getattr(frame, name) for frame in own]) for name in ("media_s", "shown_s"))
        inside = (at >= media[0]) & (at <= media[-1])
        offset_ms = (shown[inside] - np.interp(at[inside], media, played)) * MS
        all_ms.append(offset_ms)
        drift = _drift(at[inside] / 3600, offset_ms)
        drifts += [] if drift is None else [drift]
    return {
        "av_offset_ms": distribution(np.concatenate([[], *all_ms]), unit="ms"),
        "av_drift_ms_per_h": max(drifts, key=lambda drift: abs(drift["value"]), default=None),
    }


def _drift(at_h: Values, offset_ms: Values) -> dict[str, float] | None:
    """Return the slope of the smallest offset of each stretch.

    A busy machine makes pictures late and never early, for minutes at a time; two clocks that part move the earliest as
    well. Least delays are what clock skew is read from (Moon, Skelly and Towsley, INFOCOM 1999).
    """
    stretches = [one for one in np.array_split(np.argsort(at_h, kind="stable"), DRIFT_STRETCHES) if len(one)]
    return slope([float(at_h[one].mean()) for one in stretches], [float(offset_ms[one].min()) for one in stretches])


def _work(chunks: Sequence[Chunk], graph_stages: Sequence[str], *, fps: float) -> dict[str, Any]:
    stages, waits = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for chunk in chunks:
        for name, seconds in chunk.stages.items():
            stages[name].append(seconds)
        for name, seconds in chunk.waits.items():
            waits[name].append(seconds)
    media_s = sum(chunk.frames for chunk in chunks) / fps
    own_s = sum(chunk.ready_s - chunk.start_s for chunk in chunks)
    graphs_s = sum(sum(stages.get(name, [])) for name in graph_stages)
    return {
        "real_time_factor": distribution([_work_s(chunk) * fps / chunk.frames for chunk in chunks], unit="1"),
        "real_time_factor_in_total": sum(map(_work_s, chunks)) / media_s if media_s else None,
        "stages_ms": {name: _ms(seconds) for name, seconds in stages.items()},
        "waits_ms": {name: _ms(seconds) for name, seconds in waits.items()},
        "outside_graphs_share": 1 - graphs_s / own_s if graph_stages and own_s > 0 else None,
        "unaccounted_share": max(map(unaccounted, chunks), default=None),
    }


def _first_frames(turns: Sequence[Turn]) -> dict[str, Any]:
    def total(kind: str) -> dict[str, Any]:
        return _ms(turn.first_moving_frame_s - turn.first_sound_s for turn in turns if turn.kind == kind)

    own = [turn for turn in turns if turn.kind == "turn"]
    beyond = (turn.first_moving_frame_s - turn.first_sound_s - turn.look_ahead_s for turn in own)
    look_ahead = _ms(turn.look_ahead_s for turn in own)
    kinds = {kind: total(kind) for kind in ("cold", "warm", "turn")}
    return {**kinds, "turn_look_ahead": look_ahead, "turn_beyond_look_ahead": _ms(beyond)}


def _memory(samples: Sequence[Memory]) -> dict[str, Any]:
    if not samples:
        return {"peak_bytes": None, "slope_mb_per_min": None}
    begin_s, end_s = min(one.at_s for one in samples), max(one.at_s for one in samples)
    late = [one for one in samples if one.at_s >= begin_s + SETTLING_SHARE * (end_s - begin_s)]
    grown = slope([one.at_s / 60 for one in late], [one.rss_bytes / MEGABYTE for one in late])
    peak = max(max(one.rss_bytes, one.peak_rss_bytes or 0) for one in samples)
    return {"peak_bytes": peak, "slope_mb_per_min": grown}


def _power(joules: float | None, length_s: float, source: str | None, why_none: str | None) -> dict[str, Any]:
    watts = joules / length_s if joules is not None and length_s > 0 else None
    return {"watts": watts, "joules": joules, "source": source, "why_none": why_none}
