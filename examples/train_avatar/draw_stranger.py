# SPDX-License-Identifier: Apache-2.0
"""Film somebody whom no network has seen: `python -m train_avatar.draw_stranger --videos FOLDER --truth FILE.npz`.

For the proof that an avatar can be learned from video files alone: a drawn face that is none of the package's, beside
the middle of a landscape picture, 30 frames per second, H.264 and AAC, one voice that no other part of this program
uses. `--truth` keeps what the mouth did, for checks that a filmed face doesn't allow; training never reads it.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .chance import clip_draws
from .face import Pose, draw_still
from .identities import Identity
from .performance import FPS, Performance, perform, poses, slow_drift
from .speech import SAMPLE_RATE, Espeak, Speech, join, random_text, silence

STRANGER = Identity(
    skin=(230, 188, 160), hair=(168, 76, 38), eye=(64, 116, 138), shirt=(126, 74, 132), background=(148, 168, 150),
    lip=(196, 96, 100), hair_style="short", brow=0.9,
)  # fmt: skip
VOICE = "en-us+anika"
FIRST_SEED = 9_000_000
FILMED_FPS = 30
WIDTH, HEIGHT = 640, 480
LENGTHS_S = (24.6, 40.5, 56.4, 32.7, 48.5, 40.9, 24.3, 56.8, 48.6, 32.4)
"""Of the files; 50 clips of 8 s."""
SOUND = ((48_000, "stereo"), (44_100, "mono"))
"""Sample rate and layout, in turn."""
_STILL, _ROW, _COLUMN = 720, 64, 80
"""The picture is cut out of a square still of so many pixels, there."""

Pixels = npt.NDArray[np.uint8]


def main(arguments: list[str] | None = None) -> int:
    """Write the files and the truth."""
    parser = argparse.ArgumentParser(description="Film a drawn stranger: mp4 files with sound.")
    parser.add_argument("--videos", type=Path, required=True, help="folder for the mp4 files")
    parser.add_argument("--truth", type=Path, required=True, help="npz for what the mouth did; not in that folder")
    parser.add_argument("--files", type=int, default=len(LENGTHS_S), help="write the first so many files only")
    chosen = parser.parse_args(arguments)
    chosen.videos.mkdir(parents=True, exist_ok=True)
    espeak, truth = Espeak(), dict[str, npt.NDArray]()
    for index, duration_s in enumerate(LENGTHS_S[: chosen.files]):
        path = chosen.videos / f"take_{index:02d}.mp4"
        speech = speak(espeak, seed=FIRST_SEED + index, duration_s=duration_s)
        performance = perform(speech)
        truth[f"{path.stem}_opening"], truth[f"{path.stem}_width"] = performance.opening, performance.lip_width
        if not path.exists():
            partial = path.with_suffix(".partial")
            write_video(partial, filmed(performance, seed=FIRST_SEED + index), speech, index=index)
            partial.rename(path)
        print(f"{path}: {duration_s} s", flush=True)
    np.savez(chosen.truth, **truth)  # pyright: ignore[reportArgumentType]
    return 0


def speak(espeak: Espeak, *, seed: int, duration_s: float) -> Speech:
    """Return sentences of one voice with pauses between them."""
    source = random.Random(seed)
    parts, length_s = [silence(source.choice([0.3, 0.8, 1.4]))], 0.0
    while length_s < duration_s:
        said = espeak.say(random_text(source, "en"), voice=VOICE, rate=source.randint(135, 165), pitch=55)
        level = np.float32(0.4 / (float(np.abs(said.waveform).max()) or 1.0))
        parts += [
            Speech(said.waveform * level, said.phonemes, said.voice),
            silence(source.choice([0.2, 0.5, 1.1, 2.0])),
        ]
        length_s = sum(len(part.waveform) for part in parts) / SAMPLE_RATE
    whole = join(parts)
    kept = [(start_s, min(end_s, duration_s), name) for start_s, end_s, name in whole.phonemes if start_s < duration_s]
    return Speech(whole.waveform[: round(duration_s * SAMPLE_RATE)], kept, whole.voice)


def filmed(performance: Performance, *, seed: int) -> Iterator[Pixels]:
    """Yield the pictures of a camera at 30 frames per second, shape (480, 640, 3), RGB."""
    generator = np.random.default_rng(seed)
    count = len(performance.drives)
    acted = poses(performance, clip_draws(generator, 1 + -(-(count - 1) // 4)), slow_drift(generator, count))
    table = np.array([astuple(pose) for pose in acted])
    for index in range(count * FILMED_FPS // FPS):
        place = np.clip((index + 0.5) * FPS / FILMED_FPS - 0.5, 0, count - 1)
        early = min(int(place), count - 2)
        row = table[early] + (place - early) * (table[early + 1] - table[early])
        still = draw_still(STRANGER, Pose(*row.tolist()), size=_STILL)
        yield still[_ROW : _ROW + HEIGHT, _COLUMN : _COLUMN + WIDTH]


def write_video(path: Path, pictures: Iterator[Pixels], speech: Speech, *, index: int) -> None:
    """Write H.264 and AAC as a telephone would; the index chooses the sound's rate and channels."""
    import av
    import soxr

    sample_rate, layout = SOUND[index % len(SOUND)]
    sound = np.asarray(soxr.resample(speech.waveform, SAMPLE_RATE, sample_rate), np.float32)
    with av.open(str(path), "w", format="mp4") as container:
        video: Any = container.add_stream("libx264", rate=FILMED_FPS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
        audio: Any = container.add_stream("aac", rate=sample_rate, layout=layout)
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        channels = 2 if layout == "stereo" else 1
        for first in range(0, len(sound), 1024):
            block = np.repeat(sound[None, first : first + 1024], channels, axis=0)
            samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
            samples.sample_rate, samples.pts = sample_rate, first
            container.mux(audio.encode(samples))
        container.mux(audio.encode(None))


if __name__ == "__main__":
    sys.exit(main())
