# SPDX-License-Identifier: Apache-2.0
"""Portrait files: every form that is taken, every refusal, and what comes out."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgereels.runtime.errors import MediaError
from edgereels.runtime.image_file import MOST_PIXELS, load_portrait

Pixels = npt.NDArray[np.uint8]


def gradient(*, height: int = 24, width: int = 32) -> Pixels:
    """Return a picture whose corners all differ."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // (height - 1), columns * 255 // (width - 1), np.full_like(rows, 90)], axis=2).astype(
        np.uint8
    )


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def refusal(path: Path) -> str:
    """Return the message that a file is refused with, after checking that it is one line."""
    with pytest.raises(MediaError) as caught:
        load_portrait(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*, width: int, height: int, depth: int = 8, colour: int = 0, rows: bytes | None = None) -> bytes:
    """Return a PNG file built by hand; without rows its picture is missing."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(rows)) if rows is not None else b""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + data + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif", "jpg"])
def test_common_formats_are_accepted(tmp_path: Path, suffix: str) -> None:
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    ours = load_portrait(save(tmp_path / f"face.{suffix}", Image.fromarray(gradient()), **options))
    atol = {"jpg": 8, "gif": 24}.get(suffix, 0)  # quantized, and 256 colours
    np.testing.assert_allclose(ours.astype(int), gradient(), rtol=0, atol=atol)
    assert ours.dtype == np.uint8


def test_a_format_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    save(tmp_path / "face.png", Image.fromarray(gradient())).rename(tmp_path / "face.jpg")
    np.testing.assert_array_equal(load_portrait(tmp_path / "face.jpg"), gradient())


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = gradient()[:, :, 1]
    ours = load_portrait(save(tmp_path / "grey.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(ours, np.repeat(grey[:, :, None], 3, axis=2))


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    ours = load_portrait(save(tmp_path / "bits.png", Image.fromarray(gradient()[:, :, 1] > 127)))
    assert set(np.unique(ours)) == {0, 255}


def test_16_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    deep = (np.arange(32 * 24, dtype=np.uint32).reshape(24, 32) * 65535 // (32 * 24 - 1)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "deep.png").write_bytes(png(width=32, height=24, depth=16, rows=rows))
    ours = load_portrait(tmp_path / "deep.png")
    np.testing.assert_array_equal(ours[:, :, 0], np.round(deep / 257))


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    deep = gradient().astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "deep.png").write_bytes(png(width=32, height=24, depth=16, colour=2, rows=rows))
    np.testing.assert_array_equal(load_portrait(tmp_path / "deep.png"), gradient())


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    picture = Image.fromarray(gradient()).quantize(8)
    ours = load_portrait(save(tmp_path / "palette.png", picture))
    np.testing.assert_array_equal(ours, np.asarray(picture.convert("RGB")))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    layers = np.dstack([gradient(), np.zeros((24, 32), np.uint8)])
    layers[:, 8:16, 3], layers[:, 16:, 3] = 51, 255  # nothing, a fifth, everything
    ours = load_portrait(save(tmp_path / "alpha.png", Image.fromarray(layers))).astype(float)
    np.testing.assert_array_equal(ours[:, :8], np.full((24, 8, 3), 255))
    np.testing.assert_allclose(ours[:, 8:16], gradient()[:, 8:16] * 0.2 + 255 * 0.8, rtol=0, atol=0.5)  # rounded
    np.testing.assert_array_equal(ours[:, 16:], gradient()[:, 16:])


def test_grey_with_transparency_is_laid_on_white(tmp_path: Path) -> None:
    layers = np.dstack([gradient()[:, :, 1], np.full((24, 32), 0, np.uint8)])
    ours = load_portrait(save(tmp_path / "alpha.png", Image.fromarray(layers, mode="LA")))
    np.testing.assert_array_equal(ours, np.full((24, 32, 3), 255))


def test_a_transparent_palette_entry_is_laid_on_white(tmp_path: Path) -> None:
    picture = Image.fromarray(gradient()).quantize(4)
    clear = np.asarray(picture) == 1
    ours = load_portrait(save(tmp_path / "palette.png", picture, transparency=1))
    assert clear.any()
    np.testing.assert_array_equal(ours[clear], np.full((clear.sum(), 3), 255))


def test_cmyk_is_converted(tmp_path: Path) -> None:
    flat = np.empty((24, 32, 3), np.uint8)
    flat[:] = (200, 120, 40)
    path = save(tmp_path / "print.jpg", Image.fromarray(flat).convert("CMYK"), quality=100)
    np.testing.assert_allclose(load_portrait(path).astype(int), flat, rtol=0, atol=4)  # jpeg


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"], ids=["plain", "lzw", "jpeg"])
def test_a_tiff_is_read_and_a_truncated_one_refused(compression: str | None, tmp_path: Path) -> None:
    """What scanners and printers write: CMYK, 16 bits."""
    print_ready = Image.fromarray(gradient()).convert("CMYK")
    path = save(tmp_path / "print.tif", print_ready, compression=compression)
    np.testing.assert_allclose(
        load_portrait(path).astype(int), gradient(), rtol=0, atol=24 if compression == "jpeg" else 2
    )
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(MediaError):
            load_portrait(path)


def test_a_16_bit_tiff_is_scaled(tmp_path: Path) -> None:
    deep = gradient()[:, :, 1].astype(np.uint16) * 257
    ours = load_portrait(save(tmp_path / "deep.tif", Image.fromarray(deep)))
    np.testing.assert_array_equal(ours[:, :, 0], gradient()[:, :, 1])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        pytest.param(1, gradient(), id="upright"),
        pytest.param(2, gradient()[:, ::-1], id="mirrored"),
        pytest.param(3, gradient()[::-1, ::-1], id="upside-down"),
        pytest.param(6, np.rot90(gradient(), -1), id="lying-on-its-left"),
        pytest.param(8, np.rot90(gradient()), id="lying-on-its-right"),
    ],
)
def test_a_rotation_noted_by_the_camera_is_carried_out(tmp_path: Path, orientation: int, turned: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    ours = load_portrait(save(tmp_path / "phone.png", Image.fromarray(gradient()), exif=exif))
    np.testing.assert_array_equal(ours, turned)


def test_a_damaged_note_about_the_rotation_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "phone.png", Image.fromarray(gradient()), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09garbage")
    np.testing.assert_array_equal(load_portrait(path), gradient())


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "green", "blue")]
    ours = load_portrait(save(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(ours, np.tile(np.array([255, 0, 0], np.uint8), (24, 32, 1)))


def test_16_pixels_a_side_are_enough(tmp_path: Path) -> None:
    assert load_portrait(save(tmp_path / "tiny.png", Image.fromarray(gradient(height=16, width=16)))).shape == (
        16,
        16,
        3,
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (15, 200), (200, 15), (9000, 1)])
def test_smaller_pictures_are_refused(tmp_path: Path, height: int, width: int) -> None:
    path = save(tmp_path / "tiny.png", Image.new("L", (width, height)))
    assert f"{width} x {height} pixels; expected at least 16 a side" in refusal(path)


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(10_000, 5_001, id="just-above"),
        pytest.param(10_000, 10_000, id="where-pillow-warns"),
        pytest.param(20_000, 20_000, id="where-pillow-refuses"),
        pytest.param(2**31 - 1, 2**31 - 1, id="absurd"),
    ],
)
def test_a_picture_above_50_million_pixels_is_refused_from_its_header(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "huge.png").write_bytes(png(width=width, height=height, rows=b"\0"))
    assert "more than 50 million pixels" in refusal(tmp_path / "huge.png")


LOOK = """
import sys
from pathlib import Path
from edgereels.runtime.errors import MediaError
from edgereels.runtime.image_file import load_portrait
try:
    load_portrait(Path(sys.argv[1]))
except MediaError as error:
    print(error, file=sys.stderr)
# Not ru_maxrss: a process begins with its parent's, and pytest's own grows.
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def peak_kib(path: Path) -> int:
    """Return the most memory that a process of its own needs to read a portrait, or to refuse it."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.fixture(scope="module")
def small_peak_kib(tmp_path_factory: pytest.TempPathFactory) -> int:
    return peak_kib(save(tmp_path_factory.mktemp("small") / "face.png", Image.fromarray(gradient())))


def test_a_picture_that_unpacks_to_400_megabytes_is_refused_in_little_memory(
    tmp_path: Path, small_peak_kib: int
) -> None:
    rows = zlib.compressobj(1)
    body = b"".join(rows.compress(bytes(20_001)) for _ in range(20_000)) + rows.flush()
    whole = png(width=20_000, height=20_000)
    (tmp_path / "bomb.png").write_bytes(whole[:33] + png_chunk(b"IDAT", body) + whole[33:])
    refusal(tmp_path / "bomb.png")
    assert peak_kib(tmp_path / "bomb.png") - small_peak_kib < 20 * 1024


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"], ids=["text", "profile"])
def test_a_compressed_note_that_unpacks_to_400_megabytes_is_not_unpacked(
    tmp_path: Path, small_peak_kib: int, name: bytes
) -> None:
    whole = png(width=32, height=24, rows=b"".join(b"\0" + bytes(32) for _ in range(24)))
    note = png_chunk(name, b"x\0\0" + zlib.compress(bytes(400_000_000), 1))
    (tmp_path / "note.png").write_bytes(whole[:33] + note + whole[33:])
    assert peak_kib(tmp_path / "note.png") - small_peak_kib < 50 * 1024


def test_a_picture_that_is_really_decoded_shows_in_the_memory(tmp_path: Path, small_peak_kib: int) -> None:
    path = save(tmp_path / "large.png", Image.new("RGB", (6000, 6000)))
    assert peak_kib(path) - small_peak_kib > 100 * 1024


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "doesn't exist" in refusal(tmp_path / "missing.png")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert "is empty" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"only words, no picture " * 20, id="text"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', id="svg"),
        pytest.param(b"II*\0\x08\0\0\0" + bytes(100), id="tiff"),
        pytest.param(bytes(1000), id="zeros"),
    ],
)
def test_an_unknown_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "face.png").write_bytes(content)
    assert "no known picture format" in refusal(tmp_path / "face.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9], ids="{}-of-it".format)
def test_a_truncated_picture_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    whole = save(tmp_path / f"whole.{suffix}", Image.fromarray(noise)).read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: int(len(whole) * kept)])
    refusal(tmp_path / f"cut.{suffix}")


def test_a_png_without_its_end_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "face.png", Image.fromarray(gradient())).read_bytes()
    (tmp_path / "face.png").write_bytes(whole[:-12])
    refusal(tmp_path / "face.png")


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    whole = bytearray(save(tmp_path / "face.png", Image.fromarray(gradient())).read_bytes())
    whole[-16 + 3] ^= 1  # the last byte of the checksum of the picture data
    (tmp_path / "face.png").write_bytes(whole)
    refusal(tmp_path / "face.png")


def test_a_picture_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(png(width=32, height=24))
    refusal(tmp_path / "face.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_a_damaged_picture_is_refused_or_read_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG"}.get(suffix, suffix.upper())
    options = {"exif": exif} if suffix in ("png", "jpg", "webp") else {}
    Image.fromarray(gradient()).save(buffer, kind, **options)
    random = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(buffer.getvalue())
        for place in random.integers(0, min(len(broken), 300), 3):
            broken[place] = random.integers(0, 256)
        (tmp_path / "broken").write_bytes(broken)
        try:
            ours = load_portrait(tmp_path / "broken")
        except MediaError as error:
            assert "\n" not in str(error)
        else:
            assert ours.ndim == 3 and ours.shape[0] * ours.shape[1] <= MOST_PIXELS
