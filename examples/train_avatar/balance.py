# SPDX-License-Identifier: Apache-2.0
"""Keep the decoder's values small enough for 16-bit floats, without changing a bit of what it computes.

Nothing in training holds the residual stream down: norms make its scale invisible, and every upsampling convolution let
it grow, to 116 000 in the shipped weights; float16 ends at 65 504. Between two upsamplings the stream is only added to,
convolved and normalised, so a power of two may be taken out of whatever writes to it.
"""

import math

import torch
from torch import Tensor

from edgereels.export.vae import VideoVae

_NORMAL = 32.0
"""About the length of a pixel's channels that every level is brought to."""


@torch.no_grad()
def balance(vae: VideoVae, frames: Tensor) -> None:
    """Rescale the decoder's levels after the first, in place.

    Args:
        vae: one residual block per level, as this program trains it.
        frames: [1, 3, 1 + 4k, H, W] in [-1, 1], to see how large values are.
    """
    levels = range(2, len(vae.decoder.upsamples), 2)
    lengths = _lengths(vae, frames, levels=levels)
    weights, before = dict(vae.decoder.upsamples.named_parameters()), 1.0
    for level in levels:
        gain = 2.0 ** -round(math.log2(lengths[level] / _NORMAL))
        upsampling = f"{level - 1}."
        weights[upsampling + "resample.1.weight"] *= gain / before
        weights[upsampling + "resample.1.bias"] *= gain
        if (name := upsampling + "time_conv.bias") in weights:
            weights[name] *= before
        weights[f"{level}.residual.6.weight"] *= gain
        weights[f"{level}.residual.6.bias"] *= gain
        if (name := f"{level}.shortcut.bias") in weights:
            weights[name] *= gain
        before = gain


def _lengths(vae: VideoVae, frames: Tensor, *, levels: range) -> dict[int, float]:
    """Return the largest length of a pixel's channels where each level begins."""
    found = dict.fromkeys(levels, 0.0)

    def watch(level: int, value: Tensor) -> None:
        found[level] = max(found[level], float(value.norm(dim=1).max()))

    hooks = [
        vae.decoder.upsamples[level].register_forward_pre_hook(
            lambda _module, values, level=level: watch(level, values[0])
        )
        for level in levels
    ]
    vae.decode(vae.encode(frames))
    for hook in hooks:
        hook.remove()
    return found
