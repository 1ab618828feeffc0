# SPDX-License-Identifier: Apache-2.0
"""Stills and model cards on their way from a checkpoint into a package, and from there into a quantized one."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgereels.export.export_checkpoint import _add_avatar, _avatar, _model_card
from edgereels.export.overrides import Picture, read_overrides
from edgereels.quant.quantize import _carry_over
from edgereels.runtime.avatar import Avatar
from edgereels.runtime.canvas import Canvas
from edgereels.runtime.errors import CheckpointError, MediaError
from edgereels.runtime.manifest import StillEntry
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.package_writer import PackageWriter
from edgereels.runtime.prepare import find_avatar

from .package_examples import add_dit, add_rest, manifest_fields
from .stand_in_package import portrait, write_stand_in

BOX = (50, 50, 166, 166)
STILL = portrait(seed=2, height=216, width=216)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stills") / "anna.png"
    Image.fromarray(STILL).save(path, pnginfo=None, dpi=(72, 72))
    return path


def read(folder: Path, entry: dict[str, Any], **more: Any) -> Avatar:
    """Read an avatar as export does, from an overrides.json for frames of 192x192."""
    (folder / "overrides.json").write_text(json.dumps({"sizes": {"1.00": [192, 192]}, "avatars": {"anna": entry}}))
    overrides = read_overrides(folder)
    return _avatar("anna", overrides.avatars["anna"], overrides)


def test_the_portrait_is_what_the_box_holds(still: Path) -> None:
    avatar = read(still.parent, {"still": "anna.png", "box": list(BOX), "feather": 24})
    np.testing.assert_array_equal(avatar.portrait, STILL[50:166, 50:166])
    assert avatar.canvas is not None
    assert (avatar.canvas.box, avatar.canvas.feather) == (BOX, 24)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "box outside": ({"box": [50, 150, 166, 266]}, "not inside the still of 216 x 216"),
    "box upside down": ({"box": [166, 50, 50, 166]}, "not inside"),
    "box too small": ({"box": [50, 50, 58, 58]}, "at least 16"),
    "box of another shape": ({"box": [50, 50, 166, 150]}, "frames have 192x192: change the box"),
    "feather too large": ({"feather": 58}, "less than half of the box, 58"),
    "feather below 0": ({"feather": -1}, "expected 0 or more"),
}


@pytest.mark.parametrize("case", REFUSED, ids=REFUSED)
def test_what_does_not_fit_is_refused_before_any_graph_is_made(still: Path, case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        read(still.parent, {"still": "anna.png", "box": list(BOX), "feather": 24} | change)
    assert str(caught.value).startswith("avatar 'anna' (anna.png): ") and str(caught.value).isprintable()


def test_a_still_has_the_shape_of_the_published_sizes_where_none_are_given(still: Path) -> None:
    with pytest.raises(CheckpointError, match="frames have"):
        _avatar("anna", Picture(still, (0, 0, 140, 216), 8), read_overrides(Path("nowhere")))
    made = _avatar("anna", Picture(still, BOX, 8), read_overrides(Path("nowhere")))  # a square is one of them
    assert made.portrait.shape == (116, 116, 3)


@pytest.mark.parametrize("length", [0, 1, 100, 2000], ids=str)
def test_a_truncated_still_is_refused(still: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "anna.png").write_bytes(still.read_bytes()[:length])
    with pytest.raises(MediaError, match=r"anna\.png"):
        read(tmp_path, {"still": "anna.png", "box": list(BOX)})


def write(target: Path, avatar: Avatar, *, card: bytes | None = None) -> ModelPackage:
    with PackageWriter(target) as writer:
        add_dit(writer)
        add_rest(writer)
        fields = manifest_fields()
        fields["avatars"]["bruno"] = _add_avatar(writer, avatar)
        if card:
            writer.add_file("MODEL_CARD.md", card)
            fields["model_card"] = "MODEL_CARD.md"
        return writer.finish(fields)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_stills_of_any_format_become_the_one_kind_that_packages_hold(tmp_path: Path, suffix: str) -> None:
    """A camera's notes stay behind; the pixels are those that were read."""
    file = tmp_path / f"bruno.{suffix}"
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(STILL).save(file, exif=exif)
    package = write(tmp_path / "p", _avatar("bruno", Picture(file, BOX, 24), read_overrides(tmp_path)))
    assert package.manifest.avatars["bruno"] == StillEntry("avatars/bruno.png", BOX, 24)
    assert b"camera" not in package.avatar_path("bruno").read_bytes()
    canvas = find_avatar(package, avatar="bruno").canvas
    assert canvas is not None
    np.testing.assert_array_equal(canvas.still, np.asarray(Image.open(file).convert("RGB")))


def test_a_portrait_stays_a_file_of_its_own(tmp_path: Path) -> None:
    Image.fromarray(STILL[:64, :64]).save(tmp_path / "bruno.png")
    package = write(tmp_path / "p", _avatar("bruno", Picture(tmp_path / "bruno.png"), read_overrides(tmp_path)))
    assert package.manifest.avatars["bruno"] == "avatars/bruno.safetensors"
    assert find_avatar(package, avatar="bruno").canvas is None


# ── Model cards ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_card_is_taken_as_it_is(tmp_path: Path) -> None:
    assert _model_card(tmp_path) is None
    (tmp_path / "MODEL_CARD.md").write_text("# Änna\n", encoding="utf-8")
    assert _model_card(tmp_path) == "# Änna\n".encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "no UTF-8 text"), (b"a" * (1 << 20) + b"a", "shorten it")],
    ids=["no text", "too long"],
)
def test_a_model_card_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "MODEL_CARD.md").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        _model_card(tmp_path)


def test_quantizing_carries_stills_and_card_over(tmp_path: Path) -> None:
    source = ModelPackage.open(
        write_stand_in(
            tmp_path / "a.edgereels",
            canvases={"bruno": Canvas(_small(), (8, 8, 72, 72), 4)},
            model_card="# Bruno\n",
        )
    )
    carried = ("avatars/bruno.png", "avatars/anna.safetensors", "MODEL_CARD.md")
    with contextlib.suppress(InterruptedError), PackageWriter(tmp_path / "b.edgereels") as writer:
        _carry_over(source, writer=writer)
        for name in carried:
            assert (writer.folder / name).read_bytes() == (source.root / name).read_bytes()
        raise InterruptedError


def _small() -> npt.NDArray[np.uint8]:
    return portrait(height=80, width=80)
