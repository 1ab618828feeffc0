# SPDX-License-Identifier: Apache-2.0
"""Runs recorded passes again with some graphs exchanged, down to decoded frames.

What lies before an exchanged graph is taken from the recording, what lies behind it is computed: an exchanged audio
encoder is heard by the transformer, an exchanged video encoder changes condition and motion frames, and every pass ends
in the decoder. The noise is that of the recording.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..runtime.chunks import WindowPlan, slice_audio
from ..runtime.engine import Array, Engine, open_engine
from ..runtime.errors import UsageError
from ..runtime.ladder import reference_device
from ..runtime.model_package import ModelPackage
from ..runtime.schedulers import euler_step
from .trajectory import Call, Recording

Floats = npt.NDArray[np.float32]

MASK_CHANNELS = 4
"""Of the transformer's condition, before the encoded clip."""

LATENTS_PER_CALL = 2
"""Decoded at a time, as a session does."""

REPLAYED = (
    *("audio_encoder", "image_encoder", "vae_encoder_first", "vae_encoder_next"),
    *("dit", "vae_decoder_first", "vae_decoder_next"),
)
"""Graphs that can be exchanged."""


@dataclass(frozen=True)
class Scene:
    """One recorded pass with everything that it was made from."""

    window: WindowPlan
    """Its plan."""
    dit: tuple[Call, ...]
    """Every denoising step."""
    encoder: tuple[Call, ...]
    """The calls that encoded its clip; none where the avatar brought it prepared."""
    audio: Call | None
    """The call that encoded the whole sound; None where it was encoded in pieces."""
    image: Call | None
    """The call that encoded its first condition frame; None where the network takes no picture."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a pass."""

    latents: Floats
    """[1, 16, T, h, w]."""
    frames: Floats
    """[1, 3, frames, H, W] in [-1, 1], those that are kept, before their colours are matched."""


def pick_scenes(recording: Recording, *, most: int) -> tuple[Scene, ...]:
    """Return the passes to look at: loudest, quietest and so on, those that show frames first.

    Raises:
        UsageError: the recording holds no whole pass.
    """
    steps = len(recording.timesteps) - 1
    by_pass: dict[tuple[int, int], list[Call]] = {}
    for call in recording.calls.get("dit", ()):
        by_pass.setdefault((call.clip, call.pass_index), []).append(call)
    whole = [calls for calls in by_pass.values() if len(calls) == steps]
    if not whole:
        raise UsageError("no whole pass of the transformer was recorded; record with more calls to each graph")
    whole.sort(key=lambda calls: (recording.window(calls[0]).emit_stop == 0, calls[0].score))
    return tuple(_scene(recording, calls) for calls in whole[:most])


def _scene(recording: Recording, dit: Sequence[Call]) -> Scene:
    first = dit[0]

    def here(graph: str, *passes: int) -> list[Call]:
        calls = recording.calls.get(graph, ())
        return [call for call in calls if call.clip == first.clip and (call.pass_index in passes or not passes)]

    encoder = [*here("vae_encoder_first", first.pass_index), *here("vae_encoder_next", first.pass_index)]
    frames = sum(np.shape(call.feeds()["frames"])[2] for call in encoder)
    audio = here("audio_encoder")
    images = here("image_encoder", 0, first.pass_index)
    window = recording.window(first)
    return Scene(
        window=window,
        dit=tuple(dit),
        encoder=tuple(encoder) if frames == window.window else (),
        audio=audio[0] if len(audio) == 1 else None,
        image=images[-1] if images else None,
    )


class Replay:
    """Recorded passes of one package, ready to be run again. Use it with `with`: it keeps engines open."""

    def __init__(self, package: ModelPackage, recording: Recording, *, scenes: int, threads: int | None = None) -> None:
        self.scenes = pick_scenes(recording, most=scenes)
        """What is run."""
        self._package = package
        self._timesteps = recording.timesteps
        self._threads = threads
        self._engines: dict[str, Engine] = {}
        self.reference: tuple[Outcome, ...] = ()
        """What comes of each scene with nothing exchanged."""

    def __enter__(self) -> "Replay":
        self.reference = tuple(self._run(scene, {}, None) for scene in self.scenes)
        return self

    def __exit__(self, *_error: object) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def run(self, exchanged: Mapping[str, Path]) -> tuple[Outcome, ...]:
        """Return what comes of each scene.

        Args:
            exchanged: graph, of `REPLAYED`, to the file that takes its place.

        Raises:
            EngineError: a file can't be run.
            UsageError: a graph that is not replayed.
        """
        unknown = [graph for graph in exchanged if graph not in REPLAYED]
        if unknown:
            raise UsageError(f"{', '.join(unknown)} can not be exchanged; expected of {', '.join(REPLAYED)}")
        with self._opened(exchanged) as engines:
            return tuple(
                self._run(scene, engines, reference)
                for scene, reference in zip(self.scenes, self.reference, strict=True)
            )

    @contextmanager
    def _opened(self, exchanged: Mapping[str, Path]) -> Iterator[dict[str, Engine]]:
        engines: dict[str, Engine] = {}
        try:
            for graph, path in exchanged.items():
                engines[graph] = self._open(path)
            yield engines
        finally:
            for engine in engines.values():
                engine.close()

    def _open(self, path: Path) -> Engine:
        return open_engine(path, device=reference_device(), threads=self._threads, compute="f32")

    def _engine(self, graph: str, exchanged: Mapping[str, Engine]) -> Engine:
        if graph in exchanged:
            return exchanged[graph]
        if graph not in self._engines:
            self._engines[graph] = self._open(self._package.graph_path(graph))
        return self._engines[graph]

    def _run(self, scene: Scene, exchanged: Mapping[str, Engine], reference: Outcome | None) -> Outcome:
        if reference is None or any(not graph.startswith("vae_decoder") for graph in exchanged):
            latents = self._denoise(scene, exchanged)
        else:
            latents = reference.latents
        return Outcome(latents, self._decode(scene, latents, exchanged))

    def _denoise(self, scene: Scene, exchanged: Mapping[str, Engine]) -> Floats:
        recorded = [call.feeds() for call in scene.dit]
        given = self._conditions(scene, recorded[0], exchanged)
        motion = scene.window.motion_latents
        moved = (given.get("condition", recorded[0]["condition"]) - recorded[0]["condition"])[:, MASK_CHANNELS:]
        engine = self._engine("dit", exchanged)
        latents: Floats = np.array(recorded[0]["latents"])
        for step, feeds in enumerate(recorded):
            sigma = self._timesteps[step] / np.float32(1000)
            latents[:, :, :motion] = feeds["latents"][:, :, :motion] + (1 - sigma) * moved[:, :, :motion]
            velocity = engine.run({**feeds, **given, "latents": latents})["velocity"]
            following = self._timesteps[step + 1]
            latents = euler_step(latents, velocity, timestep=self._timesteps[step], next_timestep=following)
        condition = given.get("condition", recorded[0]["condition"])
        latents[:, :, :motion] = condition[:, MASK_CHANNELS:, :motion]
        return latents

    def _conditions(
        self, scene: Scene, feeds: Mapping[str, Array], exchanged: Mapping[str, Engine]
    ) -> dict[str, Array]:
        """Return the transformer's inputs that exchanged encoders change."""
        given: dict[str, Array] = {}
        if "audio_encoder" in exchanged and scene.audio is not None:
            features = exchanged["audio_encoder"].run(scene.audio.feeds())["features"]
            first, rest = slice_audio(features, scene.window)
            given |= {"audio_first": np.ascontiguousarray(first), "audio_rest": np.ascontiguousarray(rest)}
        if "image_encoder" in exchanged and scene.image is not None:
            given["image"] = exchanged["image_encoder"].run(scene.image.feeds())["features"]
        if scene.encoder and any(graph.startswith("vae_encoder") for graph in exchanged):
            given["condition"] = np.concatenate(
                [feeds["condition"][:, :MASK_CHANNELS], self._encode(scene, exchanged)], axis=1
            )
        return given

    def _encode(self, scene: Scene, exchanged: Mapping[str, Engine]) -> Floats:
        pieces = [call.feeds()["frames"] for call in scene.encoder]
        return np.concatenate(list(self._streamed("vae_encoder", "frames", pieces, exchanged)), axis=2)

    def _decode(self, scene: Scene, latents: Floats, exchanged: Mapping[str, Engine]) -> Floats:
        count = scene.window.decode_latents
        starts = [0, *range(1, count, LATENTS_PER_CALL)]
        pieces = [latents[:, :, start:stop] for start, stop in zip(starts, [*starts[1:], count], strict=True)]
        frames = np.concatenate(list(self._streamed("vae_decoder", "latents", pieces, exchanged)), axis=2)
        return frames[:, :, : scene.window.kept_frames]

    def _streamed(
        self, network: str, data: str, pieces: Sequence[Array], exchanged: Mapping[str, Engine]
    ) -> Iterator[Floats]:
        """Yield what the two graphs of a VAE direction make of the pieces of a clip, caches handed on."""
        caches: dict[str, Array] = {}
        for index, piece in enumerate(pieces):
            engine = self._engine(f"{network}_next" if index else f"{network}_first", exchanged)
            made = engine.run({data: np.ascontiguousarray(piece), **caches})
            yield made.pop(engine.output_names[0])
            caches = {name.removeprefix("next_"): value for name, value in made.items()}
