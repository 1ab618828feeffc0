# SPDX-License-Identifier: Apache-2.0
"""Real inputs for the quality ladder: what the reference's graphs were fed while it spoke, and what they made of it.

Nothing random: a trajectory of the package itself on real speech, with silence and a loud part, and the first and last
call of every graph in passes that are chosen before it starts: the key-frame pass, the first windows and the last, the
quietest and the loudest, and others between them.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .audio import SAMPLE_RATE, encoder_input, encoder_positions, load_speech, video_frame_count
from .avatar import Avatar
from .chunks import WindowPlan
from .engine import Array, Engine
from .errors import UsageError
from .model_package import DEMO_SPEECH, ModelPackage
from .placement import Asked, Placement
from .planner import Plan, plan
from .prepare import find_avatar
from .session import AvatarSession
from .split_dit import chain, parts_of
from .tables import sinusoid

Samples = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

SILENCE_S = 0.8
LOUDER = 2.0
"""+6 dB over the rest of the clip: the renderer brings the whole to one loudness, not its parts."""
SEED = 42
ENOUGH_PASSES = 8
"""Each graph runs at least once in a pass: that many inputs where the sound has so many passes."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One run of a graph."""

    feeds: Mapping[str, Array]
    """Its inputs."""
    outputs: Mapping[str, Array]
    """What the reference made of them."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What every rung renders: sound, face, size, seed."""

    sound: Samples
    """Mono at 16 kHz."""
    avatar: Avatar | None
    """None: the package's first."""
    size: tuple[int, int] | None
    """(height, width) in pixels; None: what the package takes for the face."""
    prompts: Mapping[str, str]
    """The package's own texts, so that its text encoder is measured too; empty where it has none."""
    plan: Plan
    """Its passes."""

    def arguments(self, sound: Samples | None = None) -> dict[str, Any]:
        """Return arguments of `AvatarSession.stream`, the network's own frames; `sound` instead of the trial's own."""
        given: dict[str, Any] = {"audio": self.sound if sound is None else sound, "seed": SEED, "size": self.size}
        given["canvas"] = False  # a still would be most of the picture, and never wrong
        return given | dict(self.prompts) | ({"avatar": self.avatar} if self.avatar else {})

    def one_window(self, fps: float) -> Samples:
        """Return the beginning of the sound that a single pass shows: a frame less than its window."""
        return self.sound[: round((self.plan.key_pass.window - 1) / fps * SAMPLE_RATE)]

    def sound_sha256(self) -> str:
        """Return the digest of the samples."""
        return hashlib.sha256(np.ascontiguousarray(self.sound, dtype="<f4").tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Recording:
    """A trajectory of the reference."""

    samples: Mapping[str, tuple[Sample, ...]]
    """By graph; the transformer's parts and its time network too."""
    frames: Pixels
    """(T, H, W, 3), the clip that was shown."""
    seams: tuple[int, ...]
    """First frame of every chunk."""

    def inputs(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        """Yield (graph, its inputs) of everything that was kept."""
        return ((graph, sample.feeds) for graph, found in self.samples.items() for sample in found)


def ladder_sound(length_s: float | None = None) -> Samples:
    """Return the embedded speech, silence, and the same speech louder: 16.6 s, or that many around the silence."""
    speech = load_speech(DEMO_SPEECH)
    gain = min(LOUDER, 0.99 / max(float(np.abs(speech).max()), 1e-6))
    whole = np.concatenate([speech, np.zeros(round(SILENCE_S * SAMPLE_RATE), np.float32), speech * np.float32(gain)])
    if length_s is None:
        return whole
    start = max(0, (len(whole) - round(length_s * SAMPLE_RATE)) // 2)
    return whole[start : len(whole) - start]


def prepare_trial(
    package: ModelPackage, *, sound: str | Path | Samples | None = None, size: tuple[int, int] | None = None
) -> Trial:
    """Return what a ladder of this package renders.

    Args:
        package: the reference.
        sound: a file or samples at 16 kHz; None: `ladder_sound`, cut to two windows where the package has no avatar.
        size: (height, width); None: the package's own, that of the embedded face where it has no avatar.

    Raises:
        UsageError: the sound is shorter than two windows.
        PackageError: a subnetwork is missing.
    """
    package.require("audio_encoder", "vae_encoder", "vae_decoder", "dit", "finish")
    own = package.manifest.settings
    if sound is None:
        least = 2 * own.window - own.motion - own.drop
        samples = ladder_sound(None if package.manifest.avatars else (least + 1) / own.fps)
    else:
        samples = sound if isinstance(sound, np.ndarray) else load_speech(sound)
    made = plan(video_frame_count(len(samples), fps=own.fps), window=own.window, motion=own.motion, drop=own.drop)
    if len(made.windows) < 2:
        least = 2 * own.window - own.motion - own.drop
        raise UsageError(f"the sound has {made.audio_frames} frames; a ladder needs two windows, {least} frames")
    if package.manifest.avatars:
        return Trial(samples, None, size, _own_prompts(package), made)
    face, its_size = stranger()
    return Trial(samples, face, size or its_size, _own_prompts(package), made)


def stranger() -> tuple[Avatar, tuple[int, int]]:
    """Return a face for a package that takes any and has none, the embedded portrait, and its (height, width)."""
    embedded = ModelPackage.open("default", verify="size")
    known = find_avatar(embedded)
    (size,) = embedded.manifest.sizes[embedded.manifest.default_size].values()
    return Avatar(name=known.name, portrait=known.portrait), size  # its latents are of another package


def _own_prompts(package: ModelPackage) -> dict[str, str]:
    texts = package.manifest.text
    if texts is None or not package.has("text_encoder"):
        return {}
    return {"prompt": texts.connection_prompt, "negative_prompt": texts.negative_prompt}


def record(reference: ModelPackage, trial: Trial, *, asked: Asked) -> Recording:
    """Let the reference speak, and keep what its graphs were fed.

    Raises:
        EngineError: a graph could not be run.
        UsageError: the size is none of the network's.
    """
    recorder = _Recorder(frozenset(_chosen_passes(trial, fps=reference.manifest.settings.fps)))
    with AvatarSession(reference, asked, observe=recorder) as session:
        chunks = [chunk.frames for chunk in session.stream(**trial.arguments())]
    engines = Placement(reference, asked)
    try:
        samples = recorder.found() | _more_samples(reference, engines, trial, dit=recorder.found()["dit"])
        samples["audio_encoder"] += _pieces_of_sound(reference, engines, trial)
    finally:
        engines.close()
    starts = np.cumsum([0, *(len(frames) for frames in chunks[:-1])])
    return Recording(samples, np.concatenate(chunks), tuple(int(start) for start in starts))


@dataclass
class _Recorder:
    """Keeps the first and the last call of every graph in chosen passes. State: which pass is running."""

    passes: frozenset[int]
    calls: dict[str, dict[tuple[int, bool], Sample]] = field(default_factory=dict[str, dict[tuple[int, bool], Sample]])
    decoded: int = 0
    """Passes whose decoding has begun: a pass encodes and denoises before it decodes."""

    def __call__(self, graph: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self.decoded += graph == "vae_decoder_first"
        now = self.decoded - graph.startswith(("vae_decoder", "finish"))
        if now in self.passes:
            known = self.calls.setdefault(graph, {})
            known[now, (now, False) in known] = Sample(_copied(feeds), _copied(outputs))  # first once, last overwritten

    def found(self) -> dict[str, tuple[Sample, ...]]:
        return {graph: tuple(calls[key] for key in sorted(calls)) for graph, calls in self.calls.items()}


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}


def _chosen_passes(trial: Trial, *, fps: float) -> Collection[int]:
    passes = trial.plan.passes
    energy = {window.pass_index: power_of(trial.sound, window, fps=fps) for window in trial.plan.windows}
    outer = {0, 1, 2, len(passes) - 1}
    chosen = outer | {min(energy, key=energy.__getitem__), max(energy, key=energy.__getitem__)}
    spread = np.linspace(0, len(passes) - 1, num=ENOUGH_PASSES).round().astype(int).tolist()
    for index in (*spread, *range(len(passes))):
        if len(chosen) < ENOUGH_PASSES:
            chosen.add(index)
    return chosen


def power_of(sound: Samples, window: WindowPlan, *, fps: float) -> float:
    """Return the mean square of what a window speaks; 0 past the end of the sound."""
    first, last = window.start_frame, window.start_frame + window.window
    heard = sound[round(first / fps * SAMPLE_RATE) : round(last / fps * SAMPLE_RATE)]
    return float(np.square(heard, dtype=np.float64).sum()) / max(1, len(heard))


def _pieces_of_sound(package: ModelPackage, engines: Mapping[str, Engine], trial: Trial) -> tuple[Sample, ...]:
    """Run the audio encoder, which a trajectory asks once, on pieces of the sound and on silence."""
    settings, fps = package.manifest.audio, package.manifest.settings.fps
    assert settings is not None  # the trajectory ran
    count = ENOUGH_PASSES - 2
    length = max(SAMPLE_RATE, len(trial.sound) // (2 * count))
    starts = np.linspace(0, len(trial.sound) - length, num=count).round().astype(int).tolist()
    pieces = [*(trial.sound[start : start + length] for start in starts), np.zeros(length, np.float32)]
    samples: list[Sample] = []
    for piece in pieces:
        waveform = encoder_input(piece) if settings.normalise else piece
        frames = video_frame_count(len(piece), fps=fps)
        positions = encoder_positions(len(piece), frames, kernels=settings.conv_kernels, strides=settings.conv_strides)
        feeds = {"waveform": waveform[None], "positions": positions}
        samples.append(Sample(feeds, engines["audio_encoder"].run(feeds)))
    return tuple(samples)


def _more_samples(
    package: ModelPackage, engines: Mapping[str, Engine], trial: Trial, *, dit: tuple[Sample, ...]
) -> dict[str, tuple[Sample, ...]]:
    """Chain the transformer's parts on the inputs of the whole, and run its time network on the schedule."""
    found: dict[str, list[Sample]] = {}
    for sample in dit if parts_of(package) else ():
        for graph, given, made in chain(package, sample.feeds, run=lambda part, feeds: engines[part].run(feeds)):
            found.setdefault(graph, []).append(Sample(given, made))
    if "dit_time" in package.manifest.graphs and package.manifest.dit:
        steps = package.tables()["timesteps"]
        feeds = {"sinusoid": sinusoid(steps, freq_dim=package.manifest.dit.freq_dim)}
        found["dit_time"] = [Sample(feeds, engines["dit_time"].run(feeds))]
    return {graph: tuple(samples) for graph, samples in found.items()}
