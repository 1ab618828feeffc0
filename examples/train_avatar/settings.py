# SPDX-License-Identifier: Apache-2.0
"""Measure every window length and number of steps that a package is meant for: does the mouth still follow the sound?

    python -m train_avatar.settings --package P

Held-out speech, one utterance for each avatar, by the voice that training never heard. Exit 1 where a setting misses.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from edgereels.runtime.metrics import correlation

from .evaluate import Readers, renderer_avatars
from .gates import LEAST_OPENING, Floats, lag_ms
from .held_out_speech import held_out_clips
from .performance import perform
from .rendering import Renderer


@dataclass(frozen=True)
class Setting:
    """How a video is cut into windows, and how often each is denoised."""

    window: int
    motion: int
    drop: int
    steps: int

    @property
    def options(self) -> tuple[str, ...]:
        """Return it as options of `edgereels render`."""
        pairs = vars(self).items()
        return tuple(word for name, value in pairs for word in (f"--{name}", str(value)))


SETTINGS = tuple(
    Setting(window, motion, drop, steps)
    for window, motion, drop in ((9, 1, 0), (17, 5, 0), (33, 5, 4), (49, 5, 4), (81, 5, 4))
    for steps in (1, 2, 4)
)


def measure(renderer: Renderer, readers: Readers, setting: Setting, *, seconds: float) -> list[tuple[Floats, Floats]]:
    """Return the mouth's opening, seen and true, one pair per avatar."""
    avatars = renderer_avatars(renderer)
    pairs: list[tuple[Floats, Floats]] = []
    spoken = held_out_clips("festival", count=len(avatars), duration_s=seconds)
    for avatar, speech in zip(avatars, spoken, strict=True):
        with renderer.frames(speech.waveform, avatar=avatar, options=setting.options) as frames:
            seen = readers[avatar].read(frames).opening
        pairs.append((seen, perform(speech).opening[: len(seen)].astype(np.float64)))
    return pairs


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="settings", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of speech per avatar (default: 6)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--device", default="cpu", help="as of `edgereels render`")
    chosen = parser.parse_args(arguments)
    renderer = Renderer(chosen.package, device=chosen.device, threads=chosen.threads)
    print("window motion drop steps  opening (lowest)  lag, ms  amplitude  met", flush=True)
    readers, met = Readers(), list[bool]()
    for setting in SETTINGS:
        pairs = measure(renderer, readers, setting, seconds=chosen.seconds)
        follows = [correlation(seen, true) for seen, true in pairs]
        amplitude = np.mean([seen.std() / true.std() for seen, true in pairs])
        met.append(bool(np.mean(follows) >= LEAST_OPENING))
        print(
            f"{setting.window:6} {setting.motion:6} {setting.drop:4} {setting.steps:5}    {np.mean(follows):.3f} "
            f"({min(follows):.3f})   {lag_ms(pairs)[0]:7.1f}  {amplitude:9.2f}  {'yes' if met[-1] else 'NO'}",
            flush=True,
        )
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
