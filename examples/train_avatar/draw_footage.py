# SPDX-License-Identifier: Apache-2.0
"""Draw the footage of the default package: the first training utterances, spoken by its faces in turn."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from .dataset import draws_of, load_speech, poses_of
from .face import BOX, Pose, draw, draw_still
from .footage import SIZE, FootageWriter
from .identities import IDENTITIES, Identity
from .train_audio import TRAINING_CLIPS

HELD_OUT_CLIPS = 8
"""The last clips, two of each face, are never trained on."""
MOUTH_BOX = (104, 60, 148, 132)
"""Top, left, bottom, right in pixels of a 192-pixel frame; holds the mouth in every pose."""
EYES_BOX = (58, 48, 98, 144)


def train(folder: Path, *, steps: int) -> None:
    """Draw `steps` clips; continues after the last finished one."""
    speech = load_speech(folder, clips=TRAINING_CLIPS)
    names = list(IDENTITIES)
    faces = [names[index % len(names)] for index in range(steps)]
    writer = FootageWriter(folder, faces=faces, held_out=list(range(steps - HELD_OUT_CLIPS, steps)))
    for name, identity in IDENTITIES.items():
        writer.write_face(name, portrait=portrait_of(identity), weight=pixel_weight())
    writer.write_draws(np.stack([draws_of(speech, index) for index in range(steps)]))
    for index in range(writer.done, steps):
        identity = IDENTITIES[faces[index]]
        writer.write_clip(draw_clip(identity, poses_of(speech, index)), speech.waveforms[index])
        if index % 20 == 19 or index == steps - 1:
            print(f"footage: {index + 1} of {steps} clips", flush=True)


def draw_clip(identity: Identity, clip: list[Pose], *, size: int = SIZE) -> npt.NDArray[np.uint8]:
    """Return the frames, shape (frames, size, size, 3), RGB."""
    return np.stack([draw(identity, pose, size) for pose in clip])


def portrait_of(identity: Identity) -> npt.NDArray[np.uint8]:
    """Return the box of the still as the runtime scales it down, shape (192, 192, 3)."""
    from PIL import Image

    top, left, bottom, right = BOX
    box = Image.fromarray(draw_still(identity)[top:bottom, left:right])
    return np.array(box.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def pixel_weight() -> npt.NDArray[np.float32]:
    """Return how much each pixel counts, shape (192, 192): the mouth four times, the eyes three times."""
    weight = np.ones((SIZE, SIZE), np.float32)
    for (top, left, bottom, right), value in ((EYES_BOX, 3.0), (MOUTH_BOX, 4.0)):
        weight[top:bottom, left:right] = value
    return weight
