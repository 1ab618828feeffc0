# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: near is near enough, and every way of being far is noticed."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save

from edgereels.runtime.errors import PackageError
from edgereels.runtime.golden import F32, Tolerance, check_graph, compare_output, golden_bytes, load_golden

REFERENCE = np.random.default_rng(1).standard_normal((2, 50), dtype=np.float32)


class Scripted:
    """An engine that returns what it was told to."""

    provider = "Scripted"
    input_names = ("tokens",)
    output_names = ("velocity",)

    def __init__(self, outputs: Mapping[str, npt.NDArray[Any]], *, precision: str = "f32") -> None:
        self.outputs = dict(outputs)
        self.precision = precision

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        assert set(feeds) == {"tokens"}
        return self.outputs

    def close(self) -> None:
        pass


def compare(ours: npt.NDArray[Any] | None, theirs: npt.NDArray[Any] = REFERENCE, tolerance: Tolerance = F32) -> str:
    """Return the fault, empty where there is none."""
    return compare_output("velocity", ours=ours, theirs=theirs, tolerance=tolerance).fault


def test_vectors_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "dit.safetensors"
    tolerance = Tolerance(rel_l2=1e-3, max_abs=1e-2, reason="weights are stored in fp16")
    path.write_bytes(golden_bytes({"tokens": REFERENCE}, {"velocity": REFERENCE.T}, tolerance=tolerance))
    vectors = load_golden(path)
    np.testing.assert_array_equal(vectors.inputs["tokens"], REFERENCE)
    np.testing.assert_array_equal(vectors.outputs["velocity"], REFERENCE.T)
    assert vectors.tolerance == tolerance


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({}, {}),
        ({}, {"velocity": np.array([np.nan], np.float32)}),
        ({"x": np.array([np.inf])}, {"velocity": REFERENCE}),
    ],
    ids=["no outputs", "an output that is not a number", "an infinite input"],
)
def test_vectors_that_can_not_be_compared_are_not_written(inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="finite"):
        golden_bytes(inputs, outputs)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"out.a": REFERENCE}, None),
        ({"out.a": REFERENCE}, {"tolerance": "{}"}),
        ({"out.a": REFERENCE}, {"tolerance": '{"rel_l2": NaN, "max_abs": 1, "reason": "", "levels": 1}'}),
        ({"out.a": REFERENCE}, {"tolerance": '{"rel_l2": -1, "max_abs": 1, "reason": "", "levels": 1}'}),
        ({"in.a": REFERENCE}, {"tolerance": "{}"}),
        ({"a": REFERENCE, "out.a": REFERENCE}, {"tolerance": "{}"}),
        ({"out.a": REFERENCE * np.float32(np.nan)}, {"tolerance": json.dumps(asdict(F32))}),
    ],
    ids=["no tolerance", "an empty one", "NaN", "negative", "no outputs", "neither input nor output", "NaN inside"],
)
def test_a_golden_file_that_says_too_little_is_refused(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "dit.safetensors"
    path.write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(PackageError):
        load_golden(path)


def test_equal_outputs_pass() -> None:
    assert compare(REFERENCE.copy()) == ""


def test_rounding_passes() -> None:
    assert compare(REFERENCE * np.float32(1 + 1e-6)) == ""


WRONG: dict[str, npt.NDArray[Any] | None] = {
    "scaled by five percent": REFERENCE * np.float32(1.05),
    "permuted": REFERENCE[:, ::-1].copy(),
    "one value off": np.where(np.arange(100).reshape(2, 50) == 7, REFERENCE + np.float32(1e-3), REFERENCE),
    "one value not a number": np.where(np.arange(100).reshape(2, 50) == 7, np.float32(np.nan), REFERENCE),
    "one value infinite": np.where(np.arange(100).reshape(2, 50) == 7, np.float32(np.inf), REFERENCE),
    "zeros": np.zeros_like(REFERENCE),
    "another shape": REFERENCE[:1],
    "another shape of the same size": REFERENCE.reshape(50, 2),
    "another type": REFERENCE.astype(np.float64),
    "missing": None,
}


@pytest.mark.parametrize("ours", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_output_fails(ours: npt.NDArray[Any] | None) -> None:
    assert compare(ours) != ""


def test_the_figures_are_what_they_say() -> None:
    theirs = np.array([3.0, -4.0], np.float32)
    result = compare_output("x", ours=np.array([3.0, -3.0], np.float32), theirs=theirs, tolerance=F32)
    assert (result.max_abs, result.rel_max, result.rel_l2) == (1.0, 0.25, 0.2)
    assert result.rel_std == pytest.approx(1 / 3.5)


def test_zeros_must_stay_zeros() -> None:
    """The caches of the first chunk are zero: there is no scale that a difference could be small against."""
    zeros = np.zeros((2, 3), np.float32)
    assert compare(zeros, zeros) == ""
    assert compare(zeros + np.float32(1e-30), zeros) != ""


def test_an_empty_output_passes() -> None:
    assert compare(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)) == ""


@pytest.mark.parametrize(("step", "passes"), [(0, True), (1, True), (2, False)])
def test_pixels_may_differ_by_one_level(step: int, passes: bool) -> None:
    theirs = np.arange(250, dtype=np.uint8)
    assert (compare(theirs + np.uint8(step), theirs) == "") is passes


def test_integers_must_be_equal() -> None:
    theirs = np.arange(5)
    assert compare(theirs + 1, theirs) != ""


@pytest.mark.parametrize(
    ("precision", "error", "passes"),
    [("f32", 5e-3, False), ("f16", 5e-3, True), ("f16", 15e-3, False), ("bf16", 15e-3, True), ("bf16", 5e-2, False)],
)
def test_the_precision_in_use_decides_how_near_is_near(precision: str, error: float, passes: bool) -> None:
    assert (compare(REFERENCE * np.float32(1 + error), tolerance=F32.at(precision)) == "") is passes


def test_a_tolerance_that_is_wide_already_is_not_narrowed() -> None:
    """What int4 weights cost stays allowed, and 16-bit arithmetic adds to it as independent errors do."""
    wide = Tolerance(rel_l2=0.3, max_abs=0.5, reason="int4", levels=9)
    assert wide.at("f32") == wide
    assert wide.at("f16").rel_l2 == pytest.approx((0.3**2 + 0.01**2) ** 0.5, rel=1e-9)
    assert (wide.at("f16").levels, wide.at("f16").reason.startswith("int4; ")) == (9, True)


def test_an_unknown_precision_is_a_wrong_argument() -> None:
    with pytest.raises(ValueError, match="expected f32"):
        F32.at("int8")


@pytest.fixture
def vectors_path(tmp_path: Path) -> Path:
    path = tmp_path / "dit.safetensors"
    path.write_bytes(golden_bytes({"tokens": REFERENCE}, {"velocity": REFERENCE, "cache_00": REFERENCE[:1]}))
    return path


def test_a_graph_passes_when_all_outputs_do(vectors_path: Path) -> None:
    result = check_graph(
        Scripted({"velocity": REFERENCE, "cache_00": REFERENCE[:1]}), load_golden(vectors_path), graph="dit"
    )
    assert result.passed and result.graph == "dit"


def test_a_graph_fails_with_its_worst_output_named(vectors_path: Path) -> None:
    result = check_graph(Scripted({"velocity": REFERENCE}), load_golden(vectors_path), graph="dit")
    assert not result.passed
    assert result.worst is not None and result.worst.output == "cache_00"
