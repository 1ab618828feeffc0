# SPDX-License-Identifier: Apache-2.0
"""Train an avatar on the CPU: `python -m train_avatar.train --out DIR` (in examples/).

Without more it draws the faces of the default package. `--videos FOLDER --name NAME` learns one face from video files
with sound instead, starting from the default package's checkpoint. Every stage saves its weights and its step each
minute and continues from there when it is started again. Two stages may run beside each other as soon as what they need
is there: `audio` and `footage` need nothing, `vae-images` needs `footage`, `freeze` ends the encoder's training,
`latents` needs `audio` and `freeze`, `dit` some of the `latents`.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from . import start
from .workers import run_together

DRAWN = {
    "audio": ("train_audio.train", 1900),
    "footage": ("draw_footage.train", 240),
    "vae-images": ("train_vae.train", 2700),
    "vae-video": ("train_vae.train_video", 4000),
    "freeze": ("latents.freeze", 1),
    "latents": ("latents.encode", 101),
    "dit": ("train_dit.train", 1900),
    "checkpoint": ("write_checkpoint.write", 1),
}
"""Stage -> function `(folder, *, steps)`, and its number of steps in all."""
FILMED = {
    "footage": ("film_footage.make", 1),
    "vae-images": ("train_vae.train", 300),
    "vae-video": ("train_vae.train_video", 400),
    "freeze": ("latents.freeze", 1),
    "latents": ("latents.encode", 10_000),
    "dit": ("train_dit.train", 800),
    "checkpoint": ("write_checkpoint.write", 1),
}
"""The stages for a face that was filmed: the audio encoder is kept as it is."""


def main(arguments: list[str] | None = None) -> int:
    """Run the stages that were asked for, in order."""
    parser = argparse.ArgumentParser(description="Train an avatar (CPU).")
    parser.add_argument("--out", type=Path, required=True, help="folder for data, saved states and the checkpoint")
    parser.add_argument("--stage", default="all", choices=["all", *DRAWN], help="one stage, or all in order")
    parser.add_argument("--steps", type=int, help="total steps of the stage instead of its default")
    parser.add_argument("--from", dest="checkpoint", type=Path, help="checkpoint folder to start the networks from")
    parser.add_argument("--videos", type=Path, help="folder of video files with sound: learn this face")
    parser.add_argument("--name", default="avatar", help="what to call the face of --videos")
    parser.add_argument("--workers", type=int, default=1, help="processes that train one network together")
    chosen = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    if chosen.videos is not None and chosen.checkpoint is None:
        chosen.checkpoint = Path(__file__).parent / "checkpoint"
    if chosen.checkpoint is not None:
        start.remember(chosen.out, chosen.checkpoint, videos=chosen.videos, name=chosen.name)
    stages = FILMED if start.videos(chosen.out) else DRAWN
    for name in stages if chosen.stage == "all" else [chosen.stage]:
        if name not in stages:
            parser.error(f"there is no stage {name} here; expected one of {', '.join(stages)}")
        (module, function), steps = stages[name][0].split("."), stages[name][1]
        run: Callable = getattr(importlib.import_module(f".{module}", __package__), function)
        if chosen.workers > 1 and module in ("train_vae", "train_dit"):
            run_together(run, chosen.out, steps=chosen.steps or steps, workers=chosen.workers)
        else:
            run(chosen.out, steps=chosen.steps or steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
