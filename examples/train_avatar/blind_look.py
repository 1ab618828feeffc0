# SPDX-License-Identifier: Apache-2.0
"""Twelve rendered frames without labels, for somebody to say whose face it is and whether the mouth is open.

    python -m train_avatar.blind_look --package P --sheet look.png --key key.json
    python -m train_avatar.blind_look --key key.json --answers "1 anna open, 2 kofi closed, …"

Half of the frames are clearly open, half closed, by the drawn truth; the key says so, and what the mouth reader saw. It
passes with 12 names and 11 mouths. Look at the sheet, then answer, then read the key.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .evaluate import renderer_avatars
from .footage import SIZE
from .held_out_speech import SYNTHESIZERS, held_out_clips, with_pauses
from .mouth_reader import MouthReader
from .performance import perform
from .rendering import Renderer
from .speech import Speech

FRAMES = 12
OPEN_ABOVE, CLOSED_BELOW = 0.35, 0.03
"""True opening; what lies between is neither."""
LEAST_NAMES, LEAST_MOUTHS = 12, 11
_COLUMNS = 4
_CLIP_S, _PAUSE_S = 4.0, 0.8
_NUMBER_HEIGHT = 18

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """One frame of the sheet, and the truth about it."""

    avatar: str
    mouth: str
    """"open" or "closed", by the sound."""
    true_opening: float
    read_opening: float
    """What the mouth reader saw; not what is asked."""
    frame: int
    """Of its render."""
    voice: str


def choose(opening: Sequence[float], *, wanted_open: int, wanted_closed: int, source: random.Random) -> list[int]:
    """Return frames in no order: so many clearly open ones and so many closed ones, at random.

    Raises:
        ValueError: the speech has too few of them.
    """
    spoken = range(10, len(opening) - 2)  # not the portrait that every render begins with
    is_open = [at for at in spoken if opening[at] > OPEN_ABOVE]
    # Closed for three frames: a mouth on its way is neither.
    is_closed = [at for at in spoken if max(opening[at - 1 : at + 2]) < CLOSED_BELOW]
    if len(is_open) < wanted_open or len(is_closed) < wanted_closed:
        raise ValueError(
            f"{len(is_open)} open and {len(is_closed)} closed frames; expected {wanted_open} and {wanted_closed}: "
            "take longer speech"
        )
    return source.sample(is_open, wanted_open) + source.sample(is_closed, wanted_closed)


def shares(avatars: Sequence[str], source: random.Random) -> dict[str, tuple[int, int]]:
    """Return how many open and closed frames each avatar shows: half and half in all, at random among avatars."""
    names = [source.choice(avatars) for _ in range(FRAMES)]
    mouths = ["open", "closed"] * (FRAMES // 2)
    source.shuffle(mouths)
    pairs = list(zip(names, mouths, strict=True))
    return {name: (pairs.count((name, "open")), pairs.count((name, "closed"))) for name in avatars}


def render_look(renderer: Renderer, *, seed: int) -> list[tuple[Shown, Pixels]]:
    """Render some speech on every avatar and return the frames of the sheet, shuffled."""
    source, avatars = random.Random(seed), renderer_avatars(renderer)
    found: list[tuple[Shown, Pixels]] = []
    for index, (avatar, (is_open, is_closed)) in enumerate(shares(avatars, source).items()):
        if is_open + is_closed == 0:
            continue
        speech = _speech(SYNTHESIZERS[index % len(SYNTHESIZERS)])
        opening = perform(speech).opening
        chosen = choose(opening.tolist(), wanted_open=is_open, wanted_closed=is_closed, source=source)
        with renderer.frames(speech.waveform, avatar=avatar) as frames:
            pictures = [np.array(frames[at]) for at in chosen]
        read = MouthReader.fitted(avatar, size=SIZE).read(pictures).opening
        for at, picture, seen in zip(chosen, pictures, read.tolist(), strict=True):
            true = float(opening[at])
            mouth = "open" if true > OPEN_ABOVE else "closed"
            found.append((Shown(avatar, mouth, round(true, 3), round(seen, 3), at, speech.voice), picture))
    source.shuffle(found)
    return found


def _speech(synthesizer: str) -> Speech:
    return with_pauses(held_out_clips(synthesizer, count=2, duration_s=_CLIP_S), pause_s=_PAUSE_S)[0]


def sheet(pictures: Sequence[Pixels]) -> Pixels:
    """Return the pictures in rows of four, numbered from 1."""
    cells: list[Pixels] = []
    for number, picture in enumerate(pictures, start=1):
        bar = Image.new("RGB", (picture.shape[1], _NUMBER_HEIGHT), "white")
        ImageDraw.Draw(bar).text((4, 3), str(number), fill="black")
        cells.append(np.concatenate([np.asarray(bar), picture]))
    rows = [np.concatenate(cells[at : at + _COLUMNS], axis=1) for at in range(0, len(cells), _COLUMNS)]
    return np.concatenate(rows)


def parse_answers(text: str) -> dict[int, tuple[str, str]]:
    """Read "1 anna open, 2 kofi closed": number -> (name, mouth).

    Raises:
        ValueError: something else stands there, or a number twice.
    """
    answers: dict[int, tuple[str, str]] = {}
    for part in filter(None, (each.strip() for each in re.split(r"[,;\n]", text))):
        fields = part.split()
        if len(fields) != 3 or not fields[0].isdigit() or fields[2] not in ("open", "closed"):
            raise ValueError(f"the answer {part!r} is not understood; expected NUMBER NAME open or NUMBER NAME closed")
        if int(fields[0]) in answers:
            raise ValueError(f"number {fields[0]} is answered twice; expected one answer for each")
        answers[int(fields[0])] = (fields[1], fields[2])
    return answers


def score(answers: Mapping[int, tuple[str, str]], key: Sequence[Mapping[str, object]]) -> tuple[int, int]:
    """Return how many names and how many mouths are right; what isn't answered is wrong."""
    names = mouths = 0
    for number, entry in enumerate(key, start=1):
        name, mouth = answers.get(number, ("", ""))
        names += name == entry["avatar"]
        mouths += mouth == entry["mouth"]
    return names, mouths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="blind_look", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    parser.add_argument("--key", type=Path, required=True, help="JSON: written with --sheet, read with --answers")
    parser.add_argument("--answers", help='"1 anna open, 2 kofi closed, …"')
    parser.add_argument("--seed", type=int, default=12, help="another seed shows other frames (default: 12)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--device", default="cpu", help="as of `edgereels render`")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Write a sheet and its key, or score answers."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if (chosen.sheet is None) == (chosen.answers is None):
        parser.error("give --sheet SHEET.png to make a sheet, or --answers ANSWERS to score it")
    if chosen.answers is not None:
        try:
            answers = parse_answers(chosen.answers)
        except ValueError as error:
            parser.error(str(error))
        key = json.loads(chosen.key.read_text(encoding="utf-8"))["frames"]
        names, mouths = score(answers, key)
        print(f"{names} of {len(key)} names (at least {LEAST_NAMES}), {mouths} mouths (at least {LEAST_MOUTHS})")
        return 0 if names >= LEAST_NAMES and mouths >= LEAST_MOUTHS else 1
    found = render_look(Renderer(chosen.package, device=chosen.device, threads=chosen.threads), seed=chosen.seed)
    Image.fromarray(sheet([picture for _, picture in found])).save(chosen.sheet, optimize=True)
    key = {"package": chosen.package, "seed": chosen.seed, "frames": [asdict(shown) for shown, _ in found]}
    chosen.key.write_text(json.dumps(key, indent=1), encoding="utf-8")
    print(f"look at {chosen.sheet}, then answer: --key {chosen.key} --answers '1 NAME open, 2 NAME closed, …'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
