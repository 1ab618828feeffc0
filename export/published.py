# SPDX-License-Identifier: Apache-2.0
"""What the published talking avatar is run with: sizes of pictures, prompts, limits.

Facts from SkyworkAI/SkyReels-V3 28c771e, generate_video.py and skyreels_v3/pipelines; a checkpoint carries none of it.
"""

SAMPLE_RATE = 16_000
"""Of the sound that the speech encoder hears, Hz."""

MAX_OFFLINE_S = 200
"""Longest sound that the published pipeline takes: 5000 frames at 25 a second."""

TEXT_LENGTH = 512
"""Tokens of a prompt, padded."""

CONNECTION_PROMPT = "a person is talking"
"""Prompt of every window after the key-frame pass."""

NEGATIVE_PROMPT = (
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
"""What guidance leads away from, unless the user says otherwise."""

DEFAULT_SIZE = "480P"
"""The table of sizes that is used unless another is asked for."""

_SIDES = {
    "480P": (
        "320x1216 384x1024 448x896 480x832 512x768 576x704 640x640 704x576 768x512 832x448 832x480 896x448 960x384 "
        "1088x384 1152x320 1216x320 1280x320"
    ),
    "720P": (
        "448x2048 512x1792 576x1600 640x1408 704x1280 720x1280 768x1216 832x1088 896x1024 960x960 1024x896 1088x832 "
        "1216x768 1280x704 1280x720 1344x704 1408x640 1472x640 1536x576 1664x576 1856x512 1920x512"
    ),
}
# Where the published key is not height / width rounded to two digits.
_KEYS = {"480x832": "0.577"}


def size_tables() -> dict[str, dict[str, tuple[int, int]]]:
    """Return table -> height / width as text -> (height, width) in pixels."""
    return {name: dict(_entry(sides) for sides in table.split()) for name, table in _SIDES.items()}


def _entry(sides: str) -> tuple[str, tuple[int, int]]:
    height, width = (int(side) for side in sides.split("x"))
    return _KEYS.get(sides, f"{height / width:.2f}"), (height, width)
