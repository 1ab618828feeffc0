# SPDX-License-Identifier: Apache-2.0
"""Measure a filmed face's package without labels: `python -m train_avatar.evaluate_filmed --out DIR --package P`.

The clips that were held out have sound and the face that belongs to it. The package renders their sound, and the mouth
that is seen is compared with the mouth that was filmed. What is wrong on purpose goes the same way and has to miss.
Exit code 1 when a gate is missed or a control isn't caught.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgereels.runtime.metrics import correlation

from .autoencoder import Autoencoder, package_autoencoder
from .filmed_mouth import MOUTH, FilmedMouth
from .footage import CLIP_FRAMES, FPS, Footage
from .gates import SHIFT_FRAMES, Control, Gate, Verdict, decibels, lag_ms, mean_gate
from .rendering import Renderer

LEAST_CORRELATION = 0.6
MOST_LAG_MS = 40.0
MOST_WRONG = 0.2
AMPLITUDE = (0.6, 1.4)
"""Wider than for a drawn face: the filmed mouth also moves with what its sound doesn't tell."""
LEAST_WHOLE_DB, LEAST_MOUTH_DB = 28.0, 24.0
STRETCH_FRAMES = 100
"""Correlations are taken over so many frames, 4 s: few clips are held out, and their halves are as good."""
_PER_CLIP = CLIP_FRAMES // STRETCH_FRAMES
_CODED_FRAMES = 33
SHEET_BYTES = 400_000

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Stretch:
    """Some seconds of one mouth, as it was filmed and as it was rendered, one value per frame."""

    filmed: Floats
    rendered: Floats


def mouth_gates(stretches: Sequence[Stretch], *, about: str) -> list[Gate]:
    """Return the gates of the mouth's movement."""
    follows = np.array([correlation(each.rendered, each.filmed) for each in stretches])
    others = [stretches[(index + _PER_CLIP) % len(stretches)] for index in range(len(stretches))]
    wrong = np.array(
        [correlation(ours.rendered, theirs.filmed) for ours, theirs in zip(stretches, others, strict=True)]
    )
    amplitude = np.array([each.rendered.std() / max(float(each.filmed.std()), 1e-9) for each in stretches])
    lag, interval = lag_ms([(each.rendered, each.filmed) for each in stretches])
    return [
        mean_gate("mouth movement, correlation", about, follows, least=LEAST_CORRELATION),
        Gate("lag, ms", about, lag, interval, least=-MOST_LAG_MS, most=MOST_LAG_MS),
        mean_gate("another clip's sound, correlation", about, wrong, most=MOST_WRONG),
        mean_gate("amplitude of the movement, ratio", about, amplitude, least=AMPLITUDE[0], most=AMPLITUDE[1]),
    ]


def mouth_controls(stretches: Sequence[Stretch]) -> list[Control]:
    """Return what has to miss these gates: the same stretches, spoilt."""
    count = len(stretches)
    spoilt = {
        "static face": [replace(each, rendered=np.full_like(each.rendered, each.rendered[0])) for each in stretches],
        "another clip's frames": [
            replace(each, rendered=stretches[(index + _PER_CLIP) % count].rendered)
            for index, each in enumerate(stretches)
        ],
        "sound 200 ms late": [replace(each, rendered=np.roll(each.rendered, -SHIFT_FRAMES)) for each in stretches],
        "a third of the movement": [replace(each, rendered=each.rendered / 3) for each in stretches],
    }
    gate_of = {"sound 200 ms late": 1, "a third of the movement": 3}
    return [Control(name, mouth_gates(some, about="control")[gate_of.get(name, 0)]) for name, some in spoilt.items()]


def held_out_stretches(footage: Footage, renderer: Renderer, *, clips: Sequence[int]) -> list[Stretch]:
    """Render the sound of held-out clips, and read both mouths; two stretches of 4 s per clip."""
    mouth, found = FilmedMouth.fitted(footage), list[Stretch]()
    for clip in clips:
        rendered = mouth.read(render(footage, renderer, clip))
        filmed = mouth.read(footage.frames[clip])[: len(rendered)]
        for first in range(0, len(filmed) - STRETCH_FRAMES + 1, STRETCH_FRAMES):
            part = slice(first, first + STRETCH_FRAMES)
            found.append(Stretch(filmed[part], rendered[part]))
        print(f"clip {clip}: {correlation(rendered, filmed):.3f}", file=sys.stderr, flush=True)
    return found


def render(footage: Footage, renderer: Renderer, clip: int) -> Pixels:
    """Return what the package makes of a clip's sound, (200, 192, 192, 3)."""
    sound = footage.sound[clip].astype(np.float32) / 32768
    with renderer.frames(sound, avatar=footage.faces[clip]) as frames:
        return np.array(frames)


def autoencoder_gates(footage: Footage, through: Autoencoder, *, clips: Sequence[int], about: str) -> list[Gate]:
    """Return how well filmed frames that were never trained on come through the autoencoder."""
    whole, mouth = [], []
    for clip in clips:
        truth = np.asarray(footage.frames[clip][40 : 40 + _CODED_FRAMES])
        squared = (through(truth).astype(np.float32) - truth) ** 2
        whole.append(decibels(float(squared.mean())))
        mouth.append(decibels(float(squared[:, footage.weight(clip) > MOUTH].mean())))
    return [
        mean_gate("autoencoder, dB", about, np.array(whole), least=LEAST_WHOLE_DB),
        mean_gate("autoencoder, mouth, dB", about, np.array(mouth), least=LEAST_MOUTH_DB),
    ]


def coarse(frames: Pixels) -> Pixels:
    """Return frames with pixels eight times as coarse: what an autoencoder must not be like."""
    small = frames.reshape(len(frames), frames.shape[1] // 8, 8, frames.shape[2] // 8, 8, 3).mean((2, 4))
    return np.round(small.repeat(8, axis=1).repeat(8, axis=2)).astype(np.uint8)


def measure(footage: Footage, renderer: Renderer, *, clips: Sequence[int]) -> Verdict:
    """Return all gates and controls of a package."""
    stretches = held_out_stretches(footage, renderer, clips=clips)
    about = f"{len(stretches)} x {STRETCH_FRAMES // FPS} s held out"
    through = package_autoencoder(renderer.package, device=renderer.device, threads=renderer.threads)
    verdict = Verdict(mouth_gates(stretches, about=about), mouth_controls(stretches))
    verdict.gates.extend(autoencoder_gates(footage, through, clips=clips, about=about))
    spoilt = autoencoder_gates(footage, coarse, clips=clips, about="control")
    verdict.controls.extend(Control("pixels eight times as coarse", gate) for gate in spoilt)
    return verdict


def write_sheet(footage: Footage, renderer: Renderer, path: Path, *, clips: Sequence[int], columns: int = 8) -> None:
    """Write a picture: filmed, through the autoencoder, rendered; from a mouth that is closed to one that is open."""
    from .contact_sheet import captioned, save_small

    mouth, rows = FilmedMouth.fitted(footage), list[Pixels]()
    through = package_autoencoder(renderer.package, device=renderer.device, threads=renderer.threads)
    for clip in clips:
        rendered = render(footage, renderer, clip)
        filmed = np.asarray(footage.frames[clip])[: len(rendered)]
        coded = through(filmed[: (len(filmed) - 1) // 4 * 4 + 1])
        seen = mouth.read(filmed[: len(coded)])
        follows = correlation(mouth.read(rendered), mouth.read(filmed))
        spread = np.argsort(seen)[np.linspace(2, len(seen) - 3, columns).astype(int)]
        shown = np.sort(spread)
        error = decibels(float(((coded.astype(np.float32) - filmed[: len(coded)]) ** 2).mean()))
        captions = (
            f"filmed, held out; seconds {', '.join(f'{at / FPS:.1f}' for at in shown)}",
            f"through the autoencoder: {error:.1f} dB",
            f"edgereels render of the same sound: mouth {follows:.2f}; eyes and head move on their own",
        )
        for frames, caption in zip((filmed, coded, rendered), captions, strict=True):
            rows.append(captioned(list(frames[shown]), caption))
    save_small(np.concatenate(rows), path, most_bytes=SHEET_BYTES)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether every gate is met and every control caught."""
    parser = argparse.ArgumentParser(description="Lip-sync of a filmed face's package on its held-out clips.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training, with its footage")
    parser.add_argument("--package", required=True, help="package folder")
    parser.add_argument("--clips", type=int, help="held-out clips to render (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="as of `edgereels render`")
    parser.add_argument("--sheet", type=Path, help="PNG to write: filmed, through the autoencoder, rendered")
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    chosen = parser.parse_args(arguments)
    footage = Footage.open(chosen.out)
    renderer = Renderer(chosen.package, device=chosen.device, threads=chosen.threads)
    clips = sorted(footage.held_out)[: chosen.clips]
    if len(clips) < 2:
        parser.error(
            f"{len(clips)} held-out clips to compare; expected at least 2, so that one's sound can be another's"
        )
    verdict = measure(footage, renderer, clips=clips)
    if chosen.json:
        figures = {"passed": verdict.passed, "gates": [gate.as_dict() for gate in verdict.gates],
                   "controls": [control.as_dict() for control in verdict.controls]}  # fmt: skip
        print(json.dumps(figures))
    else:
        print(verdict.table())
    if chosen.sheet:
        write_sheet(footage, renderer, chosen.sheet, clips=clips[:1])
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
