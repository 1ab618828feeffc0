# SPDX-License-Identifier: Apache-2.0
"""An avatar: one identity prepared for a package. On disk it is one safetensors file with a JSON header, no code.

Tensors: `portrait` uint8 [H, W, 3] RGB; where the package has these networks, `text_prompt` and `text_negative`
[tokens, width], `image_features` [1, tokens, width]; `condition_latents` [1, 16, T, h, w], the encoded first pass.
The last two belong to one size and window and are computed again for any other. The header names the SHA-256 of all
tensors: a file that was changed is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .canvas import Canvas
from .errors import PackageError
from .image_file import MOST_PIXELS, SMALLEST_SIDE
from .sinks import BytesSink

FORMAT = "edgereels-avatar"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 1 << 30
"""Larger files are refused before they are read; a 480x832 avatar takes about 10 MB."""


@dataclass(frozen=True)
class Avatar:
    """What is costly and constant about one identity."""

    name: str
    """How messages call it."""
    portrait: npt.NDArray[np.uint8]
    """(H, W, 3) RGB, upright, at its own size."""
    text_prompt: npt.NDArray[np.float32] | None = None
    """Embedding of the user's prompt [tokens, width]; None: the connection prompt is used."""
    text_negative: npt.NDArray[np.float32] | None = None
    """Embedding of the negative prompt [tokens, width]; None: the package's own."""
    image_features: npt.NDArray[np.float32] | None = None
    """Of the portrait at `size` [1, tokens, width]."""
    condition_latents: npt.NDArray[np.float32] | None = None
    """Encoded clip of the key-frame pass at `size` and `window`: [1, 16, T, h, w]."""
    size: tuple[int, int] | None = None
    """(height, width) that the prepared tensors belong to."""
    window: int | None = None
    """Frames in the window that `condition_latents` belongs to."""
    package_digest: str | None = None
    """Digest of the package that prepared the tensors; they are ignored by any other."""
    canvas: Canvas | None = None
    """Still and box that frames are shown in; avatar files don't hold it."""


_RANKS = {"text_prompt": 2, "text_negative": 2, "image_features": 3, "condition_latents": 5}
_TENSORS = tuple(_RANKS)


def write_avatar(path: Path, avatar: Avatar) -> None:
    """Write an avatar file, aside first and then renamed.

    Raises:
        OutputError: it can't be written.
    """
    from safetensors.numpy import save

    tensors = {"portrait": np.ascontiguousarray(avatar.portrait)}
    tensors |= {name: np.ascontiguousarray(value) for name in _TENSORS if (value := getattr(avatar, name)) is not None}
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": avatar.name,
        "size": avatar.size,
        "window": avatar.window,
        "package_digest": avatar.package_digest,
        "sha256": _digest(tensors),
    }
    with BytesSink(path) as sink:
        sink.write(save(tensors, metadata={FORMAT: json.dumps(header)}))


def _digest(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 of all tensors, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        found.update(np.ascontiguousarray(tensors[name]).data)
    return found.hexdigest()


def read_avatar(path: Path) -> Avatar:
    """Read an avatar file.

    Raises:
        PackageError: it is no avatar file, damaged, of another version, or its tensors don't make sense.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise PackageError(f"{path} is not a file; expected an avatar made by `edgereels avatar`")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PackageError(
            f"{path} has {path.stat().st_size} bytes; expected an avatar file of at most {MAX_FILE_BYTES}"
        )
    try:
        with safe_open(path, framework="np") as file:
            header: Any = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise PackageError(
            f"{path} is damaged or no avatar file ({error}): make it again with `edgereels avatar`"
        ) from error
    return _checked(path, header, tensors)


def _checked(path: Path, header: Any, tensors: dict[str, npt.NDArray[Any]]) -> Avatar:
    """Build the avatar from what a file held, or say what is wrong with it."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PackageError(f"{path} has no avatar header; expected a file made by `edgereels avatar`")
    if header.get("format_version") != FORMAT_VERSION:
        raise PackageError(
            f"{path} has avatar format version {header.get('format_version')}; this build reads {FORMAT_VERSION}"
        )
    unknown = sorted(set(tensors) - {"portrait", *_TENSORS})
    portrait = tensors.get("portrait")
    if unknown or portrait is None or portrait.dtype != np.uint8 or portrait.ndim != 3 or portrait.shape[2] != 3:
        raise PackageError(
            f"{path} lacks a uint8 portrait [H, W, 3] or holds unknown tensors {unknown}: "
            "make it again with `edgereels avatar`"
        )
    height, width = portrait.shape[:2]
    if min(height, width) < SMALLEST_SIDE or height * width > MOST_PIXELS:
        raise PackageError(
            f"{path} has a portrait of {width} x {height} pixels; expected {SMALLEST_SIDE} a side to "
            f"{MOST_PIXELS // 1_000_000} million: make it again with `edgereels avatar`"
        )
    for name in set(tensors) & set(_TENSORS):
        if tensors[name].dtype != np.float32 or not np.isfinite(tensors[name]).all():
            raise PackageError(f"{path}: {name} is not finite float32: make it again with `edgereels avatar`")
        if tensors[name].ndim != _RANKS[name]:
            raise PackageError(
                f"{path}: {name} has the shape {tensors[name].shape}; expected {_RANKS[name]} axes: "
                "make it again with `edgereels avatar`"
            )
    if header.get("sha256") != _digest(tensors):
        raise PackageError(f"{path} was changed since it was made: make it again with `edgereels avatar`")
    try:
        size = header["size"] and (int(header["size"][0]), int(header["size"][1]))
        window = header["window"] and int(header["window"])
    except (LookupError, TypeError, ValueError) as error:
        raise PackageError(f"{path} has a damaged header ({error}): make it again with `edgereels avatar`") from error
    return Avatar(
        name=str(header.get("name")),
        portrait=portrait,
        size=size,
        window=window,
        package_digest=header.get("package_digest"),
        text_prompt=tensors.get("text_prompt"),
        text_negative=tensors.get("text_negative"),
        image_features=tensors.get("image_features"),
        condition_latents=tensors.get("condition_latents"),
    )
