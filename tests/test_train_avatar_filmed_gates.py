# SPDX-License-Identifier: Apache-2.0
"""A filmed face is measured without labels: the mouth is read from movement and sound, and what is wrong misses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from .train_avatar_parts import part

for needed in ("torch", "scipy", "cv2", "skia"):
    pytest.importorskip(needed, reason=f"the training needs {needed}: pip install '.[train,export]'")

MOUTH = np.s_[28:36, 18:30]
"""Of pictures of 48 x 48."""


def opening(seed: int) -> np.ndarray:
    """Return how far a mouth is open in 200 frames."""
    generator = np.random.default_rng(seed)
    return np.interp(np.arange(200) / 25, np.arange(45) / 5, generator.uniform(0, 1, 45))


def faces(openings: np.ndarray, *, seed: int, late: int = 0) -> np.ndarray:
    """Return pictures (200, 48, 48, 3) of a mouth that darkens as it opens, under eyes that move by themselves."""
    generator = np.random.default_rng([seed, 1])
    frames = generator.normal(150, 1, (200, 48, 48, 3))
    frames[:, 10:16, 14:34] += generator.normal(0, 40, (200, 1, 1, 1)).cumsum(0) % 60
    frames[:, MOUTH[0], MOUTH[1]] -= 90 * np.roll(openings, late)[:, None, None, None]
    return np.clip(frames, 0, 255).astype(np.uint8)


def footage(clips: int = 6) -> Any:
    weight = np.ones((192, 192), np.float32)
    weight[112:144, 72:120] = 4.0
    level = np.stack([np.repeat(opening(clip), 640) for clip in range(clips)])
    noise = np.random.default_rng(3).standard_normal(level.shape)
    return part("footage").Footage(
        frames=np.stack([faces(opening(clip), seed=clip) for clip in range(clips)]),
        sound=(3000 * level * noise).astype(np.int16),
        draws=None,
        faces=("zoe",) * clips,
        held_out=frozenset({1, 3, 5}),
        weights={"zoe": weight},
        portraits={},
    )


@dataclass(frozen=True)
class Puppet:
    """Stands for a renderer: a mouth that follows the sound of the clip that it recognises."""

    known: Any
    late: int = 0
    gain: float = 1.0

    @contextmanager
    def frames(self, waveform: np.ndarray, *, avatar: str) -> Iterator[np.ndarray]:
        assert avatar == "zoe"
        clip = next(at for at, sound in enumerate(self.known.sound) if np.allclose(sound / 32768, waveform, atol=1e-4))
        yield faces(self.gain * opening(clip), seed=clip + 50, late=self.late)


def measured(**spoilt: Any) -> dict[str, Any]:
    known, evaluating = footage(), part("evaluate_filmed")
    stretches = evaluating.held_out_stretches(known, Puppet(known, **spoilt), clips=[1, 3, 5])
    return {gate.name: gate for gate in evaluating.mouth_gates(stretches, about="")}


def test_the_mouth_is_read_by_its_own_movement_and_not_by_the_eyes() -> None:
    known = footage()
    mouth = part("filmed_mouth").FilmedMouth.fitted(known)
    for clip in known.held_out:
        assert np.corrcoef(mouth.read(known.frames[clip]), opening(clip))[0, 1] > 0.98  # positive: loud is open


def test_a_mouth_that_follows_its_sound_meets_the_gates() -> None:
    gates = measured()
    assert all(gate.met for gate in gates.values()), gates
    assert gates["lag, ms"].figure == pytest.approx(0, abs=5)


@pytest.mark.parametrize("frames", [3, -3])
def test_a_late_mouth_misses_the_lag_by_what_it_is_late(frames: int) -> None:
    lag = measured(late=frames)["lag, ms"]
    assert not lag.met
    assert lag.figure == pytest.approx(40 * frames, abs=8)


def test_a_mouth_that_hardly_moves_misses_the_amplitude() -> None:
    assert not measured(gain=0.3)["amplitude of the movement, ratio"].met


def test_every_control_is_caught() -> None:
    known, evaluating = footage(), part("evaluate_filmed")
    stretches = evaluating.held_out_stretches(known, Puppet(known), clips=[1, 3, 5])
    controls = evaluating.mouth_controls(stretches)
    assert len(controls) == 4
    assert all(control.caught for control in controls), [control.name for control in controls if not control.caught]


def test_a_good_autoencoder_meets_its_gates_and_a_coarse_one_misses_them() -> None:
    evaluating, known = part("evaluate_filmed"), footage()
    checked = np.kron(np.indices((24, 24)).sum(0) % 2, np.ones((8, 8)))[None, :, :, None] * 200.0
    shifted = np.roll(checked, 4, axis=2).astype(np.uint8).repeat(200, 0).repeat(3, 3)
    known = part("footage").Footage(**{**vars(known), "frames": np.stack([shifted] * 6)})

    def nearly(frames: np.ndarray) -> np.ndarray:
        return frames + np.uint8(2)

    fine = evaluating.autoencoder_gates(known, nearly, clips=[1, 3], about="")
    assert [gate.figure for gate in fine] == pytest.approx([42.1, 42.1], abs=0.1)
    assert all(gate.met for gate in fine)
    assert not any(gate.met for gate in evaluating.autoencoder_gates(known, evaluating.coarse, clips=[1, 3], about=""))


def test_a_mouth_without_pixels_is_refused() -> None:
    known = footage()
    known.weights["zoe"][:] = 1.0
    with pytest.raises(ValueError, match="no pixel weighs as much as a mouth"):
        part("filmed_mouth").FilmedMouth.fitted(known)
