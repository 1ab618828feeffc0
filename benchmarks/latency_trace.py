# SPDX-License-Identifier: Apache-2.0
"""What is written down during a measured stream, a JSON object a line; every figure is computed from it again.

::

    run · sound_block · chunk · frame · sound_out · turn · memory · contention · energy · event · … · end

The first line says what was asked and what was got. The last has the count of every kind and the SHA-256 of all bytes
before it: a line that was lost, added or changed shows. Times are seconds of one monotonic clock; media time is
seconds of sound that the master clock has played. None where something doesn't apply or can't be read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = "edgereels-latency-trace/1"


@dataclass(frozen=True)
class Run:
    """The first line: what is measured, on what."""

    scenario: str
    """file, paced, turns, multi or soak."""
    settings: dict[str, Any]
    """What the session was asked for."""
    fps: float
    """Frames per second of media."""
    environment: dict[str, Any]
    """Machine, system, versions, quota, power source: whatever a reader needs to judge the figures."""
    engines: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """Per graph: graph, provider_asked, provider, precision_asked, precision. Nothing asked: an empty string."""
    graph_stages: list[str] = field(default_factory=list[str])
    """Those stages of a chunk that are an engine's work; the rest of a chunk's time is outside graphs."""
    package_digest: str | None = None
    """Of the model package."""
    clock: str = "monotonic"
    """monotonic, virtual or wall; figures of a wall clock are void."""
    started_utc: str | None = None
    """ISO 8601, for people; nothing is computed from it."""
    version: str | None = None
    """Of edgereels."""
    streams: int = 1
    """That ran at once."""
    warm_up_chunks: int = 0
    """That many first chunks of each stream are reported apart and counted nowhere else."""
    format: str = FORMAT
    """Of this file."""


@dataclass(frozen=True)
class SoundBlock:
    """A block of sound reached the session."""

    intended_s: float
    """When its last sample was to be handed over, by the schedule."""
    arrived_s: float
    """When it was."""
    samples: int
    """At `sample_rate`."""
    sample_rate: int = 16000
    """In Hz."""
    stream: int = 0
    """0-based."""


@dataclass(frozen=True)
class Chunk:
    """Frames were made."""

    index: int
    """0-based within its stream."""
    utterance: int
    """0-based within its stream."""
    frames: int
    """How many."""
    intended_s: float
    """When, by the schedule, the last sound that it needs was to be there: latency counts from here. A file: when it
    was to be begun."""
    audio_ready_s: float
    """When that sound was there."""
    start_s: float
    """When work on it began; not before audio_ready_s."""
    ready_s: float
    """When its last frame was in the sinks' queues."""
    due_s: float
    """When its first frame was to be on the screen."""
    look_ahead_s: float
    """Of sound beyond its last frame that it waited for, by construction."""
    stages: dict[str, float]
    """Seconds of work by name."""
    waits: dict[str, float]
    """Seconds in queues by name. Work and waits add up to ready_s - audio_ready_s."""
    needed_sound_s: float | None = None
    """Seconds of its stream's sound, from the first block on, that it was made from."""
    pieces: list[list[float]] = field(default_factory=list[list[float]])
    """[frames, ready_s] of each run of frames that could be shown before the whole, in order; the last is ready when
    the chunk is. Empty: it came whole."""
    stream: int = 0
    """0-based."""


@dataclass(frozen=True)
class Frame:
    """A frame was shown, or given up."""

    media_s: float
    """Its place in media time."""
    due_s: float
    """When it was to be on the screen."""
    shown_s: float | None
    """When it was; None: never."""
    kind: str
    """speech, rest, or held (the picture before it once more)."""
    stream: int = 0
    """0-based."""


@dataclass(frozen=True)
class SoundOut:
    """The place of sound in time, as its device tells."""

    media_s: float
    """Media time of a sample."""
    played_s: float
    """When it sounded."""
    stream: int = 0
    """0-based."""


@dataclass(frozen=True)
class Turn:
    """Someone began to speak and the face began to move; or the first frame of all."""

    first_sound_s: float
    """First sample handed over. Cold: the process began; warm: the stream was asked for."""
    first_moving_frame_s: float
    """First frame of that speech on the screen."""
    kind: str = "turn"
    """turn, cold or warm."""
    look_ahead_s: float = 0.0
    """That part of it which no machine could save."""
    stream: int = 0
    """0-based."""


@dataclass(frozen=True)
class Memory:
    """Main memory of the process and its children."""

    at_s: float
    """When."""
    rss_bytes: int
    """Resident."""
    peak_rss_bytes: int | None = None
    """Most since it began, as the system counts it."""
    free_share: float | None = None
    """Of the machine's memory that was available."""


@dataclass(frozen=True)
class Contention:
    """What else the machine did."""

    at_s: float
    """When; before the first sound means: before the measurement."""
    psi: float | None
    """Percent of the last minute in which some process waited for a processor (Linux's cpu some avg60)."""
    steal: float | None
    """Percent of processor time that other machines on the host took since the line before."""
    others_cpu: float | None
    """Percent of all processors' time that other processes took since the line before."""


@dataclass(frozen=True)
class Energy:
    """What it took."""

    start_s: float
    """Of the span."""
    stop_s: float
    """Of the span."""
    joules: float | None
    """Of the whole machine part named by `source`."""
    source: str | None
    """Which counter."""
    why_none: str | None = None
    """Why it couldn't be read."""


@dataclass(frozen=True)
class Event:
    """A change of state or a count, as the runtime reported it."""

    name: str
    """What happened."""
    code: str | None
    """For programs."""
    at_s: float
    """When."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    """Its other fields."""

    @classmethod
    def of(cls, reported: Mapping[str, Any]) -> "Event":
        """Take over what the runtime handed to `on_event`."""
        details = {key: value for key, value in reported.items() if key not in ("event", "code", "at_s")}
        return cls(reported["event"], reported.get("code"), reported["at_s"], details)


@dataclass(frozen=True)
class End:
    """The last line."""

    counts: dict[str, int]
    """Lines of every kind before it."""
    sha256: str
    """Of all bytes before it."""


Line = Run | SoundBlock | Chunk | Frame | SoundOut | Turn | Memory | Contention | Energy | Event
KINDS: dict[str, type[Any]] = {
    "run": Run,
    "sound_block": SoundBlock,
    "chunk": Chunk,
    "frame": Frame,
    "sound_out": SoundOut,
    "turn": Turn,
    "memory": Memory,
    "contention": Contention,
    "energy": Energy,
    "event": Event,
    "end": End,
}
