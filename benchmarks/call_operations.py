# SPDX-License-Identifier: Apache-2.0
"""How many operations the calls of a window are, and from that, at which sizes and windows measuring says most."""

from collections.abc import Callable, Sequence

from ..runtime import ModelPackage
from .live_plan import FRAMES_PER_LATENT, Call, Setting, decoded_pieces, encoded_pieces
from .operation_counts import PackageOperations

SAMPLES_PER_FRAME = 640
"""16 kHz over 25 frames per second."""
PROBE_OPERATIONS = 1e12
"""Of a window at the first point, at most: 5 to 20 s on two cores. Where the smallest setting takes more, a smaller one
is measured first, so that what doesn't fit into the time is known before it is begun."""
VAE_STRIDE = 8
SMALLEST = 64
"""Pixels a side of a probe."""


class CallOperations:
    """Counts the operations of calls of one package."""

    def __init__(self, package: ModelPackage) -> None:
        """Count the graphs as exported: quantizing one changes how fast it is, hardly what it computes."""
        self._manifest = package.manifest
        self._count = PackageOperations(package, library="onnxruntime")

    def __call__(self, setting: Setting, call: Call) -> float:
        """Return the operations of a call at a setting; of what is no graph, how much it moves."""
        size, frames = (setting.height, setting.width), call.frames
        match call.stage:
            case "audio_encode":
                shapes = {"waveform": (1, frames * SAMPLES_PER_FRAME), "positions": (frames,)}
                return self._count.of("audio_encoder", shapes).total
            case "image_encode":
                return self._count.of("image_encoder", {}).total
            case "vae_encode":
                names = ["vae_encoder_first"] + ["vae_encoder_next"] * (len(encoded_pieces(frames)) - 1)
                pieces = zip(names, encoded_pieces(frames), strict=True)
                return sum(self._count.of(name, {"frames": (1, 3, piece, *size)}).total for name, piece in pieces)
            case "dit":
                return self._dit(setting)
            case "vae_decode":
                name = "vae_decoder_first" if frames == 1 else "vae_decoder_next"
                latents = (1, 16, max(1, frames // FRAMES_PER_LATENT), *_latent(size))
                return self._count.of(name, {"latents": latents}).total
            case "finish":
                return self._count.of("finish", {"frames": (1, 3, frames, *size)}).total
            case "canvas":
                return frames  # of one still, which has one size
        return frames * size[0] * size[1]

    def window(self, setting: Setting) -> float:
        """Return the operations of the transformer and the VAE in one window."""
        heavy = [Call("vae_encode", setting.window)] + [Call("dit", setting.window)] * setting.steps
        heavy += [Call("vae_decode", frames) for frames in decoded_pieces(setting.window - setting.drop)]
        return sum(self(setting, call) for call in heavy)

    def _dit(self, setting: Setting) -> float:
        dit, audio = self._manifest.dit, self._manifest.audio
        assert dit is not None and audio is not None  # a session that streams has both
        frames = 1 + (setting.window - 1) // FRAMES_PER_LATENT
        rows, columns = _latent((setting.height, setting.width))
        tokens = frames * (rows // 2) * (columns // 2)
        shapes: dict[str, tuple[int, ...]] = {
            "latents": (1, 16, frames, rows, columns),
            "rope_cos": (tokens, dit.head_dim // 2),
            "rope_sin": (tokens, dit.head_dim // 2),
            "audio_rest": (frames - 1, 8, audio.layers, audio.channels),
            "text": (1, dit.text_length, dit.text_width),
        }
        return self._count.of("dit", shapes).total


def _latent(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // VAE_STRIDE, size[1] // VAE_STRIDE


# ── Which points to measure ───────────────────────────────────────────────────────────────────────────────────────────


def points_of(
    settings: Sequence[Setting], wanted: Setting, *, steps: int, operations: Callable[[Setting], float]
) -> tuple[Setting, ...]:
    """Return where to measure, in rising order: the smallest, the largest and the wanted setting, and those between.

    Args:
        settings: all that will be predicted.
        wanted: the one that is asked about.
        steps: denoising steps that are measured; more of them cost the same each.
        operations: of a window.
    """
    at_steps = {_with(one, steps=steps) for one in (*settings, wanted)}
    ordered = sorted(at_steps, key=lambda one: (operations(one), one))
    same_size = [one for one in ordered if (one.height, one.width) == (wanted.height, wanted.width)]
    chosen = {ordered[0], same_size[0], _with(wanted, steps=steps), ordered[-1]}
    if operations(ordered[0]) > PROBE_OPERATIONS:
        chosen.add(_probe(ordered[0], operations=operations))
    return tuple(sorted(chosen, key=lambda one: (operations(one), one)))


def _with(setting: Setting, *, steps: int) -> Setting:
    return Setting(setting.height, setting.width, setting.window, steps, setting.motion, setting.drop)


def _probe(setting: Setting, *, operations: Callable[[Setting], float]) -> Setting:
    """Return the setting at half the size, and half of that, until it takes little."""
    height, width = setting.height, setting.width
    while operations(setting) > PROBE_OPERATIONS and min(height, width) >= 2 * SMALLEST:
        height, width = (round(side / 32) * 16 for side in (height, width))
        setting = Setting(height, width, setting.window, setting.steps, setting.motion, setting.drop)
    return setting
