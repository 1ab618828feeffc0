# SPDX-License-Identifier: Apache-2.0
"""Metrics of the quality ladder: hand-computed values, and what each of them must notice."""

import math

import numpy as np
import pytest

from edgereels.runtime import metrics
from edgereels.runtime.metrics import MOST_DB, MouthMotion

MOUTH = (0.5, 0.25, 0.75, 0.75)
NEARLY = 0.9
"""Rows of the drawn mouth open one after the other, which no single direction follows: 0.94 to 0.96 is found."""


def talking_head(opening: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return a clip (T, 32, 32, 3) of a textured picture with a dark mouth of the given height (0 to 1)."""
    texture = np.random.default_rng(seed).integers(120, 200, (32, 32, 3), dtype=np.uint8)
    frames = np.repeat(texture[None], len(opening), axis=0)
    for frame, share in zip(frames, opening, strict=True):
        covered = (np.arange(8)[:, None, None] + 1) / 8 <= share  # rows of the mouth that are open
        frame[16:24, 12:20] = np.where(covered, 20, frame[16:24, 12:20])
    return frames


def speech(count: int = 200, *, seed: int = 3) -> np.ndarray:
    """Return an opening between 0 and 1 that moves like speech: a few syllables a second."""
    noise = np.random.default_rng(seed).standard_normal(count + 4)
    smooth = np.convolve(noise, np.ones(5) / 5, mode="valid")
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


# ── Tensors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_signal_to_noise_of_a_tenth_is_twenty_decibels() -> None:
    theirs = np.array([3.0, -4.0])  # energy 25
    ours = theirs + np.array([0.5, 0.0])  # energy 0.25
    assert metrics.sqnr_db(ours, theirs) == pytest.approx(20.0)
    assert metrics.rel_l2(ours, theirs) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("ours", "theirs", "decibels", "relative"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.0], MOST_DB, 0.0, id="identical"),
        pytest.param([0.0, 0.0], [0.0, 0.0], MOST_DB, 0.0, id="both-silent"),
        pytest.param([1.0, 0.0], [0.0, 0.0], -MOST_DB, 1e10, id="noise-without-signal"),
        pytest.param([math.nan, 0.0], [1.0, 0.0], -MOST_DB, 1e10, id="nan"),
        pytest.param([math.inf, 0.0], [1.0, 0.0], -MOST_DB, 1e10, id="infinity"),
        pytest.param([math.inf, 0.0], [math.inf, 0.0], -MOST_DB, 1e10, id="infinity-twice"),
        pytest.param([0.0, 0.0], [1.0, 0.0], 0.0, 1.0, id="nothing-left"),
    ],
)
def test_decibels_are_finite_at_the_edges(
    ours: list[float], theirs: list[float], decibels: float, relative: float
) -> None:
    a, b = np.array(ours), np.array(theirs)
    assert metrics.sqnr_db(a, b) == pytest.approx(decibels)
    assert metrics.rel_l2(a, b) == pytest.approx(relative)


def test_the_cosine_sees_direction_and_not_length() -> None:
    assert metrics.cosine(np.array([2.0, 0.0]), np.array([1.0, 0.0])) == pytest.approx(1.0)
    assert metrics.cosine(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(math.sqrt(0.5))
    assert metrics.cosine(np.zeros(2), np.zeros(2)) == 1.0
    assert metrics.cosine(np.zeros(2), np.ones(2)) == 0.0
    assert metrics.cosine(np.array([math.nan, 1.0]), np.ones(2)) == 0.0


def test_other_shapes_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="shapes"):
        metrics.sqnr_db(np.zeros(2), np.zeros((2, 1)))


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_peak_signal_to_noise_of_one_level_everywhere() -> None:
    theirs = np.full((2, 4, 4, 3), 100, np.uint8)
    assert metrics.psnr_db(theirs + 1, theirs) == pytest.approx(20 * math.log10(255))  # 48.13
    assert metrics.psnr_db(theirs - 1, theirs) == pytest.approx(20 * math.log10(255))  # unsigned bytes do not wrap
    assert metrics.psnr_db(theirs, theirs) == MOST_DB


def test_similarity_of_flat_pictures_is_that_of_their_brightness() -> None:
    ours, theirs = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 120, np.uint8)
    steady = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + steady) / (100**2 + 120**2 + steady)  # no contrast: the second factor is 1
    assert metrics.ssim(ours, theirs) == pytest.approx(expected)


def test_similarity_falls_with_noise_and_is_one_for_the_same() -> None:
    random = np.random.default_rng(0)
    theirs = random.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    noise = random.integers(-20, 21, theirs.shape)
    slightly = np.clip(theirs + noise // 8, 0, 255).astype(np.uint8)
    badly = np.clip(theirs + 10 * noise, 0, 255).astype(np.uint8)
    assert metrics.ssim(theirs, theirs) == pytest.approx(1.0)
    assert 0.99 < metrics.ssim(slightly, theirs) < 1
    assert metrics.ssim(badly, theirs) < 0.8


def test_similarity_of_a_negative_is_negative() -> None:
    checks = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)
    theirs = np.repeat(checks[None, :, :, None], 3, axis=3)
    assert metrics.ssim(255 - theirs, theirs) < -0.9


def test_similarity_wants_frames_as_large_as_its_window() -> None:
    small = np.zeros((1, 10, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(small, small)


def test_a_box_is_cut_by_fractions() -> None:
    frames = np.zeros((1, 8, 16, 3), np.uint8)
    frames[:, 4:6, 4:12] = 9
    assert metrics.crop(frames, MOUTH).shape == (1, 2, 8, 3)
    assert (metrics.crop(frames, MOUTH) == 9).all()
    assert metrics.crop(frames, (0.99, 0.99, 1.0, 1.0)).shape == (1, 1, 1, 3)


# ── Seams and colours ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_jump_at_the_seams_is_their_ratio() -> None:
    steps = np.ones(20, int)
    steps[[5, 10, 15]] = 3  # three levels at seams, one elsewhere
    frames = np.repeat(np.cumsum(steps).astype(np.uint8)[:, None, None, None], 3, axis=3)
    assert metrics.seam_ratio(frames, [0, 5, 10, 15]) == pytest.approx(3.0)
    assert metrics.seam_ratio(frames, [4, 9, 14]) == pytest.approx(1.0)  # looked for in the wrong place


def test_a_clip_without_seams_has_no_ratio() -> None:
    with pytest.raises(ValueError, match="seams"):
        metrics.seam_ratio(np.zeros((4, 2, 2, 3), np.uint8), [0])


def test_a_slow_fade_is_drift_and_an_outlier_is_not() -> None:
    theirs = np.full((120, 2, 2, 3), 100, np.uint8)
    ours = theirs.copy()
    ours += np.arange(120, dtype=np.uint8)[:, None, None, None]  # a level a frame
    drift = metrics.colour_drift(ours, theirs, fps=25)
    assert drift["luma"] == pytest.approx(25 * 60)
    assert drift["cb"] == pytest.approx(0, abs=1e-9)
    assert drift["cr"] == pytest.approx(0, abs=1e-9)
    flash = theirs.copy()
    flash[60] = 255
    assert metrics.colour_drift(flash, theirs, fps=25)["luma"] == 0


def test_drift_of_one_colour_shows_in_its_chroma() -> None:
    theirs = np.full((60, 2, 2, 3), 100, np.uint8)
    ours = theirs.copy()
    ours[..., 0] += np.arange(60, dtype=np.uint8)[:, None, None]  # red, a level a frame
    per_minute = 25 * 60
    drift = metrics.colour_drift(ours, theirs, fps=25)
    assert drift["luma"] == pytest.approx(0.299 * per_minute)
    assert drift["cr"] == pytest.approx(0.713 * 0.701 * per_minute)
    assert drift["cb"] == pytest.approx(-0.564 * 0.299 * per_minute)


def test_what_both_clips_do_is_no_drift() -> None:
    clip = np.repeat(np.arange(60, dtype=np.uint8)[:, None, None, None], 3, axis=3)
    assert metrics.colour_drift(clip, clip, fps=25) == {"luma": 0, "cb": 0, "cr": 0}


def test_a_long_series_keeps_its_slope() -> None:
    values = np.arange(2500) * 0.5  # more than Theil-Sen takes at once
    assert metrics.theil_sen(values, fps=2.0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.theil_sen(np.zeros(1), fps=1.0)


# ── The mouth ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mouths_motion_follows_its_opening() -> None:
    opening = speech()
    frames = talking_head(opening)
    signal = MouthMotion.of(frames, MOUTH).signal(frames)
    assert metrics.correlation(signal, opening) > NEARLY


def test_the_motion_of_one_clip_is_read_in_another() -> None:
    motion = MouthMotion.of(talking_head(speech()), MOUTH)
    other = speech(seed=9)
    assert metrics.correlation(motion.signal(talking_head(other)), other) > NEARLY


@pytest.mark.parametrize("late_frames", [-3, 0, 1, 3], ids=lambda frames: f"{frames:+d}-frames")
def test_a_late_mouth_is_late_by_its_frames(late_frames: int) -> None:
    opening = speech(240)
    theirs, ours = opening[20:220], opening[20 - late_frames : 220 - late_frames]
    peak, lag_ms = metrics.lip_sync(ours, theirs, fps=25)
    assert peak > 0.99
    assert lag_ms == pytest.approx(late_frames * 40, abs=1)


def test_half_a_frame_is_seen_between_frames() -> None:
    at = np.arange(200)
    theirs, ours = np.sin(at / 4), np.sin((at - 0.5) / 4)
    assert metrics.lip_sync(ours, theirs, fps=25)[1] == pytest.approx(20, abs=2)  # a parabola, not a sine


def test_another_speech_does_not_correlate() -> None:
    peak, _lag_ms = metrics.lip_sync(speech(seed=9), speech(seed=3), fps=25)
    assert peak < 0.5


def test_a_still_mouth_does_not_correlate() -> None:
    assert metrics.lip_sync(np.ones(100), speech(100), fps=25)[0] == 0


def test_a_clip_too_short_to_shift_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 24"):
        metrics.lip_sync(np.zeros(23), np.zeros(23), fps=25)
