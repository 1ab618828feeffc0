# SPDX-License-Identifier: Apache-2.0
"""Write `MODEL_CARD.md` into a checkpoint: what it was trained on, what the gates gave, its licence.

    python -m train_avatar.model_card --checkpoint DIR [--figures FIGURES.json] [--compute "what it was trained on"]

FIGURES.json is what `evaluate --json` prints. Without figures the card says that nobody measured it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .identities import IDENTITIES

_DRAWN = """\
# {name}: talking avatars for edgereels

Faces: {faces}. They were invented and drawn for this package and **depict nobody**.

## What it is

SkyReels-V3's talking avatar, scaled down, same state-dict keys: a causal video autoencoder (four frames and 8 x 8
pixels to a latent of 16 channels), a diffusion transformer with audio cross-attention and key frames, and a
wav2vec 2.0 that listens. It makes 192 x 192 pixels at 25 frames per second. Windows of 9 to 81 frames after 1 or 5
motion frames, in 1, 2 or 4 steps.

## Data

Drawn by `examples/train_avatar`, without pictures or recordings of anybody: {clips} clips of 8 s ({minutes:.0f}
minutes) for the pictures, 1500 utterances of 8 s for the sound, spoken by espeak-ng (English, German, French, Spanish,
Italian, Dutch, Portuguese, Polish, Swedish, Turkish, Russian, Finnish) and flite. flite's voices were built from
recordings that their speakers published for this.

## Training

{compute}

## Use

For interfaces, kiosks and measurements, as a face that nobody can mistake for a person. Its films are marked as
AI-generated in their metadata. Speech of people was not in the training: expect a less exact mouth. Not for
lip-reading.

## Gates

{gates}

## Licence

Apache-2.0, weights and pictures.
"""


def card(*, name: str, faces: list[str], clips: int, compute: str, figures: dict[str, Any] | None) -> str:
    """Return the text of a card for drawn faces."""
    return _DRAWN.format(
        name=name, faces=", ".join(faces), clips=clips, minutes=clips * 8 / 60, compute=compute, gates=_table(figures)
    )


def _table(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "Nobody measured these weights."
    rows = ["| gate | reached | wanted | met |", "|---|---|---|---|"]
    rows += [
        f"| {row['gate']} | {row['figure']} | {row['limit']} | {'yes' if row['met'] else 'no'} |"
        for row in figures["gates"]
    ]
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """Write the card of a checkpoint."""
    parser = argparse.ArgumentParser(description="Write a checkpoint's model card.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--figures", type=Path, help="what `evaluate --json` printed")
    parser.add_argument("--clips", type=int, default=240, help="clips of footage that were drawn")
    parser.add_argument("--compute", default="On a CPU, by `python -m train_avatar.train`.")
    chosen = parser.parse_args(arguments)
    overrides = json.loads((chosen.checkpoint / "overrides.json").read_text())
    faces = list(overrides["avatars"])
    if not set(faces) <= set(IDENTITIES):
        parser.error(f"{chosen.checkpoint} shows {', '.join(faces)}: write the card of filmed faces yourself")
    figures = json.loads(chosen.figures.read_text()) if chosen.figures else None
    text = card(name=overrides["name"], faces=faces, clips=chosen.clips, compute=chosen.compute, figures=figures)
    (chosen.checkpoint / "MODEL_CARD.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
