# SPDX-License-Identifier: Apache-2.0
"""What a stream needs before its first step: the face, what the sound and the prompts say, the schedule."""

import logging
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import audio as speech
from .avatar import Avatar, read_avatar
from .canvas import Canvas
from .errors import MediaError, PackageError, UsageError
from .image import clip_pixels, lab_statistics, load_portrait, nearest_size, resize_and_crop, to_unit
from .manifest import AudioSettings, DitSettings, StillEntry, TextSettings
from .model_package import ModelPackage
from .passes import Conditions, Floats, Schedule
from .placement import Placement
from .sampler import Guidance
from .still_file import read_still
from .tables import sinusoid
from .text import embed, padded
from .timing import Trace
from .vae_stream import VaeEncoder

logger = logging.getLogger(__name__)


def find_avatar(
    package: ModelPackage, *, avatar: str | Path | Avatar | None = None, image: str | Path | None = None
) -> Avatar:
    """Return the face that is meant: an avatar, its file, a name inside the package, a portrait, or the first one.

    Raises:
        MediaError: the portrait can't be used, or is not one that this package takes.
        PackageError: there is no such avatar, or its file is damaged.
        UsageError: nothing was named and the package brings no avatar.
    """
    if image is not None:
        found = Avatar(name=Path(image).stem, portrait=load_portrait(Path(image)))
    elif isinstance(avatar, Avatar):
        found = avatar
    elif avatar is not None and Path(avatar).exists():
        found = read_avatar(Path(avatar))
    elif avatar is not None:
        return _own_avatar(package, str(avatar))
    elif package.manifest.avatars:
        return _own_avatar(package, next(iter(package.manifest.avatars)))
    else:
        raise UsageError(f"{package.name} brings no avatar; give one with --avatar, or a portrait with --image")
    _refuse_strangers(package, found)
    return found


def _own_avatar(package: ModelPackage, name: str) -> Avatar:
    """Return an avatar of the package; the portrait of a still is what its box holds."""
    path = package.avatar_path(name)
    entry = package.manifest.avatars[name]
    if not isinstance(entry, StillEntry):
        return read_avatar(path)
    try:
        canvas = Canvas(read_still(path), entry.box, entry.feather)
    except ValueError as error:  # only where the file was changed since the package was opened
        raise PackageError(f"{path}: {error}", code="still") from error
    return Avatar(name=name, portrait=canvas.portrait, canvas=canvas)


def _refuse_strangers(package: ModelPackage, face: Avatar) -> None:
    if package.manifest.portraits == "any":
        return
    listed = [_own_avatar(package, name) for name in package.manifest.avatars]
    if not any(np.array_equal(face.portrait, known.portrait) for known in listed):
        raise MediaError(
            f"{package.name} was not trained on {face.name!r}; it knows {', '.join(package.manifest.avatars)}: "
            "choose one with --avatar, or train a package for that face with examples/train_avatar"
        )


class Preparation:
    """Computes the constant conditions of one face at one size."""

    def __init__(
        self, package: ModelPackage, engines: Placement, face: Avatar, *, size: tuple[int, int] | None, trace: Trace
    ) -> None:
        self._package = package
        self._engines = engines
        self._face = face
        self._trace = trace
        if face.package_digest not in (None, package.digest):
            logger.warning(
                "%s was prepared for another package than %s: of it only the portrait is used", face.name, package.name
            )
        height, width = face.portrait.shape[:2]
        manifest = package.manifest
        self.size = size or nearest_size(height, width, table=manifest.sizes[manifest.default_size])
        """(height, width) of the video, pixels."""

    @property
    def dit(self) -> DitSettings:
        """Sizes of the transformer; raises `PackageError` where the package has none."""
        if self._package.manifest.dit is None:
            raise PackageError(f"{self._package.name} has no dit; export the checkpoint again without leaving that out")
        return self._package.manifest.dit

    @property
    def hearing(self) -> AudioSettings:
        """How the audio encoder takes sound; raises `PackageError` where there is none, or it wants another rate."""
        settings, rate = self._package.manifest.audio, self._package.manifest.settings.sample_rate
        if settings is None:
            raise PackageError(
                f"{self._package.name} has no audio encoder; export the checkpoint again without leaving that out"
            )
        if rate != speech.SAMPLE_RATE:
            raise PackageError(
                f"{self._package.name} hears sound at {rate} Hz; this build brings it to {speech.SAMPLE_RATE} Hz: "
                "export the checkpoint with an encoder for that rate"
            )
        return settings

    @property
    def _text(self) -> TextSettings | None:
        return self._package.manifest.text

    @cached_property
    def portrait(self) -> Floats:
        """(3, H, W) RGB in [-1, 1], at the size of the video."""
        return to_unit(resize_and_crop(self._face.portrait, size=self.size))

    @cached_property
    def _tables(self) -> dict[str, npt.NDArray[np.float32]]:
        """The package's own schedule, and its own prompts; raises `PackageError` where the schedule has gaps."""
        tables, dim = self._package.tables(), self.dit.dim
        steps = len(tables.get("timesteps", ()))
        shapes = {"timesteps": (steps,), "modulation": (steps, 6, dim), "head_modulation": (steps, dim)}
        for name, shape in shapes.items():
            if name not in tables or tables[name].shape != shape or tables[name].dtype != np.float32:
                found = f"{tables[name].dtype} {tables[name].shape}" if name in tables else "not there"
                raise PackageError(
                    f"{name} in the tables of {self._package.name} is {found}; expected float32 {shape}: "
                    "export the checkpoint again"
                )
        return tables

    def conditions(
        self, *, prompt: str | None, negative_prompt: str | None, guidance: Guidance, window: int
    ) -> Conditions:
        """Return what stays the same for a whole stream.

        Args:
            prompt: what the key-frame pass shows; None: the avatar's, or the connection prompt.
            negative_prompt: what guidance leads away from; None: the avatar's, or the package's.
            guidance: refused where it needs a network that the package lacks.
            window: frames in a window.
        """
        if guidance.text > 1 and not self.dit.has_text:
            raise PackageError(
                f"{self._package.name} takes no prompts, so text guidance {guidance.text} has nothing to lead away "
                "from: leave it at 1"
            )
        mean, std = lab_statistics(self.portrait)
        texts = self._texts(prompt, negative_prompt)
        return Conditions(
            portrait=self.portrait,
            reference_mean=mean,
            reference_std=std,
            prompt=texts.get("prompt"),
            connection=texts.get("connection"),
            negative=texts.get("negative"),
            image_features=self._image_features(),
            condition_latents=self._face.condition_latents
            if self._prepared_here and self._face.window == window
            else None,
        )

    def hear(self, sound: Floats) -> Floats:
        """Return the audio encoder's features of a whole sound, [frames, layers, channels].

        Args:
            sound: mono samples at 16 kHz, loudness-normalised.
        """
        settings, own = self.hearing, self._package.manifest.settings
        waveform = speech.encoder_input(sound) if settings.normalise else sound
        pieces: list[Floats] = []
        for segment in speech.encode_segments(len(sound), fps=own.fps, whole_s=own.max_offline_s):
            samples = waveform[segment.start_sample : segment.stop_sample]
            pieces.append(self.encode_speech(samples, frames=segment.frames)[segment.keep_start : segment.keep_stop])
        return np.concatenate(pieces)

    def encode_speech(self, samples: Floats, *, frames: int) -> Floats:
        """Return the features of some sound as the encoder takes it, [frames, layers, channels], spread over it."""
        settings = self.hearing
        positions = speech.encoder_positions(
            len(samples), frames, kernels=settings.conv_kernels, strides=settings.conv_strides
        )
        with self._trace.span("audio_encode"):
            return self._engines["audio_encoder"].run({"waveform": samples[None], "positions": positions})["features"]

    def schedule(self, timesteps: Floats) -> Schedule:
        """Return the modulation of each step: from the package's table where it has these timesteps, else computed."""
        if np.array_equal(self._tables["timesteps"], timesteps[:-1]):
            return Schedule(timesteps, self._tables["modulation"], self._tables["head_modulation"])
        made = self._engines["dit_time"].run({"sinusoid": sinusoid(timesteps[:-1], freq_dim=self.dit.freq_dim)})
        return Schedule(timesteps, made["modulation"], made["head_modulation"])

    def avatar(self, *, prompt: str | None, negative_prompt: str | None, window: int) -> Avatar:
        """Return the face with everything prepared that `render` can take over."""
        encoder = VaeEncoder(self._engines["vae_encoder_first"], self._engines["vae_encoder_next"])
        clip = np.zeros((1, 3, window, *self.size), dtype=np.float32)
        clip[:, :, 0] = self.portrait
        texts = dict(zip(("prompt", "negative"), self._embed_own(prompt, negative_prompt), strict=True))
        return Avatar(
            name=self._face.name,
            portrait=self._face.portrait,
            text_prompt=texts["prompt"],
            text_negative=texts["negative"],
            image_features=self._image_features(),
            condition_latents=encoder.encode(clip),
            size=self.size,
            window=window,
            package_digest=self._package.digest,
        )

    @property
    def _prepared_here(self) -> bool:
        """Whether the avatar's prepared tensors belong to this package and size."""
        return self._face.package_digest == self._package.digest and self._face.size == self.size

    def _image_features(self) -> Floats | None:
        if not self.dit.has_image:
            return None
        if self._prepared_here and self._face.image_features is not None:
            return self._face.image_features
        with self._trace.span("image_encode", pass_index=0):
            return self._engines["image_encoder"].run({"pixels": clip_pixels(self.portrait)})["features"]

    def _texts(self, prompt: str | None, negative_prompt: str | None) -> dict[str, Floats]:
        """Return the three embeddings, [1, tokens, width] each; nothing where the network takes no text."""
        if not self.dit.has_text:
            if prompt is not None or negative_prompt is not None:
                raise PackageError(f"{self._package.name} takes no prompts: leave --prompt and --negative-prompt out")
            return {}
        own_prompt, own_negative = self._embed_own(prompt, negative_prompt)
        connection = self._package_text("text_connection")
        first = next(item for item in (own_prompt, self._prepared_text("text_prompt"), connection) if item is not None)
        negative = own_negative if own_negative is not None else self._prepared_text("text_negative")
        negative = negative if negative is not None else self._package_text("text_negative")
        length = self.dit.text_length
        rows = {"prompt": first, "connection": connection, "negative": negative}
        return {name: padded(value, length=length) for name, value in rows.items()}

    def _package_text(self, name: str) -> Floats:
        """Return an embedding that the package brings for its own prompts, so that no text encoder is needed."""
        if name not in self._tables:
            raise PackageError(
                f"{self._package.name} has no {name} in its tables; export the checkpoint again with its text encoder"
            )
        return self._tables[name]

    def _prepared_text(self, name: str) -> Floats | None:
        return getattr(self._face, name) if self._face.package_digest == self._package.digest else None

    def _embed_own(self, prompt: str | None, negative_prompt: str | None) -> tuple[Floats | None, Floats | None]:
        """Embed the user's own prompts; the text encoder is opened only if there is one."""
        given = [text for text in (prompt, negative_prompt) if text is not None]
        if not given:
            return None, None
        tokenizer = self._package.tokenizer_path()
        self._package.require("text_encoder")
        length = self.dit.text_length
        with self._trace.span("text_encode"):
            made = iter(embed(given, tokenizer=tokenizer, length=length, encoder=self._engines["text_encoder"]))
        return (next(made) if prompt is not None else None), (next(made) if negative_prompt is not None else None)
