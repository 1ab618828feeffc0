# SPDX-License-Identifier: Apache-2.0
"""Sinusoids and rotary tables against the recorded ones."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edgereels.runtime.tables import RopeGrid, rope_angles, rope_tables, sinusoid

# The recorded tables are bit-identical between two runs of the reference: 1e-6.
TABLE_TOLERANCE = 1e-6


def recorded(golden: Path, name: str) -> dict[str, npt.NDArray[np.floating]]:
    return load_file(golden / "golden" / f"{name}.safetensors")


def worst(angles: npt.NDArray[np.float64], cos: npt.ArrayLike, sin: npt.ArrayLike) -> float:
    return max(float(np.abs(np.cos(angles) - cos).max()), float(np.abs(np.sin(angles) - sin).max()))


@pytest.mark.golden
def test_the_sinusoid_is_the_recorded_one(golden: Path) -> None:
    theirs = recorded(golden, "a2v_rope_time")
    ours = sinusoid(theirs["sin_t"], freq_dim=256)
    np.testing.assert_allclose(ours, theirs["sin_emb"], rtol=0, atol=TABLE_TOLERANCE)


@pytest.mark.golden
def test_a_sinusoid_with_sines_first_is_not(golden: Path) -> None:
    theirs = recorded(golden, "a2v_rope_time")
    swapped = np.roll(sinusoid(theirs["sin_t"], freq_dim=256), 128, axis=1)
    assert np.abs(swapped - theirs["sin_emb"]).max() > 0.1


@pytest.mark.golden
def test_the_small_talking_avatar_table_is_the_recorded_one(golden: Path) -> None:
    theirs = recorded(golden, "a2v_rope_time")
    angles = rope_angles(np.arange(64), head_dim=32)
    assert worst(angles, theirs["freqs_cos"], theirs["freqs_sin"]) < TABLE_TOLERANCE


@pytest.mark.golden
def test_the_real_talking_avatar_table_is_the_recorded_one(golden: Path) -> None:
    theirs = recorded(golden, "rope_real_dims")
    angles = rope_angles(theirs["a2v_rows"], head_dim=128)
    assert worst(angles, theirs["a2v_cos"], theirs["a2v_sin"]) < TABLE_TOLERANCE


@pytest.mark.golden
def test_the_real_video_extension_table_is_the_recorded_one(golden: Path) -> None:
    theirs = recorded(golden, "rope_real_dims")
    angles = rope_angles(theirs["v2v_rows"], head_dim=128, single_precision=True)
    assert worst(angles, theirs["v2v_cos"], theirs["v2v_sin"]) < TABLE_TOLERANCE


@pytest.mark.golden
def test_the_video_extension_table_needs_its_single_precision(golden: Path) -> None:
    theirs = recorded(golden, "rope_real_dims")
    angles = rope_angles(theirs["v2v_rows"], head_dim=128)
    assert worst(angles, theirs["v2v_cos"], theirs["v2v_sin"]) > 10 * TABLE_TOLERANCE


@pytest.mark.golden
def test_the_small_video_extension_table_is_the_recorded_one_at_both_ends(golden: Path) -> None:
    theirs = recorded(golden, "v2v_rope")
    near = rope_angles(np.arange(64), head_dim=32, single_precision=True)
    far = rope_angles(np.arange(1024, 1040), head_dim=32, single_precision=True)
    assert worst(near, theirs["freqs_cos"], theirs["freqs_sin"]) < TABLE_TOLERANCE
    assert worst(far, theirs["freqs_cos_1024"], theirs["freqs_sin_1024"]) < TABLE_TOLERANCE


@pytest.mark.golden
def test_the_table_of_a_reference_to_video_grid_is_the_recorded_one(golden: Path) -> None:
    theirs = recorded(golden, "rope_real_dims")
    cos, sin = rope_tables(RopeGrid(*(int(n) for n in theirs["r2v_grid"])), head_dim=128)
    np.testing.assert_allclose(cos, theirs["r2v_cos"][0, 0], rtol=0, atol=TABLE_TOLERANCE)
    np.testing.assert_allclose(sin, theirs["r2v_sin"][0, 0], rtol=0, atol=TABLE_TOLERANCE)


def rotated(
    heads: npt.NDArray[np.floating], *, cos: npt.NDArray[np.floating], sin: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """Turn heads (1, N, heads, d) in the half-split form and bring them back to the interleaved one."""
    real, imaginary = heads[..., 0::2], heads[..., 1::2]  # the permutation that export applies to q and k rows
    cos, sin = cos[None, :, None], sin[None, :, None]
    turned = real * cos - imaginary * sin, real * sin + imaginary * cos
    return np.stack(turned, axis=-1).reshape(heads.shape)


@pytest.mark.golden
def test_turning_with_the_tables_gives_the_recorded_heads(golden: Path) -> None:
    theirs = recorded(golden, "a2v_rope_time")
    cos, sin = rope_tables(RopeGrid(*(int(n) for n in theirs["rope_grid"][0])), head_dim=32)
    ours = rotated(theirs["rope_in"], cos=cos, sin=sin)
    np.testing.assert_allclose(ours, theirs["rope_out"], rtol=0, atol=TABLE_TOLERANCE * 4)  # heads reach 4


@pytest.mark.golden
def test_turning_with_height_and_width_swapped_does_not(golden: Path) -> None:
    theirs = recorded(golden, "a2v_rope_time")
    frames, rows, columns = (int(n) for n in theirs["rope_grid"][0])
    cos, sin = rope_tables(RopeGrid(frames, columns, rows), head_dim=32)
    assert np.abs(rotated(theirs["rope_in"], cos=cos, sin=sin) - theirs["rope_out"]).max() > 0.1


def test_a_second_grid_follows_the_first_at_its_own_time() -> None:
    noise, prefix = RopeGrid(3, 2, 4), RopeGrid(2, 2, 4, first_frame=1024)
    cos, sin = rope_tables([noise, prefix], head_dim=32)
    assert cos.shape == sin.shape == (40, 16)
    np.testing.assert_array_equal(cos[24:], rope_tables(prefix, head_dim=32)[0])
    np.testing.assert_array_equal(cos[24, :6], np.cos(1024 * 10000.0 ** (-np.arange(0, 12, 2) / 12)).astype(np.float32))


def test_a_grid_that_begins_later_is_the_tail_of_a_longer_one() -> None:
    longer = rope_tables(RopeGrid(5, 2, 3), head_dim=12)
    later = rope_tables(RopeGrid(2, 2, 3, first_frame=3), head_dim=12)
    for ours, theirs in zip(later, longer, strict=True):
        np.testing.assert_array_equal(ours, theirs[-12:])


def test_tables_are_float32() -> None:
    assert {table.dtype for table in rope_tables(RopeGrid(1, 1, 1), head_dim=6)} == {np.dtype(np.float32)}
    assert sinusoid([1.0]).dtype == np.float32


@pytest.mark.parametrize("head_dim", [4, 31], ids=["too-narrow", "odd"])
def test_a_head_that_cannot_be_split_is_refused(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"head_dim is {head_dim}"):
        rope_tables(RopeGrid(1, 1, 1), head_dim=head_dim)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        rope_tables(RopeGrid(0, 2, 2), head_dim=32)


def test_an_odd_sinusoid_is_refused() -> None:
    with pytest.raises(ValueError, match="freq_dim is 255"):
        sinusoid([0.0], freq_dim=255)


def test_a_table_of_timesteps_is_refused() -> None:
    with pytest.raises(ValueError, match="one row"):
        sinusoid([[0.0, 1.0]])
