# SPDX-License-Identifier: Apache-2.0
"""What a live window decodes, on a made-up decoder that hears its own past: in pieces, and on from window to window."""

from collections.abc import Collection, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgereels.benchmarks.live_plan import Setting, chunk_calls
from edgereels.runtime.chunks import WindowPlan
from edgereels.runtime.live_windows import LiveWindows
from edgereels.runtime.passes import Passes
from edgereels.runtime.timing import Trace

WINDOW, MOTION = 17, 5
GENERATOR = np.random.default_rng(0)


class FakeDecoder:
    """Each frame is half its own latent and half what was decoded before: what it remembers shows."""

    library = provider = "fake"

    def __init__(self, *, is_first: bool) -> None:
        self._is_first = is_first
        self.input_names = ("latents",) if is_first else ("latents", "cache")
        self.output_names = ("frames", "next_cache")

    def run(self, feeds: Mapping[str, Any], *, keep: Collection[str] = ()) -> dict[str, Any]:
        """Decode one latent into one frame, or each into four."""
        past, frames = (0.0 if self._is_first else float(feeds["cache"])), list[float]()
        for value in feeds["latents"].mean((0, 1, 3, 4)):
            for _frame in range(1 if self._is_first else 4):
                past = 0.5 * past + 0.5 * float(value)
                frames.append(past)
        shape = np.ones((1, 3, 1, 8, 8), np.float32)
        return {"frames": np.concatenate([value * shape for value in frames], axis=2), "next_cache": np.array(past)}


class FakeFinish:
    """Levels of [-1, 1] become levels of [0, 255]."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Return frames as pixels."""
        frames = feeds["frames"]
        pixels = np.round(127.5 * (1 + frames[0])).astype(np.uint8).transpose(1, 2, 3, 0)
        return {"pixels": pixels, "matched": frames}


@pytest.fixture
def passes() -> Passes:
    either = {"first": FakeDecoder(is_first=True), "next": FakeDecoder(is_first=False)}
    engines: dict[str, Any] = {f"vae_{way}coder_{when}": either[when] for way in ("en", "de") for when in either}
    conditions: Any = SimpleNamespace(reference_mean=np.zeros(3), reference_std=np.ones(3))
    nothing: Any = None
    return Passes(
        engines={**engines, "finish": FakeFinish()},  # type: ignore[dict-item]
        conditions=conditions,
        schedule=nothing,
        rope=nothing,
        guidance=nothing,
        draws=nothing,
        trace=Trace(),
    )


def latents(count: int) -> Any:
    return GENERATOR.uniform(-1, 1, (1, 16, count, 1, 1)).astype(np.float32)


def plan_of(passes: Passes, stop: int) -> WindowPlan:
    windows = LiveWindows(passes, window=WINDOW, motion=MOTION)
    return windows._plan(condition=MOTION, emit_start=MOTION, emit_stop=stop)


def levels(pieces: Iterable[Any]) -> list[list[int]]:
    return [piece[:, 0, 0, 0].tolist() for piece in pieces]


def flat(pieces: Iterable[list[int]]) -> list[int]:
    return [level for piece in pieces for level in piece]


def test_pieces_are_the_frames_of_the_whole_pass(passes: Passes) -> None:
    plan, made = plan_of(passes, WINDOW), latents(5)
    whole = passes.finish(plan, made, motion_start=WINDOW).pixels
    pieces = levels(passes.pixels(plan, made, goes_on=False))
    assert [len(piece) for piece in pieces] == [4, 8]
    assert flat(pieces) == flat(levels([whole])) and len(set(flat(pieces))) > 4


def test_a_window_that_goes_on_is_decoded_as_one_clip_with_the_one_before(passes: Passes) -> None:
    plan, last = plan_of(passes, WINDOW), plan_of(passes, 13)
    one, two, three = latents(5), latents(5), latents(5)
    pieces = levels(passes.pixels(plan, one, goes_on=False))
    pieces += levels(passes.pixels(plan, two, goes_on=True)) + levels(passes.pixels(last, three, goes_on=True))
    assert [len(piece) for piece in pieces] == [4, 8, 4, 8, 4, 4]
    planned = chunk_calls(Setting(8, 8, WINDOW, 1, MOTION, 0), has_image=False, has_canvas=False)
    assert [call.frames for call in planned if call.stage == "vae_decode"] == [4, 8], "as `edgereels plan` has it"

    passes._decoder.reset()
    clip = np.concatenate([one, two[:, :, 2:], three[:, :, 2:4]], axis=2)
    decoded = levels(FakeFinish().run({"frames": piece})["pixels"] for piece in passes._decoder.feed(clip))
    assert flat(pieces) == flat(decoded)[MOTION:]


def test_a_window_that_does_not_go_on_forgets_what_was_decoded_before(passes: Passes) -> None:
    plan, before, made = plan_of(passes, WINDOW), latents(5), latents(5)
    alone = levels(passes.pixels(plan, made, goes_on=False))
    assert levels(passes.pixels(plan, before, goes_on=False)) != alone
    assert levels(passes.pixels(plan, made, goes_on=False)) == alone
    assert flat(levels(passes.pixels(plan, made, goes_on=True))) != flat(alone), "or it would be no control"
