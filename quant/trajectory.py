# SPDX-License-Identifier: Apache-2.0
"""Records what a package's graphs are fed while it really renders: its own windows, its own schedule, real speech.

Nothing random is ever fed: sound comes from a folder or is the embedded demonstration, faces are the package's avatars,
pictures in that folder, or the embedded avatar's portrait. Feeds go to disk call by call, as safetensors. What is kept
is bounded by `CALLS_PER_GRAPH` and `SCRATCH_BYTES`, spread over the clips, and always holds the loudest and the
quietest window, the key-frame pass, the last window, and of every kept pass all denoising steps.
"""

import logging
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime import AvatarSession, StreamSettings
from ..runtime.audio import SAMPLE_RATE, load_speech, loudness_lufs, video_frame_count
from ..runtime.avatar import Avatar
from ..runtime.chunks import WindowPlan
from ..runtime.engine import Array
from ..runtime.errors import MediaError, PackageError
from ..runtime.image import load_portrait
from ..runtime.ladder import reference_device
from ..runtime.ladder_recording import power_of, stranger
from ..runtime.manifest import Calibration
from ..runtime.model_package import DEMO_SPEECH, ModelPackage
from ..runtime.package_files import sha256_of
from ..runtime.planner import Plan, plan

logger = logging.getLogger(__name__)

CALLS_PER_GRAPH = 24
"""Calls of one graph that are kept: eight passes of three steps, or two clips of the embedded package's twelve."""

SCRATCH_BYTES = 4 << 30
"""All recorded feeds together. Less than one call of each graph (one pass of the transformer) is never kept: at
480 x 832 pixels a call of the published decoder takes about 3 GB, nearly all of it caches."""

SILENT_LUFS = -60.0
"""Quieter sound is no speech: the audio encoder would be calibrated on its own bias."""

SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".caf"})
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

WHOLE_PASSES = ("dit", "vae_encoder_first", "vae_encoder_next")
"""Graphs of which a kept pass holds every call; the sensitivity pass replays these."""

Samples = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Clip:
    """One sound of a calibration, with a face."""

    path: Path
    """Sound file."""
    sha256: str
    """Of the file."""
    duration_s: float
    """Its length."""
    face: Path | Avatar | str
    """Picture, portrait, or name of an avatar inside the package."""
    plan: Plan
    """Its passes."""
    ranks: Mapping[int, int]
    """Pass index to how soon it is kept, 0 first: loud, quiet and outer passes before those between."""


@dataclass(frozen=True)
class Call:
    """One run of one graph, as it happened."""

    graph: str
    """Which graph ran."""
    file: Path
    """Its feeds, a safetensors file."""
    clip: int
    """Index into the recording's clips."""
    pass_index: int
    """Pass of that clip; 0 also for what ran before the first pass."""
    index: int
    """How many calls of this graph the pass had before: for the transformer the denoising step."""
    weight: float
    """Part of the error that it is responsible for: |delta sigma| of a denoising step, else 1."""
    score: float
    """How soon it is kept, lowest first."""
    size_bytes: int
    """Of the feeds."""

    def feeds(self) -> dict[str, Array]:
        """Read the inputs of the call."""
        from safetensors.numpy import load_file

        return load_file(self.file)


@dataclass(frozen=True)
class Recording:
    """What was recorded. Its files live in the folder that `record` was given, and die with it."""

    clips: tuple[Clip, ...]
    """What was rendered."""
    calls: Mapping[str, tuple[Call, ...]]
    """Graph to its calls, in the order in which they happened."""
    timesteps: npt.NDArray[np.float32]
    """[steps + 1] in [0, 1000], falling to 0: the schedule that was run."""

    def __iter__(self) -> Iterator[tuple[str, dict[str, Array]]]:
        for graph, calls in self.calls.items():
            for call in calls:
                yield graph, call.feeds()

    @property
    def windows(self) -> int:
        """Passes that were denoised."""
        return sum(len(clip.plan.passes) for clip in self.clips)

    @property
    def duration_s(self) -> float:
        """Length of all sounds together."""
        return sum(clip.duration_s for clip in self.clips)

    @property
    def size_bytes(self) -> int:
        """What the recording takes on disk."""
        return sum(call.size_bytes for calls in self.calls.values() for call in calls)

    @property
    def calibration(self) -> Calibration:
        """What a manifest says of it."""
        sounds = tuple(clip.sha256 for clip in self.clips)
        return Calibration(len(self.clips), self.windows, round(self.duration_s, 3), sounds)

    def window(self, call: Call) -> WindowPlan:
        """Return the plan of the pass that a call belongs to."""
        return self.clips[call.clip].plan.passes[call.pass_index]


def record(
    package: ModelPackage,
    *,
    scratch: Path,
    folder: Path | None = None,
    calls_per_graph: int = CALLS_PER_GRAPH,
    most_bytes: int = SCRATCH_BYTES,
    threads: int | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> Recording:
    """Render every sound with the package in float32 and keep what its graphs were fed.

    Args:
        package: complete enough to render.
        scratch: folder that is there; feeds are written below it.
        folder: sound files, and pictures for packages that take any face; default: the embedded demonstration.
        calls_per_graph: see `CALLS_PER_GRAPH`.
        most_bytes: see `SCRATCH_BYTES`.
        threads: as for a session.
        on_progress: called with (passes done, passes in all).
        settings: fields of `StreamSettings`; default: the package's own.

    Raises:
        MediaError: a sound or picture can't be used, or a sound is silent.
        PackageError: the package can't render.
        UsageError: settings that don't go together.
    """
    package.require("audio_encoder", "vae_encoder", "vae_decoder", "dit", "finish")
    clips = gather_clips(package, folder, **settings)
    timesteps = StreamSettings(**settings).resolved(package.manifest.settings).timesteps
    keeper = _Keeper(scratch, clips, timesteps, calls_per_graph=calls_per_graph, most_bytes=most_bytes)
    total = sum(len(clip.plan.passes) for clip in clips)
    keeper.on_pass = (lambda done: on_progress(done, total)) if on_progress else None
    with AvatarSession.open(
        package.root, device=reference_device(), compute="f32", threads=threads, verify="size", observe=keeper.observe
    ) as session:
        for index, clip in enumerate(clips):
            keeper.begin(index)
            given: dict[str, Any] = {"image" if isinstance(clip.face, Path) else "avatar": clip.face, "canvas": False}
            if isinstance(clip.face, Avatar):
                given["size"] = stranger()[1]  # a published model's own size takes a CPU many hours
            for _chunk in session.stream(audio=clip.path, seed=index, **given | settings):
                pass  # pictures are of no use here: what is wanted are the feeds on the way
    return Recording(clips, keeper.end(), timesteps)


# ── Sounds and faces ─────────────────────────────────────────────────────────────────────────────────────────────────


def gather_clips(package: ModelPackage, folder: Path | None, **settings: Any) -> tuple[Clip, ...]:
    """Return what will be rendered, every sound and picture looked at before any engine works.

    Raises:
        MediaError: see `record`.
    """
    sounds, pictures = _found(folder) if folder is not None else ([DEMO_SPEECH], [])
    faces = _faces(package, pictures)
    sampling = StreamSettings(**settings).resolved(package.manifest.settings)
    fps = package.manifest.settings.fps
    clips: list[Clip] = []
    for index, path in enumerate(sounds):
        samples = _audible(path)
        frames = video_frame_count(len(samples), fps=fps)
        made = plan(frames, window=sampling.window, motion=sampling.motion, drop=sampling.drop)
        ranks = rank_passes(made, samples, fps=fps)
        seconds = len(samples) / SAMPLE_RATE
        clips.append(Clip(path, sha256_of(path), seconds, faces[index % len(faces)], made, ranks))
    longest = max(clips, key=lambda clip: clip.duration_s)
    if len(longest.plan.windows) < 2:
        wanted_s = (2 * sampling.window - sampling.motion - sampling.drop) / fps
        logger.warning(
            "the longest calibration sound, %s, lasts %.2f s; from %.2f s on, two windows of %s, motion frames are "
            "calibrated with as well",
            longest.path.name,
            longest.duration_s,
            wanted_s,
            package.name,
        )
    return tuple(clips)


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder to calibrate with, by name; hidden ones are passed over.

    Raises:
        MediaError: it is no folder, or something in it can't be read.
    """
    if not folder.is_dir():
        raise MediaError(f"{folder} is not a folder; expected one with sound files to calibrate with")
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise MediaError(f"{folder} can not be read ({error.strerror}); expected a folder with sound files") from error
    return [path for path in entries if _is_readable_file(path)]


def _is_readable_file(path: Path) -> bool:
    """Tell files from folders and devices; a link to nothing is no reason to calibrate with less."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
        if is_file:
            path.open("rb").close()
    except OSError as error:
        what = f"is a link to {path.readlink()} and" if path.is_symlink() else "is there and"
        raise MediaError(
            f"{path} {what} can not be read ({error.strerror}); expected files that can: mend it, or remove it"
        ) from error
    return is_file


def _found(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the sounds and the pictures of a folder, by name."""
    files = files_in(folder)
    sounds = [path for path in files if path.suffix.lower() in SOUND_SUFFIXES]
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    other = len(files) - len(sounds) - len(pictures)
    if not sounds:
        raise MediaError(
            f"{folder} holds no sound file; expected {', '.join(sorted(SOUND_SUFFIXES))} with speech to calibrate with"
        )
    if other:
        logger.warning("%s holds %d files that are neither sound nor picture; they are left out", folder, other)
    return sounds, pictures


def _audible(path: Path) -> Samples:
    samples = load_speech(path)
    loudness = loudness_lufs(samples, sample_rate=SAMPLE_RATE)
    if loudness < SILENT_LUFS:
        raise MediaError(
            f"{path} is silent ({loudness:.0f} LUFS); expected speech above {SILENT_LUFS:.0f} LUFS to calibrate with: "
            "remove it from the folder, or record it louder"
        )
    return samples


def _faces(package: ModelPackage, pictures: Sequence[Path]) -> list[Path | Avatar | str]:
    avatars = list(package.manifest.avatars)
    if package.manifest.portraits == "listed":
        if pictures:
            logger.warning("%s takes its own avatars only; %d pictures are left out", package.name, len(pictures))
        if not avatars:
            raise PackageError(f"{package.name} takes listed avatars only and lists none; export it again with one")
        return list(avatars)
    for picture in pictures:
        load_portrait(picture)  # so that a damaged one is found before an hour of rendering
    if pictures or avatars:
        return [*pictures] or [*avatars]
    return [stranger()[0]]


def rank_passes(made: Plan, samples: Samples, *, fps: float) -> dict[int, int]:
    """Return pass index to rank: the loudest window, the quietest, the last, the key-frame pass, the first, the rest.

    The rest is ordered so that any number of them is spread over the clip.
    """
    if made.is_clip:
        return {0: 0}
    loudness = {window.pass_index: power_of(samples, window, fps=fps) for window in made.windows}
    loudest, quietest = max(loudness, key=loudness.__getitem__), min(loudness, key=loudness.__getitem__)
    count = len(made.windows)
    spread = sorted(range(1, count + 1), key=lambda index: radical_inverse(index))
    order = dict.fromkeys([loudest, quietest, count, 0, 1, *spread])
    return {pass_index: rank for rank, pass_index in enumerate(order)}


def radical_inverse(index: int) -> float:
    """Return the binary digits of a whole number mirrored behind the point, in [0, 1).

    >>> [radical_inverse(index) for index in range(4)]
    [0.0, 0.5, 0.25, 0.75]
    """
    value, place = 0.0, 0.5
    while index:
        value += place * (index & 1)
        index >>= 1
        place /= 2
    return value


# ── Keeping feeds ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Keeper:
    """Sees every run of a session and keeps the best calls of each graph on disk, never more than it may."""

    def __init__(
        self,
        scratch: Path,
        clips: Sequence[Clip],
        timesteps: npt.NDArray[np.float32],
        *,
        calls_per_graph: int,
        most_bytes: int,
    ) -> None:
        self._scratch = scratch / "recording"
        self._scratch.mkdir()
        self._clips = clips
        self._timesteps = timesteps
        self._most_calls = calls_per_graph
        self._graph_bytes = most_bytes // 9  # graphs that a render of the largest package runs, dit_time included
        self._kept: dict[str, list[Call]] = {}
        self._clip = 0
        self._pass = 0
        self._seen: dict[str, int] = {}
        self._number = 0
        self._passes_done = 0
        self.on_pass: Callable[[int], None] | None = None

    def begin(self, clip: int) -> None:
        """Note that a clip begins, and that the one before has ended."""
        if clip:
            self._end_pass()
        self._clip, self._pass, self._seen = clip, 0, {}

    def observe(self, graph: str, feeds: Mapping[str, Array], _outputs: Mapping[str, Array]) -> None:
        """Keep the feeds of a run, or don't; both take the arrays' values now."""
        self._follow(graph)
        index = self._seen.get(graph, 0)
        self._seen[graph] = index + 1
        size_bytes = sum(value.nbytes for value in feeds.values())
        score = self._score(graph, index)
        kept = self._kept.setdefault(graph, [])
        if len(kept) >= self._allowance(graph, size_bytes):
            worst = max(kept, key=lambda call: call.score)
            if worst.score <= score:
                return
            kept.remove(worst)
            worst.file.unlink()
        kept.append(
            Call(
                graph=graph,
                file=self._write(graph, feeds),
                clip=self._clip,
                pass_index=self._pass,
                index=index,
                weight=self._weight(graph, index),
                score=score,
                size_bytes=size_bytes,
            )
        )

    def end(self) -> dict[str, tuple[Call, ...]]:
        """Note that the last clip has ended and return what was kept, in the order in which it happened."""
        self._end_pass()
        return {graph: tuple(sorted(calls, key=lambda call: call.file.name)) for graph, calls in self._kept.items()}

    def _end_pass(self) -> None:
        self._pass += 1
        self._seen = {}
        self._passes_done += 1
        if self.on_pass:
            self.on_pass(self._passes_done)

    def _follow(self, graph: str) -> None:
        """Tell passes apart: a pass encodes, denoises, decodes; the first one may bring its condition along."""
        starts_pass = graph in ("vae_encoder_first", "dit")
        if starts_pass and self._seen.get("vae_decoder_first"):
            self._end_pass()

    def _score(self, graph: str, index: int) -> float:
        clip = self._clips[self._clip]
        rank = clip.ranks[self._pass] * len(self._clips) + self._clip
        passes = sum(len(other.plan.passes) for other in self._clips)
        later = 0.0 if graph in WHOLE_PASSES else passes * radical_inverse(index) / 2
        return rank + later

    def _allowance(self, graph: str, size_bytes: int) -> int:
        steps = len(self._timesteps) - 1 if graph == "dit" else 1
        allowed = min(self._most_calls, self._graph_bytes // max(1, size_bytes))
        return max(1, allowed // steps) * steps  # whole passes of the transformer

    def _weight(self, graph: str, index: int) -> float:
        if not graph.startswith("dit") or index >= len(self._timesteps) - 1:
            return 1.0
        return float(self._timesteps[index] - self._timesteps[index + 1]) / 1000

    def _write(self, graph: str, feeds: Mapping[str, Array]) -> Path:
        from safetensors.numpy import save_file

        folder = self._scratch / graph
        folder.mkdir(exist_ok=True)
        path = folder / f"{self._number:06d}.safetensors"
        self._number += 1
        save_file({name: np.ascontiguousarray(value) for name, value in feeds.items()}, path)
        return path
