# SPDX-License-Identifier: Apache-2.0
"""`edgereels avatar`, on packages that stand in for real ones."""

import json
import struct
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgereels.runtime.avatar import read_avatar
from edgereels.runtime.cli import main

from .stand_in_package import portrait, write_stand_in


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "text", has_text=True, has_image=True)


@pytest.fixture(scope="module")
def silent_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "plain")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, holding a portrait, i.png."""
    Image.fromarray(portrait(seed=1)).save(tmp_path / "i.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names() -> set[str]:
    return {path.name for path in Path().iterdir()}


def test_an_avatar_of_another_package_is_used_for_its_portrait_and_that_is_said(
    package: Path, silent_package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = np.sin(np.arange(8000) * 0.1)
    with wave.open("s.wav", "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((samples * 9000).astype("<i2").tobytes())
    assert main(["avatar", str(package), "i.png", "a"]) == 0
    capsys.readouterr()
    for face, words in (("a", "only the portrait is used"), ("i.png", "")):
        kind = "--avatar" if face == "a" else "--image"
        arguments = ["--package", str(silent_package), kind, face, "--audio", "s.wav", "--frames", f"{face}.npy"]
        assert main(["render", *arguments]) == 0
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == bool(words)
    assert np.array_equal(np.load("a.npy"), np.load("i.png.npy"))


def test_an_avatar_file_holds_what_is_costly_and_constant(
    package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ftfy")
    arguments = ["avatar", str(package), "i.png", "a", "--prompt", "a person is singing", "--threads", "1", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert captured.err == ""
    assert (summary["file"], summary["size"], summary["window"]) == ("a", [32, 32], 13)
    assert summary["size_bytes"] == (folder / "a").stat().st_size
    got = summary["engines"]["vae_encoder_first"]
    assert (got["asked"], got["provider"], got["precision"]) == ("cpu", "CPUExecutionProvider", "f32")
    made = read_avatar(folder / "a")
    assert made.text_prompt is not None
    assert made.text_negative is None
    assert made.image_features is not None
    assert made.condition_latents is not None
    assert made.condition_latents.shape == (1, 16, 4, 4, 4)
    assert np.array_equal(made.portrait, portrait(seed=1))
    assert names() == {"i.png", "a"}


def test_it_is_one_safetensors_file_with_a_json_header_and_no_code(package: Path, folder: Path) -> None:
    assert main(["avatar", str(package), "i.png", "a"]) == 0
    content = (folder / "a").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert {value["dtype"] for key, value in header.items() if key != "__metadata__"} <= {"U8", "F32"}
    assert json.loads(header["__metadata__"]["edgereels-avatar"])["format_version"] == 1


def test_what_was_made_and_what_computed_it_is_said(
    silent_package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["avatar", str(silent_package), "i.png", "a", "--size", "32x64", "--window", "17"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("wrote a", "32x64", "17 frames", "CPUExecutionProvider", "f32"))


BAD: dict[str, tuple[int, list[str], str]] = {
    "no such package": (1, ["none", "i.png", "a"], "none"),
    "no such picture": (1, ["PACKAGE", "none.png", "a"], "none.png"),
    "parent missing": (1, ["PACKAGE", "i.png", "nowhere/a"], "nowhere"),
    "target is a folder": (1, ["PACKAGE", "i.png", "."], "folder"),
    "target is the picture": (2, ["PACKAGE", "i.png", "i.png"], "i.png"),
    "prompt where none is taken": (1, ["PACKAGE", "i.png", "a", "--prompt", "hello"], "prompt"),
    "window not 4n+1": (2, ["PACKAGE", "i.png", "a", "--window", "12"], "12"),
    "size not a multiple of 16": (2, ["PACKAGE", "i.png", "a", "--size", "33x32"], "33x32"),
    "no target": (2, ["PACKAGE", "i.png"], "OUT"),
    "f16 on a CPU": (1, ["PACKAGE", "i.png", "a", "--compute", "f16"], "f32"),
}


@pytest.mark.parametrize("case", BAD, ids=BAD)
def test_what_is_wrong_is_one_line_that_names_it_and_leaves_nothing(
    case: str, silent_package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, options, named = BAD[case]
    arguments = [str(silent_package) if option == "PACKAGE" else option for option in options]
    before = (folder / "i.png").read_bytes()
    assert main(["avatar", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert names() == {"i.png"}
    assert (folder / "i.png").read_bytes() == before


def test_a_package_without_the_encoder_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = write_stand_in(folder / "partial", without=("vae_encoder",))
    assert main(["avatar", str(package), "i.png", "a"]) == 1
    assert "has no vae_encoder" in capsys.readouterr().err


def test_a_target_that_exists_is_replaced(silent_package: Path, folder: Path) -> None:
    (folder / "a").write_text("old")
    assert main(["avatar", str(silent_package), "i.png", "a"]) == 0
    assert read_avatar(folder / "a").name == "i"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut, id="cut"),
        pytest.param(flip, id="a flipped bit"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(100)), id="a pickle"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a folder"),
    ],
)
def test_a_damaged_avatar_is_refused(
    damage: Any, silent_package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from .test_command_render import write_wav

    assert main(["avatar", str(silent_package), "i.png", "a"]) == 0
    damage(folder / "a")
    write_wav(folder / "s.wav", seconds=1)
    capsys.readouterr()
    code = main(["render", "--package", str(silent_package), "--audio", "s.wav", "--frames", "f", "--avatar", "./a"])
    assert code == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert names() == {"i.png", "s.wav", "a"}


@pytest.mark.parametrize("module", ["ftfy", "tokenizers"])
def test_without_a_prompt_no_tokenizer_is_needed(
    module: str, package: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["avatar", str(package), "i.png", "a"]) == 0
    assert main(["avatar", str(package), "i.png", "b", "--prompt", "hello"]) == 1
    assert names() == {"i.png", "a"}


def test_preparing_a_face_needs_nothing_that_writes_videos(
    package: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["avatar", str(package), "i.png", "a"]) == 0
    assert main(["render", "--package", str(package), "--image", "i.png", "--audio", "no.wav", "--out", "v.mp4"]) != 0


def test_an_avatar_is_not_written_into_its_package(
    package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in package.iterdir()}
    assert main(["avatar", str(package), "i.png", str(package / "mine.avatar")]) == 2
    assert "expected a file outside of it" in capsys.readouterr().err
    assert {path.name for path in package.iterdir()} == before
