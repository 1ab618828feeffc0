# SPDX-License-Identifier: Apache-2.0
"""Shapes that are announced are those that come: over whole streams, and by hand for the published sizes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgereels.runtime import AvatarSession, ModelPackage
from edgereels.runtime.manifest import GraphEntry, TensorSpec
from edgereels.runtime.planner import plan
from edgereels.runtime.shapes import StreamSize, encoder_shapes, input_shapes, stream_shapes

from .stand_in_package import write_stand_in

SOUND = (0.3 * np.sin(np.arange(48000) * 0.1)).astype(np.float32)


def entry(**shapes: tuple[int | str, ...]) -> GraphEntry:
    inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())
    return GraphEntry("graph", "graph.onnx", "dit", 0, inputs, (), None, {})


def test_axes_that_are_multiples_are_read_backwards() -> None:
    found = input_shapes(entry(latents=(1, "2*rows"), cache=("rows", "4*rows", 3)), {"latents": (1, 16)})
    assert found == {"latents": (1, 16), "cache": (8, 32, 3)}


@pytest.mark.parametrize(
    ("graph", "known", "message"),
    [
        pytest.param(entry(x=(1, "n")), {"x": (2, 5)}, "x of graph is 1xn; the stream makes 2x5", id="fixed size"),
        pytest.param(entry(x=("2*n",)), {"x": (5,)}, "the stream makes 5", id="no multiple"),
        pytest.param(entry(x=("n", "n")), {"x": (5, 6)}, "the stream makes 5x6", id="one axis, two sizes"),
        pytest.param(entry(x=("n",)), {"x": (5, 6)}, "has 1 axes; the stream makes 2", id="rank"),
        pytest.param(entry(x=("n",), y=("m",)), {"x": (5,)}, "nothing says how long m is", id="unknown"),
    ],
)
def test_shapes_that_contradict_the_graph_are_refused(
    graph: GraphEntry, known: Mapping[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        input_shapes(graph, known)


SETTINGS = {
    "clip": {"audio": SOUND[:6400], "window": 33},
    "own window": {"audio": SOUND},
    "windows of 33": {"audio": SOUND, "window": 33, "motion": 9, "drop": 8, "size": (48, 32)},
    "nothing dropped": {"audio": SOUND, "window": 17, "motion": 1, "drop": 0},
}


@pytest.mark.parametrize("arguments", SETTINGS.values(), ids=list(SETTINGS))
def test_every_shape_of_a_stream_was_announced(
    arguments: dict[str, object], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine compiles for announced shapes before the first step; another one would be compiled amid the stream."""
    from edgereels.runtime.placement import Placement

    announced: dict[str, list[Mapping[str, tuple[int, ...]]]] = {}
    seen: dict[str, set[tuple[tuple[str, tuple[int, ...]], ...]]] = {}
    freeze = Placement.freeze
    monkeypatch.setattr(Placement, "freeze", lambda self, shapes, **_: announced.update(shapes) or freeze(self, shapes))

    def observe(graph: str, feeds: Mapping[str, np.ndarray], _outputs: Mapping[str, np.ndarray]) -> None:
        seen.setdefault(graph, set()).add(tuple((name, value.shape) for name, value in feeds.items()))

    with AvatarSession.open(package, threads=1, observe=observe) as session:
        list(session.stream(**arguments))
    assert announced.pop("audio_encoder") == [{}]
    seen.pop("audio_encoder")
    expected = {graph: {tuple(each.items()) for each in shapes} for graph, shapes in announced.items()}
    for graph, shapes in seen.items():
        assert shapes <= expected[graph]
    # Nothing is compiled in vain, but for a window's second piece that a short clip does not have.
    assert all(len(expected[graph]) <= len(seen.get(graph, ())) + 1 for graph in expected)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in", has_text=True, has_image=True)


def test_the_published_size_of_the_embedded_package() -> None:
    manifest = ModelPackage.open("default", verify="size").manifest
    made = plan(197, window=33, motion=5, drop=4)
    decoded = tuple(window.decode_latents for window in made.passes)
    shapes = stream_shapes(manifest, StreamSize(128, 128, 33, decoded))
    assert shapes["dit"][0]["rope_cos"] == (9 * 8 * 8, 24)
    assert shapes["dit"][0]["audio_rest"] == (8, 8, 4, 128)
    assert [each["frames"] for each in shapes["vae_encoder_next"]] == [(1, 3, 32, 128, 128)]
    assert [each["latents"][2] for each in shapes["vae_decoder_next"]] == [1, 2]
    assert [each["frames"][2] for each in shapes["finish"]] == [1, 4, 8]
    assert shapes["vae_decoder_next"][0]["cache_01"] == (1, 64, 2, 16, 16)


def test_an_avatar_is_prepared_with_the_encoder_only() -> None:
    manifest = ModelPackage.open("default", verify="size").manifest
    assert set(encoder_shapes(manifest, StreamSize(64, 96, 13, ()))) == {"vae_encoder_first", "vae_encoder_next"}


def test_a_package_that_takes_other_shapes_is_refused() -> None:
    manifest = ModelPackage.open("default", verify="size").manifest
    graphs = dict(manifest.graphs)
    inputs = tuple(
        TensorSpec(spec.name, spec.dtype, (1, 3, "frames", 64, 64)) if spec.name == "frames" else spec
        for spec in graphs["finish"].inputs
    )
    graphs["finish"] = dataclasses.replace(graphs["finish"], inputs=inputs)
    with pytest.raises(ValueError, match="frames of finish is 1x3xframesx64x64"):
        stream_shapes(dataclasses.replace(manifest, graphs=graphs), StreamSize(128, 128, 33, (9,)))
