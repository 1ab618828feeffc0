# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgereels.runtime.errors import NoiseError
from edgereels.runtime.sampler import Guidance, RecordedDraws, SeededDraws, denoise, draw_shapes

SHAPE = (16, 3, 2, 2)
TIMESTEPS = np.array([1000, 500, 0], dtype=np.float32)


class CountedDraws:
    """Constant draws, numbered from 1."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, ...]] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        self.taken.append(shape)
        return np.full(shape, len(self.taken), dtype=np.float32)


def still(latents: np.ndarray, step: int, branch: str) -> np.ndarray:
    return np.zeros_like(latents)


def test_one_euler_step_walks_from_noise_to_data() -> None:
    data = np.random.default_rng(0).standard_normal((1, *SHAPE), dtype=np.float32)

    def perfect(latents: np.ndarray, step: int, branch: str) -> np.ndarray:
        return latents - data

    made = denoise(
        perfect,
        shape=SHAPE,
        timesteps=np.array([1000, 0], dtype=np.float32),
        guidance=Guidance(),
        draws=SeededDraws(1),
        motion=None,
    )
    np.testing.assert_allclose(made, data, atol=1e-6)


def test_motion_latents_end_clean() -> None:
    motion = np.full((16, 2, 2, 2), 7, dtype=np.float32)
    made = denoise(still, shape=SHAPE, timesteps=TIMESTEPS, guidance=Guidance(), draws=CountedDraws(), motion=motion)
    assert (made[0, :, :2] == 7).all()
    assert (made[0, :, 2:] == 1).all()


def test_motion_latents_start_as_pure_noise_and_are_renoised_after_every_step() -> None:
    seen: list[float] = []

    def watch(latents: np.ndarray, step: int, branch: str) -> np.ndarray:
        seen.append(float(latents[0, 0, 0, 0, 0]))
        return np.zeros_like(latents)

    motion = np.full((16, 1, 2, 2), 10, dtype=np.float32)
    draws = CountedDraws()
    denoise(watch, shape=SHAPE, timesteps=TIMESTEPS, guidance=Guidance(), draws=draws, motion=motion)
    assert seen == [2.0, 0.5 * 10 + 0.5 * 3]
    assert draws.taken == [SHAPE, (16, 1, 2, 2), (16, 1, 2, 2), (16, 1, 2, 2)]


def test_the_draws_of_a_render_are_known_beforehand() -> None:
    assert (
        draw_shapes([False, False, True], latent=SHAPE, motion_latents=2, steps=2) == [SHAPE] * 3 + [(16, 2, 2, 2)] * 3
    )


VALUES = {"cond": 1.0, "drop_text": 10.0, "drop_audio": 100.0, "uncond": 1000.0}


@pytest.mark.parametrize(
    ("guidance", "asked", "result"),
    [
        pytest.param(Guidance(), ["cond"], 1.0, id="none"),
        pytest.param(Guidance(text=5), ["cond", "drop_text"], 10 + 5 * (1 - 10), id="text"),
        pytest.param(Guidance(audio=3), ["cond", "drop_audio"], 100 + 3 * (1 - 100), id="audio"),
        pytest.param(
            Guidance(text=5, audio=4), ["cond", "drop_text", "uncond"], 1000 + 5 * (1 - 10) + 4 * (10 - 1000), id="both"
        ),
    ],
)
def test_guidance_runs_only_the_branches_it_needs(guidance: Guidance, asked: list[str], result: float) -> None:
    called: list[str] = []

    def predict(branch: str) -> np.ndarray:
        called.append(branch)
        return np.array([VALUES[branch]], dtype=np.float32)

    assert guidance.velocity(predict)[0] == result
    assert called == asked


def test_guidance_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Guidance(text=0.5)


def test_seeded_draws_repeat() -> None:
    assert np.array_equal(SeededDraws(3).take((4, 5)), SeededDraws(3).take((4, 5)))
    assert not np.array_equal(SeededDraws(3).take((4, 5)), SeededDraws(4).take((4, 5)))


def recorded(path: Path, *shapes: tuple[int, ...]) -> Path:
    save_file(
        {f"rng.{i:03}.randn": np.full(shape, i, np.float32) for i, shape in enumerate(shapes)} | {"x": np.ones(2)}, path
    )
    return path


def test_recorded_draws_come_in_order_and_other_tensors_are_ignored(tmp_path: Path) -> None:
    shapes = [(2, 3), (4,), (2, 3)]
    draws = RecordedDraws(recorded(tmp_path / "n.safetensors", *shapes), shapes=shapes)
    assert [float(draws.take(shape).flat[0]) for shape in shapes] == [0, 1, 2]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        pytest.param([(2, 3)], "holds 2 draws; this render makes 1", id="too many"),
        pytest.param([(2, 3), (4,), (4,)], "holds 2 draws; this render makes 3", id="too few"),
        pytest.param([(2, 3), (5,)], "draw 1 has the shape", id="wrong shape"),
    ],
)
def test_recorded_draws_that_do_not_fit_are_refused(
    tmp_path: Path, shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(NoiseError, match=message):
        RecordedDraws(recorded(tmp_path / "n.safetensors", (2, 3), (4,)), shapes=shapes)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(b"noise")
    with pytest.raises(NoiseError, match="can't be read"):
        RecordedDraws(path, shapes=[])


def test_draws_with_nan_are_refused(tmp_path: Path) -> None:
    save_file({"rng.000.randn": np.array([np.nan], np.float32)}, tmp_path / "n.safetensors")
    with pytest.raises(NoiseError, match="NaN"):
        RecordedDraws(tmp_path / "n.safetensors", shapes=[(1,)])
