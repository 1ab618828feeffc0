# SPDX-License-Identifier: Apache-2.0
"""Overrides: which file wins, what the defaults are, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgereels.export.overrides import (
    CLIP_DEFAULTS,
    UMT5_DEFAULTS,
    VAE_DEFAULTS,
    Overrides,
    Picture,
    read_overrides,
)
from edgereels.runtime.errors import CheckpointError


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_without_any_file_everything_is_as_published(tmp_path: Path) -> None:
    found = read_overrides(tmp_path)
    assert found == Overrides()
    assert found.settings == {"window": 81, "motion": 5, "drop": 12, "steps": 4, "shift": 11.0, "fps": 25}
    assert (found.umt5["encoder_layers"], found.clip["vision_layers"], found.vae["dim"]) == (24, 32, 96)


def test_a_file_on_the_command_line_wins_key_by_key(tmp_path: Path) -> None:
    write(tmp_path / "overrides.json", {"_video_vae": {"dim": 8, "z_dim": 16}, "settings": {"window": 33}, "name": "a"})
    file = write(tmp_path / "mine.json", {"_video_vae": {"dim": 12}, "settings": {"steps": 2}})
    found = read_overrides(tmp_path, file=file)
    assert (found.vae["dim"], found.vae["z_dim"], found.vae["num_res_blocks"]) == (12, 16, 2)
    assert (found.settings["window"], found.settings["steps"], found.settings["shift"]) == (33, 2, 11.0)
    assert found.name == "a"


def test_a_table_of_sizes_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "overrides.json", {"sizes": {"1.00": [128, 128], "0.50": [64, 128]}})
    file = write(tmp_path / "mine.json", {"sizes": {"1.00": [192, 192]}})
    assert read_overrides(tmp_path, file=file).sizes == {"1.00": (192, 192)}


def test_notes_are_ignored(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.json", {"note": "hello", "defaults_replaced": {"anything": [1]}})
    assert read_overrides(tmp_path, file=file) == Overrides()


@pytest.mark.golden
def test_the_golden_overrides_are_read(golden_checkpoints: Path) -> None:
    found = read_overrides(golden_checkpoints / "a2v", file=golden_checkpoints / "a2v" / "tiny.json")
    assert (found.umt5["num_heads"], found.clip["vision_mlp_ratio"], found.vae["dim"]) == (4, 0.1, 8)
    theirs = json.loads((golden_checkpoints / "a2v" / "tiny.json").read_text())["defaults_replaced"]
    for ours, group in ((UMT5_DEFAULTS, "umt5_xxl"), (CLIP_DEFAULTS, "clip_xlm_roberta_vit_h_14")):
        assert {key: ours[key] for key in theirs[group]} == theirs[group]
    assert VAE_DEFAULTS["dim"] == theirs["_video_vae"]["dim"]


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown key": ({"windows": 81}, "unknown keys windows"),
    "unknown setting": ({"settings": {"windw": 81}}, "unknown keys windw"),
    "unknown constructor argument": ({"_video_vae": {"dims": 8}}, "unknown keys dims"),
    "group that is no object": ({"umt5_xxl": 3}, "expected an object"),
    "text for a number": ({"_video_vae": {"dim": "8"}}, "expected a number"),
    "true for a number": ({"_video_vae": {"dim": True}}, "expected a number"),
    "broken number of channels": ({"_video_vae": {"dim": 8.5}}, "expected a number"),
    "number for a list": ({"_video_vae": {"dim_mult": 4}}, "expected a list"),
    "window": ({"settings": {"window": 80}}, "window is 80"),
    "nothing left of a window": ({"settings": {"window": 17, "motion": 5, "drop": 12}}, "leaves 0 new frames"),
    "no room for the key frame": ({"settings": {"window": 9, "motion": 5, "drop": 0}}, "no room for motion 5"),
    "no steps": ({"settings": {"steps": 0}}, "steps is 0"),
    "shift beyond float32": ({"settings": {"shift": 1e300}}, "shift is 1e"),
    "no frames a second": ({"settings": {"fps": 0}}, "fps is 0"),
    "size off the grid": ({"sizes": {"1.00": [100, 100]}}, "multiples of 16"),
    "size with a name": ({"sizes": {"square": [128, 128]}}, "multiples of 16"),
    "portraits": ({"portraits": "some"}, "expected any or listed"),
    "avatar that is not there": ({"avatars": {"anna": "anna.png"}}, "not there"),
    "avatar with a strange name": ({"avatars": {"../anna": "anna.png"}}, "avatar name"),
    "avatar with a name beyond ASCII": ({"avatars": {"ännå": "anna.png"}}, "avatar name"),
    "avatar with a slash": ({"avatars": {"a/b": "anna.png"}}, "avatar name"),
    "avatar called like a device": ({"avatars": {"con": "anna.png"}}, "avatar name"),
    "size with a sign": ({"sizes": {"-1.00": [128, 128]}}, "multiples of 16"),
    "size with a blank": ({"sizes": {" 1.00": [128, 128]}}, "multiples of 16"),
    "avatars that are a list": ({"avatars": ["anna.png"]}, "expected an object"),
    "avatar that is no text": ({"avatars": {"anna": 3}}, "expected a picture, or"),
    "still without a box": ({"avatars": {"anna": {"still": "anna.png"}}}, "expected a picture, or"),
    "still that is not there": ({"avatars": {"anna": {"still": "anna.png", "box": [0, 0, 32, 32]}}}, "not there"),
    "box of three": ({"avatars": {"anna": {"still": "anna.png", "box": [0, 0, 32]}}}, "expected a picture, or"),
    "box of broken numbers": (
        {"avatars": {"anna": {"still": "anna.png", "box": [0, 0, 32, 32.5]}}},
        "expected a picture, or",
    ),
    "box of truths": ({"avatars": {"anna": {"still": "anna.png", "box": [0, 0, 32, True]}}}, "expected a picture, or"),
    "feather in words": (
        {"avatars": {"anna": {"still": "anna.png", "box": [0, 0, 32, 32], "feather": "soft"}}},
        "expected a picture, or",
    ),
    "still with more to say": (
        {"avatars": {"anna": {"still": "anna.png", "box": [0, 0, 32, 32], "blur": 3}}},
        "expected a picture, or",
    ),
    "mouth box": ({"mouth_box": [0.5, 0.2, 0.4, 0.8]}, "mouth_box"),
    "name": ({"name": 3}, "expected a text"),
    "no JSON": ("{", "cannot be read as JSON"),
    "a key twice": ('{"name": "a", "name": "b"}', "occurs twice"),
    "a list": ("[]", "expected an object"),
}


@pytest.mark.parametrize("case", REFUSED, ids=REFUSED)
def test_what_makes_no_sense_is_refused(tmp_path: Path, case: str) -> None:
    value, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        read_overrides(tmp_path, file=write(tmp_path / "mine.json", value))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mine\.json"):
        read_overrides(tmp_path, file=tmp_path / "mine.json")


def test_pictures_lie_in_the_checkpoint_or_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "anna.png").write_bytes(b"")
    (tmp_path / "bert.png").write_bytes(b"")
    file = write(tmp_path / "mine.json", {"avatars": {"anna": "anna.png", "bert": "bert.png"}})
    found = read_overrides(tmp_path / "checkpoint", file=file)
    assert found.avatars == {
        "anna": Picture(tmp_path / "checkpoint" / "anna.png"),
        "bert": Picture(tmp_path / "bert.png"),
    }


def test_an_avatar_may_be_a_box_in_a_still(tmp_path: Path) -> None:
    (tmp_path / "anna.png").write_bytes(b"")
    avatars = {
        "anna": {"still": "anna.png", "box": [252, 250, 828, 826], "feather": 0},
        "bert": {"still": "anna.png", "box": [0, 0, 576, 576]},
        "carl": "anna.png",
    }
    found = read_overrides(tmp_path, file=write(tmp_path / "mine.json", {"avatars": avatars})).avatars
    assert found["anna"] == Picture(tmp_path / "anna.png", (252, 250, 828, 826), 0)
    assert found["bert"] == Picture(tmp_path / "anna.png", (0, 0, 576, 576), 24)
    assert found["carl"] == Picture(tmp_path / "anna.png")
