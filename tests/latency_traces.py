# SPDX-License-Identifier: Apache-2.0
"""Traces of streams that never ran: every time is known, so every figure is known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgereels.benchmarks.latency_trace import (
    Chunk,
    Contention,
    Energy,
    Event,
    Frame,
    Memory,
    Run,
    SoundBlock,
    SoundOut,
    Turn,
)
from edgereels.benchmarks.latency_trace_file import Recorded, TraceWriter, read_trace

FPS, CHUNK_FRAMES, CHUNK_S = 25.0, 20, 0.8
LOOK_AHEAD_S, BUFFER_S = 0.16, 0.8
RUN = Run(
    scenario="paced",
    settings={"latency": "low", "window": 21},
    fps=FPS,
    environment={"machine": "a machine that was made up", "system": "none"},
    engines=[
        {"graph": "dit", "provider_asked": "CPU", "provider": "CPU", "precision_asked": "f32", "precision": "f32"}
    ],
    graph_stages=["audio", "denoise", "decode"],
    package_digest="0" * 64,
    version="0.1.0",
    warm_up_chunks=2,
)


def chunks_of(work_s: Sequence[float], *, stream: int = 0) -> list[Chunk]:
    """Return chunks made one after another, each as soon as its sound is there: an open loop."""
    made: list[Chunk] = []
    free_from_s = 0.0
    for index, seconds in enumerate(work_s):
        heard_s = (index + 1) * CHUNK_S + LOOK_AHEAD_S
        start_s = max(heard_s, free_from_s)
        free_from_s = start_s + seconds
        stages = {"audio": 0.1 * seconds, "denoise": 0.6 * seconds, "decode": 0.25 * seconds, "finish": 0.05 * seconds}
        made.append(
            Chunk(
                index=index,
                utterance=0,
                frames=CHUNK_FRAMES,
                intended_s=heard_s,
                audio_ready_s=heard_s,
                start_s=start_s,
                ready_s=free_from_s,
                due_s=heard_s + BUFFER_S,
                look_ahead_s=LOOK_AHEAD_S,
                stages=stages,
                waits={"queue": start_s - heard_s},
                needed_sound_s=heard_s,
                stream=stream,
            )
        )
    return made


def frames_of(chunks: Sequence[Chunk], *, offset_s: float = 0.0) -> list[Frame]:
    """Return each chunk's frames, shown when due or, while it is late, as soon as it is there."""
    shown: list[Frame] = []
    last_s = -1.0
    for chunk in chunks:
        for number in range(chunk.frames):
            due_s = chunk.due_s + number / FPS
            last_s = max(due_s, chunk.ready_s, last_s + 1 / FPS if last_s > due_s else 0.0)
            media_s = (chunk.index * CHUNK_FRAMES + number) / FPS
            shown.append(Frame(media_s, due_s, last_s + offset_s, "speech", chunk.stream))
    return shown


def lines_of(
    work_s: Sequence[float], *, offset_s: float = 0.01, mb_per_min: float = 0.0, block_s: float = 0.02
) -> list[Any]:
    """Return everything that such a stream leaves behind, without its first line."""
    chunks = chunks_of(work_s)
    span_s = (len(chunks) + 1) * CHUNK_S
    whole = range(int(span_s / block_s) + 50)
    blocks = [SoundBlock(block_s * (i + 1), block_s * (i + 1), round(16000 * block_s)) for i in whole]
    start_s = chunks[0].due_s
    heard = [SoundOut(0.1 * i, start_s + 0.1 * i) for i in range(int(span_s * 10))]
    memory = [Memory(float(at), round(2e8 + 1e6 * mb_per_min * at / 60), free_share=0.5) for at in range(int(span_s))]
    quiet = [
        Contention(-1.0, 0.5, 0.0, 0.0),
        *(Contention(10.0 * i, 20.0, 0.1, 0.4) for i in range(1, 1 + len(chunks) // 12)),
    ]
    rest = [Turn(0.0, 2.5, "cold"), Energy(0.0, span_s, None, None, "no counter here"), Event("state", "READY", 0.0)]
    return [*blocks, *chunks, *frames_of(chunks, offset_s=offset_s), *heard, *memory, *quiet, *rest]


def write(path: Path, lines: Sequence[Any], *, run: Run = RUN) -> Path:
    """Write a sealed trace."""
    with TraceWriter(path, run) as writer:
        for line in lines:
            writer.write(line)
    return path


def recorded(lines: Sequence[Any], *, run: Run = RUN) -> Recorded:
    """Return what reading them back gives, without a file."""
    found = Recorded(run, "0" * 64)
    for line in lines:
        found.lines.setdefault(type(line), []).append(line)
    return found


def with_run(**fields: Any) -> Run:
    """Return the usual first line with other fields."""
    return replace(RUN, **fields)


def read_back(path: Path, lines: Sequence[Any]) -> Recorded:
    """Write and read."""
    return read_trace(write(path, lines))
