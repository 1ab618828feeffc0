# SPDX-License-Identifier: Apache-2.0
"""Flow matching on numpy arrays: the Euler steps of the talking avatar, UniPC of the video members of the family.

A network predicts the velocity v = noise - data of x = (1 - sigma) data + sigma noise, with sigma falling from 1 to 0;
its timestep is 1000 sigma. The published Euler loop negates the prediction first; here the sign stands in the step.
Sources: SkyReels-V3 commit 28c771e, talking_avatar_pipeline.py and fm_solvers_unipc.py; diffusers 0.34
scheduling_unipc_multistep.py (facts only, own code).
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

TRAIN_STEPS = 1000
"""Timesteps that the networks were trained on; a timestep is this many times sigma."""

MOST_SHIFT = 1e6
"""Largest shift, and one over the smallest; far beyond, float32 has no timesteps between the first and the last."""

Floats = npt.NDArray[np.float32]


def euler_timesteps(steps: int, *, shift: float) -> Floats:
    """Return the falling timesteps of the Euler sampler, shape (steps + 1,), in [0, 1000] and ending with 0.

    They lie evenly between 1000 and 1 and are then shifted towards the noisy end; all in float32, as published.

    Raises:
        ValueError: there are no steps, or the shift is not positive or beyond `MOST_SHIFT`.

    >>> [round(float(t), 2) for t in euler_timesteps(4, shift=11.0)]
    [1000.0, 956.58, 846.54, 10.89, 0.0]
    """
    _check(steps, shift=shift)
    even = np.linspace(TRAIN_STEPS, 1, steps, dtype=np.float32)
    sigmas = np.append(even, np.float32(0)) / np.float32(TRAIN_STEPS)
    shifted = sigmas * np.float32(shift) / (sigmas * np.float32(shift - 1) + np.float32(1))
    return _single(shifted * np.float32(TRAIN_STEPS))


def euler_step(latents: Floats, velocity: Floats, *, timestep: float, next_timestep: float) -> Floats:
    """Return the latents moved from one timestep to the next; any shape."""
    step = (np.float32(timestep) - np.float32(next_timestep)) / np.float32(TRAIN_STEPS)
    return _single(latents - velocity * step)


def add_noise(latents: Floats, noise: Floats, *, timestep: float) -> Floats:
    """Return clean latents mixed with noise up to a timestep: 1000 is noise alone, 0 the latents untouched."""
    sigma = np.float32(timestep) / np.float32(TRAIN_STEPS)
    return _single(latents * (np.float32(1) - sigma) + noise * sigma)


class SigmaStart(Enum):
    """Where the evenly spaced sigmas of UniPC begin; the two published loops differ in the last bit of a few values."""

    EXTENSION = float(np.float32(0.999))
    """Video extension (single shot and shot switching): the start went through a float32 tensor."""

    REFERENCE = 0.999
    """Reference to video, diffusers 0.34: the start is a double."""


def unipc_sigmas(steps: int, *, shift: float, start: SigmaStart = SigmaStart.EXTENSION) -> Floats:
    """Return the falling noise levels of UniPC, shape (steps + 1,), ending with 0. Made in float64, kept in float32.

    Raises:
        ValueError: there are no steps, or the shift is not positive or beyond `MOST_SHIFT`.
    """
    return np.append(_unipc_sigmas(steps, shift=shift, start=start), 0.0).astype(np.float32)


def unipc_timesteps(steps: int, *, shift: float, start: SigmaStart = SigmaStart.EXTENSION) -> npt.NDArray[np.int64]:
    """Return the timesteps fed to the network, shape (steps,): 1000 sigma, cut to whole numbers as published.

    Raises:
        ValueError: there are no steps, or the shift is not positive or beyond `MOST_SHIFT`.
    """
    return (_unipc_sigmas(steps, shift=shift, start=start) * TRAIN_STEPS).astype(np.int64)


@dataclass
class UniPC:
    """The state of one UniPC run: order 2, "bh2", predicting the data; call `step` once per sigma but the last.

    Scalars are made in float64, arrays stay float32.
    """

    sigmas: Floats
    """Noise levels, shape (steps + 1,), falling to 0."""

    _estimates: list[Floats] = field(default_factory=list)
    """Data estimates of the last two steps, the newest last."""

    _sample: Floats | None = None
    """Corrected sample that the last prediction started from."""

    _order: int = 0
    """Order of the last prediction; the correction of its result uses the same."""

    _index: int = 0
    """Steps taken."""

    def step(self, velocity: Floats, sample: Floats) -> Floats:
        """Return the sample at the next noise level; both arrays have the same shape.

        Raises:
            ValueError: all steps have been taken; make a new UniPC for another run.
        """
        steps = len(self.sigmas) - 1
        if self._index >= steps:
            raise ValueError(
                f"step {self._index + 1} of a schedule of {steps} steps; expected a new UniPC for another run"
            )
        estimate = sample - velocity * self.sigmas[self._index]
        if self._sample is not None:
            sample = self._correct(self._sample, estimate)
        self._estimates = [*self._estimates[-1:], estimate]
        self._sample = sample
        self._order = min(2, steps - self._index, self._index + 1)
        self._index += 1
        return self._predict(sample)

    def _log_ratio(self, index: int) -> float:
        """Return log((1 - sigma) / sigma)."""
        sigma = float(self.sigmas[index])
        return float(np.log1p(-sigma) - np.log(sigma))

    def _predict(self, sample: Floats) -> Floats:
        now, after = self._index - 1, self._index
        newest = self._estimates[-1]
        if self.sigmas[after] == 0:  # the step is infinitely long in log space; its limit is the estimate itself
            return newest
        span = self._log_ratio(after) - self._log_ratio(now)
        pull = (1 - float(self.sigmas[after])) * float(np.expm1(-span))
        moved = self._scaled(sample, now=now, after=after) - newest * pull
        if self._order == 1:
            return _single(moved)
        ratio = (self._log_ratio(now - 1) - self._log_ratio(now)) / span
        return _single(moved - (self._estimates[-2] - newest) * (pull * 0.5 / ratio))

    def _correct(self, sample: Floats, estimate: Floats) -> Floats:
        now, after = self._index - 1, self._index
        newest = self._estimates[-1]
        span = self._log_ratio(after) - self._log_ratio(now)
        shrink = float(np.expm1(-span))
        pull = (1 - float(self.sigmas[after])) * shrink
        moved = self._scaled(sample, now=now, after=after) - newest * pull
        if self._order == 1:
            return _single(moved - (estimate - newest) * (pull * 0.5))
        ratio = (self._log_ratio(now - 1) - self._log_ratio(now)) / span
        first = shrink / -span - 1
        second = first / -span - 0.5
        older, newer = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [first / shrink, 2 * second / shrink])
        slope = (self._estimates[-2] - newest) * (pull * float(older) / ratio)
        return _single(moved - slope - (estimate - newest) * (pull * float(newer)))

    def _scaled(self, sample: Floats, *, now: int, after: int) -> Floats:
        return sample * (float(self.sigmas[after]) / float(self.sigmas[now]))


def _unipc_sigmas(steps: int, *, shift: float, start: SigmaStart) -> npt.NDArray[np.float64]:
    _check(steps, shift=shift)
    even = np.linspace(start.value, 0.0, steps + 1)[:-1]
    return shift * even / (1 + (shift - 1) * even)


def _single(values: npt.NDArray[np.floating[Any]]) -> Floats:
    return values.astype(np.float32, copy=False)  # for numpy's type stubs, which lose the width; copies nothing


def _check(steps: int, *, shift: float) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected 1 or more")
    if not 1 / MOST_SHIFT <= shift <= MOST_SHIFT:
        raise ValueError(f"shift is {shift}; expected a number above 0, from {1 / MOST_SHIFT:g} to {MOST_SHIFT:g}")
