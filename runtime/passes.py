# SPDX-License-Identifier: Apache-2.0
"""One pass of the network: condition, denoise, decode, match colours. What it is given is said; it remembers nothing.

Facts: SkyReels-V3 (commit 28c771e), talking-avatar pipeline; own code. What the published code throws away after
computing it (the dropped tail of a window, most of the key-frame pass's colours) is not computed here.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from .chunks import KEY_FRAME_REPEATS, WindowPlan, mask_array
from .engine import Array, Engine, held
from .errors import NotFiniteError
from .image import clip_pixels
from .sampler import Branch, Draws, Guidance, denoise
from .shapes import LATENT_CHANNELS
from .timing import Trace
from .vae_stream import VaeDecoder, VaeEncoder

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The denoising steps, and what the transformer is told about each of them."""

    timesteps: Floats
    """[steps + 1] in [0, 1000], falling, ending with 0."""
    modulation: Floats
    """[steps, 6, dim]."""
    head_modulation: Floats
    """[steps, dim]."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """What stays the same for a whole stream."""

    portrait: Floats
    """(3, H, W) RGB in [-1, 1]."""
    reference_mean: Floats
    """[3] CIE-Lab mean of the portrait."""
    reference_std: Floats
    """[3] CIE-Lab standard deviation of the portrait."""
    prompt: Floats | None = None
    """[1, tokens, width] for the key-frame pass; None where the network takes no text."""
    connection: Floats | None = None
    """[1, tokens, width] for every window."""
    negative: Floats | None = None
    """[1, tokens, width], what guidance leads away from."""
    image_features: Floats | None = None
    """[1, tokens, width] of the portrait, where it was prepared."""
    condition_latents: Floats | None = None
    """[1, 16, T, h, w] of the key-frame pass, where they were prepared."""


@dataclass(frozen=True, eq=False)
class Given:
    """What one pass starts from."""

    motion: Floats
    """[1, 3, n, H, W]: the known frames at the window's start, the portrait or what was shown before."""
    audio: tuple[Floats, Floats]
    """What the window hears, as `slice_audio` returns it."""
    key_frame: Floats | None = None
    """(3, H, W): the picture that pins the window's end; None where nothing does."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What one pass gave."""

    pixels: Pixels
    """(T, H, W, 3): the frames that go out."""
    motion: Floats
    """[1, 3, n, H, W]: the frames from `motion_start` on, colours matched."""
    key_frames: Mapping[int, Floats]
    """Local frame -> (3, H, W), colours matched: those that were wanted."""


class Passes:
    """Runs passes of one face at one size."""

    def __init__(
        self,
        *,
        engines: Mapping[str, Engine],
        conditions: Conditions,
        schedule: Schedule,
        rope: tuple[Floats, Floats],
        guidance: Guidance,
        draws: Draws,
        trace: Trace,
    ) -> None:
        self.conditions = conditions
        self._engines = engines
        self._schedule = schedule
        self._rope = rope
        self._guidance = guidance
        self._draws = draws
        self._trace = trace
        self._encoder = VaeEncoder(engines["vae_encoder_first"], engines["vae_encoder_next"])
        self._decoder = VaeDecoder(engines["vae_decoder_first"], engines["vae_decoder_next"])

    def denoise(self, window: WindowPlan, given: Given) -> Floats:
        """Return the latents of one pass, [1, 16, T, h, w].

        Raises:
            NotFiniteError: they are NaN or Inf.
        """
        encoded = self._encode_condition(window, given)
        motion = encoded[0, :, : window.motion_latents] if window.motion_latents else None
        engine = self._engines["dit"]
        feeds = self._feeds(window, given, encoded)
        constant, changes = held(engine, feeds), self._changes(feeds)

        def predict(latents: Floats, step: int, branch: Branch) -> Floats:
            step_feeds = {
                "latents": latents,
                "modulation": self._schedule.modulation[step : step + 1],
                "head_modulation": self._schedule.head_modulation[step : step + 1],
            }
            with self._trace.span("dit", pass_index=window.pass_index, step=step, branch=branch):
                return engine.run({**constant, **changes[branch], **step_feeds})["velocity"]

        _batch, _channels, frames, height, width = encoded.shape
        made = denoise(
            predict,
            shape=(LATENT_CHANNELS, frames, height, width),
            timesteps=self._schedule.timesteps,
            guidance=self._guidance,
            draws=self._draws,
            motion=motion,
        )
        if not np.isfinite(made).all():
            raise NotFiniteError(
                f"pass {window.pass_index} of the stream came out as NaN or Inf; expected finite latents: "
                "check the package with `edgereels verify`"
            )
        return made

    def _changes(self, feeds: Mapping[str, Array]) -> dict[Branch, dict[str, Floats]]:
        """Return what each branch of guidance is told instead."""
        if self._guidance.text <= 1 and self._guidance.audio <= 1:
            return {"cond": {}}
        silence = {name: np.zeros_like(feeds[name]) for name in ("audio_first", "audio_rest") if name in feeds}
        negative = {"text": self.conditions.negative} if self.conditions.negative is not None else {}
        return {"cond": {}, "drop_text": negative, "drop_audio": silence, "uncond": negative | silence}

    def _feeds(self, window: WindowPlan, given: Given, encoded: Floats) -> dict[str, Array]:
        """Return the transformer's inputs that stay the same over the steps of a pass."""
        mask = np.broadcast_to(mask_array(window)[None, :, :, None, None], (1, 4, *encoded.shape[2:]))
        audio_first, audio_rest = given.audio
        feeds: dict[str, Array] = {
            "condition": np.concatenate([mask, encoded], axis=1, dtype=np.float32),
            "audio_first": np.ascontiguousarray(audio_first),
            "audio_rest": np.ascontiguousarray(audio_rest),
            "rope_cos": self._rope[0],
            "rope_sin": self._rope[1],
        }
        text = self.conditions.prompt if window.pass_index == 0 else self.conditions.connection
        if text is not None:
            feeds["text"] = text
        if "image_encoder" in self._engines:
            feeds["image"] = self._image_features(window, given)
        return feeds

    def _image_features(self, window: WindowPlan, given: Given) -> Floats:
        """Return the features of the first condition frame: the portrait, or the oldest motion frame."""
        if window.condition_start is None and self.conditions.image_features is not None:
            return self.conditions.image_features
        with self._trace.span("image_encode", pass_index=window.pass_index):
            return self._engines["image_encoder"].run({"pixels": clip_pixels(given.motion[0, :, 0])})["features"]

    def _encode_condition(self, window: WindowPlan, given: Given) -> Floats:
        """Encode the padded clip of a pass: condition frames, mid-grey, the key frame five times."""
        if window.pass_index == 0 and self.conditions.condition_latents is not None:
            return self.conditions.condition_latents
        clip = np.zeros((1, 3, window.window, *given.motion.shape[3:]), dtype=np.float32)
        clip[:, :, : window.condition_frames] = given.motion[:, :, : window.condition_frames]
        if given.key_frame is not None:
            clip[:, :, -KEY_FRAME_REPEATS:] = given.key_frame[None, :, None]
        with self._trace.span("vae_encode", pass_index=window.pass_index):
            return self._encoder.encode(clip)

    def finish(
        self, window: WindowPlan, latents: Floats, *, motion_start: int, key_frames_wanted: Set[int] = frozenset()
    ) -> Finished:
        """Decode what is kept of a pass and match its colours.

        Args:
            window: the pass.
            latents: as `denoise` returned them.
            motion_start: local frame from which on matched frames are wanted, for the next pass.
            key_frames_wanted: local frames that are wanted as key frames.
        """
        shown: list[Pixels] = []
        kept: list[Floats] = []
        key_frames: dict[int, Floats] = {}
        self._decoder.reset()
        # The last piece may reach past what is kept; it is matched whole, in a shape that engines are ready for.
        for at, decoded in self._decoded(window, [latents[:, :, : window.decode_latents]], start=0):
            stop = min(at + decoded.shape[2], window.kept_frames)
            emit = _part(at, stop, window.emit_start, window.emit_stop)
            carry = _part(at, stop, motion_start, stop)
            keys = [index for index in key_frames_wanted if at <= index < stop]
            if emit or carry or keys:
                result = self._match_colours(window, decoded)
                shown.append(result["pixels"][emit.start : emit.stop])
                kept.append(result["matched"][:, :, carry.start : carry.stop])
                for index in keys:
                    key_frames[index] = result["matched"][0, :, index - at].copy()  # a view would keep the whole piece
        return Finished(np.concatenate(shown), np.concatenate(kept, axis=2), key_frames)

    def pixels(self, window: WindowPlan, latents: Floats, *, goes_on: bool) -> Iterator[Pixels]:
        """Decode what goes out of a pass and yield it, (T, H, W, 3), piece by piece; colours as `finish` has them.

        Args:
            window: the pass.
            latents: as `denoise` returned them.
            goes_on: whether the frames that it begins with are the last that this yielded, all of them taken: the
                decoder then goes on from what it did last instead of decoding them again. The first new latent is
                decoded alone, to be there soonest.
        """
        known, new = 0, 0
        if goes_on:
            known, new = window.condition_frames, window.motion_latents
        else:
            self._decoder.reset()
        latents = latents[:, :, new : window.decode_latents]
        for at, decoded in self._decoded(window, np.split(latents, [1], axis=2), start=known):
            emit = _part(at, at + decoded.shape[2], window.emit_start, window.emit_stop)
            if emit:
                yield self._match_colours(window, decoded)["pixels"][emit.start : emit.stop]

    def _decoded(self, window: WindowPlan, latents: Sequence[Floats], *, start: int) -> Iterator[tuple[int, Floats]]:
        """Yield the local frame that a piece begins with, from `start` on, and the piece, up to what is kept."""
        pieces, at = chain.from_iterable(map(self._decoder.feed, latents)), start
        while at < window.kept_frames:
            with self._trace.span("vae_decode", pass_index=window.pass_index):
                decoded = next(pieces)
            yield at, decoded
            at += decoded.shape[2]

    def _match_colours(self, window: WindowPlan, frames: Floats) -> dict[str, Array]:
        reference = {"reference_mean": self.conditions.reference_mean, "reference_std": self.conditions.reference_std}
        with self._trace.span("finish", pass_index=window.pass_index):
            return self._engines["finish"].run({"frames": np.ascontiguousarray(frames), **reference})


def _part(start: int, stop: int, wanted_start: int, wanted_stop: int) -> range:
    """Return which of the frames from `start` to `stop` lie in another range, counted from `start`; maybe none."""
    first = max(wanted_start - start, 0)
    return range(first, max(min(wanted_stop, stop) - start, first))
