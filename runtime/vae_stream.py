# SPDX-License-Identifier: Apache-2.0
"""Encode and decode video as a stream: a first graph, a next graph, and the caches that travel between them.

The two laws: pieces give the same result as the whole, for every split; later input never changes earlier output.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .engine import Engine, Value

Frames = npt.NDArray[np.float32]

FRAMES_PER_LATENT = 4
"""The VAE's temporal stride: the first latent stands for one frame, each later one for four."""

ENCODED_AT_ONCE = 8
"""Latents made by one later call of the encoder."""

DECODED_AT_ONCE = 2
"""Latents given to one later call of the decoder."""


def later_calls(latents: int, *, at_once: int) -> list[int]:
    """Return how many latents each call after the first one takes, of a clip of so many in all.

    >>> later_calls(8, at_once=2)
    [2, 2, 2, 1]
    """
    whole, rest = divmod(latents - 1, at_once)
    return [at_once] * whole + [rest] * (rest > 0)


class VaeStream:
    """One direction of the VAE. State: the caches of its causal convolutions, dropped by `reset`."""

    def __init__(self, first: Engine, following: Engine) -> None:
        self._first = first
        self._following = following
        self._data_input = first.input_names[0]
        self._data_output = first.output_names[0]
        self._caches: dict[str, Value] = {}
        self._started = False
        self._stay = {engine: self._staying(engine) for engine in (first, following)}

    def _staying(self, engine: Engine) -> tuple[str, ...]:
        """Return the outputs that may stay on the device: its caches, where both graphs are there."""
        if (self._first.library, self._first.provider) != (self._following.library, self._following.provider):
            return ()
        return tuple(name for name in engine.output_names if name != self._data_output)

    def reset(self) -> None:
        """Forget everything that was fed; the next call starts a new clip."""
        self._caches = {}
        self._started = False

    def _step(self, data: Frames) -> Frames:
        """Run the graph that is due on a piece and keep its caches."""
        engine = self._following if self._started else self._first
        results = engine.run({self._data_input: data, **self._caches}, keep=self._stay[engine])
        output = results.pop(self._data_output)
        self._caches = {name.removeprefix("next_"): cache for name, cache in results.items()}
        self._started = True
        return output


class VaeEncoder(VaeStream):
    """Frames in, normalised latents out."""

    def __init__(self, first: Engine, following: Engine, *, latents_per_call: int = ENCODED_AT_ONCE) -> None:
        super().__init__(first, following)
        self._latents_per_call = latents_per_call

    def feed(self, frames: Frames) -> Frames:
        """Encode the next frames of the clip.

        Args:
            frames: [1, 3, T, H, W] in [-1, 1]; T is 1 + 4k for the first call after a reset, 4k for later ones.

        Returns:
            [1, 16, latents, H/8, W/8], normalised.
        """
        pieces: list[Frames] = []
        start = 0
        if not self._started:
            pieces.append(self._step(np.ascontiguousarray(frames[:, :, :1])))
            start = 1
        step = self._latents_per_call * FRAMES_PER_LATENT
        for at in range(start, frames.shape[2], step):
            pieces.append(self._step(np.ascontiguousarray(frames[:, :, at : at + step])))
        return np.concatenate(pieces, axis=2)

    def encode(self, frames: Frames) -> Frames:
        """Encode a whole clip [1, 3, 1 + 4k, H, W] from a fresh start."""
        self.reset()
        return self.feed(frames)


class VaeDecoder(VaeStream):
    """Normalised latents in, frames out."""

    def __init__(self, first: Engine, following: Engine, *, latents_per_call: int = DECODED_AT_ONCE) -> None:
        super().__init__(first, following)
        self._latents_per_call = latents_per_call

    def feed(self, latents: Frames) -> Iterator[Frames]:
        """Decode the next latents [1, 16, k, h, w]; yield frames [1, 3, T, 8h, 8w] in [-1, 1] as they are made."""
        start = 0
        if not self._started:
            yield self._step(np.ascontiguousarray(latents[:, :, :1]))
            start = 1
        for at in range(start, latents.shape[2], self._latents_per_call):
            yield self._step(np.ascontiguousarray(latents[:, :, at : at + self._latents_per_call]))

    def decode(self, latents: Frames) -> Frames:
        """Decode a whole clip from a fresh start: [1, 16, k, h, w] to [1, 3, 1 + 4(k - 1), 8h, 8w]."""
        self.reset()
        return np.concatenate(list(self.feed(latents)), axis=2)
