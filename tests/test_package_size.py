# SPDX-License-Identifier: Apache-2.0
"""The size that is predicted for a package before it is written, against what is written."""

from pathlib import Path

import pytest

from edgereels.quant import quantize
from edgereels.quant.candidates import Candidates, keeping
from edgereels.quant.learn import Learned
from edgereels.quant.package_size import QUALITY_BYTES, package_bytes
from edgereels.quant.plan import make_plan, read_graphs
from edgereels.quant.recipes import BUILT_IN, Recipe
from edgereels.quant.request import Request
from edgereels.quant.rewrite import Range
from edgereels.runtime import ModelPackage

RANGE = Range(-1.25, 3.5)
NEAR = 1e-3
"""Of the package: digests of siblings and names of rules are only about known."""


def candidates_of(package: ModelPackage, recipe: Recipe, *, scratch: Path) -> Candidates:
    plan = make_plan(recipe, read_graphs(package), find_range=lambda _layer: RANGE)
    return Candidates(package, plan, library="onnxruntime", scratch=scratch)


def written(recipe: Recipe, target: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the size of all files of the package that a recipe makes, which nobody judges."""
    monkeypatch.setattr(quantize, "learn", lambda *_, **__: Learned(recipe, lambda _layer: RANGE, None, None))
    monkeypatch.setattr(quantize, "why_unjudgeable", lambda _source: "this test is about sizes")
    quantize.quantize_package(Request("default", target, recipe, gate=False), progress=lambda _line: None)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["int8", "int4", "int8-dynamic", "w8a8"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_the_size_of_any_choice_of_parts_is_known_before_it_is_written(
    embedded: ModelPackage, name: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = candidates_of(embedded, BUILT_IN[name], scratch=tmp_path)
    count = round(share * len(candidates.parts))
    taken, left = candidates.parts[:count], candidates.parts[count:]
    found = written(keeping(BUILT_IN[name], left, name="some"), tmp_path / "some", monkeypatch)
    assert candidates.package_bytes(taken) - QUALITY_BYTES == pytest.approx(found, rel=NEAR)
    assert found <= candidates.package_bytes(taken) <= 1.01 * found  # with room for the record
    others = candidates.parts if share < 0.5 else ()  # negative control
    assert candidates.package_bytes(others) - QUALITY_BYTES != pytest.approx(found, rel=NEAR)


def test_weights_that_engines_want_in_two_ways_count_twice(embedded: ModelPackage, tmp_path: Path) -> None:
    parts = candidates_of(embedded, BUILT_IN["w8a8"], scratch=tmp_path).parts
    encoder, decoder = (next(part for part in parts if part.subnetwork == f"vae_{end}coder") for end in ("en", "de"))
    assert 0.5 < encoder.quantized_bytes / encoder.stored_bytes < 0.65  # 8 and 7 bits, float32 before
    assert 0.25 < decoder.quantized_bytes / decoder.stored_bytes < 0.33


def test_a_package_takes_what_its_files_take(embedded: ModelPackage) -> None:
    assert package_bytes(embedded) == sum(path.stat().st_size for path in embedded.root.rglob("*") if path.is_file())
