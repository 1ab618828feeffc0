# SPDX-License-Identifier: Apache-2.0
"""Reads portraits: any common picture, upright, as 8-bit RGB. Sizes are judged from the header, before decoding."""

import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow is let near; its parsers for rarer formats have a longer list of advisories."""

SMALLEST_SIDE = 16
"""Pixels; less shows no face."""

MOST_PIXELS = 50_000_000
"""Larger pictures are refused: decoding one would take more than 150 MB."""

Pixels = npt.NDArray[np.uint8]

# What Pillow raises on files that are damaged, found by cutting and flipping bytes of each format.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    ArithmeticError,
    LookupError,
    TypeError,
)


def load_portrait(path: Path | str) -> Pixels:
    """Read a picture as RGB, shape (H, W, 3).

    Grey, 16-bit, palette and CMYK pictures are converted, transparency is laid on white, a rotation noted by the camera
    is carried out, and of an animation the first frame is taken.

    Raises:
        MediaError: the file is missing, unreadable, truncated, below 16 pixels a side or above 50 million pixels.
    """
    path = Path(path)
    _check_is_file(path)
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage that is met below, or that doesn't matter
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"{path} is in no known picture format; expected {', '.join(FORMATS)}: convert it") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MediaError(f"{path} can't be decoded ({reason}); expected a whole picture: save it again") from error


def _decode(path: Path) -> Pixels:
    from PIL import Image, ImageOps

    with Image.open(path, formats=FORMATS) as header:
        _check_size(path, header.size)
        if header.format == "PNG":
            header.verify()  # checksums, and that it ends where it should; decoding alone checks neither
    with Image.open(path, formats=FORMATS) as image:
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)  # in place, because a copy of the largest picture is 150 MB
        except _DAMAGE as error:
            logger.warning("%s: the note about its rotation is damaged (%s): taken as it is", path, error)
        return _to_rgb(image)


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise MediaError(f"{path} doesn't exist; expected a picture: check the name")
    if not path.is_file():
        raise MediaError(f"{path} is not a file; expected a picture: name the file itself")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty; expected a picture: save or copy it again")


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if min(width, height) < SMALLEST_SIDE:
        raise MediaError(
            f"{path} has {width} x {height} pixels; expected at least {SMALLEST_SIDE} a side: use a larger picture"
        )
    if width * height > MOST_PIXELS:
        raise _too_large(path)


def _too_large(path: Path) -> MediaError:
    return MediaError(f"{path} has more than {MOST_PIXELS // 1_000_000} million pixels; expected fewer: scale it down")


def _to_rgb(image: "PillowImage") -> Pixels:
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        clear = grey == image.info.get("transparency", -1)
        eight = np.where(clear, 255, (grey * 255 + 32767) // 65535).astype(np.uint8)  # rounded: 65535 is 255, 128 is 0
        return np.repeat(eight[:, :, None], 3, axis=2)
    if not image.has_transparency_data:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    layers = np.asarray(image.convert("RGBA")).astype(np.uint32)
    opacity = layers[:, :, 3:]
    return ((layers[:, :, :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
