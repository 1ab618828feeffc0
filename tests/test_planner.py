# SPDX-License-Identifier: Apache-2.0
"""The planner against the published control flow, and the laws that any plan obeys."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgereels.runtime.chunks import VideoChunk, WindowPlan, mask_array, slice_audio
from edgereels.runtime.planner import Plan, check_settings, key_frame_index, plan

SETTINGS = [
    pytest.param((81, 5, 12), id="published"),
    pytest.param((17, 5, 4), id="golden-tiny"),
    pytest.param((33, 5, 0), id="no-drop"),
    pytest.param((9, 1, 4), id="one-motion-frame"),
    pytest.param((33, 9, 20), id="nine-motion-frames"),
    pytest.param((21, 13, 4), id="stride-4"),
]


def make(length: int, settings: tuple[int, int, int], max_frames: int | None = 5000) -> Plan:
    window, motion, drop = settings
    return plan(length, window=window, motion=motion, drop=drop, max_frames=max_frames)


def run_lengths(window: WindowPlan) -> list[list[Any]]:
    """Return what the VAE encoder is given, as the golden file writes it."""
    if window.condition_start is None:
        runs: list[list[Any]] = [["image", 1]]
    else:
        first = window.condition_start
        runs = [[[window.pass_index - 1, first + i], 1] for i in range(window.condition_frames)]
    repeats = 0 if window.key_frame_index is None else 5
    runs.append(["zero", window.window - window.condition_frames - repeats])
    return [*runs, [[0, window.key_frame_index], repeats]] if repeats else runs


def recorded_form(made: Plan) -> dict[str, Any]:
    """Return a plan in the words of a2v_plan.json."""
    passes: list[dict[str, Any]] = []
    for window in made.passes:
        taps = list(window.audio_taps)
        centres = taps[2:-2]
        passes.append(
            {
                "kind": "chunk" if window.pass_index else "keyframe",
                "context": "connection" if window.pass_index else "prompt",
                "audio_center_first_last": [centres[0], centres[-1]],
                "audio_center_last20": centres[-20:],
                "audio_taps_first": taps[:5],
                "audio_taps_last": taps[-5:],
                "encode_frames": run_lengths(window),
                "clip_source": "image"
                if window.condition_start is None
                else [window.pass_index - 1, window.condition_start],
                "mask_ones_per_latent": [int(n) for n in mask_array(window).sum(axis=0)],
            }
        )
    return {
        "audio_frames": made.audio_frames,
        "output_frames": sum(w.emit_stop - w.emit_start for w in made.shown),
        "output_runs": [[w.pass_index, w.emit_start, w.emit_stop - 1] for w in made.shown],
        "passes": passes,
    }


def recorded_plans(golden: Path) -> list[dict[str, Any]]:
    return json.loads((golden / "golden" / "a2v_plan.json").read_text())


@pytest.mark.golden
def test_every_recorded_plan_is_reproduced_in_every_field(golden: Path) -> None:
    recorded = recorded_plans(golden)
    assert len(recorded) == 26
    for theirs in recorded:
        ours = recorded_form(
            plan(
                theirs["audio_frames"],
                window=theirs.pop("frame_num"),
                motion=theirs.pop("motion_frame"),
                drop=theirs.pop("drop_frame"),
            )
        )
        assert ours == theirs


@pytest.mark.golden
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"audio_frames": 1}, id="one-frame-more-audio"),
        pytest.param({"window": 4}, id="longer-window"),
        pytest.param({"drop": 4}, id="more-dropped"),
        pytest.param({"motion": 4}, id="more-motion"),
    ],
)
def test_a_plan_with_a_wrong_setting_is_not_the_recorded_one(golden: Path, wrong: dict[str, int]) -> None:
    theirs = next(p for p in recorded_plans(golden) if p["audio_frames"] == 209 and p["frame_num"] == 81)
    arguments = {"audio_frames": 209, "window": 81, "motion": 5, "drop": 12}
    length = arguments.pop("audio_frames") + wrong.pop("audio_frames", 0)
    ours = recorded_form(plan(length, **{name: value + wrong.get(name, 0) for name, value in arguments.items()}))
    assert ours["passes"] != theirs["passes"]


@pytest.mark.golden
@pytest.mark.parametrize("run", ["e2e_a2v_cfg", "e2e_a2v_nocfg"])
def test_the_key_frames_of_a_whole_run_are_the_recorded_ones(golden: Path, run: str) -> None:
    theirs = json.loads((golden / "golden" / f"{run}.json").read_text())
    ours = plan(40, window=17, motion=5, drop=4)
    assert [w.key_frame_index for w in ours.windows] == theirs["keyframe_index_used_per_chunk"]
    assert ours.padded_frames == theirs["padded_audio_frames"]


@pytest.mark.golden
def test_the_masks_of_a_whole_run_are_the_recorded_ones(golden: Path) -> None:
    theirs = load_file(golden / "golden" / "e2e_a2v_cfg.safetensors")
    for window in plan(40, window=17, motion=5, drop=4).passes:
        mask = theirs[f"pass{window.pass_index}.mask"][0, :, :, 0, 0]
        np.testing.assert_array_equal(mask_array(window), mask)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "index"),
    [
        pytest.param("mask_frames81_cond1_pseudo0", 0, id="key-frame-pass"),
        pytest.param("mask_frames81_cond1_pseudo5", 1, id="first-window"),
        pytest.param("mask_frames81_cond5_pseudo5", 2, id="later-window"),
    ],
)
def test_a_mask_is_the_recorded_one(golden: Path, name: str, index: int) -> None:
    theirs = load_file(golden / "golden" / "image_utils.safetensors")[name][0, :, :, 0, 0]
    np.testing.assert_array_equal(mask_array(plan(300).passes[index]), theirs)


@pytest.mark.golden
def test_the_audio_slices_are_the_recorded_windows_regrouped(golden: Path) -> None:
    theirs = load_file(golden / "golden" / "e2e_a2v_cfg.safetensors")
    frames = np.arange(40, dtype=np.float32)[:, None, None]
    extended = np.concatenate([np.arange(40), [39]])  # the recorded indices reach into the mirrored tail
    for window in plan(40, window=17, motion=5, drop=4).passes:
        taps = extended[theirs[f"pass{window.pass_index}.audio_idx"]]  # (17, 5)
        first, rest = slice_audio(frames, window)
        np.testing.assert_array_equal(first[0, :, 0, 0], taps[0])
        for latent in range(1, window.latent_frames):
            group = taps[4 * latent - 3 : 4 * latent + 1]
            regrouped = [*group[0, :3], group[1, 2], group[2, 2], *group[3, 2:]]
            np.testing.assert_array_equal(rest[latent - 1, :, 0, 0], regrouped)


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_shown_tiles_the_stream_exactly_once(settings: tuple[int, int, int]) -> None:
    for length in range(1, 601):
        made = make(length, settings)
        shown = [range(w.emit_frame, w.emit_frame + w.emit_stop - w.emit_start) for w in made.shown]
        assert list(itertools.chain.from_iterable(shown)) == list(range(length))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_windows_cover_the_padded_length_and_no_more(settings: tuple[int, int, int]) -> None:
    window, motion, drop = settings
    for length in range(window, 601):
        made = make(length, settings)
        assert made.windows[-1].start_frame + window == made.padded_frames
        assert 0 <= made.padded_frames - length < window - motion - drop


def test_a_plan_with_a_window_off_by_one_does_not_tile() -> None:
    made = plan(300)
    broken = replace(made.windows[2], start_frame=made.windows[2].start_frame + 1)
    shown = [w.emit_frame for w in (made.windows[1], broken)]
    assert shown[1] != made.windows[1].emit_frame + made.windows[1].emit_stop - made.windows[1].emit_start


@pytest.mark.parametrize("settings", SETTINGS)
def test_motion_frames_are_the_last_ones_that_the_window_before_kept(settings: tuple[int, int, int]) -> None:
    motion = settings[1]
    for made in (make(length, settings) for length in range(settings[0], 400, 7)):
        for before, window in itertools.pairwise(made.windows):
            assert window.condition_start == before.kept_frames - motion
            assert before.start_frame + window.condition_start == window.start_frame


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_decoded_holds_all_that_is_kept_and_no_whole_latent_more(settings: tuple[int, int, int]) -> None:
    for length in range(1, 300):
        for window in make(length, settings).passes:
            frames = 1 + 4 * (window.decode_latents - 1)
            assert frames - 4 < window.kept_frames <= frames
            assert 1 <= window.decode_latents <= window.latent_frames


@pytest.mark.parametrize("settings", SETTINGS)
def test_audio_taps_never_leave_the_audio(settings: tuple[int, int, int]) -> None:
    for length in range(1, 300):
        for window in make(length, settings).passes:
            taps = window.audio_taps
            assert len(taps) == settings[0] + 4
            assert min(taps) >= 0 and max(taps) < length


def test_a_later_window_changes_nothing_before_it() -> None:
    longer = {w.start_frame: w for w in plan(337).windows}
    for window in plan(273).windows[:-1]:
        assert window.audio_taps == longer[window.start_frame].audio_taps
        assert window.emit_start == longer[window.start_frame].emit_start


def test_the_published_example_of_1500_frames() -> None:
    indices = [w.key_frame_index for w in plan(1500).windows]
    assert (len(indices), indices[:4], indices[-2:]) == (24, [4, 7, 11, 14], [77, 80])


def test_the_published_cap_bends_the_walk_over_the_key_frames() -> None:
    capped = [w.key_frame_index for w in plan(5000).windows]
    assert (len(capped), capped[:3], capped[-3:]) == (78, [1, 2, 3], [78, 79, 80])
    assert capped != [w.key_frame_index for w in plan(5000, max_frames=None).windows]


def test_a_stream_past_the_cap_is_not_cut() -> None:
    made = plan(90_000)
    assert made.windows[-1].emit_frame + made.windows[-1].emit_stop - made.windows[-1].emit_start == 90_000
    walk = [w.key_frame_index for w in made.windows]
    assert walk == sorted(walk, key=lambda index: index or 0)
    assert walk[-1] == 80


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        pytest.param(1, 0, id="half-to-even-down"),
        pytest.param(3, 2, id="half-to-even-up"),
        pytest.param(99, 40, id="end"),
    ],
)
def test_a_key_frame_index_is_rounded_half_to_even(position: int, expected: int) -> None:
    assert key_frame_index(position, window=41, frames=81) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param((80, 5, 12), "window is 80", id="window-form"),
        pytest.param((81, 4, 12), "motion is 4", id="motion-form"),
        pytest.param((81, 5, 10), "drop is 10", id="drop-form"),
        pytest.param((81, -3, 12), "motion is -3", id="negative-motion"),
        pytest.param((17, 5, 12), "window 17 - motion 5 - drop 12 leaves 0", id="nothing-new"),
        pytest.param((9, 5, 0), "window 9 has no room for motion 5", id="no-room-for-the-key-frame"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(100, settings)


def test_a_stream_without_audio_is_refused() -> None:
    with pytest.raises(ValueError, match="audio_frames is 0"):
        plan(0)


def test_the_stride_of_the_published_settings() -> None:
    assert check_settings(window=81, motion=5, drop=12) == 64


def test_features_of_another_audio_are_refused() -> None:
    with pytest.raises(ValueError, match="99 frames"):
        slice_audio(np.zeros((99, 1, 1), np.float32), plan(100).windows[0])


def test_audio_slices_have_the_shapes_of_the_graph() -> None:
    first, rest = slice_audio(np.zeros((100, 12, 8), np.float32), plan(100).windows[1])
    assert (first.shape, rest.shape) == ((1, 5, 12, 8), (20, 8, 12, 8))


def test_a_chunk_ends_where_the_next_begins() -> None:
    chunk = VideoChunk(np.zeros((64, 2, 2, 3), np.uint8), index=1, start_frame=69, start_s=69 / 25, fps=25.0)
    assert chunk.stop_s == pytest.approx(133 / 25, abs=1e-12)  # rounding of a sum of two doubles
