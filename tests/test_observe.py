# SPDX-License-Identifier: Apache-2.0
"""Watching a real trajectory: everything is told, and watching changes nothing."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgereels.runtime import AvatarSession

from .stand_in_package import write_stand_in

SOUND = (0.3 * np.sin(np.arange(32000) * 0.1) * (np.arange(32000) % 4000 > 2000)).astype(np.float32)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in")


def rendered(session: AvatarSession) -> npt.NDArray[np.uint8]:
    return np.concatenate([chunk.frames for chunk in session.stream(audio=SOUND)])


def test_every_run_is_told_with_all_of_its_inputs_and_outputs(package: Path) -> None:
    seen: dict[str, set[tuple[frozenset[str], frozenset[str]]]] = {}

    def observe(graph: str, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        assert all(isinstance(value, np.ndarray) for value in (*feeds.values(), *outputs.values()))
        seen.setdefault(graph, set()).add((frozenset(feeds), frozenset(outputs)))

    with AvatarSession.open(package, threads=1, observe=observe) as session:
        rendered(session)
        for graph, ends in seen.items():
            entry = session.package.graph(graph)
            inputs, outputs = frozenset(spec.name for spec in entry.inputs), frozenset(s.name for s in entry.outputs)
            assert ends == {(inputs, outputs)}
    assert {"audio_encoder", "vae_encoder_first", "vae_encoder_next", "dit", "vae_decoder_next", "finish"} <= set(seen)


def test_watching_changes_nothing(package: Path) -> None:
    with AvatarSession.open(package, threads=1, observe=lambda *_: None) as watched:
        seen = rendered(watched)
    with AvatarSession.open(package, threads=1) as alone:
        assert np.array_equal(seen, rendered(alone))
