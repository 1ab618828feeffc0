# SPDX-License-Identifier: Apache-2.0
"""Draw a contact sheet of a training state: drawn truth, autoencoder, rendered; and print first figures."""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from .dataset import HELD_OUT_SEED, clip_poses, draw_clip, load_speech
from .jaw_reader import JawReader
from .rollout import Rollout
from .train_audio import HELD_OUT_CLIPS, TRAINING_CLIPS
from .train_vae import peak_ratio


def main(arguments: list[str] | None = None) -> int:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description="Contact sheet of a training state.")
    parser.add_argument("--out", type=Path, required=True, help="the training's folder")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--stride", type=int, default=3, help="every n-th frame is shown")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rollout, reader = Rollout(chosen.out), JawReader.fitted()
    speech = load_speech(chosen.out, clips=HELD_OUT_CLIPS, held_out=True)
    rows, correlations = [], []
    for index in range(chosen.clips):
        waveform = speech.waveforms[index].astype(np.float32) / 32768
        truth = draw_clip(clip_poses(speech, index)).astype(np.float32) / 127.5 - 1
        rendered = rollout.render(waveform)
        coded = _through_autoencoder(rollout, truth)
        opening = speech.drives[index, :, 0] * (1 - speech.drives[index, :, 2])
        read = reader.opening(rendered)
        correlation = float(np.corrcoef(read, opening)[0, 1])
        through = float(np.corrcoef(reader.opening(coded), opening[: len(coded)])[0, 1])
        correlations.append(correlation)
        print(
            f"clip {HELD_OUT_SEED + index}: mouth correlation {correlation:.3f}"
            f" amplitude {read.std() / opening.std():.2f};"
            f" autoencoder {through:.3f}, PSNR {peak_ratio(coded, truth[: len(coded)]):.1f} dB", flush=True,
        )  # fmt: skip
        shown = np.arange(45, 45 + 12 * chosen.stride, chosen.stride)
        rows += [_strip(frames, shown) for frames in (truth, coded, rendered)]
    _write(np.concatenate(rows), chosen.sheet)
    print(f"mean mouth correlation {np.mean(correlations):.3f}; {TRAINING_CLIPS} training utterances")
    return 0


@torch.no_grad()
def _through_autoencoder(rollout: Rollout, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    count = (len(frames) - 1) // 4 * 4 + 1
    clip = torch.from_numpy(frames[:count]).permute(3, 0, 1, 2)[None]
    return rollout.vae.decode(rollout.vae.encode(clip)).clamp(-1, 1)[0].permute(1, 2, 3, 0).numpy()


def _strip(frames: npt.NDArray[np.float32], shown: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return np.concatenate([((frames[i] + 1) * 127.5).astype(np.uint8) for i in shown], axis=1)


def _write(picture: npt.NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
