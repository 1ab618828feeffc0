# SPDX-License-Identifier: Apache-2.0
"""The WAV reader on files built byte by byte: forms, lying headers, careless and malicious writers."""

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgereels.runtime.audio import load_speech
from edgereels.runtime.errors import MediaError
from edgereels.runtime.wav import WavHeader, read_wav_header

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")

SOUND = (np.arange(8000) % 200 * 100).astype("<i2")  # half a second at 16 kHz


def chunk(name: bytes, body: bytes, *, stated: int | None = None) -> bytes:
    length = len(body) if stated is None else stated
    return name + struct.pack("<I", length) + body + b"\0" * (len(body) % 2)


def form(
    tag: int = PCM, *, channels: int = 1, rate: int = 16_000, bits: int = 16, frame_bytes: int | None = None
) -> bytes:
    size = channels * bits // 8 if frame_bytes is None else frame_bytes
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * size & 0xFFFFFFFF, size, bits))


def extensible(tag: int, *, bits: int, valid_bits: int) -> bytes:
    size = bits // 8
    head = struct.pack("<HHIIHH", EXTENSIBLE, 1, 16_000, 16_000 * size, size, bits)
    return chunk(b"fmt ", head + struct.pack("<HHIH", 22, valid_bits, 4, tag) + GUID_TAIL)


def riff(*chunks: bytes, stated: int | None = None, name: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return name + struct.pack("<I", len(body) if stated is None else stated) + body


def save(folder: Path, content: bytes) -> Path:
    (folder / "made.wav").write_bytes(content)
    return folder / "made.wav"


def header_of(folder: Path, content: bytes) -> WavHeader:
    header = read_wav_header(save(folder, content))
    assert header is not None
    return header


def read(folder: Path, content: bytes) -> npt.NDArray[np.float32]:
    return np.concatenate(list(header_of(folder, content).blocks()))[:, 0]


@pytest.mark.parametrize(
    ("fmt", "data", "expected"),
    [
        pytest.param(form(bits=8), bytes([0, 64, 128, 255]), [-1, -0.5, 0, 127 / 128], id="8-bit"),
        pytest.param(form(), struct.pack("<4h", -32768, -1, 0, 32767), [-1, -1 / 32768, 0, 32767 / 32768], id="16-bit"),
        pytest.param(
            form(bits=24), bytes.fromhex("000080 ffffff 000000 ffff7f"), [-1, -(2.0**-23), 0, 1 - 2.0**-23], id="24-bit"
        ),
        pytest.param(form(bits=32), struct.pack("<3i", -(2**31), 0, 2**30), [-1, 0, 0.5], id="32-bit"),
        pytest.param(form(FLOAT, bits=32), struct.pack("<3f", -1.5, 0.25, 2), [-1.5, 0.25, 2], id="float"),
        pytest.param(form(FLOAT, bits=64), struct.pack("<2d", -0.1, 1e300), [np.float32(-0.1), np.inf], id="double"),
        pytest.param(
            extensible(PCM, bits=24, valid_bits=20),
            bytes.fromhex("000040 0000c0"),
            [0.5, -0.5],
            id="extensible-20-in-24",
        ),
        pytest.param(extensible(FLOAT, bits=32, valid_bits=32), struct.pack("<f", 0.75), [0.75], id="extensible-float"),
        pytest.param(form(bits=16, frame_bytes=0), struct.pack("<h", 16384), [0.5], id="no-frame-size"),
    ],
)
def test_samples_are_scaled_to_one(tmp_path: Path, fmt: bytes, data: bytes, expected: list[float]) -> None:
    np.testing.assert_array_equal(read(tmp_path, riff(fmt, chunk(b"data", data))), np.array(expected, np.float32))


def test_channels_lie_side_by_side(tmp_path: Path) -> None:
    header = header_of(tmp_path, riff(form(channels=2), chunk(b"data", struct.pack("<4h", 0, 16384, -16384, 0))))
    np.testing.assert_array_equal(next(header.blocks()), [[0, 0.5], [-0.5, 0]])


def test_blocks_of_any_size_make_the_same_whole(tmp_path: Path) -> None:
    header = header_of(tmp_path, riff(form(), chunk(b"data", SOUND.tobytes())))
    whole = np.concatenate(list(header.blocks()))
    for block_frames in (1, 7, 4000, 8000, 9000):
        np.testing.assert_array_equal(np.concatenate(list(header.blocks(block_frames))), whole)


LYING = [
    pytest.param(riff(form(), chunk(b"data", SOUND.tobytes(), stated=2**31)), id="two-gigabytes"),
    pytest.param(riff(form(), chunk(b"data", SOUND.tobytes(), stated=2**32 - 1)), id="four-gigabytes"),
    pytest.param(riff(form(), chunk(b"data", SOUND.tobytes(), stated=0), stated=36), id="never-filled-in"),
    pytest.param(riff(form(), chunk(b"data", SOUND.tobytes(), stated=100)), id="too-small"),
    pytest.param(riff(form(), chunk(b"data", SOUND.tobytes() + b"\x01")), id="half-a-sample-more"),
    pytest.param(riff(form(), chunk(b"data", SOUND.tobytes()), stated=2**32 - 1), id="riff-size"),
    pytest.param(riff(form(), chunk(b"data", SOUND.tobytes()), chunk(b"LIST", b"INFO")), id="chunk-behind"),
    pytest.param(riff(chunk(b"LIST", b"odd"), form(), chunk(b"data", SOUND.tobytes())), id="odd-chunk-before"),
    pytest.param(
        riff(b"LIST" + struct.pack("<I", 3) + b"odd", form(), chunk(b"data", SOUND.tobytes())), id="unpadded-chunk"
    ),
    pytest.param(riff(form(), chunk(b"fact", bytes(4)), chunk(b"data", SOUND.tobytes())), id="fact-chunk"),
    pytest.param(
        riff(
            chunk(b"ds64", struct.pack("<QQQI", 0, 16_000, 8000, 0)),
            form(),
            chunk(b"data", SOUND.tobytes(), stated=2**32 - 1),
            chunk(b"LIST", b"INFO"),
            name=b"RF64",
        ),
        id="rf64",
    ),
]


@pytest.mark.parametrize("content", LYING)
def test_the_real_size_wins_over_the_header(tmp_path: Path, content: bytes) -> None:
    np.testing.assert_array_equal(read(tmp_path, content), SOUND.astype(np.float32) / 32768)


def test_a_wrong_size_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, riff(form(), chunk(b"data", SOUND.tobytes(), stated=2**31)))
    assert "promises 2147483648 bytes of sound, the file holds 16000" in caplog.text


def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    content = riff(form(), chunk(b"data", SOUND.tobytes()))
    np.testing.assert_array_equal(read(tmp_path, content[: 44 + 14_001]), SOUND[:7000].astype(np.float32) / 32768)


def test_a_file_that_shrinks_while_it_is_read_ends_early(tmp_path: Path) -> None:
    content = riff(form(), chunk(b"data", SOUND.tobytes()))
    header = header_of(tmp_path, content)
    save(tmp_path, content[:1045])
    assert sum(len(block) for block in header.blocks(100)) == 500


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(riff(form(), chunk(b"data", b"")), id="no-samples"),
        pytest.param(riff(form(), chunk(b"data", b"\x01")), id="half-a-sample"),
        pytest.param(riff(form(), chunk(b"data", b"", stated=0), chunk(b"LIST", b"INFO")), id="only-a-list"),
        pytest.param(riff(form(), chunk(b"data", SOUND.tobytes()))[:44], id="cut-behind-the-header"),
        pytest.param(riff(form(), chunk(b"data", SOUND.tobytes()))[:40], id="cut-in-the-header"),
        pytest.param(riff(form()), id="no-data-chunk"),
    ],
)
def test_a_file_truncated_to_nothing_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(MediaError, match="no samples"):
        load_speech(save(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(riff()[:11], id="cut-in-the-name"),
        pytest.param(riff(), id="nothing-inside"),
        pytest.param(riff(chunk(b"data", SOUND.tobytes())), id="no-format"),
        pytest.param(riff(chunk(b"fmt ", b"\x01\x00"), chunk(b"data", SOUND.tobytes())), id="short-format"),
        pytest.param(riff(form(channels=0, frame_bytes=2), chunk(b"data", SOUND.tobytes())), id="no-channels"),
        pytest.param(riff(form(FLOAT, bits=16), chunk(b"data", SOUND.tobytes())), id="float16"),
        pytest.param(riff(form(bits=64), chunk(b"data", SOUND.tobytes())), id="64-bit-integers"),
        pytest.param(riff(form(0x1234), chunk(b"data", SOUND.tobytes())), id="unknown-coding"),
        pytest.param(riff(b"\xff\xfe\xfd\xfc" + bytes(100)), id="noise"),
        pytest.param(b"RIFF" + struct.pack("<I", 100) + b"AVI " + bytes(100), id="avi"),
    ],
)
def test_a_form_that_nobody_reads_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        load_speech(save(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, 1, 2**32 - 1], ids="{}-Hz".format)
def test_a_rate_that_is_a_lie_is_refused(tmp_path: Path, rate: int) -> None:
    with pytest.raises(MediaError, match=f"sampled at {rate} Hz"):
        load_speech(save(tmp_path, riff(form(rate=rate), chunk(b"data", SOUND.tobytes()))))


def test_a_thousand_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="1000 channels"):
        load_speech(save(tmp_path, riff(form(channels=1000), chunk(b"data", bytes(16_000)))))


def test_ten_hours_are_read_a_block_at_a_time(tmp_path: Path) -> None:
    path = save(tmp_path, riff(form(), chunk(b"data", b"", stated=2 * 16_000 * 36_000)))
    with path.open("r+b") as file:
        file.truncate(44 + 2 * 16_000 * 36_000)  # sparse: takes no room on disk
    header = read_wav_header(path)
    assert header is not None
    assert header.frames == 16_000 * 36_000
    assert next(header.blocks()).shape == (1 << 16, 1)
