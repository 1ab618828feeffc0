# SPDX-License-Identifier: Apache-2.0
"""The streams over fake graphs: a running sum is a causal network with one cache."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.vae_stream import VaeDecoder, VaeEncoder


class RunningSum:
    """Adds everything fed so far; `next_cache_00` carries the sum."""

    library = "test"
    provider = "test"
    precision = "f32"
    node_counts: Mapping[str, int] = {}

    def __init__(self, data: str, *, repeat: int, is_first: bool) -> None:
        self.repeat = repeat
        self.is_first = is_first
        self.input_names = (data,) if is_first else (data, "cache_00")
        self.output_names = ("sums", "cache_00" if is_first else "next_cache_00")

    def freeze(self, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
        """Any shape will do."""

    def run(self, feeds: Mapping[str, Any], *, keep: Collection[str] = ()) -> dict[str, Any]:
        self.kept = keep
        data = feeds[self.input_names[0]]
        sums = np.cumsum(data, axis=2) + (0 if self.is_first else feeds["cache_00"])
        return {"sums": np.repeat(sums, self.repeat, axis=2), self.output_names[1]: sums[:, :, -1:]}

    def close(self) -> None:
        """Nothing to free."""


def decoder(latents_per_call: int) -> VaeDecoder:
    return VaeDecoder(
        RunningSum("latents", repeat=1, is_first=True),
        RunningSum("latents", repeat=4, is_first=False),
        latents_per_call=latents_per_call,
    )


LATENTS = np.random.default_rng(0).standard_normal((1, 2, 7, 1, 1)).astype(np.float32)


@pytest.mark.parametrize("latents_per_call", [1, 2, 3, 6])
def test_pieces_give_the_same_as_the_whole(latents_per_call: int) -> None:
    np.testing.assert_allclose(decoder(latents_per_call).decode(LATENTS), decoder(6).decode(LATENTS), rtol=1e-6)


@pytest.mark.parametrize("split", range(1, 7))
def test_feeding_in_two_calls_changes_nothing(split: int) -> None:
    stream = decoder(2)
    parts = [*stream.feed(LATENTS[:, :, :split]), *stream.feed(LATENTS[:, :, split:])]
    np.testing.assert_allclose(np.concatenate(parts, axis=2), decoder(6).decode(LATENTS), rtol=1e-6)


def test_later_input_never_changes_earlier_output() -> None:
    changed = LATENTS.copy()
    changed[:, :, 4:] = 9
    assert np.array_equal(decoder(2).decode(changed)[:, :, :13], decoder(2).decode(LATENTS)[:, :, :13])


def test_a_reset_forgets() -> None:
    stream = decoder(2)
    first = stream.decode(LATENTS)
    assert np.array_equal(stream.decode(LATENTS), first)


def test_without_a_reset_the_past_is_heard() -> None:
    """Negative control: the sums go on where they stopped."""
    stream = decoder(6)
    stream.decode(LATENTS)
    assert not np.allclose(np.concatenate(list(stream.feed(LATENTS)), axis=2)[:, :, 0], LATENTS[:, :, 0])


def test_the_encoder_takes_one_frame_and_then_fours() -> None:
    frames = np.random.default_rng(1).standard_normal((1, 3, 13, 1, 1)).astype(np.float32)
    seen: list[int] = []

    class Watching(RunningSum):
        def run(self, feeds: Mapping[str, Any], *, keep: Collection[str] = ()) -> dict[str, Any]:
            seen.append(feeds["frames"].shape[2])
            return super().run(feeds, keep=keep)

    encoder = VaeEncoder(
        Watching("frames", repeat=1, is_first=True), Watching("frames", repeat=1, is_first=False), latents_per_call=2
    )
    encoder.encode(frames)
    assert seen == [1, 8, 4]


@pytest.mark.parametrize(
    ("provider", "kept"), [("test", ("next_cache_00",)), ("elsewhere", ())], ids=["together", "apart"]
)
def test_caches_stay_on_the_device_where_both_graphs_are_there(provider: str, kept: tuple[str, ...]) -> None:
    first = RunningSum("latents", repeat=1, is_first=True)
    following = RunningSum("latents", repeat=4, is_first=False)
    following.provider = provider
    VaeDecoder(first, following).decode(LATENTS)
    assert tuple(following.kept) == kept
    assert tuple(first.kept) == tuple(name.removeprefix("next_") for name in kept)
