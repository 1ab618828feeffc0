# SPDX-License-Identifier: Apache-2.0
"""Draw a contact sheet of a package: drawn truth, autoencoder, what `edgereels render` shows, and their figures."""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .dataset import SIZE, draw_clip
from .evaluate import FIRST_SEED, correlation, render, stored_vae, through
from .jaw_reader import JawReader
from .performance import FPS, perform, poses, slow_drift
from .speech import Espeak, random_speech
from .train_vae import peak_ratio

_CAPTION = 16
"""Height of a caption, in pixels."""


def main(arguments: list[str] | None = None) -> int:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description="Contact sheet of a package.")
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint it was made from")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--every", type=int, default=3, help="every n-th frame is shown")
    chosen = parser.parse_args(arguments)
    espeak, reader, vae = Espeak(), JawReader.fitted(), stored_vae(chosen.checkpoint)
    strips: list[npt.NDArray[np.uint8]] = []
    for index in range(chosen.clips):
        speech = random_speech(espeak, seed=FIRST_SEED + index, duration_s=6, held_out=True)
        performance = perform(speech)
        drift = slow_drift(np.random.default_rng(index), len(performance.drives))
        first = 45
        shown = np.arange(first, first + chosen.columns * chosen.every, chosen.every)
        truth = draw_clip(poses(performance, drift)).astype(np.float32) / 127.5 - 1
        coded = through(vae, truth[: (len(truth) - 1) // 4 * 4 + 1])
        with tempfile.TemporaryDirectory() as folder:
            rendered = render(speech.waveform, chosen.package, folder=Path(folder), asked=("--threads", "2"))
        follows = correlation(reader.opening(rendered), performance.opening[: len(rendered)].astype(np.float64))
        captions = (
            f"drawn truth; {speech.voice} (held out), every {chosen.every}. frame from {first}",
            f"autoencoder: {peak_ratio(coded, truth[: len(coded)]):.1f} dB",
            f"edgereels render: mouth correlation {follows:.3f} over {len(rendered) / FPS:.0f} s; drifts on its own",
        )
        for frames, caption in zip((truth, coded, rendered), captions, strict=True):
            print(caption, flush=True)
            strips.append(_strip(frames[shown], caption))
    Image.fromarray(np.concatenate(strips)).save(chosen.sheet, optimize=True)
    return 0


def _strip(frames: npt.NDArray[np.float32], caption: str) -> npt.NDArray[np.uint8]:
    """Return the frames side by side under a caption."""
    pictures = np.concatenate(list(((frames + 1) * 127.5).astype(np.uint8)), axis=1)
    bar = Image.new("RGB", (len(frames) * SIZE, _CAPTION), "white")
    ImageDraw.Draw(bar).text((4, 2), caption, fill="black")
    return np.concatenate([np.asarray(bar), pictures])


if __name__ == "__main__":
    sys.exit(main())
