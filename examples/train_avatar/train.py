# SPDX-License-Identifier: Apache-2.0
"""Train the default avatar from nothing, on the CPU: `python -m train_avatar.train --out DIR` (in examples/).

Every stage saves its weights and its step each minute and continues from there when it is started again. Two stages may
run beside each other as soon as what they need is there: `audio` and `frames` need nothing, `vae-images` needs
`frames`, `freeze` ends the encoder's training, `latents` needs `audio` and `freeze`, `dit` some of the `latents`.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

STAGES = {
    "audio": ("train_audio.train", 1600),
    "frames": ("draw_frames.train", 160),
    "vae-images": ("train_vae.train", 1000),
    "vae-video": ("train_vae.train_video", 1200),
    "freeze": ("latents.freeze", 1),
    "latents": ("latents.encode", 160),
    "dit": ("train_dit.train", 2100),
    "vae-decoder": ("train_vae.train_decoder", 6000),
    "checkpoint": ("write_checkpoint.write", 1),
}
"""Stage -> function `(folder, *, steps)`, and its number of steps."""


def main(arguments: list[str] | None = None) -> int:
    """Run the stages that were asked for, in order."""
    parser = argparse.ArgumentParser(description="Train the default avatar (CPU).")
    parser.add_argument("--out", type=Path, required=True, help="folder for data, saved states and the checkpoint")
    parser.add_argument("--stage", default="all", choices=["all", *STAGES], help="one stage, or all in order")
    parser.add_argument("--steps", type=int, help="total steps of the stage instead of its default")
    chosen = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    for name in STAGES if chosen.stage == "all" else [chosen.stage]:
        (module, function), steps = STAGES[name][0].split("."), STAGES[name][1]
        run: Callable = getattr(importlib.import_module(f".{module}", __package__), function)
        run(chosen.out, steps=chosen.steps or steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
