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
