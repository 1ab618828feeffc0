# SPDX-License-Identifier: Apache-2.0
"""Values at fixed addresses. The logic runs on any device, here on the CPU; what only a card shows is marked gpu."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from edgereels.runtime.engine_onnxruntime_device import DeviceRuns, Resident

SUMMING = """
<ir_version: 10, opset_import: ["" : 23]>
summing (float[n] x, float[m] cache) => (float[n] y, float[m] next_cache) <int64[1] all = {0}> {
  total = ReduceSum(x, all)
  next_cache = Add(cache, total)
  first = ReduceSum(next_cache, all)
  y = Add(x, first)
}
"""
"""One cache: what was fed so far, in each of its places."""


@pytest.fixture
def session(tmp_path: Path) -> Any:
    onnx.save(onnx.parser.parse_model(SUMMING), tmp_path / "g.onnx")
    return onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])


@pytest.fixture
def runs(session: Any) -> DeviceRuns:
    return DeviceRuns(onnxruntime, session, device=("cpu", 0), replay=False)


def run(runs: DeviceRuns, feeds: Mapping[str, Any], *, is_expected: bool = True) -> dict[str, Any]:
    options = onnxruntime.RunOptions()
    return runs.run(feeds, options=options, keep=("next_cache",), is_expected=is_expected)


def piece(index: int, size: int = 4) -> np.ndarray:
    return np.arange(size, dtype=np.float32) + index


def test_a_stream_on_fixed_addresses_equals_plain_runs(session: Any, runs: DeviceRuns) -> None:
    """Seven pieces of two lengths, caches handed on."""
    ours: Any = np.zeros(3, np.float32)
    theirs = ours
    for index, size in enumerate((4, 4, 2, 4, 2, 2, 4)):
        x = piece(index, size)
        made = run(runs, {"x": x, "cache": ours})
        expected, theirs = session.run(None, {"x": x, "cache": theirs})
        assert np.array_equal(made["y"], expected)
        ours = made["next_cache"]
    assert np.array_equal(np.asarray(ours), theirs)


def test_caches_go_to_and_fro_between_two_sets_of_addresses(runs: DeviceRuns) -> None:
    cache: Any = np.zeros(3, np.float32)
    addresses: list[int] = []
    for index in range(6):
        cache = run(runs, {"x": piece(index), "cache": cache})["next_cache"]
        assert isinstance(cache, Resident)
        addresses.append(cache.address)
    assert addresses[0::2] == [addresses[0]] * 3
    assert addresses[1::2] == [addresses[1]] * 3
    assert addresses[0] != addresses[1]
    assert len(runs._bindings) == 3  # from the first array, A -> B, B -> A: what a card would record


def test_what_is_handed_out_belongs_to_the_caller(runs: DeviceRuns) -> None:
    """A result is not written over by later runs, though its buffer is."""
    cache = np.zeros(3, np.float32)
    first = run(runs, {"x": piece(1), "cache": cache})["y"]
    copy = first.copy()
    for index in range(4):
        run(runs, {"x": piece(index + 7), "cache": cache})
    assert np.array_equal(first, copy)


def test_what_is_held_is_copied_once_and_survives_other_feeds(runs: DeviceRuns) -> None:
    held = runs.hold({"cache": np.full(3, 2, np.float32)})
    with_held = run(runs, {"x": piece(0), **held})["y"]
    run(runs, {"x": piece(0), "cache": np.full(3, 9, np.float32)})  # another branch of guidance
    assert np.array_equal(run(runs, {"x": piece(0), **held})["y"], with_held)
    again = runs.hold({"cache": np.full(3, 5, np.float32)})
    assert again["cache"].address == held["cache"].address  # a recorded run stays good for the next pass
    assert not np.array_equal(run(runs, {"x": piece(0), **again})["y"], with_held)


def test_shapes_that_nobody_announced_leave_nothing_behind(runs: DeviceRuns) -> None:
    for size in range(1, 9):
        made = run(runs, {"x": piece(0, size), "cache": np.zeros(3, np.float32)}, is_expected=False)
        assert made["y"].shape == (size,)
    assert not runs._buffers and not runs._bindings


# ── On a card ────────────────────────────────────────────────────────────────────────────────────────────────────────


ATTENTION = """
<ir_version: 11, opset_import: ["" : 23]>
attention (float16[1,heads,tokens,64] q, float16[1,heads,tokens,64] k, float16[1,heads,tokens,64] v)
  => (float16[1,heads,tokens,64] y) { y = Attention(q, k, v) }
"""


def _free_bytes() -> int:
    from edgereels.runtime.cuda_driver import find_cards

    free = find_cards().cards[0].free_bytes
    assert free is not None
    return free


@pytest.mark.gpu
def test_attention_over_32k_tokens_is_fused(tmp_path: Path) -> None:
    """Unfused, the scores alone are 2 x 32768^2 x 8 heads = 17 GB; fused, the whole run stays below 5 GB."""
    from edgereels.runtime.engine import open_engine

    onnx.save(onnx.parser.parse_model(ATTENTION), tmp_path / "attention.onnx")
    before = _free_bytes()
    engine = open_engine(tmp_path / "attention.onnx", device="cuda:0")
    shape = (1, 8, 32768, 64)
    engine.freeze([dict.fromkeys("qkv", shape)])
    engine.run(dict.fromkeys("qkv", np.zeros(shape, np.float16)))
    assert before - _free_bytes() < 5e9  # arenas give nothing back, so what is held now is the peak
    engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("is_expected", [True, False], ids=["replayed", "plain"])
def test_replayed_runs_equal_plain_runs_and_caches_stay_on_the_card(is_expected: bool, tmp_path: Path) -> None:
    from edgereels.runtime.engine import open_engine

    onnx.save(onnx.parser.parse_model(SUMMING), tmp_path / "g.onnx")
    card, cpu = (open_engine(tmp_path / "g.onnx", device=device) for device in ("cuda:0", "onnxruntime:CPU"))
    if is_expected:
        card.freeze([{"x": (4,), "cache": (3,)}])
    ours: Any = np.zeros(3, np.float32)
    theirs = ours
    for index in range(9):
        made = card.run({"x": piece(index), "cache": ours}, keep=("next_cache",))
        expected = cpu.run({"x": piece(index), "cache": theirs})
        np.testing.assert_allclose(made["y"], expected["y"], rtol=1e-6)  # a sum in another order
        ours, theirs = made["next_cache"], expected["next_cache"]
        assert isinstance(ours, Resident)
        assert ours.buffer.device_name() == "cuda"
