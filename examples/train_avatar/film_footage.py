# SPDX-License-Identifier: Apache-2.0
"""Make the footage of a filmed face from a folder of video files with sound, and nothing else.

One person, one place, looking into the camera, at least a minute and better ten. The face is found by `motion_box`:
there is no face detector and there are no labels.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d

from . import start
from .chance import BLINK_ABOVE
from .film_file import Film, FilmError, open_film, pictures
from .filmed_blinks import blink_draws
from .footage import CLIP_FRAMES, CLIP_S, CLIP_SAMPLES, FPS, SIZE, FootageWriter
from .motion_box import GRID, Box, MotionMaps, find_box, pixel_weight

SHORTEST_S = 60
"""Less film of a face teaches nothing."""
FEWEST_CLIPS = 6
HELD_OUT_EVERY = 10
"""One clip in so many is never trained on; at least two."""
SEARCHED_PIXELS = 128
"""Longer side of the pictures that the face is searched in."""

SHOWN = 1.875
"""The package's picture shows so many sides of the box, if the film does; as the stills of the drawn faces do."""

_QUIET_DB = 25.0
"""Below the loud parts of a clip."""
_QUIET_FRAMES = 15
"""Frames around a picture of rest in which nobody speaks."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """Eight seconds of a film."""

    film: Film
    first: int
    """Its first picture, at 25 per second."""

    @property
    def sound(self) -> npt.NDArray[np.float32]:
        """Shape (128000,)."""
        begin = self.first * CLIP_SAMPLES // CLIP_FRAMES
        return self.film.sound[begin : begin + CLIP_SAMPLES]


def make(folder: Path, *, steps: int) -> None:
    """Write the footage of the films that `start.videos` names; continues where it stopped.

    Raises:
        SystemExit: no film can be used, or they are too short; the message says what was found.
    """
    del steps
    named = start.videos(folder)
    if named is None:
        raise SystemExit(f"{folder} learns from no videos; expected to be started with --videos FOLDER")
    if _is_finished(folder, named.name):
        print(f"footage: {folder / 'footage'} is finished", flush=True)
        return
    films = usable_films(named.folder)
    clips = cut(films)
    held_out = held_out_clips(len(clips))
    training = [index for index in range(len(clips)) if index not in held_out]
    boxes = find_boxes(films, [clips[index] for index in training])
    writer = FootageWriter(folder, faces=[named.name] * len(clips), held_out=held_out)
    for clip, frames in islice(boxed_clips(clips, boxes), writer.done, None):
        writer.write_clip(frames, (np.clip(clip.sound, -1, 1) * 32767).astype(np.int16))
        if writer.done % 10 == 0 or writer.done == len(clips):
            print(f"footage: {writer.done} of {len(clips)} clips", flush=True)
    _write_face(folder, named.name, writer, clips=clips, boxes=boxes, training=training)


def usable_films(folder: Path) -> list[Film]:
    """Return the films in a folder by name; files that can't be used are named on stderr.

    Raises:
        SystemExit: there are none, or they last less than a minute.
    """
    films: list[Film] = []
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for path in paths:
        try:
            film = open_film(path)
        except FilmError as error:
            _warn(f"{path} is left out: {error}")
            continue
        if film.frames < CLIP_FRAMES:
            _warn(f"{path} lasts {film.frames / FPS:.1f} s; clips have {CLIP_S} s, so nothing of it is used")
        films.append(film)
    if not films:
        found = f"{len(paths)} file{'s' * (len(paths) > 1)}, none of them usable" if paths else "no files"
        raise SystemExit(f"{folder} holds {found}; expected video files with sound (mp4, mov, mkv, webm)")
    total_s = sum(film.frames for film in films) / FPS
    count = len(cut(films))
    if total_s < SHORTEST_S or count < FEWEST_CLIPS:
        raise SystemExit(
            f"{folder} holds {total_s:.0f} s of film with sound, {count} clips of {CLIP_S} s; expected at least "
            f"{SHORTEST_S} s and {FEWEST_CLIPS} clips, better 10 minutes: film more"
        )
    print(f"footage: {len(films)} files, {total_s:.0f} s, {count} clips of {CLIP_S} s", flush=True)
    return films


def cut(films: list[Film]) -> list[Clip]:
    """Return the clips of all films; what is left at an end is dropped."""
    return [
        Clip(film, first)
        for film in films
        for first in range(0, film.frames - CLIP_FRAMES + 1, CLIP_FRAMES)
    ]  # fmt: skip


def held_out_clips(count: int) -> list[int]:
    """Return the clips that are kept for evaluation, spread evenly."""
    chosen = max(2, round(count / HELD_OUT_EVERY))
    return sorted({int((index + 0.5) * count / chosen) for index in range(chosen)})


def find_boxes(films: list[Film], clips: list[Clip]) -> dict[tuple[int, int], Box]:
    """Return the box of the face for each size of picture; films of one size share theirs."""
    boxes: dict[tuple[int, int], Box] = {}
    for width, height in dict.fromkeys((film.width, film.height) for film in films):
        scale = SEARCHED_PIXELS / max(width, height)
        columns, rows = max(16, round(width * scale)), max(16, round(height * scale))
        maps = MotionMaps((rows, columns))
        alike = [clip for clip in clips if (clip.film.width, clip.film.height) == (width, height)]
        for clip, frames in _clip_pictures(alike, size=(columns, rows), grey=True):
            maps.add(frames, clip.sound)
        box, found = find_box(maps, width=width, height=height)
        boxes[width, height] = box
        where = f"{box.side} x {box.side} pixels from row {box.top}, column {box.left} of {width} x {height}"
        if found:
            share = float(maps.heard_share.max())
            print(f"footage: face in {where}; sound foretells {share:.0%} of the mouth's movement", flush=True)
        elif alike:
            _warn(
                f"nothing in the pictures of {width} x {height} moves with the sound; taking the middle, {where}: if "
                "the mouth is to be seen, check that sound and picture belong together"
            )
        if box.side < SIZE and alike:
            _warn(f"the face has only {box.side} pixels; the network makes {SIZE}: come closer, or film larger")
    return boxes


def boxed_clips(clips: list[Clip], boxes: dict[tuple[int, int], Box]) -> Iterator[tuple[Clip, Pixels]]:
    """Yield every clip with its frames as the network sees them, (200, 192, 192, 3)."""
    return _clip_pictures(clips, size=None, grey=False, boxes=boxes)


def _clip_pictures(
    clips: list[Clip], *, size: tuple[int, int] | None, grey: bool, boxes: dict[tuple[int, int], Box] | None = None
) -> Iterator[tuple[Clip, Pixels]]:
    """Yield clips with their pictures, decoding every film once; with `boxes`, cut and scaled to 192 pixels."""
    for film in dict.fromkeys(clip.film for clip in clips):
        wanted = {clip.first: clip for clip in clips if clip.film is film}
        shown = pictures(film, size=size, grey=grey)
        for first in range(0, film.frames - CLIP_FRAMES + 1, CLIP_FRAMES):
            frames = islice(shown, CLIP_FRAMES)
            if boxes is not None:
                box = boxes[film.width, film.height]
                frames = (_scaled(box.cut(picture)) for picture in frames)
            stacked = np.stack(list(frames))
            if first in wanted:
                yield wanted[first], stacked


def _scaled(picture: Pixels) -> Pixels:
    import cv2

    method = cv2.INTER_AREA if picture.shape[0] >= SIZE else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(picture), (SIZE, SIZE), interpolation=method), np.uint8)


def _write_face(
    folder: Path,
    name: str,
    writer: FootageWriter,
    *,
    clips: list[Clip],
    boxes: dict[tuple[int, int], Box],
    training: list[int],
) -> None:
    """Write the weights of the pixels, the blinks, the portrait, and the picture around it as it was filmed."""
    from PIL import Image

    frames = np.load(folder / "footage" / "frames.npy", mmap_mode="r")
    maps, small = MotionMaps((GRID, GRID)), dict[int, Pixels]()
    for index in training:
        small[index] = _small(frames[index])
        maps.add(small[index], clips[index].sound)
    weight = pixel_weight(maps)
    draws = blink_draws(small, weight, clips=len(clips))
    if draws is None:
        _warn("no blinks are seen; the avatar will blink only where its sound tells it to")
    else:
        blinks = int((draws[..., 0] > BLINK_ABOVE).sum())
        per_minute = blinks * 60 / (CLIP_S * len(training))
        print(f"footage: {blinks} blinks are seen, {per_minute:.0f} a minute; noise will bring 15", flush=True)
        writer.write_draws(draws)
    index, place = resting_frame(small, {index: clips[index].sound for index in training}, weight)
    clip = clips[index]
    whole = next(islice(pictures(clip.film), clip.first + place, None))
    still, inside = around(whole, boxes[clip.film.width, clip.film.height])
    Image.fromarray(still).save(folder / "footage" / f"still_{name}.png")
    edges = [inside.top, inside.left, inside.top + inside.side, inside.left + inside.side]
    (folder / "footage" / f"still_{name}.json").write_text(json.dumps({"box": edges}))
    writer.write_face(name, portrait=np.asarray(frames[index, place]), weight=weight)
    at_s = (clip.first + place) / FPS
    print(f"footage: the portrait is {clip.film.path.name} at {at_s:.2f} s; look at portrait_{name}.png", flush=True)


def around(picture: Pixels, box: Box) -> tuple[Pixels, Box]:
    """Cut a picture to what is shown around the box, with even sides; return it and the box in it."""
    edges = []
    for begin, length in ((box.top, picture.shape[0]), (box.left, picture.shape[1])):
        shown = min(length, max(box.side, round(box.side * SHOWN))) // 2 * 2
        first = int(np.clip(begin + (box.side - shown) // 2, 0, length - shown))
        edges.append(slice(first, first + shown))
    rows, columns = edges
    side = min(box.side, rows.stop - rows.start, columns.stop - columns.start)
    top, left = max(0, box.top - rows.start), max(0, box.left - columns.start)
    return np.ascontiguousarray(picture[rows, columns]), Box(top, left, side)


def resting_frame(
    small: dict[int, Pixels], sound: dict[int, npt.NDArray[np.float32]], weight: npt.NDArray[np.float32]
) -> tuple[int, int]:
    """Return the clip and the frame that look most like the face at rest: nobody speaks, nothing is unusual.

    Args:
        small: clip -> grey pictures (200, 48, 48).
        sound: clip -> its sound (128000,).
        weight: (192, 192) of the pixels.
    """
    loudness = {index: _loudness_db(samples) for index, samples in sound.items()}
    loud = float(np.percentile(np.concatenate(list(loudness.values())), 95))
    around = {index: maximum_filter1d(level, 2 * _QUIET_FRAMES + 1) for index, level in loudness.items()}
    limit = max(loud - _QUIET_DB, float(np.percentile(np.concatenate(list(around.values())), 2)))
    quiet = [(index, int(place)) for index, level in around.items() for place in np.flatnonzero(level <= limit)]
    seen = np.stack([small[index][place] for index, place in quiet]).astype(np.float32)
    before = np.stack([small[index][max(place - 1, 0)] for index, place in quiet]).astype(np.float32)
    counted = weight.reshape(GRID, SIZE // GRID, GRID, SIZE // GRID).mean((1, 3))
    unusual = (np.abs(seen - np.median(seen, axis=0)) * counted).mean((1, 2))
    movement = (np.abs(seen - before) * counted).mean((1, 2))
    return quiet[int(np.argmin(unusual + movement))]


def _loudness_db(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    power = (samples[:CLIP_SAMPLES].reshape(CLIP_FRAMES, -1).astype(np.float64) ** 2).mean(1)
    return 10 * np.log10(power + 1e-10)


def _small(frames: npt.NDArray[np.uint8]) -> Pixels:
    """Return frames (200, 192, 192, 3) in grey, averaged to (200, 48, 48)."""
    import cv2

    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    return np.stack([np.asarray(cv2.resize(one, (GRID, GRID), interpolation=cv2.INTER_AREA), np.uint8) for one in grey])


def _is_finished(folder: Path, name: str) -> bool:
    home = folder / "footage"
    if not (home / "footage.json").exists() or not (home / f"weight_{name}.npy").exists():
        return False
    known = json.loads((home / "footage.json").read_text())
    return known["done"] == len(known["faces"]) and set(known["faces"]) == {name}


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
