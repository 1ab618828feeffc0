# SPDX-License-Identifier: Apache-2.0
"""The DiT before and after its blocks: prologue, epilogue, and the timestep's way to modulations.

Facts from SkyworkAI/SkyReels-V3 28c771e, wan/modules/transformer_a2v.py and transformer.py; own code.
"""

import torch
from torch import Tensor, nn

from .dit_block import modulated
from .dit_config import PATCH, DitConfig


class ImageEmbedding(nn.Module):
    """Image features to the width of the tokens."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        # 1e-5 here and in the audio projection is torch's own default, which the published network uses outside blocks.
        self.proj = nn.Sequential(
            nn.LayerNorm(config.image_dim, eps=1e-5),
            nn.Linear(config.image_dim, config.image_dim),
            nn.GELU(),
            nn.Linear(config.image_dim, config.dim),
            nn.LayerNorm(config.dim, eps=1e-5),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Project; [B, 257, image_dim] to [B, 257, dim]."""
        return self.proj(features)


class AudioProjection(nn.Module):
    """Audio features around each latent frame to that frame's audio tokens."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        frame = config.audio_layers * config.audio_channels
        width = config.audio_intermediate_dim
        self.tokens = config.audio_tokens
        self.proj1 = nn.Linear(config.audio_window * frame, width)
        self.proj1_vf = nn.Linear(config.audio_group * frame, width)
        self.proj2 = nn.Linear(width, width)
        self.proj3 = nn.Linear(width, config.audio_tokens * config.audio_dim)
        self.norm = nn.LayerNorm(config.audio_dim, eps=1e-5)

    def forward(self, audio_first: Tensor, audio_rest: Tensor) -> Tensor:
        """Project to [B * T, audio_tokens, audio_dim].

        Args:
            audio_first: [B, audio_window, layers, channels], the features around the first frame.
            audio_rest: [B, T - 1, audio_group, layers, channels], for each later latent frame those around its frames.
        """
        first = self.proj1(audio_first.flatten(1)).relu().unsqueeze(1)
        rest = self.proj1_vf(audio_rest.flatten(2)).relu()
        rows = self.proj2(torch.cat([first, rest], dim=1)).relu()
        return self.norm(self.proj3(rows).flatten(0, 1).unflatten(-1, (self.tokens, -1)))


class DitPrologue(nn.Module):
    """Everything before the first block: latents to tokens, conditions to contexts."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(config.in_dim, config.dim, kernel_size=PATCH, stride=PATCH)
        if config.has_text:
            self.text_embedding = nn.Sequential(
                nn.Linear(config.text_dim, config.dim), nn.GELU(approximate="tanh"), nn.Linear(config.dim, config.dim)
            )
        if config.has_image:
            self.img_emb = ImageEmbedding(config)
        if config.has_audio:
            self.audio_proj = AudioProjection(config)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of what `forward` takes, in order."""
        has_condition = ("condition",) if self.config.condition_dim else ()
        audio = ("audio_first", "audio_rest") if self.config.has_audio else ()
        embedded = {"text": self.config.has_text, "image": self.config.has_image}
        return ("latents", *has_condition, *(name for name, present in embedded.items() if present), *audio)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` returns, in order."""
        return ("tokens", *self.config.context_names)

    def forward(self, latents: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        """Return tokens [B, N, dim], then the contexts that the network has: text, image, audio.

        Args:
            latents: [B, out_dim, T, h, w]; several segments follow each other on the time axis.
            conditions: The rest of `input_names`, those that the network has of: condition [B, in_dim - out_dim, T, h,
                w], mask channels first; text [B, L, text_dim]; image [B, 257, image_dim]; audio_first [B, audio_window,
                layers, channels]; audio_rest [B, T - 1, audio_group, layers, channels], without B where it is 1.
        """
        given = dict(zip(self.input_names[1:], conditions, strict=True))
        if self.config.condition_dim:
            latents = torch.cat([latents, given["condition"]], dim=1)
        outputs = [self.patch_embedding(latents).flatten(2).transpose(1, 2)]
        if self.config.has_text:
            outputs.append(self.text_embedding(given["text"]))
        if self.config.has_image:
            outputs.append(self.img_emb(given["image"]))
        if self.config.has_audio:
            rest = given["audio_rest"]
            outputs.append(self.audio_proj(given["audio_first"], rest.unsqueeze(0) if rest.ndim == 4 else rest))
        return tuple(outputs)


class Head(nn.Module):
    """The modulated last layer: tokens to the latent pixels of their patches."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, PATCH[0] * PATCH[1] * PATCH[2] * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, tokens: Tensor, head_modulation: Tensor) -> Tensor:
        """Turn tokens [B, N, dim] into [B, N, 4 * out_dim], in the order row, column, channel.

        `head_modulation` is [G, dim], for G as in `DitBlock`.
        """
        shift, scale = (self.modulation + head_modulation.unsqueeze(1)).unsqueeze(2).unbind(1)
        return self.head(modulated(self.norm(tokens), scale, shift))


class DitEpilogue(nn.Module):
    """Everything after the last block: tokens to velocity."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        self.head = Head(config)

    def forward(self, tokens: Tensor, head_modulation: Tensor, latents: Tensor) -> tuple[Tensor]:
        """Return the velocity [B, out_dim, T, h, w], alone in a tuple; of `latents` only the shape is used."""
        frames, rows, columns = latents.shape[2:]
        patches = self.head(tokens, head_modulation).reshape(
            tokens.shape[0], frames, rows // PATCH[1], columns // PATCH[2], PATCH[1], PATCH[2], self.config.out_dim
        )
        patches = patches.permute(0, 6, 1, 2, 4, 3, 5)
        return (patches.reshape(tokens.shape[0], self.config.out_dim, frames, rows, columns),)


class DitTime(nn.Module):
    """Sinusoids of timesteps to modulations; runs beside the other parts, or ahead of them into a table."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))

    def forward(self, sinusoid: Tensor) -> tuple[Tensor, Tensor]:
        """Return head_modulation [G, dim] and modulation [G, 6, dim] of sinusoids [G, freq_dim], cosines first."""
        head_modulation = self.time_embedding(sinusoid)
        return head_modulation, self.time_projection(head_modulation).unflatten(1, (6, self.dim))
