# SPDX-License-Identifier: Apache-2.0
"""Speech on its way to the audio encoder: against the recorded front end, and what load_speech takes and refuses."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from safetensors.numpy import load_file

from edgereels.runtime.audio import (
    encode_segments,
    encoder_input,
    encoder_length,
    encoder_positions,
    load_speech,
    normalise_loudness,
    video_frame_count,
)
from edgereels.runtime.errors import MediaError

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # wav2vec2-base

SPEECH = ["speech_short", "speech_long", "speech_e2e", "speech_e2e_short"]


def tone(*, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> npt.NDArray[np.float32]:
    times = np.arange(round(seconds * rate)) / rate
    row = 0.5 * np.sin(2 * np.pi * 220 * times) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * times))
    return np.repeat(row[:, None], channels, axis=1).astype(np.float32)


def write(path: Path, sound: npt.NDArray[np.float32], *, rate: int = 16_000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, sound, rate, subtype=subtype)
    return path


def refusal(path: Path) -> str:
    """Return the message that a file is refused with, after checking that it is one line."""
    with pytest.raises(MediaError) as caught:
        load_speech(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


def recorded(golden: Path, name: str) -> dict[str, npt.NDArray[np.float32]]:
    return load_file(golden / "golden" / f"wav2vec_{name}.safetensors")


@pytest.mark.golden
@pytest.mark.parametrize("name", SPEECH)
def test_a_recorded_file_is_read_to_the_bit(golden: Path, name: str) -> None:
    ours = load_speech(golden / "inputs" / f"{name}.wav")
    np.testing.assert_array_equal(ours, recorded(golden, name)["raw"])


@pytest.mark.golden
@pytest.mark.parametrize("name", SPEECH)
def test_recorded_speech_is_normalised_as_published(golden: Path, name: str) -> None:
    theirs = recorded(golden, name)
    ours = normalise_loudness(theirs["raw"])
    np.testing.assert_allclose(ours, theirs["normalised"], rtol=0, atol=1e-6 * float(ours.std()))


@pytest.mark.golden
@pytest.mark.parametrize("name", SPEECH)
def test_the_input_of_the_encoder_is_the_recorded_one(golden: Path, name: str) -> None:
    theirs = recorded(golden, name)
    ours = encoder_input(theirs["normalised"])
    # theirs sums in float32, ours in float64; both have a standard deviation of 1
    np.testing.assert_allclose(ours, theirs["input_values"], rtol=0, atol=1e-5)


@pytest.mark.golden
def test_input_that_was_not_centred_is_noticed(golden: Path) -> None:
    theirs = recorded(golden, "speech_long")
    assert np.abs(encoder_input(theirs["normalised"]) + np.float32(1e-3) - theirs["input_values"]).max() > 1e-4


@pytest.mark.golden
def test_a_file_of_another_rate_is_resampled_as_published(golden: Path) -> None:
    theirs = load_file(golden / "golden" / "audio_resample.safetensors")
    ours = load_speech(golden / "inputs" / "speech_22k.wav")
    np.testing.assert_allclose(ours, theirs["resampled_16k"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(normalise_loudness(ours), theirs["normalised"], rtol=0, atol=1e-3)


@pytest.mark.golden
def test_a_sound_gets_the_recorded_number_of_frames(golden: Path) -> None:
    rows = json.loads((golden / "golden" / "audio_frame_counts.json").read_text())
    assert {row["samples"]: video_frame_count(row["samples"]) for row in rows} == {
        row["samples"]: row["frames"] for row in rows
    }


def interpolated(features: npt.NDArray[np.float32], positions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return features (steps, channels) at fractional positions, as the graph of the encoder takes them."""
    low = np.floor(positions).astype(np.int64)
    high = np.minimum(low + 1, len(features) - 1)
    weight = (positions - low)[:, None].astype(np.float32)
    return (features[low] * (1 - weight) + features[high] * weight).astype(np.float32)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["speech_short", "speech_long"])
def test_interpolation_at_our_positions_gives_the_recorded_features(golden: Path, name: str) -> None:
    theirs = recorded(golden, name)
    steps = theirs["conv_features"][0].T
    samples, frames = len(theirs["raw"]), theirs["interpolated"].shape[1]
    assert len(steps) == encoder_length(samples, kernels=KERNELS, strides=STRIDES)
    ours = interpolated(steps, encoder_positions(samples, frames, kernels=KERNELS, strides=STRIDES))
    # one float32 multiplication more or less: 1e-6 of features that reach 1
    np.testing.assert_allclose(ours, theirs["interpolated"][0], rtol=0, atol=1e-6 * float(np.abs(steps).max()))


@pytest.mark.golden
def test_positions_half_a_frame_off_do_not(golden: Path) -> None:
    theirs = recorded(golden, "speech_long")
    steps = theirs["conv_features"][0].T
    positions = encoder_positions(len(theirs["raw"]), 76, kernels=KERNELS, strides=STRIDES)
    shifted = np.minimum(positions + np.float32(0.5), len(steps) - 1).astype(np.float32)
    assert np.abs(interpolated(steps, shifted) - theirs["interpolated"][0]).max() > 1e-3


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000], ids="{}-Hz".format)
def test_any_common_rate_is_accepted(tmp_path: Path, rate: int) -> None:
    ours = load_speech(write(tmp_path / "tone.wav", tone(rate=rate), rate=rate))
    assert (len(ours), ours.dtype) == (8000, np.float32)
    inner = slice(800, -800)  # the filter rings where sound begins and ends
    np.testing.assert_allclose(ours[inner], tone()[inner, 0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("channels", [1, 2, 6, 8], ids="{}-channels".format)
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    sound = tone(channels=channels) * np.linspace(0, 1, channels, dtype=np.float32)
    ours = load_speech(write(tmp_path / "tone.wav", sound, subtype="FLOAT"))
    np.testing.assert_allclose(ours, sound.mean(axis=1), rtol=0, atol=1e-7)  # the order of a float32 sum


@pytest.mark.parametrize(
    ("subtype", "atol"),
    [
        pytest.param("PCM_U8", 1 / 128, id="8-bit"),
        pytest.param("PCM_16", 1 / 32768, id="16-bit"),
        pytest.param("PCM_24", 1 / 8388608, id="24-bit"),
        pytest.param("PCM_32", 1e-7, id="32-bit"),
        pytest.param("FLOAT", 0, id="float"),
        pytest.param("DOUBLE", 0, id="double"),
        pytest.param("ULAW", 0.02, id="u-law"),
        pytest.param("IMA_ADPCM", 0.12, id="adpcm"),  # its steps must grow first
    ],
)
def test_any_depth_of_wav_is_accepted(tmp_path: Path, subtype: str, atol: float) -> None:
    ours = load_speech(write(tmp_path / "tone.wav", tone(), subtype=subtype))
    np.testing.assert_allclose(ours[:8000], tone()[:, 0], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        pytest.param("tone.flac", "PCM_16", id="flac"),
        pytest.param("tone.ogg", "VORBIS", id="vorbis"),
        pytest.param("tone.mp3", "MPEG_LAYER_III", id="mp3"),
        pytest.param("tone.aiff", "PCM_16", id="aiff"),
        pytest.param("tone.caf", "PCM_16", id="caf"),
    ],
)
def test_other_formats_are_accepted(tmp_path: Path, name: str, subtype: str) -> None:
    ours = load_speech(write(tmp_path / name, tone(seconds=1), subtype=subtype))
    assert 16_000 <= len(ours) < 19_000  # mp3 is padded to whole frames
    assert 0.2 < float(np.abs(ours).max()) < 0.7


def test_a_format_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    write(tmp_path / "tone.flac", tone()).rename(tmp_path / "tone.raw")
    np.testing.assert_allclose(load_speech(tmp_path / "tone.raw"), tone()[:, 0], rtol=0, atol=1 / 32768)


def test_silence_is_accepted_and_stays_silence(tmp_path: Path) -> None:
    ours = load_speech(write(tmp_path / "silence.wav", np.zeros((8000, 1), np.float32)))
    assert not encoder_input(normalise_loudness(ours)).any()


def test_exactly_four_tenths_of_a_second_are_accepted(tmp_path: Path) -> None:
    assert len(load_speech(write(tmp_path / "tone.wav", tone(seconds=0.4, rate=44_100), rate=44_100))) == 6400


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100], ids="{}-Hz".format)
def test_one_sample_less_is_refused(tmp_path: Path, rate: int) -> None:
    sound = tone(seconds=0.4, rate=rate)[:-1]
    assert "expected at least 0.4 s" in refusal(write(tmp_path / "short.wav", sound, rate=rate))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "doesn't exist" in refusal(tmp_path / "missing.wav")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    assert "is empty" in refusal(tmp_path / "empty.wav")


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    assert "no samples" in refusal(write(tmp_path / "none.wav", tone()[:0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_a_sound_with_one_bad_number_is_refused(tmp_path: Path, value: float, subtype: str) -> None:
    sound = tone(channels=2)
    sound[4000, 1] = value
    assert "NaN or Inf at 0.250 s" in refusal(write(tmp_path / "bad.wav", sound, subtype=subtype))


@pytest.mark.parametrize("rate", [1, 7_999, 192_001, 2**31 - 1], ids="{}-Hz".format)
def test_a_rate_outside_the_range_is_refused(tmp_path: Path, rate: int) -> None:
    assert f"sampled at {rate} Hz" in refusal(write(tmp_path / "rate.wav", tone(), rate=rate))


def test_nine_channels_are_refused(tmp_path: Path) -> None:
    assert "9 channels" in refusal(write(tmp_path / "wide.wav", tone(channels=9)))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"not a sound at all, only words " * 40, id="text"),
        pytest.param(b".snd" + bytes(100), id="au"),
        pytest.param(bytes(5000), id="zeros"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), id="png"),
    ],
)
def test_an_unknown_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "unknown.wav").write_bytes(content)
    assert "no known sound format" in refusal(tmp_path / "unknown.wav")


@pytest.mark.parametrize("kept", [5, 30, 80], ids="{}-bytes".format)
def test_a_compressed_file_cut_down_to_its_header_is_refused(tmp_path: Path, kept: int) -> None:
    whole = write(tmp_path / "tone.flac", tone()).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[:kept])
    refusal(tmp_path / "cut.flac")


def test_a_compressed_file_cut_in_half_is_read_up_to_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (32_000, 1)).astype(np.float32)
    whole = write(tmp_path / "noise.flac", noise).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    ours = load_speech(tmp_path / "cut.flac")
    np.testing.assert_allclose(ours, noise[: len(ours), 0], rtol=0, atol=1 / 32768)
    assert len(ours) > 8000
    assert "is damaged after" in caplog.text


def test_very_loud_float_sound_gives_finite_features(tmp_path: Path) -> None:
    ours = load_speech(write(tmp_path / "loud.wav", tone() * np.float32(1e30), subtype="FLOAT"))
    assert np.isfinite(encoder_input(normalise_loudness(ours))).all()


def test_constant_sound_gives_finite_features(tmp_path: Path) -> None:
    ours = load_speech(write(tmp_path / "dc.wav", np.full((8000, 1), 0.9, np.float32)))
    assert np.isfinite(encoder_input(normalise_loudness(ours))).all()


def test_the_published_frame_count_keeps_its_float64_rounding() -> None:
    assert (video_frame_count(8_960), video_frame_count(6_400)) == (15, 10)  # 8960 samples are 14 frames exactly


def test_the_input_of_the_encoder_has_mean_zero_and_variance_one() -> None:
    ours = encoder_input(tone(seconds=3)[:, 0] + np.float32(0.2)).astype(np.float64)
    assert (float(ours.mean()), float(ours.var())) == pytest.approx((0.0, 1.0), abs=1e-4)  # the variance has a floor


def test_no_samples_have_no_features() -> None:
    assert len(encoder_input(np.zeros(0, np.float32))) == 0


@pytest.mark.parametrize(("samples", "steps"), [(16_000, 49), (51_840, 161), (3_200_000, 9999), (399, 0)])
def test_the_encoder_makes_the_published_number_of_steps(samples: int, steps: int) -> None:
    assert encoder_length(samples, kernels=KERNELS, strides=STRIDES) == steps


def test_positions_run_from_the_first_step_to_the_last() -> None:
    ours = encoder_positions(48_320, 76, kernels=KERNELS, strides=STRIDES)
    assert (len(ours), ours[0], ours.dtype) == (76, 0, np.float32)
    assert float(ours[-1]) == pytest.approx(149, rel=1e-6)


def test_a_single_frame_lies_at_the_first_step() -> None:
    np.testing.assert_array_equal(encoder_positions(640, 1, kernels=KERNELS, strides=STRIDES), [0])


@pytest.mark.parametrize(("samples", "frames"), [(399, 1), (16_000, 0)], ids=["no-steps", "no-frames"])
def test_positions_of_nothing_are_refused(samples: int, frames: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        encoder_positions(samples, frames, kernels=KERNELS, strides=STRIDES)


@pytest.mark.parametrize("samples", [6_400, 16_000, 8_960, 3_200_000])
def test_speech_of_up_to_200_seconds_is_encoded_whole(samples: int) -> None:
    (only,) = encode_segments(samples)
    assert (only.start_sample, only.stop_sample, only.keep_start) == (0, samples, 0)
    assert only.frames == only.keep_stop == video_frame_count(samples)


@pytest.mark.parametrize("samples", [3_200_001, 3_840_000, 3_840_001, 9_600_000, 10_000_123, 57_600_000])
def test_the_kept_frames_of_long_speech_tile_it_exactly_once(samples: int) -> None:
    kept = [
        frame
        for s in encode_segments(samples)
        for frame in range(s.first_frame, s.first_frame + s.keep_stop - s.keep_start)
    ]
    assert kept == list(range(video_frame_count(samples)))


def test_segments_of_long_speech_hear_four_seconds_on_either_side() -> None:
    segments = encode_segments(16_000 * 3600)
    for segment in segments[1:-1]:
        assert segment.keep_start == segment.frames - segment.keep_stop == 100
        assert segment.start_sample == (segment.first_frame - 100) * 640
    assert segments[-1].stop_sample == 16_000 * 3600


def test_a_segment_interpolates_where_the_whole_would() -> None:
    whole = encoder_positions(16_000 * 300, 7500, kernels=KERNELS, strides=STRIDES)
    for segment in encode_segments(16_000 * 300):
        length = segment.stop_sample - segment.start_sample
        ours = encoder_positions(length, segment.frames, kernels=KERNELS, strides=STRIDES)
        first = segment.start_sample // 640
        np.testing.assert_array_equal(ours + 2 * first, whole[first : first + segment.frames])
