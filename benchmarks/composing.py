# SPDX-License-Identifier: Apache-2.0
"""What composing frames before they are due is worth to a viewer: lateness with and without it, in turns.

    python -m edgereels.benchmarks.composing --audio speech.wav --device openvino:CPU --seconds 60

A viewer takes the pictures that one live stream has composed; of the next, which has no still, it lays the bare frames
into one of the same size itself, as every viewer had to before; and so on. Printed for both: how long after it was due
a picture was there, frames of speech alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..runtime import (
    LATENCIES,
    AvatarSession,
    Canvas,
    MonotonicClock,
    ShownMedia,
    load_speech,
    old_objects_left_alone,
    processor_name,
    to_callback,
)
from .latency_figures import distribution, share_of

WAYS = ("ahead", "by the viewer")
ROUNDS = 2
"""Streams of each."""
LATE_MS = 20.0
"""Picture beside its sound: what people begin to notice."""
STILL, BOX, FEATHER = (1080, 1080), (252, 252, 828, 828), 24
"""Of the viewer's own composing: as the embedded avatars have them."""


class Viewer:
    """Notes how late pictures are, composed ahead or by itself."""

    def __init__(self) -> None:
        self.late_ms: dict[str, list[float]] = {way: [] for way in WAYS}
        self.way = WAYS[0]
        """Which it is at present."""
        self._clock = MonotonicClock()
        still = np.random.default_rng(0).integers(0, 256, (*STILL, 3), np.uint8)
        self._canvas = Canvas(still, BOX, FEATHER)

    def __call__(self, media: ShownMedia) -> None:
        """Take a frame."""
        _picture = media.frames if self.way == WAYS[0] else self._canvas.compose(media.frames)
        if media.kind == "speech":
            self.late_ms[self.way].append((self._clock.now_s() - media.due_s + media.lateness_s) * 1000)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="composing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--audio", type=Path, required=True, help="speech, repeated as needed")
    parser.add_argument("--device", default="cpu", help="as for live (default: cpu)")
    parser.add_argument("--threads", type=int, help="all engines together use at most this many")
    parser.add_argument("--latency", choices=LATENCIES, default="low", help="default: low")
    parser.add_argument("--seconds", type=float, default=60.0, help="of speech, each way (default: 60)")
    parser.add_argument("--json", action="store_true", help="print results for machines")
    arguments = parser.parse_args(argv)
    viewer = Viewer()
    with AvatarSession.open("default", device=arguments.device, threads=arguments.threads) as session:
        for viewer.way in WAYS * ROUNDS:
            talk(session, arguments.audio, viewer, latency=arguments.latency, length_s=arguments.seconds / ROUNDS)
    found = {way: distribution(late_ms, unit="ms") for way, late_ms in viewer.late_ms.items()}
    if arguments.json:
        print(json.dumps({"machine": processor_name(), "lateness_ms": found}))
        return 0
    print(f"{processor_name()}, {arguments.threads or 'all'} threads, {arguments.latency}; ms after a picture was due")
    for way, late in found.items():
        shown = {name: "-" if late[name] is None else f"{late[name]['value']:.1f}" for name in ("p50", "p99")}
        above = share_of(sum(one > LATE_MS for one in viewer.late_ms[way]), late["n"])
        print(
            f"composed {way}: median {shown['p50']}, p99 {shown['p99']}, largest {late['max']:.1f}; "
            f"{above['hits']} of {above['n']} above {LATE_MS:g} ms"
        )
    return 0


def talk(session: AvatarSession, audio: Path, viewer: Viewer, *, latency: str, length_s: float) -> None:
    """Let an avatar speak for so long, at the pace at which it is spoken."""
    clock, samples = MonotonicClock(), load_speech(audio)
    block, canvas = 320, viewer.way == WAYS[0]
    with session.live(latency=latency, canvas=canvas, outputs=[to_callback(viewer)]) as live, old_objects_left_alone():
        start_s = clock.now_s()
        for number in range(round(length_s * 16000) // block):
            clock.wait_until(start_s + (number + 1) * block / 16000)
            live.push(np.take(samples, range(number * block, (number + 1) * block), mode="wrap"), 16000)
        live.end_utterance()
        live.wait_idle(timeout_s=30)


if __name__ == "__main__":
    sys.exit(main())
