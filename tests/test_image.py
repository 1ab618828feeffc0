# SPDX-License-Identifier: Apache-2.0
"""Sizes, ranges and colours against the recorded values."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edgereels.runtime import image
from edgereels.runtime.image import (
    PUBLISHED_SIZES,
    clip_pixels,
    lab_statistics,
    lab_to_rgb,
    load_portrait,
    match_colour,
    nearest_size,
    resize_and_crop,
    rgb_to_lab,
    to_pixels,
    to_unit,
)

# The recorded colours are float32: Lab values reach 100 and have a deviation of about 20, RGB reaches 1.
LAB_TOLERANCE = 2e-4
COLOUR_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, npt.NDArray[np.float32]]:
    return load_file(golden / "golden" / "image_utils.safetensors")


def furthest(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(np.float64) - theirs).max())


CROPS = [
    pytest.param("image_b", (64, 64), 1, id="image_b-64x64"),
    pytest.param("image_b", (64, 96), 1, id="image_b-64x96"),
    pytest.param("image_b", (96, 64), 1, id="image_b-96x64"),
    pytest.param("portrait", (64, 64), 1, id="portrait-64x64"),
    pytest.param("portrait", (64, 96), 1, id="portrait-64x96"),
    pytest.param("portrait", (96, 64), 1, id="portrait-96x64"),
    pytest.param("portrait", (720, 1280), 8, id="portrait-720x1280"),
    pytest.param("portrait", (832, 1088), 8, id="portrait-832x1088"),
]


@pytest.mark.golden
@pytest.mark.parametrize(("name", "size", "every"), CROPS)
def test_a_picture_is_cropped_to_the_recorded_pixels(
    golden: Path, recorded: dict[str, npt.NDArray[np.float32]], name: str, size: tuple[int, int], every: int
) -> None:
    key = f"crop_{name}_{size[0]}x{size[1]}" + ("_every8" if every == 8 else "")
    ours = resize_and_crop(load_portrait(golden / "inputs" / f"{name}.png"), size=size)
    np.testing.assert_array_equal(ours.transpose(2, 0, 1)[:, ::every, ::every], recorded[key][0, :, 0])


@pytest.mark.golden
def test_a_crop_one_column_off_is_noticed(golden: Path, recorded: dict[str, npt.NDArray[np.float32]]) -> None:
    ours = resize_and_crop(load_portrait(golden / "inputs" / "image_b.png"), size=(64, 98))[:, :96]
    assert (ours.transpose(2, 0, 1) != recorded["crop_image_b_64x96"][0, :, 0]).mean() > 0.1


@pytest.mark.golden
def test_the_picture_that_a_whole_run_starts_from_has_the_recorded_bits(golden: Path) -> None:
    theirs = load_file(golden / "golden" / "e2e_a2v_cfg.safetensors")["color_reference"]
    ours = to_unit(resize_and_crop(load_portrait(golden / "inputs" / "portrait.png"), size=(64, 64)))
    np.testing.assert_array_equal(ours, theirs[0, :, 0])


@pytest.mark.golden
def test_every_recorded_picture_falls_into_its_bucket(golden: Path) -> None:
    rows = json.loads((golden / "golden" / "image_utils.json").read_text())["buckets"]
    rows = [row for row in rows if row["pipeline"] == "talking_avatar"]
    assert len(rows) == 30
    for row in rows:
        table = PUBLISHED_SIZES[row["size"]]
        assert (
            list(nearest_size(row["src_h"], row["src_w"], table=table)) == row["target"] == list(table[row["bucket"]])
        )


def test_the_published_tables_are_whole() -> None:
    assert {name: len(table) for name, table in PUBLISHED_SIZES.items()} == {"480P": 17, "720P": 23}
    assert all(side % 16 == 0 for table in PUBLISHED_SIZES.values() for size in table.values() for side in size)


def test_a_table_of_ones_own_is_searched() -> None:
    table = {"1.00": [128, 128], "0.50": [64, 128]}
    assert nearest_size(300, 500, table=table) == (64, 128)


@pytest.mark.golden
def test_frames_are_cut_off_and_truncated_as_recorded(recorded: dict[str, npt.NDArray[np.float32]]) -> None:
    np.testing.assert_array_equal(to_pixels(recorded["u8_in"]), recorded["u8_out"])


def test_frames_are_truncated_and_not_rounded() -> None:
    assert to_pixels(np.full(1, 254.9 / 127.5 - 1, np.float32))[0] == 254


def test_pixels_survive_the_way_to_unit_and_back_within_a_level() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    back = to_pixels(to_unit(levels)).transpose(1, 2, 0).astype(int)
    assert np.abs(back - levels).max() <= 1  # truncation, where float32 falls just short of a level


@pytest.mark.golden
def test_lab_is_the_recorded_one(recorded: dict[str, npt.NDArray[np.float32]]) -> None:
    for name, picture in (("ref", recorded["color_ref"]), ("src_frame0", recorded["color_src"])):
        ours = rgb_to_lab((picture[0, :, 0] + 1) / 2)
        assert furthest(ours, recorded[f"color_lab_{name}"][0]) < LAB_TOLERANCE


@pytest.mark.golden
def test_lab_under_another_white_is_not(
    recorded: dict[str, npt.NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "LAB_WHITE", (0.95045, 1.0, 1.08905))
    ours = rgb_to_lab((recorded["color_ref"][0, :, 0] + 1) / 2)
    assert furthest(ours, recorded["color_lab_ref"][0]) > 10 * LAB_TOLERANCE


@pytest.mark.golden
def test_the_statistics_are_those_of_the_recorded_lab(recorded: dict[str, npt.NDArray[np.float32]]) -> None:
    mean, std = lab_statistics(recorded["color_ref"][0, :, 0])
    theirs = recorded["color_lab_ref"][0].reshape(3, -1).astype(np.float64)
    assert furthest(mean, theirs.mean(axis=1)) < LAB_TOLERANCE
    assert furthest(std, theirs.std(axis=1)) < LAB_TOLERANCE
    assert mean.dtype == std.dtype == np.float32


@pytest.mark.golden
@pytest.mark.parametrize(("name", "strength"), [("color_out_s1", 1.0), ("color_out_s0.6", 0.6)])
def test_matched_colours_are_the_recorded_ones(
    recorded: dict[str, npt.NDArray[np.float32]], name: str, strength: float
) -> None:
    mean, std = lab_statistics(recorded["color_ref"][0, :, 0])
    ours = match_colour(recorded["color_src"][0], mean=mean, std=std, strength=strength)
    assert furthest(ours, recorded[name][0]) < COLOUR_TOLERANCE


@pytest.mark.golden
def test_colours_matched_to_a_slightly_wider_spread_are_not(recorded: dict[str, npt.NDArray[np.float32]]) -> None:
    mean, std = lab_statistics(recorded["color_ref"][0, :, 0])
    ours = match_colour(recorded["color_src"][0], mean=mean, std=std * np.float32(1.001))
    assert furthest(ours, recorded["color_out_s1"][0]) > 5 * COLOUR_TOLERANCE


@pytest.mark.golden
def test_a_flat_frame_becomes_the_recorded_colour(recorded: dict[str, npt.NDArray[np.float32]]) -> None:
    mean, std = lab_statistics(recorded["color_ref"][0, :, 0, :8, :8])
    ours = match_colour(recorded["color_flat_src"][0], mean=mean, std=std)
    assert furthest(ours, recorded["color_flat_out"][0]) < COLOUR_TOLERANCE


@pytest.mark.golden
def test_whole_runs_matched_their_frames_this_way(golden: Path) -> None:
    theirs = load_file(golden / "golden" / "e2e_a2v_cfg.safetensors")
    mean, std = lab_statistics(theirs["color_reference"][0, :, 0])
    compared = 0
    for index in range(5):
        if f"pass{index}.color_out" in theirs and f"pass{index}.decoded" in theirs:
            kept = int(theirs[f"pass{index}.color_in_frames"])
            ours = match_colour(theirs[f"pass{index}.decoded"][0, :, :kept], mean=mean, std=std)
            # the reference's own noise there is 5.3e-5
            assert furthest(ours, theirs[f"pass{index}.color_out"][0]) < 10 * 5.3e-5
            compared += 1
    assert compared > 0


def test_strength_0_leaves_frames_untouched() -> None:
    frames = np.zeros((3, 1, 2, 2), np.float32)
    assert match_colour(frames, mean=np.ones(3, np.float32), std=np.ones(3, np.float32), strength=0.0) is frames


def test_lab_and_back_is_the_identity() -> None:
    colours = np.random.default_rng(0).uniform(0, 1, (3, 500))
    np.testing.assert_allclose(lab_to_rgb(rgb_to_lab(colours)), colours, rtol=0, atol=1e-6)  # kornia's rounded knees


@pytest.mark.golden
def test_the_input_of_the_image_encoder_is_the_recorded_one(golden: Path) -> None:
    theirs = load_file(golden / "golden" / "clip_visual.safetensors")["preprocessed_0"]
    ours = clip_pixels(to_unit(load_portrait(golden / "inputs" / "portrait.png")))
    # the noise floor of that file is 5.2e-6; here only the order of a few float32 sums differs
    assert furthest(ours, theirs) < 1e-5 * float(theirs.std())


@pytest.mark.golden
def test_another_cubic_is_noticed(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = load_file(golden / "golden" / "clip_visual.safetensors")["preprocessed_0"]
    monkeypatch.setattr(image, "_CUBIC", -0.5)
    ours = clip_pixels(to_unit(load_portrait(golden / "inputs" / "portrait.png")))
    assert furthest(ours, theirs) > 1e-2


@pytest.mark.parametrize("size", [(64, 96), (224, 224), (480, 832)], ids=["up", "same", "down"])
def test_the_image_encoder_always_gets_its_size(size: tuple[int, int]) -> None:
    grey = clip_pixels(np.zeros((3, *size), np.float32))
    assert (grey.shape, grey.dtype) == ((1, 3, 224, 224), np.float32)
    expected = (0.5 - 0.48145466) / 0.26862954
    np.testing.assert_allclose(grey[0, 0], expected, rtol=0, atol=1e-6)  # weights add up to 1 within float32
