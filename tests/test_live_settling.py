# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from edgereels.runtime.live_settling import MOST_FRAMES, settle, settling_frames


def disc(x: float, *, y: float = 48.0, size: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    inside = np.clip(20.5 - np.hypot(columns - x, rows - y), 0, 1)[..., None]
    grain = 25 * np.sin((columns - x) / 3.0)[..., None] * np.cos((rows - y) / 4.0)[..., None]
    face = inside * (190 + grain) + (1 - inside) * 60
    return np.repeat(face, 3, axis=2).astype(np.uint8)


def centre(frame: np.ndarray) -> float:
    weight = (frame[..., 0] > 125).sum(0)
    return float((weight * np.arange(len(weight))).sum() / weight.sum())


def test_a_disc_travels_from_one_place_to_the_other_slow_at_both_ends() -> None:
    pytest.importorskip("cv2")
    left, wanted = disc(44.0), disc(50.0)
    between = settle(left, wanted, count=9)
    places = [centre(left), *map(centre, between), centre(wanted)]
    steps = np.diff(places)
    assert len(between) == 9 and (steps > -0.15).all()
    assert places[5] == pytest.approx((places[0] + places[-1]) / 2, abs=0.5)
    assert steps[0] < steps[5] and steps[-1] < steps[5]


def test_nothing_is_seen_twice() -> None:
    pytest.importorskip("cv2")
    left, wanted = disc(44.0), disc(50.0)
    middle = settle(left, wanted, count=1)[0]
    mixed = ((left.astype(np.float32) + wanted) / 2).astype(np.uint8)  # the control: what a mere fade shows
    true = disc(47.0)
    error = [float(np.abs(frame.astype(np.int16) - true).mean()) for frame in (middle, mixed)]
    assert error[0] < 0.6 * error[1]


def test_how_long_it_takes_follows_from_how_far_it_is() -> None:
    assert settling_frames(disc(44.0), disc(44.0)) == 0
    near, far = settling_frames(disc(44.0), disc(45.0)), settling_frames(disc(44.0), disc(70.0))
    assert 0 < near < far == MOST_FRAMES
    assert settle(disc(44.0), disc(44.0), count=0).shape == (0, 96, 96, 3)
