# SPDX-License-Identifier: Apache-2.0
"""The subnetworks of a talking avatar: from a checkpoint's weights to modules with graphs.

`plan` compares every state dict with its network by names and shapes, before any work begins; `Subnetwork.build` then
makes the module. The DiT and the encoders are built on the meta device and their weights read when a graph is written;
the VAE is loaded, because which of its convolutions look back in time shows only in its values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..runtime.errors import CheckpointError
from .audio_encoder import UNUSED_KEYS, AudioEncoder, AudioEncoderConfig
from .audio_encoder import from_published_keys as audio_keys
from .audio_encoder import graphs as audio_graphs
from .checkpoint import Checkpoint
from .dit import Dit, DitConfig
from .dit import graphs as dit_graphs
from .dit_keys import is_rotated, rope_row_order
from .finish import graphs as finish_graphs
from .graph_spec import GraphSpec
from .image_encoder import ImageEncoder, ImageEncoderConfig
from .image_encoder import graphs as image_graphs
from .lazy_weights import Reader, parameters_on_meta
from .overrides import Overrides
from .state_dicts import require
from .text_encoder import TextEncoder, TextEncoderConfig
from .text_encoder import graphs as text_graphs
from .vae import VaeConfig, VideoVae, trim_zero_taps
from .vae import graphs as vae_graphs
from .weight_files import TensorInfo, Weights


@dataclass(frozen=True)
class Built:
    """A network ready to be traced."""

    model: nn.Module
    """The root, in whose names `read` speaks; on the meta device unless it had to be loaded."""
    graphs: tuple[GraphSpec, ...]
    """What to export."""
    read: Reader
    """Values of a parameter of `model`."""


@dataclass(frozen=True)
class Subnetwork:
    """One subnetwork, checked and not yet built."""

    name: str
    """As `--only` calls it."""
    files: tuple[Path, ...]
    """Where its weights are."""
    build: Callable[[], Built]
    """Make the module; called when its turn comes."""


@dataclass(frozen=True)
class AvatarModel:
    """Everything that is known of a talking avatar before its weights are read."""

    subnetworks: tuple[Subnetwork, ...]
    """In the order in which they are exported."""
    dit: DitConfig
    """Widths and parts of the DiT."""
    audio: AudioEncoderConfig
    """The speech encoder's widths."""


def plan(checkpoint: Checkpoint, overrides: Overrides) -> AvatarModel:
    """Check all weights against their networks, and say how to build each.

    Raises:
        CheckpointError: weights don't fit, or text or image encoder go without the DiT's part for them.
    """
    infos = checkpoint.dit.infos()
    dit_config = DitConfig.from_json(checkpoint.dit_config, {name: info.shape for name, info in infos.items()})
    audio_config = _audio_config(checkpoint.audio_config)
    _require_partners(checkpoint, dit_config)
    if dit_config.has_audio and audio_config.hidden_size != dit_config.audio_channels:
        raise CheckpointError(
            f"the audio encoder is {audio_config.hidden_size} wide, the DiT takes {dit_config.audio_channels} channels"
        )
    vae_config = _vae_config(overrides.vae)
    subnetworks = (
        _audio(checkpoint.audio, audio_config),
        *([_text(checkpoint.text, overrides.umt5, dit_config)] if checkpoint.text else []),
        *([_image(checkpoint.image, overrides.clip, dit_config)] if checkpoint.image else []),
        *_vae(checkpoint.vae, vae_config),
        _finish(),
        _dit(checkpoint.dit, dit_config),
    )
    return AvatarModel(subnetworks, dit_config, audio_config)


def _require_partners(checkpoint: Checkpoint, config: DitConfig) -> None:
    """Text and image encoder each need the DiT's part for them, and the other way round."""
    pairs = (("text", checkpoint.text, config.has_text), ("image", checkpoint.image, config.has_image))
    for name, encoder, taken in pairs:
        if taken and encoder is None:
            raise CheckpointError(
                f"{checkpoint.folder} lacks the {name} encoder, but its DiT has keys for it; expected both or neither"
            )
        if encoder is not None and not taken:
            raise CheckpointError(
                f"{checkpoint.folder} holds the {name} encoder, but its DiT no keys for it; expected both or neither"
            )


def _without_values(make: Callable[[], nn.Module]) -> Any:
    with parameters_on_meta():
        return make().eval()


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _loaded(model: nn.Module, weights: Weights) -> Any:
    """Put all values into a module that has none."""
    state = {name: torch.from_numpy(weights.read(name)) for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _own_values(model: nn.Module) -> Reader:
    """Read parameters from a module that is loaded already."""
    parameters = dict(model.named_parameters())
    return lambda name: parameters[name].detach().numpy()


# ── DiT ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _dit(weights: Weights, config: DitConfig) -> Subnetwork:
    model: Dit = _without_values(lambda: Dit(config))
    fitting = require(weights, expected=_shapes(model), what="the DiT")

    def build() -> Built:
        return Built(model, tuple(dit_graphs(model)), _with_rope_rows(fitting, config))

    return Subnetwork("dit", weights.files, build)


def _with_rope_rows(weights: Weights, config: DitConfig) -> Reader:
    """Read with the rows of queries and keys in half-split order."""
    order = rope_row_order(config).numpy()

    def read(name: str) -> npt.NDArray[np.float32]:
        values = weights.read(name)
        return values[order] if is_rotated(name) else values

    return read


# ── VAE ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _vae_config(values: Mapping[str, Any]) -> VaeConfig:
    arguments: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
    try:
        return VaeConfig(**arguments)
    except ValueError as error:
        raise CheckpointError(f"_video_vae: {error}") from error


def _vae(weights: Weights, config: VaeConfig) -> tuple[Subnetwork, Subnetwork]:
    model: VideoVae = _without_values(lambda: VideoVae(config))
    fitting = require(weights, expected=_shapes(model), what="the VAE")
    halves: dict[str, Built] = {}

    def build(name: str) -> Built:
        if not halves:
            vae = _loaded(model, fitting)
            trim_zero_taps(vae, drop=True)
            read = _own_values(vae)
            for spec in vae_graphs(vae):
                known = halves.get(spec.subnetwork, Built(vae, (), read))
                halves[spec.subnetwork] = Built(vae, (*known.graphs, spec), read)
        return halves.pop(name)

    return (
        Subnetwork("vae_encoder", weights.files, lambda: build("vae_encoder")),
        Subnetwork("vae_decoder", weights.files, lambda: build("vae_decoder")),
    )


# ── Text and image ───────────────────────────────────────────────────────────────────────────────────────────────────


def _text(weights: Weights, values: Mapping[str, Any], dit: DitConfig) -> Subnetwork:
    try:
        config = TextEncoderConfig.from_mapping(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"umt5_xxl: {error}") from error
    if config.dim != dit.text_dim:
        raise CheckpointError(f"the text encoder is {config.dim} wide, the DiT takes {dit.text_dim}")
    model: TextEncoder = _without_values(lambda: TextEncoder(config))
    fitting = require(weights, expected=_shapes(model), what="the text encoder")
    return Subnetwork("text_encoder", weights.files, lambda: Built(model, tuple(text_graphs(model)), fitting.read))


def _image(weights: Weights, values: Mapping[str, Any], dit: DitConfig) -> Subnetwork:
    try:
        config = ImageEncoderConfig.from_mapping(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"clip_xlm_roberta_vit_h_14: {error}") from error
    if config.width != dit.image_dim:
        raise CheckpointError(f"the image encoder is {config.width} wide, the DiT takes {dit.image_dim}")
    model: ImageEncoder = _without_values(lambda: ImageEncoder(config))
    # The published file is a whole CLIP, of which the features before the last block are used.
    last_block = rf"visual\.transformer\.{config.layers - 1}\..+"
    unused = (r"textual\..+", "log_scale", r"visual\.post_norm\..+", r"visual\.head(\..+)?", last_block)
    published = {f"visual.{name}": shape for name, shape in _shapes(model).items()}
    fitting = require(weights, expected=published, ignored=unused, what="the image encoder")
    return Subnetwork(
        "image_encoder",
        weights.files,
        lambda: Built(model, tuple(image_graphs(model)), lambda name: fitting.read(f"visual.{name}")),
    )


# ── Colours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _no_parameters(name: str) -> npt.NDArray[np.float32]:
    raise KeyError(name)


def _finish() -> Subnetwork:
    return Subnetwork("finish", (), lambda: Built(nn.Module(), tuple(finish_graphs()), _no_parameters))


# ── Speech ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _audio_config(values: Mapping[str, Any]) -> AudioEncoderConfig:
    try:
        return AudioEncoderConfig.from_mapping(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the audio encoder's config.json: {error}") from error


def _audio(weights: Weights, config: AudioEncoderConfig) -> Subnetwork:
    model: AudioEncoder = _without_values(lambda: AudioEncoder(config))
    require(_Converted(weights, convert=audio_keys), expected=_shapes(model), what="the audio encoder")

    def build() -> Built:
        used = [name for name in weights.infos() if not name.removeprefix("wav2vec2.").startswith(UNUSED_KEYS)]
        values = {name: torch.from_numpy(weights.read(name)) for name in used}
        model.load_state_dict(audio_keys(values), assign=True)
        loaded = model.eval().requires_grad_(False)
        return Built(loaded, tuple(audio_graphs(loaded)), _own_values(loaded))

    return Subnetwork("audio_encoder", weights.files, build)


Conversion = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class _Converted:
    """Names and shapes of a state dict after a conversion of its keys; no values."""

    def __init__(self, weights: Weights, *, convert: Conversion) -> None:
        self._weights = weights
        self._infos = {
            name: TensorInfo(tuple(tensor.shape), "F32") for name, tensor in _converted(weights, convert).items()
        }

    @property
    def files(self) -> tuple[Path, ...]:
        return self._weights.files

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str) -> npt.NDArray[np.float32]:
        raise KeyError(name)


def _converted(weights: Weights, convert: Conversion) -> dict[str, Tensor]:
    """Run a conversion of keys on tensors without values.

    Raises:
        CheckpointError: the conversion needs a tensor that is not there, or of another shape.
    """
    empty = {name: torch.empty(info.shape, device="meta") for name, info in weights.infos().items()}
    try:
        return convert(empty)
    except KeyError as error:
        raise CheckpointError(f"{weights.files[0]} lacks {error}, which belongs to a tensor that it has") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{weights.files[0]}: tensors that belong together differ in shape: {reason}") from error
