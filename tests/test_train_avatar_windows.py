# SPDX-License-Identifier: Apache-2.0
"""Training windows are put together as the sampler would show them, for every length."""

from pathlib import Path

import numpy as np
import pytest

from .train_avatar_parts import part

for needed in ("torch", "skia", "scipy", "cv2"):
    pytest.importorskip(needed, reason=f"the training needs {needed}: pip install '.[train,export]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips whose latents tell what they are: the truth is 1, motion 2, one frame 3, key frames 4, a portrait 5."""
    made = tmp_path_factory.mktemp("windows")
    footage = part("footage")
    writer = footage.FootageWriter(made, faces=["one", "one"], held_out=[1])
    writer.write_face("one", portrait=np.zeros((192, 192, 3), np.uint8), weight=np.ones((192, 192), np.float32))
    writer.write_draws(np.zeros((2, 50, 4), np.float32))
    writer.done = 2
    writer.finish()
    (made / "latents").mkdir()

    def filled(value: float, *shape: int) -> np.ndarray:
        return np.full(shape, value, np.float16)

    starts = np.arange(0, 56, 4)
    for index in range(2):
        np.savez(
            made / "latents" / f"clip_{index:04d}.npz",
            whole=filled(1, 16, 50, 24, 24), starts=starts, begins=filled(1, 14, 16, 2, 24, 24),
            motions=filled(2, 14, 16, 3, 24, 24), singles=filled(3, 14, 16, 3, 24, 24),
            tails=filled(4, 8, 16, 2, 24, 24), tail_frames=np.arange(8),
            features=np.zeros((2, 200, 2, 3), np.float16),
        )  # fmt: skip
    np.savez(
        made / "latents" / "fixed.npz",
        grey=np.zeros((16, 9, 24, 24), np.float32),
        portrait_one=np.full((16, 3, 24, 24), 5, np.float32),
    )
    return made


@pytest.mark.parametrize("window", [9, 17, 33, 49, 81])
def test_a_window_of_every_length_is_what_its_mask_says(folder: Path, window: int) -> None:
    windows = part("windows").Windows(folder)
    assert sorted(windows.clips) == [0]  # the held-out clip is not learned from
    latent_frames = 1 + (window - 1) // 4
    generator, seen = np.random.default_rng(window), set()
    for _ in range(96 // part("windows").BATCHES[window][1]):
        batch = windows.batch(generator, window=window)
        assert batch.latents.shape[1:] == (16, latent_frames, 24, 24)
        assert (batch.latents == 1).all()
        for mask, latents, draws in zip(batch.condition[:, :4], batch.condition[:, 4:], batch.draws, strict=True):
            known = 1 + 4 * int(mask[0, 1, 0, 0])
            begin = round(float(latents[:, 0].mean()))
            seen.add(begin)
            assert (known == 5) == (begin == 2)
            assert bool(mask[0, -1, 0, 0]) == bool(abs(latents[:, -1].mean() - 4) < 0.2)
            assert draws.isnan().all(1).sum() == (2 if known == 5 else 1)
    assert seen == ({3, 5} if window == 9 else {2, 3, 5})


def test_a_held_out_clip_is_seen_when_it_is_asked_for(folder: Path) -> None:
    assert sorted(part("windows").Windows(folder, held_out=True).clips) == [1]


def test_the_weight_of_the_latents_follows_that_of_the_pixels() -> None:
    weight = np.ones((192, 192), np.float32)
    weight[96:104, 40:48] = 4
    pooled = part("windows").latent_weight(weight)[0, 0]
    assert pooled.mean() == pytest.approx(1)
    assert pooled[12, 5] == pytest.approx(8 * pooled[0, 0])
