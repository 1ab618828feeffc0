# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgereels.runtime.avatar import FORMAT, Avatar, read_avatar, write_avatar
from edgereels.runtime.errors import OutputError, PackageError

PORTRAIT = np.arange(20 * 16 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 16, 3)


def test_an_avatar_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = Avatar(
        "anna", PORTRAIT, text_prompt=np.ones((3, 8), np.float32), size=(64, 96), window=17, package_digest="ab"
    )
    write_avatar(tmp_path / "a", made)
    read = read_avatar(tmp_path / "a")
    assert (read.name, read.size, read.window, read.package_digest) == ("anna", (64, 96), 17, "ab")
    assert np.array_equal(read.portrait, PORTRAIT)
    assert read.image_features is None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_avatar(tmp_path / "a", Avatar("anna", PORTRAIT))
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-5])
    with pytest.raises(PackageError, match="damaged"):
        read_avatar(tmp_path / "a")


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"portrait": PORTRAIT}, tmp_path / "a")
    with pytest.raises(PackageError, match="no avatar header"):
        read_avatar(tmp_path / "a")


def test_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgereels.runtime.avatar.FORMAT_VERSION", 2)
    write_avatar(tmp_path / "a", Avatar("anna", PORTRAIT))
    monkeypatch.undo()
    with pytest.raises(PackageError, match="version 2; this build reads 1"):
        read_avatar(tmp_path / "a")


def test_nan_in_prepared_tensors_is_refused(tmp_path: Path) -> None:
    write_avatar(tmp_path / "a", Avatar("anna", PORTRAIT, image_features=np.full((1, 2, 2), np.nan, np.float32)))
    with pytest.raises(PackageError, match="not finite"):
        read_avatar(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"portrait": np.zeros((15, 20, 3), np.uint8)}, id="portrait too small"),
        pytest.param({"portrait": np.zeros((0, 20, 3), np.uint8)}, id="portrait without pixels"),
        pytest.param({"text_prompt": np.ones(8, np.float32)}, id="embedding of one axis"),
        pytest.param({"condition_latents": np.ones((16, 2, 4, 4), np.float32)}, id="latents of four axes"),
    ],
)
def test_tensors_of_another_form_are_refused(change: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_avatar(tmp_path / "a", Avatar(**{"name": "anna", "portrait": PORTRAIT, **change}))
    with pytest.raises(PackageError, match="make it again"):
        read_avatar(tmp_path / "a")


def test_a_header_nested_without_end_is_refused(tmp_path: Path) -> None:
    save_file({"portrait": PORTRAIT}, tmp_path / "a", metadata={FORMAT: "[" * 200_000})
    with pytest.raises(PackageError, match="no avatar file"):
        read_avatar(tmp_path / "a")


@pytest.mark.parametrize("where", [0.3, 0.9], ids=["portrait", "prepared"])
def test_a_flipped_bit_is_refused(where: float, tmp_path: Path) -> None:
    """Each tensor is about half of the file."""
    write_avatar(
        tmp_path / "a", Avatar("anna", np.zeros((200, 20, 3), np.uint8), text_prompt=np.ones((3, 1000), np.float32))
    )
    content = bytearray((tmp_path / "a").read_bytes())
    content[int(len(content) * where)] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(PackageError, match="was changed"):
        read_avatar(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"size": "wide"}, id="size is text"),
        pytest.param({"size": [64]}, id="size of one number"),
        pytest.param({"window": "long"}, id="window is text"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    from safetensors import safe_open

    write_avatar(tmp_path / "a", Avatar("anna", PORTRAIT))
    with safe_open(tmp_path / "a", framework="np") as file:
        header = json.loads(file.metadata()[FORMAT])
    save_file({"portrait": PORTRAIT}, tmp_path / "a", metadata={FORMAT: json.dumps(header | change)})
    with pytest.raises(PackageError, match="damaged header"):
        read_avatar(tmp_path / "a")


def test_an_avatar_that_can_not_be_written_is_one_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no folder"):
        write_avatar(tmp_path / "nowhere" / "a", Avatar("anna", PORTRAIT))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="not a file"):
        read_avatar(tmp_path / "none")
