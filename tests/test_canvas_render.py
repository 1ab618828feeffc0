# SPDX-License-Identifier: Apache-2.0
"""A canvas from the package to the files: who is shown on one, who isn't, and what a bad package or command is told."""

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin

from edgereels.runtime import AvatarSession, Canvas, PackageError, Trace, UsageError
from edgereels.runtime.cli import main
from edgereels.runtime.doctor_trial import _stream
from edgereels.runtime.ladder_recording import prepare_trial, record
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.placement import Asked
from edgereels.runtime.prepare import find_avatar
from edgereels.runtime.still_file import still_bytes

from .package_examples import change_manifest, copy_of, replace_file
from .stand_in_package import portrait, write_stand_in
from .test_command_render import write_wav

SOUND = (0.3 * np.sin(np.arange(24_000) / 12)).astype(np.float32)
"""1.5 s: 38 frames, more than one window."""
BOX = (40, 30, 136, 126)
STILL = portrait(seed=4, height=180, width=160)
CANVAS = Canvas(STILL, BOX, 8)
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose first avatar, bruno, is a still; anna is a portrait."""
    target = tmp_path_factory.mktemp("canvas") / "still.edgereels"
    return write_stand_in(target, canvases={"bruno": CANVAS}, model_card="# Bruno\n\nNobody.\n")


@pytest.fixture(scope="module")
def session(root: Path):
    with AvatarSession.open(root, threads=2) as opened:
        yield opened


def shown(session: AvatarSession, **arguments: Any) -> Pixels:
    return np.concatenate([chunk.frames for chunk in session.stream(audio=SOUND, **arguments)])


# ── Who is shown on a canvas ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_avatar_with_a_still_is_shown_on_it(session: AvatarSession) -> None:
    ours = shown(session)
    assert ours.shape == (38, 180, 160, 3)
    np.testing.assert_array_equal(ours, CANVAS.compose(shown(session, canvas=False)))
    assert np.ptp(ours.astype(int), axis=0).max() > 10  # control: it moves


def test_without_the_canvas_frames_are_those_of_the_same_portrait(session: AvatarSession, tmp_path: Path) -> None:
    Image.fromarray(STILL[40:136, 30:126]).save(tmp_path / "box.png")
    theirs = shown(session, image=tmp_path / "box.png")
    assert theirs.shape == (38, 32, 32, 3)
    np.testing.assert_array_equal(shown(session, canvas=False), theirs)
    assert not np.array_equal(shown(session, avatar="anna"), theirs)  # control: another face makes other frames


def test_an_explicit_size_asks_for_the_networks_own_frames(session: AvatarSession) -> None:
    assert shown(session, size=(48, 48)).shape[1:3] == (48, 48)
    on = shown(session, size=(48, 48), canvas=True)
    np.testing.assert_array_equal(on, CANVAS.compose(shown(session, size=(48, 48))))


def test_a_portrait_is_shown_as_it_is(session: AvatarSession) -> None:
    assert shown(session, avatar="anna").shape[1:3] == (32, 32)
    with pytest.raises(UsageError, match=r"anna has no still; leave it out"):
        session.stream(audio=SOUND, avatar="anna", canvas=True)


def test_a_size_of_another_shape_does_not_fit_onto_a_canvas(session: AvatarSession) -> None:
    with pytest.raises(UsageError, match="frames have 32x64"):
        session.stream(audio=SOUND, size=(32, 64), canvas=True)


def test_a_canvas_of_ones_own_is_shown(session: AvatarSession) -> None:
    face = find_avatar(session.package, avatar="bruno")
    assert face.canvas is not None
    np.testing.assert_array_equal(face.canvas.still, STILL)
    np.testing.assert_array_equal(face.portrait, STILL[40:136, 30:126])
    np.testing.assert_array_equal(shown(session, avatar=face), shown(session))


def test_chunks_keep_their_places_and_seams_do_not_show(session: AvatarSession) -> None:
    ours, theirs = ([*session.stream(audio=SOUND, canvas=canvas)] for canvas in (True, False))
    assert len(ours) > 1
    for one, other in zip(ours, theirs, strict=True):
        assert (one.index, one.start_frame, one.start_s, one.fps, one.is_last) == (
            other.index,
            other.start_frame,
            other.start_s,
            other.fps,
            other.is_last,
        )
        np.testing.assert_array_equal(one.frames, CANVAS.compose(other.frames))


def test_closing_early_frees_the_session(session: AvatarSession) -> None:
    stream = session.stream(audio=SOUND)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert len(shown(session)) == 38


# ── Who measures sees the network ────────────────────────────────────────────────────────────────────────────────────


def test_the_quality_ladder_sees_the_networks_own_frames(root: Path) -> None:
    package = ModelPackage.open(root)
    trial = prepare_trial(package, sound=SOUND)
    assert trial.arguments()["canvas"] is False
    assert record(package, trial, asked=Asked(device="onnxruntime:CPU")).frames.shape[1:3] == (32, 32)


def test_the_doctor_sees_the_networks_own_frames(root: Path) -> None:
    _loads, facts = _stream(ModelPackage.open(root), {"device": "cpu"})
    assert facts["size"] == [32, 32]


# ── Reports and traces ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_trace_has_a_span_for_each_chunk(session: AvatarSession) -> None:
    trace = Trace()
    chunks = [*session.stream(audio=SOUND, trace=trace)]
    spans = [event for event in trace.events if event["event"] == "canvas"]
    assert [event["chunk"] for event in spans] == [chunk.index for chunk in chunks]
    shown(session, canvas=False, trace=(without := Trace()))
    assert not [event for event in without.events if event["event"] == "canvas"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_wav(tmp_path / "s.wav", seconds=1.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def render(root: Path, *options: object) -> int:
    return main(["render", "--package", str(root), "--audio", "s.wav", "--threads", "1", *map(str, options)])


def test_render_writes_the_whole_picture_into_video_and_array(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(root, "--out", "v.mp4", "--frames", "f.npy", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["height"], report["width"], report["box_size"]) == (180, 160, [32, 32])
    assert np.load("f.npy").shape == (25, 180, 160, 3)
    with av.open("v.mp4") as video:
        assert (video.streams.video[0].height, video.streams.video[0].width) == (180, 160)


def test_the_canvas_counts_in_the_real_time_factor(root: Path, folder: Path) -> None:
    assert render(root, "--frames", "f.npy", "--trace", "t.jsonl") == 0
    events = [json.loads(line) for line in Path("t.jsonl").read_text(encoding="utf-8").splitlines()]
    report = events.pop()
    first = min(event["start_s"] for event in events if event["event"] == "dit")
    assert report["wall_s"] == pytest.approx(max(event["end_s"] for event in events) - first)
    spans = [event for event in events if event["event"] == "canvas"]
    assert spans and all(first < event["start_s"] < event["end_s"] <= first + report["wall_s"] for event in spans)


def test_render_says_what_the_network_made(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(root, "--frames", "f.npy") == 0
    assert "25 frames of 180x160 (32x32 on a still) at 25 fps" in capsys.readouterr().out
    assert render(root, "--frames", "f.npy", "--canvas", "off") == 0
    assert "25 frames of 32x32 at 25 fps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ([], (180, 160)),
        (["--canvas", "on"], (180, 160)),
        (["--canvas", "off"], (32, 32)),
        (["--size", "48x48"], (48, 48)),
        (["--size", "48x48", "--canvas", "on"], (180, 160)),
        (["--avatar", "anna"], (32, 32)),
        (["--avatar", "bruno"], (180, 160)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_say_what_is_shown(root: Path, folder: Path, options: list[str], size: tuple[int, int]) -> None:
    assert render(root, "--frames", "f.npy", *options) == 0
    assert np.load("f.npy").shape[1:3] == size


def test_canvas_off_is_the_portrait_rendered_bit_by_bit(root: Path, folder: Path) -> None:
    Image.fromarray(STILL[40:136, 30:126]).save("box.png")
    assert render(root, "--frames", "off.npy", "--canvas", "off") == 0
    assert render(root, "--frames", "box.npy", "--image", "box.png") == 0
    np.testing.assert_array_equal(np.load("off.npy"), np.load("box.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--avatar", "anna", "--canvas", "on"], "anna has no still"),
        (["--image", "box.png", "--canvas", "on"], "box has no still"),
        (["--size", "32x64", "--canvas", "on"], "frames have 32x64"),
        (["--canvas", "maybe"], "maybe"),
    ],
    ids=["portrait", "picture", "size of another shape", "neither on nor off"],
)
def test_a_canvas_that_is_not_to_be_had_is_wrong_usage_in_one_line(
    root: Path, folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(STILL[40:136, 30:126]).save("box.png")
    before = {path.name for path in folder.iterdir()}
    try:
        code = render(root, "--frames", "f.npy", *options)
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1)
    assert message in said
    assert {path.name for path in folder.iterdir()} == before


def test_an_avatar_file_has_no_canvas(root: Path, folder: Path) -> None:
    Image.fromarray(STILL[40:136, 30:126]).save("box.png")
    assert main(["avatar", str(root), "box.png", "b.avatar"]) == 0
    assert render(root, "--frames", "f.npy", "--avatar", "b.avatar") == 0
    assert np.load("f.npy").shape[1:3] == (32, 32)


# ── inspect ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_inspect_lists_avatars_and_the_model_card(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(root)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "portraits any; avatars: bruno, anna" in lines
    assert "avatar bruno: canvas 180x160; box top 40, left 30, bottom 136, right 126 (96x96), feather 8" in lines
    assert "avatar anna: a portrait, no canvas" in lines
    assert "card MODEL_CARD.md, 17 B" in lines


def test_inspect_says_the_same_to_machines(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(root), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["avatars"] == {
        "bruno": {"still": "avatars/bruno.png", "box": list(BOX), "feather": 8, "size": [180, 160]},
        "anna": "avatars/anna.safetensors",
    }
    assert whole["model_card"] == "MODEL_CARD.md"


# ── Packages that are refused ────────────────────────────────────────────────────────────────────────────────────────


def at(key: str, value: object) -> Callable[[Path], None]:
    return lambda root: change_manifest(root, lambda fields: fields["avatars"]["bruno"].update({key: value}))


def still(content: bytes) -> Callable[[Path], None]:
    return lambda root: replace_file(root, "avatars/bruno.png", content)


def png(pixels: Pixels = STILL, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, **({"format": "PNG"} | options))
    return data.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def told(note: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", note)
    return info


def _missing(root: Path) -> None:
    (root / "avatars" / "bruno.png").unlink()


def _replaced(root: Path) -> None:
    (root / "avatars" / "bruno.png").write_bytes(png(STILL[::-1]))


def _named_after_another_kind(root: Path) -> None:
    (root / "avatars" / "bruno.png").rename(root / "avatars" / "bruno.jpg")

    def change(fields: dict[str, Any]) -> None:
        fields["files"]["avatars/bruno.jpg"] = fields["files"].pop("avatars/bruno.png")
        fields["avatars"]["bruno"]["still"] = "avatars/bruno.jpg"

    change_manifest(root, change)


WHOLE = png()
INTERLACED = WHOLE[:28] + b"\x01" + zlib.crc32(WHOLE[12:28] + b"\x01").to_bytes(4, "big") + WHOLE[33:]
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "still missing": (_missing, "missing"),
    "still replaced by another": (_replaced, "size digest"),
    "still of another name": (_named_after_another_kind, "manifest"),
    "still that the manifest does not list": (at("still", "avatars/carl.png"), "manifest"),
    "still outside of the package": (at("still", "../bruno.png"), "manifest"),
    "still truncated": (still(WHOLE[:-100]), "still"),
    "still without its end": (still(WHOLE[:-12]), "still"),
    "still with something behind it": (still(WHOLE + b"PK\x03\x04"), "still"),
    "still with a flipped bit": (still(WHOLE[:200] + bytes([WHOLE[200] ^ 1]) + WHOLE[201:]), "still"),
    "empty still": (still(b""), "still"),
    "still that is a sound": (still(b"RIFF????WAVE"), "still"),
    "still that is a JPEG": (still(png(format="JPEG")), "still"),
    "still that tells something": (still(png(pnginfo=told("hello"))), "still"),
    "still with a profile": (still(png(icc_profile=b"profile")), "still"),
    "still in grey": (still(png(STILL[:, :, 0])), "still"),
    "still with transparency": (still(png(np.dstack([STILL, STILL[:, :, :1]]))), "still"),
    "interlaced still": (still(INTERLACED), "still"),
    "still of 8 pixels": (still(png(STILL[:8, :8])), "still"),
    "still that is said to be huge": (
        still(WHOLE[:8] + chunk(b"IHDR", b"\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0") + WHOLE[33:]),
        "still",
    ),
    "still with a header of another length": (
        still(WHOLE[:8] + chunk(b"IHDR", WHOLE[16:29] + b"\0") + WHOLE[33:]),
        "still",
    ),
    "still with odd sides": (still(png(STILL[:179])), "still"),
    "box outside": (at("box", [100, 30, 196, 126]), "still"),
    "box upside down": (at("box", [136, 30, 40, 126]), "still"),
    "box too small": (at("box", [40, 30, 48, 38]), "still"),
    "box of another shape than the frames": (at("box", [40, 30, 136, 110]), "still"),
    "box of three numbers": (at("box", [40, 30, 136]), "manifest"),
    "box of fractions": (at("box", [0.2, 0.2, 0.8, 0.8]), "manifest"),
    "box of text": (at("box", ["40", "30", "136", "126"]), "manifest"),
    "feather too large": (at("feather", 48), "still"),
    "feather below 0": (at("feather", -1), "manifest"),
    "feather of part of a pixel": (at("feather", 0.5), "manifest"),
    "unknown key": (at("blur", 3), "manifest"),
    "model card missing": (lambda root: (root / "MODEL_CARD.md").unlink(), "missing"),
    "model card that no manifest names": (
        lambda root: change_manifest(root, lambda fields: fields.update(model_card=None)),
        "unlisted",
    ),
    "model card that is no text's name": (
        lambda root: change_manifest(root, lambda fields: fields.update(model_card=["MODEL_CARD.md"])),
        "manifest",
    ),
    "model card that is changed": (
        lambda root: (root / "MODEL_CARD.md").write_text("# Bruno\n\nSombody\n"),
        "digest",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=BAD)
def test_a_bad_canvas_is_refused_in_one_line_when_the_package_is_opened(
    root: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, codes = BAD[case]
    copied = copy_of(root, tmp_path / "p.edgereels")
    damage(copied)
    monkeypatch.setattr(Image, "open", lambda *_args, **_more: pytest.fail("a picture was decoded"))
    with pytest.raises(PackageError) as caught:
        ModelPackage.open(copied)
    assert caught.value.code in codes.split()
    assert str(caught.value).isprintable()


def test_an_unchanged_copy_opens(root: Path, tmp_path: Path) -> None:
    """The control of the test above."""
    assert ModelPackage.open(copy_of(root, tmp_path / "p.edgereels")).digest == ModelPackage.open(root).digest


def test_pixels_that_can_not_be_decompressed_are_one_line_where_they_are_needed(root: Path, tmp_path: Path) -> None:
    """Opening looks at chunks and checksums only; these are sound."""
    copied = copy_of(root, tmp_path / "p.edgereels")
    pixels = zlib.compress(bytes(1000))
    replace_file(copied, "avatars/bruno.png", WHOLE[:33] + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    with AvatarSession.open(copied) as opened, pytest.raises(PackageError, match="can't be decoded") as caught:
        opened.stream(audio=SOUND)
    assert str(caught.value).isprintable()


def test_a_package_of_version_2_still_opens(tmp_path: Path) -> None:
    older = write_stand_in(tmp_path / "older.edgereels")
    change_manifest(older, lambda fields: fields.update(format_version=2))
    package = ModelPackage.open(older)
    assert (package.manifest.format_version, package.manifest.model_card) == (2, None)
    with AvatarSession.open(older) as opened:
        assert shown(opened).shape[1:3] == (32, 32)


def test_a_still_is_stored_without_loss_and_in_the_one_kind_that_opens(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    path = tmp_path / "still.png"
    path.write_bytes(still_bytes(pixels))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    assert [name for name in (b"IHDR", b"IDAT", b"IEND", b"tEXt", b"pHYs") if name in path.read_bytes()] == [
        b"IHDR",
        b"IDAT",
        b"IEND",
    ]
