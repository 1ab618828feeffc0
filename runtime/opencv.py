# SPDX-License-Identifier: Apache-2.0
"""Finding OpenCV, and before PyAV: on Linux both bring an XCB of their own, and OpenCV's windows hang on the other's.

The order in which the two are loaded decides (https://github.com/opencv/opencv/issues/29195).
"""

import os
import sys
from contextlib import suppress
from typing import Any

from .errors import MissingExtraError


def import_cv2(*, purpose: str) -> Any:
    """Return OpenCV.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError("cv2", extra="live", purpose=purpose) from error
    return cv2


def load_before_av() -> None:
    """Load OpenCV, if it is there, where a window may be opened later; called before PyAV is imported."""
    if sys.platform.startswith("linux") and os.environ.get("DISPLAY") and "av" not in sys.modules:
        with suppress(ImportError):
            import cv2  # noqa: F401  # pyright: ignore[reportUnusedImport]


def is_behind_av() -> bool:
    """Return whether PyAV was loaded before OpenCV, so that a window would hang for good."""
    loaded = list(sys.modules)
    if not sys.platform.startswith("linux") or "av" not in loaded:
        return False
    return "cv2" not in loaded or loaded.index("av") < loaded.index("cv2")
