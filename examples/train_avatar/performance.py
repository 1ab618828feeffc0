# SPDX-License-Identifier: Apache-2.0
"""Turn speech with known phonemes into the motion of the face, 25 frames per second.

What is not left to `chance` is a function of the sound nearby, but for a small slow drift of the head. That is what
makes a network with a single denoising step possible: one answer per sound, so the mean that regression finds is a face
and no blur.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d, maximum_filter1d, uniform_filter1d

from . import chance
from .face import Pose
from .mouth import half_width
from .speech import SAMPLE_RATE, Speech

FPS = 25
_RATE = 100  # internal ticks per second
_STEP = SAMPLE_RATE // _RATE

REST = (0.0, 0.05, 0.5)
"""jaw, wide, press of the resting mouth."""

_SHAPES: dict[str, tuple[float, float, float]] = {}


def _shape(characters: str, *, jaw: float, wide: float, press: float = 0.0) -> None:
    for character in characters:
        _SHAPES[character] = (jaw, wide, press)


_shape("aɑɐʌ", jaw=0.9, wide=0.15)
_shape("æ", jaw=0.8, wide=0.5)
_shape("eɛ", jaw=0.52, wide=0.6)
_shape("iɪ", jaw=0.28, wide=0.9)
_shape("ɨ", jaw=0.3, wide=0.4)
_shape("oɔɒ", jaw=0.6, wide=-0.6)
_shape("uʊ", jaw=0.28, wide=-1.0)
_shape("əɜɚɘɵ", jaw=0.42, wide=0.0)
_shape("yøœʏ", jaw=0.3, wide=-0.9)
_shape("mbp", jaw=0.0, wide=0.0, press=1.0)
_shape("fv", jaw=0.08, wide=0.15, press=0.75)
_shape("tdnszlkɡgŋxçcɲʎɾɣħʂʐʝ", jaw=0.18, wide=0.3, press=0.08)
_shape("ʃʒɕʑ", jaw=0.2, wide=-0.6)
_shape("θð", jaw=0.25, wide=0.2)
_shape("rɹʁʀɻ", jaw=0.28, wide=-0.3)
_shape("hɦʔ", jaw=0.35, wide=0.1)
_shape("j", jaw=0.22, wide=0.6)
_shape("wɥ", jaw=0.15, wide=-1.0)

SOUND_CLASSES = ("", "aɑɐʌ", "æ", "eɛ", "iɪɨj", "oɔɒ", "uʊwɥ", "əɜɚɘɵ", "yøœʏ", "mbp", "fv", "td", "n", "szʂʐ", "lʎ",
                 "kɡgcxɣ",
                 "ŋɲç", "ʃʒɕʑ", "θð", "rɹʁʀɻɾ", "hɦʔħʝ")  # fmt: skip
"""Characters that the audio encoder learns to tell apart; class 0 is silence."""

DRIVES = ("jaw", "wide", "press", "blink", "brow", "nod", "tilt", "turn", "look_x", "look_y")
"""What the audio encoder is taught to predict, in the order of `Performance.drives`."""


@dataclass(frozen=True)
class Performance:
    """The motion that belongs to one utterance."""

    drives: npt.NDArray[np.float32]
    """Shape (frames, 10): the columns named by `DRIVES`; a function of the sound."""
    sounds: npt.NDArray[np.int64]
    """Shape (frames,): index into `SOUND_CLASSES`."""

    @property
    def opening(self) -> npt.NDArray[np.float32]:
        """How far the mouth is open, shape (frames,): what the lip-sync gate compares."""
        return self.drives[:, 0] * (1 - self.drives[:, 2])

    @property
    def lip_width(self) -> npt.NDArray[np.float32]:
        """Half the distance between the corners of the lips, shape (frames,), design units."""
        return np.asarray(half_width(self.drives[:, 0], self.drives[:, 1]), np.float32)


def perform(speech: Speech) -> Performance:
    """Return the face's motion for the whole utterance, ceil(25 * duration) frames."""
    ticks = len(speech.waveform) // _STEP + 1
    targets, sounds, voiced = _phoneme_targets(speech, ticks)
    level = _level(speech.waveform, ticks)
    mouth = _mouth(targets, level)
    talking = maximum_filter1d(voiced, 17) > 0  # gaps below 0.16 s are part of the speech
    blink = _blinks(talking)
    loud = level * gaussian_filter1d(talking.astype(float), 4)
    brow = np.clip(1.6 * (gaussian_filter1d(loud, 16) - gaussian_filter1d(loud, 70)), -0.3, 0.7)
    # The head is slow: what moves everywhere at once costs an autoencoder of four frames most.
    nod = np.clip(1.0 * (gaussian_filter1d(loud, 30) - gaussian_filter1d(loud, 110)), -0.3, 0.3)
    tilt = np.clip(1.1 * gaussian_filter1d((mouth[:, 1] - 0.15) * talking, 50), -0.16, 0.16)
    opened = mouth[:, 0] * talking
    turn = np.clip(1.8 * (gaussian_filter1d(opened, 50) - gaussian_filter1d(opened, 150)), -0.2, 0.2)
    drives = np.column_stack([mouth, blink, brow, nod, tilt, turn, *_looks(talking)])
    frames = -(-len(speech.waveform) * FPS // SAMPLE_RATE)
    # A frame is shown for 40 ms: it shows the middle of them.
    middle = np.minimum(((np.arange(frames) + 0.5) * _RATE / FPS).astype(int), ticks - 1)
    return Performance(drives[middle].astype(np.float32), sounds[middle])


def poses(performance: Performance, draws: npt.NDArray[np.float32], drift: npt.NDArray[np.float32]) -> list[Pose]:
    """Return one pose per frame.

    Args:
        performance: what the sound decides.
        draws: what chance decides, shape (latents, 4), as `chance.clip_draws` gives it.
        drift: shape (frames, 2), the head's own slow shift in design units.
    """
    frames = len(performance.drives)
    looks, lids = chance.gaze(draws, frames), chance.blinks(draws, frames)
    heads = chance.follow(looks)
    result = []
    for drives, closed, look, head, shift in zip(
        performance.drives.tolist(), lids.tolist(), looks.tolist(), heads.tolist(), drift.tolist(), strict=True
    ):
        jaw, wide, press, blink, brow, nod, tilt, turn, look_x, look_y = drives
        yaw = turn + 0.2 * head[0]
        result.append(
            Pose(
                jaw=jaw, wide=wide, press=press, blink=max(blink, closed), brow=brow,
                gaze_x=look_x + look[0], gaze_y=look_y + look[1],
                yaw=yaw, pitch=nod + 0.2 * head[1], roll=tilt + 0.12 * head[0],
                shift_x=shift[0] + 5 * yaw, shift_y=shift[1] + 2 * nod,
            )
        )  # fmt: skip
    return result


def slow_drift(generator: np.random.Generator, frames: int) -> npt.NDArray[np.float32]:
    """Return a random slow shift of the head, shape (frames, 2), design units; about half a unit, never above 1.2."""
    noise = generator.standard_normal((frames + 400, 2))
    smooth = gaussian_filter1d(noise, 50, axis=0)[200 : 200 + frames]
    return np.clip(smooth * 0.4 * np.sqrt(2 * np.sqrt(np.pi) * 50), -1.2, 1.2).astype(np.float32)


def _phoneme_targets(
    speech: Speech, ticks: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return per tick the mouth shape aimed at (ticks, 3), the sound class and whether anything is spoken."""
    targets = np.tile(np.array(REST), (ticks, 1))
    sounds = np.zeros(ticks, np.int64)
    voiced = np.zeros(ticks)
    class_of = {character: index for index, group in enumerate(SOUND_CLASSES) for character in group}
    for start_s, end_s, name in speech.phonemes:
        characters = [character for character in name if character in _SHAPES]
        if not characters:
            continue
        first = int(start_s * _RATE)
        edges = np.linspace(first, max(end_s * _RATE, first + len(characters)), len(characters) + 1).astype(int)
        for character, begin, end in zip(characters, edges[:-1], edges[1:], strict=True):
            targets[begin:end] = _SHAPES[character]
            sounds[begin:end] = class_of[character]
            voiced[begin:end] = 1.0
    return targets, sounds, voiced


def _level(waveform: npt.NDArray[np.float32], ticks: int) -> npt.NDArray[np.float64]:
    """Return the loudness per tick, 0 (30 dB below the loud parts) to 1."""
    power = uniform_filter1d(waveform.astype(np.float64) ** 2, 3 * _STEP)[::_STEP]
    power = np.pad(power, (0, max(0, ticks - len(power))))[:ticks]
    loud = np.percentile(power, 95) + 1e-9
    return np.clip(1 + 10 * np.log10(power / loud + 1e-9) / 30, 0.0, 1.1)


def _mouth(targets: npt.NDArray[np.float64], level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Blend neighbouring shapes as lips do; quiet sounds open the jaw less."""
    jaw = gaussian_filter1d(targets[:, 0] * np.clip(0.45 + 0.6 * level, 0, 1.0), 4)
    wide = gaussian_filter1d(targets[:, 1], 5)
    press = targets[:, 2]
    press = np.maximum(gaussian_filter1d(press, 2.8), gaussian_filter1d(press, 4))
    return np.column_stack([jaw, wide, np.clip(press, 0, 1)])


def _blinks(talking: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return eyelid closure per tick: a blink 0.12 s after speech stops and 0.05 s after it starts."""
    change = np.diff(talking.astype(int), prepend=0)
    impulses = np.zeros(len(talking))
    for tick in np.flatnonzero(change):
        place = tick + (12 if change[tick] < 0 else 5) + 8
        if place < len(impulses) and not impulses[max(0, place - 50) : place].any():
            impulses[place] = 1.0
    shape = np.concatenate([np.linspace(0, 1, 8), np.ones(3), np.linspace(1, 0, 14)])
    return np.clip(np.convolve(impulses, shape)[4 : 4 + len(talking)], 0, 1)


def _looks(talking: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return gaze right and down per tick: aside and up in pauses of 0.4 s to 2.4 s, at the listener otherwise."""
    away = np.zeros(len(talking))
    edges = np.flatnonzero(np.diff(talking.astype(int), prepend=1, append=1))
    for begin, end in zip(edges[::2], edges[1::2], strict=False):
        if end - begin >= 40 and begin > 0:
            away[begin + 20 : min(end - 12, begin + 240)] = 1.0
    smooth = gaussian_filter1d(away, 3)
    return 0.45 * smooth, -0.28 * smooth
