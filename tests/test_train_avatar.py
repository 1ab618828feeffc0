# SPDX-License-Identifier: Apache-2.0
"""The training of the default avatar sees what the runtime will show the network, and its gates can fail."""

import numpy as np
import pytest

from edgereels.runtime.chunks import mask_array, slice_audio
from edgereels.runtime.planner import plan

from .train_avatar_parts import part

for needed in ("torch", "skia", "scipy", "cv2"):
    pytest.importorskip(needed, reason=f"the training needs {needed}: pip install '.[train,export]'")

# The codec runs other numbers of frames at a time: two orders of summation of values of order one.
REORDERED = 2e-5


@pytest.mark.parametrize(
    ("place", "known", "tail"), [(0, 1, False), (1, 1, True), (2, 5, True)], ids=["key pass", "first", "later"]
)
def test_the_masks_of_the_training_are_those_of_the_runtime(place: int, known: int, tail: bool) -> None:
    latents = part("latents")
    made = plan(200, window=latents.WINDOW, motion=latents.MOTION, drop=latents.DROP)
    theirs = mask_array(made.passes[place])
    ours = part("windows").mask(1 + (latents.WINDOW - 1) // 4, known=known, tail=tail)
    assert np.array_equal(ours[..., 0, 0], theirs)
    assert np.array_equal(ours, np.broadcast_to(theirs[..., None, None], ours.shape))


def test_the_sound_of_a_window_is_cut_as_in_the_runtime() -> None:
    latents = part("latents")
    features = np.random.default_rng(0).standard_normal((200, 2, 3)).astype(np.float32)
    made = plan(200, window=latents.WINDOW, motion=latents.MOTION, drop=latents.DROP)
    latent_frames = 1 + (latents.WINDOW - 1) // 4
    first, rest = part("windows").audio_windows(features, made.windows[2].start_frame, latent_frames)
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


def test_noise_carries_the_draws_and_stays_noise() -> None:
    chance = part("chance")
    generator = np.random.default_rng(4)
    draws = chance.clip_draws(generator, 50)
    noise = generator.standard_normal((16, 50, 24, 24)).astype(np.float32)
    chance.imprint(noise, draws)
    read = np.stack([noise[index][:, *chance.EYES].sum((1, 2)) for index in range(4)], 1) / np.sqrt(32)
    assert np.allclose(read, draws, atol=1e-4)
    assert abs(noise.std() - 1) < 0.01 and abs(noise.mean()) < 0.01


def test_draws_that_are_not_known_leave_the_noise_alone() -> None:
    chance = part("chance")
    noise = np.random.default_rng(5).standard_normal((16, 9, 24, 24)).astype(np.float32)
    before = noise.copy()
    chance.imprint(noise, np.full((9, 4), np.nan, np.float32))
    assert np.array_equal(noise, before)


def test_a_draw_above_the_limit_blinks_once_and_one_below_does_not() -> None:
    chance = part("chance")
    draws = np.zeros((50, 4), np.float32)
    assert not chance.blinks(draws, 200).any()
    draws[10, 0] = chance.BLINK_ABOVE + 0.1
    closed = chance.blinks(draws, 200)
    assert closed.max() == 1.0
    assert set(np.flatnonzero(closed)) == set(range(37, 43))


def test_a_glance_comes_back_and_the_head_follows() -> None:
    chance = part("chance")
    draws = np.zeros((50, 4), np.float32)
    draws[5], draws[20] = (0, 2, 1.0, -1.0), (0, 2, 0.3, 0.3)
    looks = chance.gaze(draws, 200)
    assert looks[40].tolist() == pytest.approx([chance.REACH_X, -chance.REACH_Y])
    assert not looks[90].any()
    assert chance.follow(looks)[40, 0] > 0.8 * chance.REACH_X
    assert not chance.at_rest(draws, 40) and chance.at_rest(draws, 160)


def test_the_borders_of_the_box_never_move() -> None:
    face, identities = part("face"), part("identities").IDENTITIES
    moved = face.Pose(jaw=0.9, press=0.0, yaw=0.5, pitch=0.4, roll=0.4, shift_x=3.0, shift_y=1.5, gaze_x=0.8)
    for identity in identities.values():
        rest, other = face.draw(identity, face.Pose()), face.draw(identity, moved)
        border = np.ones(rest.shape[:2], bool)
        border[6:-6, 6:-6] = False
        assert np.array_equal(rest[border], other[border])
        assert not np.array_equal(rest, other)


def test_the_box_is_cut_out_of_the_still() -> None:
    face, footage = part("face"), part("draw_footage")
    identity = part("identities").IDENTITIES["anna"]
    whole = face.draw(identity, face.Pose(), 576).astype(int)
    top, left, bottom, right = face.BOX
    # Anti-aliasing differs in a few pixels: the two are drawn with other origins.
    assert np.abs(face.draw_still(identity)[top:bottom, left:right].astype(int) - whole).mean() < 0.01
    small = face.draw(identity, face.Pose()).astype(int)
    assert np.abs(footage.portrait_of(identity).astype(int) - small).mean() < 1.5
