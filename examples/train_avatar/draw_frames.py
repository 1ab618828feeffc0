# SPDX-License-Identifier: Apache-2.0
"""Draw the frames of the first training utterances into one file that the later stages map into memory."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from .dataset import CLIP_FRAMES, SIZE, clip_poses, draw_clip, load_speech
from .train_audio import TRAINING_CLIPS


def frames_path(folder: Path) -> Path:
    """Return where the frames are kept."""
    return folder / "frames.npy"


def train(folder: Path, *, steps: int) -> None:
    """Draw `steps` clips; continues after the last finished one."""
    speech = load_speech(folder, clips=TRAINING_CLIPS)
    path, count_path = frames_path(folder), folder / "frames_done.txt"
    shape = (steps, CLIP_FRAMES, SIZE, SIZE, 3)
    done = int(count_path.read_text()) if path.exists() and count_path.exists() else 0
    frames = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=np.uint8, shape=shape)
    for index in range(done, steps):
        frames[index] = draw_clip(clip_poses(speech, index))
        if index % 20 == 19 or index == steps - 1:
            frames.flush()
            count_path.write_text(str(index + 1))
            print(f"frames: {index + 1} of {steps} clips", flush=True)


def drawn_frames(folder: Path) -> npt.NDArray[np.uint8]:
    """Return the finished clips, shape (clips, frames, size, size, 3), mapped from the file."""
    done = int((folder / "frames_done.txt").read_text())
    return np.load(frames_path(folder), mmap_mode="r")[:done]
