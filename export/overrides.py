# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's layout does not say: constructor arguments, settings, sizes, avatars.

A value comes from the layout's own config.json where that carries it; otherwise from ``--overrides FILE``, otherwise
from ``overrides.json`` in the checkpoint, otherwise it is the published model's. Within a group (``umt5_xxl``,
``settings``, ...) the two files are merged key by key.

An avatar is a picture, or a still with the box that the network moves, in pixels of the still::

    {"avatars": {"anna": {"still": "stills/anna.png", "box": [top, left, bottom, right], "feather": 24},
                 "bruno": "portraits/bruno.png"}}
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..runtime.errors import CheckpointError
from ..runtime.package_files import DEVICE_NAMES, NAME
from ..runtime.planner import check_settings
from ..runtime.schedulers import euler_timesteps
from .weight_files import read_json

# Constructor arguments of the published networks, by the names that the reference's constructors use.
UMT5_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 256384,
    "dim": 4096,
    "dim_attn": 4096,
    "dim_ffn": 10240,
    "num_heads": 64,
    "encoder_layers": 24,
    "decoder_layers": 24,
    "num_buckets": 32,
}
CLIP_DEFAULTS: Mapping[str, Any] = {
    "embed_dim": 1024,
    "image_size": 224,
    "patch_size": 14,
    "vision_dim": 1280,
    "vision_mlp_ratio": 4,
    "vision_heads": 16,
    "vision_layers": 32,
    "vocab_size": 250002,
    "text_dim": 1024,
    "text_heads": 16,
    "text_layers": 24,
}
VAE_DEFAULTS: Mapping[str, Any] = {
    "dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}
SETTINGS_DEFAULTS: Mapping[str, Any] = {"window": 81, "motion": 5, "drop": 12, "steps": 4, "shift": 11.0, "fps": 25}

FEATHER_PART = 24
"""A feather that isn't given is this part of the box: 24 pixels of 576, which hides a step of a few levels."""

_IGNORED = ("note", "defaults_replaced")
_GROUPS: Mapping[str, Mapping[str, Any]] = {
    "umt5_xxl": UMT5_DEFAULTS,
    "clip_xlm_roberta_vit_h_14": CLIP_DEFAULTS,
    "_video_vae": VAE_DEFAULTS,
    "settings": SETTINGS_DEFAULTS,
}
_OURS = ("sizes", "portraits", "avatars", "mouth_box", "licences", "name")


@dataclass(frozen=True)
class Picture:
    """Where an avatar's portrait is: a picture of its own, or a box in a still."""

    file: Path
    """Of the portrait or the still."""
    box: tuple[int, int, int, int] | None = None
    """Top, left, bottom, right in pixels of the still; None: the whole picture is the portrait."""
    feather: int = 0
    """Pixels over which the box is blended into the still."""


@dataclass(frozen=True)
class Overrides:
    """Every value that no layout carries, defaults filled in."""

    umt5: Mapping[str, Any] = field(default_factory=lambda: dict(UMT5_DEFAULTS))
    """Constructor arguments of the text encoder."""
    clip: Mapping[str, Any] = field(default_factory=lambda: dict(CLIP_DEFAULTS))
    """Constructor arguments of the image encoder."""
    vae: Mapping[str, Any] = field(default_factory=lambda: dict(VAE_DEFAULTS))
    """Constructor arguments of the VAE."""
    settings: Mapping[str, Any] = field(default_factory=lambda: dict(SETTINGS_DEFAULTS))
    """window, motion, drop (frames), steps, shift, fps."""
    sizes: Mapping[str, tuple[int, int]] | None = None
    """Height / width as text -> (height, width) in pixels; None: the published tables."""
    portraits: str = "any"
    """Whose face the model takes: "any", or "listed" avatars only."""
    avatars: Mapping[str, Picture] = field(default_factory=dict)
    """Name -> picture."""
    mouth_box: tuple[float, float, float, float] | None = None
    """Top, left, bottom, right as fractions of the frame."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """Subnetwork -> licence text."""
    name: str | None = None
    """What the package calls itself."""


def read_overrides(checkpoint: Path, *, file: Path | None = None) -> Overrides:
    """Read the checkpoint's overrides.json, if there is one, and the file named on the command line.

    Raises:
        CheckpointError: a file is missing or no JSON object, a key is not known, or a value is not of its kind.
    """
    merged: dict[str, Any] = {}
    avatar_folders: dict[str, Path] = {}
    inside = checkpoint / "overrides.json"
    for path in [path for path in (inside if inside.is_file() else None, file) if path is not None]:
        given = read_json(path)
        _check_keys(given, path=path)
        for key, value in given.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) and key != "sizes" else value
        for name, picture in _pictures(given.get("avatars", {}), path=path).items():
            # The checkpoint's pictures travel with it; so do those of a file that lies elsewhere, seen from the file.
            avatar_folders[name] = checkpoint if (checkpoint / picture.file).is_file() else path.parent
    return _overrides(merged, avatar_folders=avatar_folders, path=file or inside)


def _check_keys(given: Mapping[str, Any], *, path: Path) -> None:
    unknown = sorted(set(given) - {*_GROUPS, *_OURS, *_IGNORED})
    if unknown:
        raise CheckpointError(
            f"{path} has the unknown keys {', '.join(unknown)}; known are {', '.join(sorted({*_GROUPS, *_OURS}))}"
        )
    for group, defaults in _GROUPS.items():
        values = given.get(group, {})
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: {group} is {values!r}, expected an object")
        unknown = sorted(set(values) - set(defaults))
        if unknown:
            raise CheckpointError(
                f"{path}: {group} has the unknown keys {', '.join(unknown)}; known are {', '.join(sorted(defaults))}"
            )
        for key, value in values.items():
            _check_kind(value, like=defaults[key], what=f"{path}: {group}.{key}")


def _check_kind(value: Any, *, like: Any, what: str) -> None:
    """Refuse a value of another kind than the default: a number for a number, a list for a list of the same kind."""
    if isinstance(like, list):
        if not isinstance(value, list) or not value or any(type(item) is not type(like[0]) for item in value):
            raise CheckpointError(f"{what} is {value!r}, expected a list such as {like}")
        return
    # A multiple may be broken although the published one is whole.
    kinds = int if isinstance(like, int) and not what.endswith(("ratio", "fps")) else int | float
    if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise CheckpointError(f"{what} is {value!r}, expected a number such as {like}")


def _overrides(merged: Mapping[str, Any], *, avatar_folders: Mapping[str, Path], path: Path) -> Overrides:
    settings = {**SETTINGS_DEFAULTS, **merged.get("settings", {})}
    _check_settings(settings, path=path)
    return Overrides(
        umt5={**UMT5_DEFAULTS, **merged.get("umt5_xxl", {})},
        clip={**CLIP_DEFAULTS, **merged.get("clip_xlm_roberta_vit_h_14", {})},
        vae={**VAE_DEFAULTS, **merged.get("_video_vae", {})},
        settings=settings,
        sizes=_sizes(merged.get("sizes"), path=path),
        portraits=_portraits(merged.get("portraits", "any"), path=path),
        avatars=_avatars(merged.get("avatars", {}), folders=avatar_folders, path=path),
        mouth_box=_mouth_box(merged.get("mouth_box"), path=path),
        licences=_texts(merged.get("licences", {}), what=f"{path}: licences"),
        name=_text_or_none(merged.get("name"), what=f"{path}: name"),
    )


def _check_settings(settings: Mapping[str, Any], *, path: Path) -> None:
    try:
        check_settings(window=settings["window"], motion=settings["motion"], drop=settings["drop"])
        euler_timesteps(settings["steps"], shift=settings["shift"])
    except ValueError as error:
        raise CheckpointError(f"{path}: settings: {error}") from error
    if settings["fps"] <= 0:
        raise CheckpointError(f"{path}: settings: fps is {settings['fps']}; expected a number above 0")


def _sizes(table: Any, *, path: Path) -> dict[str, tuple[int, int]] | None:
    if table is None:
        return None
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f'{path}: sizes is {table!r}, expected a table such as {{"1.00": [128, 128]}}')
    found: dict[str, tuple[int, int]] = {}
    for ratio, size in table.items():
        sides = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        if not sides or any(side % 16 for side in size) or not _is_ratio(ratio):
            raise CheckpointError(
                f"{path}: sizes has {ratio!r}: {size!r}, expected height/width and two multiples of 16 in pixels"
            )
        found[ratio] = (size[0], size[1])
    return found


def _portraits(value: Any, *, path: Path) -> str:
    if value not in ("any", "listed"):
        raise CheckpointError(f"{path}: portraits is {value!r}, expected any or listed")
    return value


def _pictures(given: Any, *, path: Path) -> dict[str, Picture]:
    """Read the avatars as they stand in a file, each a picture or `{still, box, feather}`."""
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: avatars is {given!r}, expected an object")
    return {name: _picture(value, what=f"{path}: avatar {name!r}") for name, value in given.items()}


def _picture(value: Any, *, what: str) -> Picture:
    if isinstance(value, str):
        return Picture(Path(value))
    match value:
        case {"still": str(still), "box": [int(), int(), int(), int()] as box, **more} if set(more) <= {"feather"}:
            feather = more.get("feather", min(box[2] - box[0], box[3] - box[1]) // FEATHER_PART)
            if not any(isinstance(number, bool) for number in (*box, feather)) and isinstance(feather, int):
                return Picture(Path(still), (box[0], box[1], box[2], box[3]), feather)
    raise CheckpointError(
        f'{what} is {value!r}, expected a picture, or {{"still": picture, "box": [top, left, bottom, right], '
        '"feather": pixels}, all whole numbers'
    )


def _avatars(given: Any, *, folders: Mapping[str, Path], path: Path) -> dict[str, Picture]:
    found: dict[str, Picture] = {}
    for name, picture in _pictures(given, path=path).items():
        if not NAME.fullmatch(name) or name.split(".")[0].lower() in DEVICE_NAMES:
            raise CheckpointError(
                f"{path}: the avatar name {name!r} can't be a file's; expected A-Z, a-z, 0-9, dot, _ and -: rename it"
            )
        found[name] = replace(picture, file=folders[name] / picture.file)
        if not found[name].file.is_file():
            raise CheckpointError(
                f"{path}: avatar {name!r} names the picture {str(picture.file)!r}, which is not there"
            )
    return found


def _mouth_box(value: Any, *, path: Path) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value)
    if not numbers or not (0 <= value[0] < value[2] <= 1 and 0 <= value[1] < value[3] <= 1):
        raise CheckpointError(f"{path}: mouth_box is {value!r}, expected [top, left, bottom, right] within 0..1")
    return (float(value[0]), float(value[1]), float(value[2]), float(value[3]))


def _texts(value: Any, *, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or any(not isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{what} is {value!r}, expected an object of texts")
    return value


def _text_or_none(value: Any, *, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{what} is {value!r}, expected a text")
    return value


def _is_ratio(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) is not None
