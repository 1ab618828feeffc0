# SPDX-License-Identifier: Apache-2.0
"""The gates of the default avatar: right series pass, and each kind of wrong one is caught by its own gate."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.planner import plan

from .train_avatar_parts import part

for needed in ("torch", "skia", "scipy", "cv2"):
    pytest.importorskip(needed, reason=f"the evaluation needs {needed}: pip install '.[train,export]'")

SEAMS = np.isin(np.arange(150) % 24, [5])


def a_mouth(seed: int) -> Any:
    """A mouth that moves as in speech: smooth, 0 to 0.9, width on its own."""
    generator = np.random.default_rng(seed)
    opening, width = (np.convolve(generator.random(154) ** 2, np.ones(5) / 5, "valid") for _ in range(2))
    return part("gates").Reading(opening * 0.9, 20 + 10 * width)


def a_clip(seed: int, **changes: Any) -> Any:
    """A clip that is rendered as it should be."""
    mouth = a_mouth(seed)
    still = part("gates").Reading(np.full(150, 0.1), np.full(150, 25.0))
    made = part("gates").Clip(
        "flite", "flite rms", "anna", mouth, mouth, still, np.full(3, 0.01),
        1 + np.random.default_rng(seed + 100).random(150), SEAMS,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(scope="module")
def clips() -> list[Any]:
    return [a_clip(seed) for seed in range(8)]


def missed(clips: list[Any]) -> set[str]:
    return {gate.name for gate in part("gates").speech_gates(clips, about="flite") if not gate.met}


def test_a_mouth_that_follows_the_sound_keeps_every_gate(clips: list[Any]) -> None:
    assert missed(clips) == set()


def test_every_control_is_caught(clips: list[Any]) -> None:
    passed = [control.name for control in part("gates").speech_controls(clips) if not control.caught]
    assert passed == []


def test_key_frames_that_follow_the_sound_are_reported_as_a_control_that_passed(clips: list[Any]) -> None:
    gates = part("gates")
    cheating = [replace(clip, between_keys=clip.rendered) for clip in clips]
    assert not gates.Verdict(controls=gates.speech_controls(cheating)).passed


def openings(clips: list[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(clip.rendered.opening, clip.truth.opening) for clip in clips]


@pytest.mark.parametrize("frames", [-3, 2, 5], ids=["early", "late", "200 ms late"])
def test_the_lag_of_a_shifted_mouth_is_read(clips: list[Any], frames: int) -> None:
    gates = part("gates")
    shifted = [
        replace(clip, rendered=gates.Reading(np.roll(clip.truth.opening, frames), clip.truth.width)) for clip in clips
    ]
    lag, (low, high) = gates.lag_ms(openings(shifted))
    # The parabola through three points of a correlation that isn't one: a quarter of a frame.
    assert lag == pytest.approx(frames * 40, abs=10)
    assert low <= lag <= high
    assert "lag, ms" in missed(shifted)


def test_half_a_frame_late_is_within_the_limit(clips: list[Any]) -> None:
    gates = part("gates")
    between = [
        replace(
            clip,
            rendered=gates.Reading((clip.truth.opening + np.roll(clip.truth.opening, 1)) / 2, clip.truth.width),
        )
        for clip in clips
    ]
    assert gates.lag_ms(openings(between))[0] == pytest.approx(20, abs=6)
    assert "lag, ms" not in missed(between)


def test_a_mouth_that_does_not_move_has_no_correlation_and_no_lag(clips: list[Any]) -> None:
    gates = part("gates")
    still = [replace(clip, rendered=gates.Reading(np.full(150, 0.3), clip.truth.width)) for clip in clips]
    assert {"mouth opening, correlation", "lag, ms", "amplitude of the opening, ratio"} <= missed(still)
    assert np.isnan(gates.lag_ms(openings(still))[0])


def test_lips_of_another_clip_miss_the_width_alone(clips: list[Any]) -> None:
    gates = part("gates")
    swapped = [
        replace(clip, rendered=gates.Reading(clip.truth.opening, other.truth.width))
        for clip, other in zip(clips, clips[1:] + clips[:1], strict=True)
    ]
    assert missed(swapped) == {"lip width, correlation"}


def test_a_mouth_too_large_misses_the_amplitude_alone(clips: list[Any]) -> None:
    gates = part("gates")
    large = [replace(clip, rendered=gates.Reading(1.3 * clip.truth.opening, clip.truth.width)) for clip in clips]
    assert missed(large) == {"amplitude of the opening, ratio"}


def test_an_open_mouth_in_pauses_is_missed(clips: list[Any]) -> None:
    assert missed([replace(clip, pauses=np.full(2, 0.12)) for clip in clips]) == {"opening in pauses"}


def test_the_seam_ratio_is_that_of_the_medians() -> None:
    changes = np.where(SEAMS, 3.0, 2.0)
    gate = part("gates").seam_gate([a_clip(seed, changes=changes) for seed in range(4)], about="flite")
    assert gate.figure == pytest.approx(1.5)
    assert not gate.met


def test_a_figure_that_is_no_number_meets_no_gate() -> None:
    assert not part("gates").Gate("lag", "all", float("nan"), (0.0, 0.0), least=-40, most=40).met


def test_the_interval_holds_the_mean_and_narrows_with_more_clips() -> None:
    values = np.random.default_rng(0).random(200)
    bootstrap = part("gates").bootstrap
    few, many = bootstrap(values[:10]), bootstrap(values)
    assert many[0] < values.mean() < many[1]
    assert many[1] - many[0] < few[1] - few[0]


def test_what_quantization_costs_is_measured_clip_by_clip(clips: list[Any]) -> None:
    gates = part("gates")
    noise = np.random.default_rng(5)
    worse = [
        replace(clip, rendered=gates.Reading(clip.truth.opening + 0.2 * noise.random(150), clip.truth.width))
        for clip in clips
    ]
    assert gates.loss_gate(clips, clips, about="flite").figure == 0
    assert not gates.loss_gate(worse, clips, about="flite").met


def a_long_run(**changes: Any) -> Any:
    generator = np.random.default_rng(1)
    made = part("gates").LongRun(
        still_error=1 + generator.random(3000), face_error=20 + generator.random(3000),
        closed=np.arange(3000) % 10 < 3, colours=128 + generator.random((3000, 3)), period_frames=500,
    )  # fmt: skip
    return replace(made, **changes)


def test_a_face_that_stays_itself_keeps_the_gates_of_drift_and_its_controls_do_not() -> None:
    gates, run = part("gates"), a_long_run()
    assert all(gate.met for gate in gates.drift_gates(run))
    assert all(control.caught for control in gates.drift_controls(run))


def test_only_frames_with_a_closed_mouth_are_held_against_the_portrait() -> None:
    run = a_long_run()
    talking = replace(run, face_error=np.where(run.closed, run.face_error, np.linspace(20, 2000, 3000)))
    assert all(gate.met for gate in part("gates").drift_gates(talking))


def test_the_worst_avatar_decides_about_the_autoencoder() -> None:
    good, bad = (np.full(3, 36.0), np.full(3, 31.0)), (np.full(3, 34.0), np.full(3, 28.0))
    whole, mouth = part("gates").autoencoder_gates({"anna": good, "kofi": bad}, about="package")
    assert (whole.figure, whole.met) == (34.0, True)
    assert (mouth.figure, mouth.met, mouth.about) == (28.0, False, "package, kofi")


def test_the_table_and_the_json_say_the_same(clips: list[Any]) -> None:
    gates = part("gates")
    verdict = gates.Verdict(gates.speech_gates(clips, about="flite"), gates.speech_controls(clips))
    lines = verdict.table().splitlines()
    for gate in verdict.gates:
        assert any(gate.name in line and gate.limit in line and line.endswith("yes") for line in lines)
        entry = json.loads(json.dumps(gate.as_dict()))
        assert (entry["met"], entry["limit"], entry["gate"]) == (True, gate.limit, f"{gate.name}; flite")
    assert sum(line.endswith("caught") for line in lines) == len(verdict.controls)


# ── What is rendered and how it is cut apart ─────────────────────────────────────────────────────────────────────────


def test_festivals_segments_become_phonemes() -> None:
    segments = "#\n0.22 100 pau\n0.26 100 dh\n0.29 100 ax\n0.35 100 el\n0.40 100 pau\n"
    assert part("held_out_speech").festival_phonemes(segments) == [
        (0.22, 0.26, "ð"),
        (0.26, 0.29, "ə"),
        (0.29, 0.35, "l"),
    ]


def test_clips_in_one_file_begin_where_it_is_said() -> None:
    speech, held_out = part("speech"), part("held_out_speech")
    tone = speech.Speech(np.ones(16000, np.float32), [(0.1, 0.9, "a")], "voice")
    whole, starts_s = held_out.with_pauses([tone, tone], pause_s=0.5)
    assert starts_s == [0.5, 2.0]
    assert whole.waveform[[7999, 8000, 23999, 24000, 32000]].tolist() == [0, 1, 1, 0, 1]
    assert whole.phonemes == [(0.6, 1.4, "a"), (2.1, 2.9, "a")]


def test_a_piece_is_cut_out_with_its_phonemes() -> None:
    speech, held_out = part("speech"), part("held_out_speech")
    spoken = speech.Speech(
        np.arange(48000, dtype=np.float32), [(0.0, 0.9, "a"), (0.9, 1.5, "m"), (2.0, 2.5, "o")], "voice"
    )
    piece = held_out.cut(spoken, 1.0, 2.25)
    assert (piece.waveform[0], len(piece.waveform)) == (16000, 20000)
    assert piece.phonemes == [(0.0, 0.5, "m"), (1.0, 1.25, "o")]


def test_long_pauses_are_found_and_short_ones_are_not() -> None:
    speech, held_out = part("speech"), part("held_out_speech")
    spoken = speech.Speech(np.zeros(48000, np.float32), [(0.6, 1.0, "a"), (1.2, 2.0, "m"), (2.9, 3.0, "a")], "voice")
    assert held_out.pauses(spoken, shortest_s=0.5) == [(0.0, 0.6), (2.0, 2.9)]


def test_no_held_out_sentence_was_in_training() -> None:
    held_out = part("held_out_speech")
    sentences = [sentence for each in held_out.SENTENCES.values() for sentence in each]
    assert len(set(sentences)) == len(sentences)
    assert len(held_out.SENTENCES["en"]) >= 20
    training = set(part("speech").ESPEAK_TRAINING_VOICES)
    assert not training & set(held_out._voices("espeak-ng"))


def test_frames_between_windows_are_mixed_from_their_ends() -> None:
    frames = np.zeros((9, 2, 2, 3), np.uint8)
    frames[4], frames[8] = 100, 200
    frames[5:8] = 255  # what lies between two ends doesn't count
    made = np.stack(list(part("evaluate")._interpolated(frames, [5])))
    assert made[:, 0, 0, 0].tolist() == [0, 25, 50, 75, 100, 125, 150, 175, 200]


def test_the_change_of_a_frame_is_that_from_the_one_before() -> None:
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    frames[2:] = 10
    assert part("evaluate")._changes(frames).tolist() == [0, 0, 10, 0]


# ── The reader, the blind look, the sheet, the speed ─────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anna", "bruno", "mei", "kofi"])
def test_the_reader_reads_drawn_mouths(name: str) -> None:
    found = part("mouth_reader").accuracy(name)
    assert min(found["opening"], found["width"]) >= 0.98
    assert 0.95 < found["amplitude"] < 1.05
    # The negative control: a head that moves as in speech with a mouth at rest.
    assert found["resting_amplitude"] < 0.12


def test_the_sheet_is_chosen_half_open_half_closed() -> None:
    look = part("blind_look")
    pairs = look.shares(["anna", "bruno", "mei", "kofi"], random.Random(3))
    assert sum(is_open for is_open, _ in pairs.values()) == sum(is_closed for _, is_closed in pairs.values()) == 6
    opening = [0.0] * 20 + [0.2] * 5 + [0.6] * 20 + [0.0] * 20
    chosen = look.choose(opening, wanted_open=4, wanted_closed=5, source=random.Random(3))
    assert [opening[at] for at in chosen] == [0.6] * 4 + [0.0] * 5
    assert len(set(chosen)) == 9


def test_speech_without_open_mouths_gives_no_sheet() -> None:
    with pytest.raises(ValueError, match="0 open"):
        part("blind_look").choose([0.0] * 50, wanted_open=1, wanted_closed=1, source=random.Random(0))


def test_answers_are_scored() -> None:
    look = part("blind_look")
    key = [
        {"avatar": "anna", "mouth": "open"},
        {"avatar": "kofi", "mouth": "closed"},
        {"avatar": "mei", "mouth": "open"},
    ]
    answers = look.parse_answers("1 anna open, 2 kofi open\n3 bruno open")
    assert look.score(answers, key) == (2, 2)
    assert look.score({}, key) == (0, 0)


@pytest.mark.parametrize("text", ["1 anna", "one anna open", "1 anna ajar", "1 anna open, 1 mei open"])
def test_answers_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        part("blind_look").parse_answers(text)


def test_the_sheet_shows_the_widest_mouth_and_a_blink() -> None:
    performance, face = part("performance"), part("face")
    drives = np.zeros((100, len(performance.DRIVES)), np.float32)
    drives[60, performance.DRIVES.index("jaw")] = 0.9
    drives[30, performance.DRIVES.index("blink")] = 1.0
    spoken = performance.Performance(drives, np.zeros(100, np.int64))
    shown = part("contact_sheet").moments(spoken, [face.Pose()] * 100, count=8)
    assert {30, 60} <= set(shown)
    assert (len(set(shown)), shown) == (8, sorted(shown))


@pytest.mark.parametrize("name", ["sheet.png", "sheet.webp"])
def test_a_sheet_that_is_too_large_gets_smaller(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    save = part("contact_sheet").save_small
    save(noise, tmp_path / name)
    whole = (tmp_path / name).stat().st_size
    save(noise, tmp_path / name, most_bytes=whole - 1)
    assert (tmp_path / name).stat().st_size < whole
    with pytest.raises(ValueError, match="show less"):
        save(noise, tmp_path / name, most_bytes=100)


def test_speed_counts_the_windows_between_the_first_and_the_last() -> None:
    def event(name: str, pass_index: int, took_s: float) -> dict[str, Any]:
        return {"event": name, "pass_index": pass_index, "start_s": 1.0, "end_s": 1.0 + took_s}

    # The key-frame pass (0), the first and the last window cost something else, and don't count.
    events = [event("dit", index, took_s) for index, took_s in enumerate((9.0, 9.0, 0.2, 0.4, 9.0))]
    events += [
        event("vae_decode", 2, 0.1),
        event("vae_decode", 2, 0.1),
        {"event": "freeze", "start_s": 0.0, "end_s": 5.0},
    ]
    found = part("speed").steady_stages(events, stride_s=0.5)
    assert found == pytest.approx({"vae_encode": 0.0, "dit": 0.6, "vae_decode": 0.2, "finish": 0.0})


def test_speed_of_too_short_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="longer sound"):
        part("speed").steady_stages([{"event": "dit", "pass_index": 0, "start_s": 0.0, "end_s": 1.0}], stride_s=1.0)


def test_every_setting_that_is_measured_can_be_planned_and_is_asked_for_by_its_options() -> None:
    settings = part("settings")
    for setting in settings.SETTINGS:
        plan(250, window=setting.window, motion=setting.motion, drop=setting.drop)
    assert {setting.window for setting in settings.SETTINGS} == {9, 17, 33, 49, 81}
    assert settings.Setting(9, 1, 0, 2).options == ("--window", "9", "--motion", "1", "--drop", "0", "--steps", "2")


def test_a_package_whose_mouth_stays_still_fails_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clips: list[Any]
) -> None:
    settings = part("settings")
    follows = [(clip.truth.opening, clip.truth.opening) for clip in clips]
    still = [(np.full(150, 0.3), clip.truth.opening) for clip in clips]
    for pairs, code in ((follows, 0), (still, 1)):
        monkeypatch.setattr(settings, "measure", lambda *_, pairs=pairs, **__: pairs)
        assert settings.main(["--package", "default"]) == code
    assert " NO" in capsys.readouterr().out
