# SPDX-License-Identifier: Apache-2.0
"""Speech with the motion that belongs to it, stored and read; everything is seeded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .chance import clip_draws
from .face import Pose
from .footage import CLIP_LATENTS, CLIP_S, CLIP_SAMPLES
from .performance import Performance, perform, poses, slow_drift
from .speech import Espeak, random_speech

HELD_OUT_SEED = 1_000_000
"""Seeds from here on speak with held-out voices."""


@dataclass(frozen=True)
class SpeechSet:
    """Utterances of `CLIP_S` seconds with the motion that belongs to them."""

    waveforms: npt.NDArray[np.int16]
    """Shape (clips, samples), 16 kHz."""
    drives: npt.NDArray[np.float32]
    """Shape (clips, frames, drives)."""
    sounds: npt.NDArray[np.int64]
    """Shape (clips, frames): sound class."""
    first_seed: int
    """Clip i was made from seed first_seed + i."""

    def __len__(self) -> int:
        return len(self.waveforms)


def load_speech(folder: Path, *, clips: int, held_out: bool = False) -> SpeechSet:
    """Return the training utterances, or the held-out ones; made on the first call, read from `folder` afterwards."""
    path = folder / f"speech_{'held_out' if held_out else 'training'}_{clips}.npz"
    if not path.exists():
        _write_speech(path, clips=clips, held_out=held_out)
    with np.load(path) as stored:
        return SpeechSet(
            stored["waveforms"], stored["drives"].astype(np.float32), stored["sounds"].astype(np.int64),
            int(stored["first_seed"]),
        )  # fmt: skip


def _write_speech(path: Path, *, clips: int, held_out: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    espeak = Espeak()
    first_seed = HELD_OUT_SEED if held_out else 0
    waveforms = np.zeros((clips, CLIP_SAMPLES), np.int16)
    drives, sounds = [], []
    for index in range(clips):
        speech = random_speech(espeak, seed=first_seed + index, duration_s=CLIP_S, held_out=held_out)
        performance = perform(speech)
        waveforms[index] = np.clip(speech.waveform * 32767, -32768, 32767).astype(np.int16)
        drives.append(performance.drives.astype(np.float16))
        sounds.append(performance.sounds.astype(np.int8))
        if index % 200 == 199:
            print(f"speech: {index + 1} of {clips} utterances", flush=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial, waveforms=waveforms, drives=np.stack(drives), sounds=np.stack(sounds), first_seed=np.array(first_seed)
    )
    partial.rename(path)


def draws_of(speech: SpeechSet, index: int) -> npt.NDArray[np.float32]:
    """Return what chance decides in one utterance, shape (latents, 4)."""
    return clip_draws(np.random.default_rng([speech.first_seed + index, 1]), CLIP_LATENTS)


def poses_of(speech: SpeechSet, index: int) -> list[Pose]:
    """Return the poses of one utterance, with the chance and the slow drift that its seed gives."""
    drift = slow_drift(np.random.default_rng(speech.first_seed + index), speech.drives.shape[1])
    return poses(Performance(speech.drives[index], speech.sounds[index]), draws_of(speech, index), drift)
