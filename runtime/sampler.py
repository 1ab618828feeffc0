# SPDX-License-Identifier: Apache-2.0
"""The denoising loop of one window: draws, guidance, Euler steps, motion latents.

Facts: SkyReels-V3 (commit 28c771e), talking-avatar pipeline; own code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from .errors import NoiseError
from .schedulers import add_noise, euler_step

Latents = npt.NDArray[np.float32]

Branch = Literal["cond", "drop_text", "drop_audio", "uncond"]
"""Which conditions one forward pass sees: all, without the prompt, without the sound, without both."""

Predict = Callable[[Latents, int, Branch], Latents]
"""(latents [1, 16, T, h, w], step index, branch) to the velocity of the same shape."""


MOST_GUIDANCE = 1e6
"""Largest scale; predictions are of order one, and float32 is not to overflow over a few steps."""


class Draws(Protocol):
    """Where random numbers come from, in the order of the published pipeline."""

    def take(self, shape: tuple[int, ...]) -> Latents:
        """Return the next draw from N(0, 1)."""
        ...


class SeededDraws:
    """Draws of numpy's Philox generator."""

    def __init__(self, seed: int) -> None:
        """Begin a sequence; raise ValueError for a seed below 0."""
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected 0 or more")
        self._generator = np.random.Generator(np.random.Philox(seed))

    def take(self, shape: tuple[int, ...]) -> Latents:
        """Return the next draw."""
        return self._generator.standard_normal(shape, dtype=np.float32)


class RecordedDraws:
    """Draws recorded elsewhere: the tensors `rng.NNN.*` of a safetensors file, in the order of NNN."""

    def __init__(self, path: Path, *, shapes: Sequence[tuple[int, ...]]) -> None:
        """Read the file and check it against the draws that the render will make.

        Raises:
            NoiseError: the file can't be read, or holds another number of draws or other shapes.
        """
        self._draws = _read_draws(path)
        if len(self._draws) != len(shapes):
            raise NoiseError(
                f"{path} holds {len(self._draws)} draws; this render makes {len(shapes)}: "
                "record it with the same settings"
            )
        for index, (draw, shape) in enumerate(zip(self._draws, shapes, strict=True)):
            if draw.shape != shape:
                raise NoiseError(
                    f"{path}: draw {index} has the shape {draw.shape}; this render needs {shape}: "
                    "record it with the same settings"
                )
        self._next = 0

    def take(self, shape: tuple[int, ...]) -> Latents:
        """Return the next recorded draw.

        Raises:
            NoiseError: it has another shape than the one asked for.
        """
        draw = self._draws[self._next]
        if draw.shape != shape:
            raise NoiseError(f"draw {self._next} has the shape {draw.shape}; the sampler asked for {shape}")
        self._next += 1
        return draw


def _read_draws(path: Path) -> list[Latents]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = sorted((name for name in file.keys() if name.startswith("rng.")), key=_number)  # noqa: SIM118 (no dict)
            draws = [np.asarray(file.get_tensor(name), dtype=np.float32) for name in names]
    except (OSError, ValueError, TypeError, LookupError, SafetensorError) as error:
        raise NoiseError(
            f"{path} can't be read as recorded draws ({error}); expected a safetensors file with rng.NNN.* tensors"
        ) from error
    for name, draw in zip(names, draws, strict=True):
        if not np.isfinite(draw).all():
            raise NoiseError(f"{path}: {name} holds NaN or Inf; expected draws from N(0, 1)")
    return draws


def _number(name: str) -> int:
    """Return NNN of `rng.NNN.kind`; raise ValueError where that is no number."""
    return int(name.split(".")[1])


def draw_shapes(
    passes: Sequence[bool], *, latent: tuple[int, int, int, int], motion_latents: int, steps: int
) -> list[tuple[int, ...]]:
    """Return the shapes of all draws of a render, in order.

    Args:
        passes: one entry per pass, in order: whether motion latents are injected in it (from the second window on).
        latent: (channels, T, h, w) of one window.
        motion_latents: how many latents hold the motion frames.
        steps: denoising steps.
    """
    channels, _frames, height, width = latent
    shapes: list[tuple[int, ...]] = []
    for injected in passes:
        shapes.append(latent)
        if injected:
            shapes += [(channels, motion_latents, height, width)] * (steps + 1)
    return shapes


@dataclass(frozen=True)
class Guidance:
    """How far predictions are pushed away from those without a condition; 1 leaves the extra forward passes out."""

    text: float = 1.0
    """Scale against the negative prompt, at least 1."""
    audio: float = 1.0
    """Scale against silence, at least 1."""

    def __post_init__(self) -> None:
        if not (1 <= self.text <= MOST_GUIDANCE and 1 <= self.audio <= MOST_GUIDANCE):
            raise ValueError(
                f"guidance scales are {self.text} and {self.audio}; expected at least 1 each, at most {MOST_GUIDANCE:g}"
            )

    def velocity(self, predict: Callable[[Branch], Latents]) -> Latents:
        """Combine the forward passes that these scales need; one, two or three of them."""
        cond = predict("cond")
        if self.text > 1 and self.audio > 1:
            drop_text, uncond = predict("drop_text"), predict("uncond")
            return uncond + _scaled(cond - drop_text, self.text) + _scaled(drop_text - uncond, self.audio)
        if self.text > 1:
            drop_text = predict("drop_text")
            return drop_text + _scaled(cond - drop_text, self.text)
        if self.audio > 1:
            drop_audio = predict("drop_audio")
            return drop_audio + _scaled(cond - drop_audio, self.audio)
        return cond


def _scaled(difference: Latents, scale: float) -> Latents:
    """Multiply in float32, whatever the scale's own type."""
    return np.multiply(difference, scale, dtype=np.float32)


def denoise(
    predict: Predict,
    *,
    shape: tuple[int, int, int, int],
    timesteps: npt.NDArray[np.float32],
    guidance: Guidance,
    draws: Draws,
    motion: Latents | None,
) -> Latents:
    """Turn noise into the latents of one window.

    Args:
        predict: the network.
        shape: (channels, T, h, w).
        timesteps: [steps + 1] in [0, 1000], falling, ending with 0.
        guidance: which forward passes are combined, and how.
        draws: one draw of `shape`; where `motion` is given, one more of its shape before the first step and one after
            every step.
        motion: latents of the motion frames [channels, m, h, w], re-noised to the level that is due and written over
            the first m latents; None in the key-frame pass and in the first window.

    Returns:
        [1, channels, T, h, w].
    """
    latents = draws.take(shape)[None].copy()
    if motion is not None:
        _inject(latents, motion, noise=draws.take(motion.shape), timestep=timesteps[0])
    for step in range(len(timesteps) - 1):
        velocity = guidance.velocity(lambda branch, at=step, x=latents: predict(x, at, branch))
        latents = euler_step(latents, velocity, timestep=timesteps[step], next_timestep=timesteps[step + 1])
        if motion is not None:
            _inject(latents, motion, noise=draws.take(motion.shape), timestep=timesteps[step + 1])
    return latents


def _inject(latents: Latents, motion: Latents, *, noise: Latents, timestep: float) -> None:
    """Write the motion latents, noised to `timestep` of 1000, over the first latents of a window, in place."""
    latents[0, :, : motion.shape[1]] = add_noise(motion, noise, timestep=timestep)
