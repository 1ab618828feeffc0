# SPDX-License-Identifier: Apache-2.0
"""Footage: all that the video networks learn from. Clips of 8 s at 25 frames per second with their sound, per face.

A folder `footage/` with `frames.npy` uint8 (clips, 200, 192, 192, 3) RGB, `sound.npy` int16 (clips, 128000) at 16 kHz,
`footage.json`, and per face `weight_NAME.npy`, how much each pixel counts, and `portrait_NAME.png`. Drawn footage also
has `draws.npy`, what chance decided. Everything is written into place as it is made; `footage.json` says how far.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

FPS = 25
SAMPLE_RATE = 16000
SIZE = 192
CLIP_S = 8
CLIP_FRAMES = CLIP_S * FPS
CLIP_SAMPLES = CLIP_S * SAMPLE_RATE
CLIP_LATENTS = 1 + (CLIP_FRAMES - 1) // 4


@dataclass(frozen=True, eq=False)
class Footage:
    """Clips, mapped from their files."""

    frames: npt.NDArray[np.uint8]
    """Shape (clips, 200, 192, 192, 3), RGB."""
    sound: npt.NDArray[np.int16]
    """Shape (clips, 128000), 16 kHz."""
    draws: npt.NDArray[np.float32] | None
    """Shape (clips, 50, 4), see `chance`; None where nobody knows."""
    faces: tuple[str, ...]
    """Whose face each clip shows."""
    held_out: frozenset[int]
    """Clips that are never trained on."""
    weights: dict[str, npt.NDArray[np.float32]]
    """Face -> (192, 192), how much each pixel counts; 1 for what matters least."""
    portraits: dict[str, npt.NDArray[np.uint8]]
    """Face -> (192, 192, 3), the picture that every video of it starts from."""

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def training(self) -> list[int]:
        """Clips to train on."""
        return [index for index in range(len(self)) if index not in self.held_out]

    def weight(self, clip: int) -> npt.NDArray[np.float32]:
        """Return the pixel weights of a clip's face."""
        return self.weights[self.faces[clip]]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the footage under `folder`, as far as it is finished."""
        from PIL import Image

        home = folder / "footage"
        known = json.loads((home / "footage.json").read_text())
        done = known["done"]
        names = sorted(set(known["faces"]))
        draws = home / "draws.npy"
        return cls(
            frames=np.load(home / "frames.npy", mmap_mode="r")[:done],
            sound=np.load(home / "sound.npy", mmap_mode="r")[:done],
            draws=np.load(draws)[:done] if draws.exists() else None,
            faces=tuple(known["faces"][:done]),
            held_out=frozenset(index for index in known["held_out"] if index < done),
            weights={name: np.load(home / f"weight_{name}.npy") for name in names},
            portraits={name: np.asarray(Image.open(home / f"portrait_{name}.png")) for name in names},
        )


class FootageWriter:
    """Writes the clips of a footage folder one by one; continues after the last finished one."""

    def __init__(self, folder: Path, *, faces: list[str], held_out: list[int]) -> None:
        self._home = folder / "footage"
        self._home.mkdir(parents=True, exist_ok=True)
        self._index = {"faces": faces, "held_out": held_out}
        known = self._home / "footage.json"
        stored = json.loads(known.read_text()) if known.exists() else None
        if stored is not None and stored["faces"] != faces:
            raise SystemExit(f"{self._home} holds other footage; expected the same clips, or another --out")
        self.done: int = stored["done"] if stored else 0
        mode = "r+" if stored else "w+"
        clips = len(faces)
        self._frames = np.lib.format.open_memmap(
            self._home / "frames.npy", mode=mode, dtype=np.uint8, shape=(clips, CLIP_FRAMES, SIZE, SIZE, 3)
        )
        self._sound = np.lib.format.open_memmap(
            self._home / "sound.npy", mode=mode, dtype=np.int16, shape=(clips, CLIP_SAMPLES)
        )

    def write_face(self, name: str, *, portrait: npt.NDArray[np.uint8], weight: npt.NDArray[np.float32]) -> None:
        """Store what belongs to a face: its portrait (192, 192, 3) and the weight of its pixels (192, 192)."""
        from PIL import Image

        Image.fromarray(portrait).save(self._home / f"portrait_{name}.png")
        np.save(self._home / f"weight_{name}.npy", weight.astype(np.float32))

    def write_draws(self, draws: npt.NDArray[np.float32]) -> None:
        """Store what chance decided, shape (clips, 50, 4)."""
        np.save(self._home / "draws.npy", draws)

    def write_clip(self, frames: npt.NDArray[np.uint8], sound: npt.NDArray[np.int16]) -> None:
        """Store the next clip: (200, 192, 192, 3) and (128000,)."""
        self._frames[self.done] = frames
        self._sound[self.done] = sound
        self.done += 1
        if self.done % 8 == 0 or self.done == len(self._index["faces"]):
            self.finish()

    def finish(self) -> None:
        """Make what was written so far known."""
        self._frames.flush()
        self._sound.flush()
        partial = self._home / "footage.partial"
        partial.write_text(json.dumps({**self._index, "done": self.done}))
        partial.rename(self._home / "footage.json")
