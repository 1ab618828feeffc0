# SPDX-License-Identifier: Apache-2.0
"""The training of the default avatar sees what the runtime will show the network, and its gates can fail."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgereels.runtime.chunks import mask_array, slice_audio
from edgereels.runtime.planner import plan

for needed in ("torch", "skia", "scipy", "cv2"):
    pytest.importorskip(needed, reason=f"the training needs {needed}: pip install '.[train,export]'")

# The codec runs other numbers of frames at a time: two orders of summation of values of order one.
REORDERED = 2e-5


def part(name: str) -> ModuleType:
    examples = str(Path(__file__).parents[1] / "examples")
    if examples not in sys.path:
        sys.path.append(examples)
    return importlib.import_module(f"train_avatar.{name}")


@pytest.mark.parametrize(
    ("place", "known", "tail"), [(0, 1, False), (1, 1, True), (2, 5, True)], ids=["key pass", "first", "later"]
)
def test_the_masks_of_the_training_are_those_of_the_runtime(place: int, known: int, tail: bool) -> None:
    latents = part("latents")
    made = plan(200, window=latents.WINDOW, motion=latents.MOTION, drop=latents.DROP)
    theirs = mask_array(made.passes[place])
    ours = part("train_dit").mask(known=known, tail=tail)
    assert np.array_equal(ours[..., 0, 0], theirs)
    assert np.array_equal(ours, np.broadcast_to(theirs[..., None, None], ours.shape))


def test_the_sound_of_a_window_is_cut_as_in_the_runtime() -> None:
    latents = part("latents")
    features = np.random.default_rng(0).standard_normal((200, 2, 3)).astype(np.float32)
    made = plan(200, window=latents.WINDOW, motion=latents.MOTION, drop=latents.DROP)
    first, rest = part("train_dit").audio_windows(features, made.windows[2].start_frame)
    their_first, their_rest = slice_audio(features, made.windows[2])
    assert np.array_equal(first, their_first[0])
    assert np.array_equal(rest, their_rest)


@pytest.mark.slow
def test_normalising_the_latents_changes_no_decoded_frame() -> None:
    import torch

    vae = part("train_vae").new_vae().eval().requires_grad_(False)
    clip = torch.rand((1, 3, 5, 32, 32), generator=torch.Generator().manual_seed(1)) * 2 - 1
    moments, before = vae.encode_moments(clip)[0], vae.decode(vae.encode(clip))
    mean, spread = moments.mean((0, 2, 3, 4)), moments.std((0, 2, 3, 4))
    part("latents").fold_statistics(vae, mean, spread)
    latents = vae.encode(clip)
    assert torch.allclose(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-4)
    # Float32 through a network of sixty layers, outputs of order one.
    assert torch.allclose(vae.decode(latents), before, atol=2e-4)


@pytest.mark.slow
def test_a_padded_window_put_together_from_short_encodings_is_exact() -> None:
    import torch

    vae = part("train_vae").new_vae().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    motion, key = (torch.rand((1, 3, frames, 32, 32), generator=generator) * 2 - 1 for frames in (5, 1))
    grey, tail = torch.zeros((1, 3, 33, 32, 32)), key.expand(-1, -1, 5, -1, -1)
    whole = vae.encode(torch.cat([motion, grey[:, :, :23], tail], 2))
    assembled = vae.encode(grey)
    assembled[:, :, :3] = vae.encode(torch.cat([motion, grey[:, :, :4]], 2))
    assembled[:, :, -2:] = vae.encode(torch.cat([grey[:, :, :8], tail], 2))[:, :, -2:]
    assert torch.allclose(assembled, whole, atol=REORDERED)


@pytest.fixture(scope="module")
def openings() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [np.convolve(generator.random(150), np.ones(5) / 5, "same") for _ in range(6)]


def judged(openings: list[np.ndarray], rendered: list[np.ndarray]) -> dict[str, bool]:
    evaluate = part("evaluate")
    clips = [
        evaluate.Clip("voice", truth, seen, np.zeros_like(truth))
        for truth, seen in zip(openings, rendered, strict=True)
    ]
    return evaluate.summarise(clips)["gates"]


def test_a_mouth_that_follows_the_sound_passes(openings: list[np.ndarray]) -> None:
    assert all(judged(openings, openings).values())


def test_the_mouth_of_another_clip_fails(openings: list[np.ndarray]) -> None:
    assert not judged(openings, openings[1:] + openings[:1])["correlation"]


def test_a_mouth_two_frames_late_fails(openings: list[np.ndarray]) -> None:
    assert not judged(openings, [np.roll(opening, 2) for opening in openings])["lag"]


def test_a_mouth_that_does_not_move_fails(openings: list[np.ndarray]) -> None:
    assert not judged(openings, [np.full_like(opening, 0.3) for opening in openings])["correlation"]


def test_the_reader_reads_drawn_mouths() -> None:
    face, reader = part("face"), part("jaw_reader").JawReader.fitted(pictures=300)
    jaws = np.linspace(0, 0.9, 12)
    frames = np.stack([face.draw(face.Pose(jaw=float(jaw), press=0.0)) for jaw in jaws]).astype(np.float32)
    # Fitted on other poses than these; a tenth of the range is what a ridge regression of this size leaves.
    assert np.abs(reader.opening(frames / 127.5 - 1) - jaws).max() < 0.1
