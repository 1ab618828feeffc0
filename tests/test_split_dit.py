# SPDX-License-Identifier: Apache-2.0
"""The transformer in parts gives what it gives in one piece, and holds no more of itself than was asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.runtime import AvatarSession, split_dit
from edgereels.runtime.engine import Array, Device, Engine, open_engine
from edgereels.runtime.errors import EngineError
from edgereels.runtime.footprint import RENDER_GRAPHS, estimate
from edgereels.runtime.golden import load_golden
from edgereels.runtime.machine import Memory
from edgereels.runtime.metrics import rel_l2
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.report import EngineReport, engines_line
from edgereels.runtime.split_dit import SplitDit, in_parts, parts_of, split_for
from edgereels.runtime.timing import Trace

CPU = Device("cpu", "")
DEMO = Path(split_dit.__file__).parent / "embedded" / "demo.wav"


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return ModelPackage.open("default", verify="size")


def feeds_of(package: ModelPackage) -> dict[str, Array]:
    path = package.golden_path("dit")
    assert path is not None
    return dict(load_golden(path).inputs)


class Opener:
    """Opens parts, and counts how many blocks are open at once."""

    def __init__(self, package: ModelPackage, device: str) -> None:
        self.package, self.device = package, device
        self.open_blocks: set[str] = set()
        self.most_blocks = 0

    def __call__(self, part: str) -> Engine:
        engine = open_engine(self.package.graph_path(part), device=self.device, threads=1, compute="f32")
        if part.startswith("dit_block_"):
            self.open_blocks.add(part)
            self.most_blocks = max(self.most_blocks, len(self.open_blocks))
            close = engine.close

            def closed() -> None:
                self.open_blocks.discard(part)
                close()

            engine.close = closed  # type: ignore[method-assign]
        return engine


@pytest.fixture(scope="module", params=["onnxruntime:CPU", "openvino:CPU"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.mark.parametrize(("open_blocks", "most"), [(0, 1), (3, 4), (5, 5)], ids=["none", "three", "all"])
def test_parts_agree_with_the_whole_and_few_blocks_are_open(
    package: ModelPackage, device: str, open_blocks: int, most: int
) -> None:
    feeds = feeds_of(package)
    whole = open_engine(package.graph_path("dit"), device=device, threads=1, compute="f32")
    expected = whole.run(feeds)["velocity"]
    opener = Opener(package, device)
    split = SplitDit(package, open_part=opener, open_blocks=open_blocks)
    for _again in range(2):
        # the same arithmetic in other graphs: engines fuse across the cut, and sum in another order
        assert rel_l2(split.run(feeds)["velocity"], expected) < 1e-5
    assert opener.most_blocks == most
    assert (split.library, split.precision) == (whole.library, "f32")
    assert split.input_names == whole.input_names and split.output_names == whole.output_names
    split.close()
    assert not opener.open_blocks


def test_blocks_in_another_order_are_another_network(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the comparison above tells a wrong chain."""
    first, *blocks, last = parts_of(package)
    feeds = feeds_of(package)
    expected = open_engine(package.graph_path("dit"), threads=1).run(feeds)["velocity"]
    monkeypatch.setattr(split_dit, "parts_of", lambda _package: [first, *reversed(blocks), last])
    split = SplitDit(package, open_part=Opener(package, "onnxruntime:CPU"), open_blocks=5)
    assert rel_l2(split.run(feeds)["velocity"], expected) > 1e-2


def test_a_part_that_can_not_be_opened_leaves_none_open(package: ModelPackage) -> None:
    """Prologue and two blocks are open by then."""
    opened: list[str] = []
    closed: list[str] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name
            opened.append(name)

        def close(self) -> None:
            closed.append(self.name)

    def open_part(part: str) -> Any:
        if part == "dit_block_02":
            raise EngineError("no memory")
        return Part(part)

    with pytest.raises(EngineError, match="no memory"):
        SplitDit(package, open_part=open_part, open_blocks=5)
    assert opened == closed == ["dit_prologue", "dit_block_00", "dit_block_01"]


def have(monkeypatch: pytest.MonkeyPatch, free_bytes: int | None) -> None:
    monkeypatch.setattr(split_dit, "memory_facts", lambda: Memory(1 << 40, free_bytes, None))


@pytest.mark.parametrize("free_bytes", [1 << 38, None], ids=["plenty", "unknown"])
def test_a_transformer_that_fits_is_not_split(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch, free_bytes: int | None
) -> None:
    have(monkeypatch, free_bytes)
    assert split_for(package, CPU, library="onnxruntime", tokens=256) is None


def test_the_less_is_free_the_fewer_blocks_stay_open(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    for free_mb in (16, 12, 8, 1):
        have(monkeypatch, free_mb << 20)
        split = split_for(package, CPU, library="onnxruntime", tokens=256)
        assert split is not None and split.free_bytes == free_mb << 20
        found.append(split.open_blocks)
    assert found == sorted(found, reverse=True) and found[0] > found[-1] == 0


def test_the_size_that_is_rendered_counts_and_no_other(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's scores grow with the square of the tokens: 32 760 of them, 480x832 and 81 frames, take gigabytes."""
    have(monkeypatch, 1 << 30)
    assert split_for(package, CPU, library="onnxruntime", tokens=32_760) is not None
    assert split_for(package, CPU, library="onnxruntime", tokens=256) is None
    assert split_for(package, CPU, library="onnxruntime") is None  # not known: weights alone decide


def test_the_least_that_is_needed_holds_one_block(package: ModelPackage) -> None:
    whole = estimate(package, graphs=RENDER_GRAPHS)
    least = in_parts(package, whole, library="onnxruntime")
    blocks = estimate(package, graphs=[part for part in parts_of(package) if "block" in part])
    assert whole.weights_bytes - least.weights_bytes == pytest.approx(blocks.weights_bytes * 4 / 5, rel=0.01)
    assert (least.activations_bytes, least.window_flop) == (whole.activations_bytes, whole.window_flop)


def test_a_session_that_lacks_memory_runs_in_parts_says_so_and_shows_the_same(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sound = np.zeros(16_000, np.float32)

    def frames(trace: Trace | None) -> tuple[Array, dict[str, EngineReport]]:
        with AvatarSession.open("default", threads=1, verify="size", device="onnxruntime:CPU") as session:
            shown = np.concatenate([chunk.frames for chunk in session.stream(audio=sound, trace=trace, size=(64, 64))])
            return shown, session.engine_reports

    expected, whole = frames(None)
    have(monkeypatch, 1 << 20)
    trace = Trace()
    shown, parted = frames(trace)
    assert np.abs(shown.astype(int) - expected).max() <= 1  # float32 in another order, rounded
    (event,) = (event for event in trace.events if event["event"] == "split")
    assert (event["graph"], event["blocks"], event["open_blocks"]) == ("dit", 5, 0)
    assert "runs in parts, 0 of 5 blocks stay open" in caplog.text
    assert [graph for graph, got in parted.items() if got.in_parts] == ["dit"]
    assert parted["dit"].as_dict()["in_parts"] == {"blocks": 5, "open_blocks": 0}
    (opened,) = (event for event in trace.events if event["event"] == "engine" and event["graph"] == "dit")
    assert opened["in_parts"] == {"blocks": 5, "open_blocks": 0}
    said = "the transformer in parts for lack of memory, 0 of 5 blocks stay open"
    assert engines_line(parted).endswith(said)
    assert not any(got.in_parts for got in whole.values()) and "in parts" not in engines_line(whole)  # control
