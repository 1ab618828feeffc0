# SPDX-License-Identifier: Apache-2.0
"""LoRA files merged at read time, compared with the merge written out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgereels.export.lora import merge_loras, parse_lora
from edgereels.export.weight_files import SafetensorsFile, Weights
from edgereels.runtime.errors import CheckpointError


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


WEIGHT, KERNEL = drawn(6, 4), drawn(6, 3, 1, 2, 2)
DOWN, UP = drawn(2, 4), drawn(6, 2)


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    save_file(
        {"blocks.0.q.weight": WEIGHT, "blocks.0.q.bias": drawn(6), "patch.weight": KERNEL}, tmp_path / "w.safetensors"
    )
    return SafetensorsFile(tmp_path / "w.safetensors")


def lora(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


SPELLINGS = {
    "peft": ("base_model.model.blocks.0.q.lora_A.weight", "base_model.model.blocks.0.q.lora_B.weight"),
    "peft with an adapter name": ("blocks.0.q.lora_A.default.weight", "blocks.0.q.lora_B.default.weight"),
    "older": ("blocks.0.q.lora_down.weight", "blocks.0.q.lora_up.weight"),
    "diffusion_model prefix": ("diffusion_model.blocks.0.q.lora_A.weight", "diffusion_model.blocks.0.q.lora_B.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=SPELLINGS)
def test_an_update_is_added_whatever_its_spelling(tmp_path: Path, weights: Weights, spelling: str) -> None:
    down, up = SPELLINGS[spelling]
    merged = merge_loras(weights, loras=((lora(tmp_path, {down: DOWN, up: UP}), 0.5),))
    theirs = (WEIGHT + 0.5 * UP @ DOWN).numpy()
    np.testing.assert_allclose(merged.read("blocks.0.q.weight"), theirs, rtol=0, atol=1e-6)  # one float32 rounding
    np.testing.assert_array_equal(merged.read("blocks.0.q.bias"), weights.read("blocks.0.q.bias"))


def test_alpha_over_rank_scales_an_update(tmp_path: Path, weights: Weights) -> None:
    tensors = {
        "blocks.0.q.lora_down.weight": DOWN,
        "blocks.0.q.lora_up.weight": UP,
        "blocks.0.q.alpha": torch.tensor(8.0),
    }
    merged = merge_loras(weights, loras=((lora(tmp_path, tensors), 1.0),))
    np.testing.assert_allclose(merged.read("blocks.0.q.weight"), (WEIGHT + 4.0 * UP @ DOWN).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("stabilised", "factor"), [(False, 3.0), (True, 6.0 / 2**0.5)], ids=["alpha/r", "alpha/sqrt r"]
)
def test_alpha_comes_from_the_adapter_config(tmp_path: Path, weights: Weights, stabilised: bool, factor: float) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_rslora": stabilised}))
    path = lora(tmp_path, {"blocks.0.q.lora_A.weight": DOWN, "blocks.0.q.lora_B.weight": UP})
    merged = merge_loras(weights, loras=((path, 1.0),))
    theirs = (WEIGHT + factor * UP @ DOWN).numpy()
    np.testing.assert_allclose(merged.read("blocks.0.q.weight"), theirs, rtol=0, atol=1e-5)
    assert merged.files == (*weights.files, path, tmp_path / "adapter_config.json")  # an export resumes by these


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"lora_alpha": "six"}, "expected a number", id="text"),
        pytest.param({"lora_alpha": 6, "alpha_pattern": {"q": 12}}, "alpha_pattern", id="alphas per layer"),
    ],
)
def test_an_alpha_that_can_not_be_applied_is_refused(
    tmp_path: Path, weights: Weights, config: dict[str, object], message: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = lora(tmp_path, {"blocks.0.q.lora_A.weight": DOWN, "blocks.0.q.lora_B.weight": UP})
    with pytest.raises(CheckpointError, match=message):
        merge_loras(weights, loras=((path, 1.0),))


def test_two_files_add_up(tmp_path: Path, weights: Weights) -> None:
    path = lora(tmp_path, {"blocks.0.q.lora_A.weight": DOWN, "blocks.0.q.lora_B.weight": UP})
    merged = merge_loras(weights, loras=((path, 1.0), (path, -1.0)))
    np.testing.assert_allclose(merged.read("blocks.0.q.weight"), WEIGHT.numpy(), rtol=0, atol=1e-6)
    assert merged.files == (*weights.files, path, path)


def test_a_convolution_is_updated(tmp_path: Path, weights: Weights) -> None:
    down, up = drawn(2, 3, 1, 2, 2), drawn(6, 2, 1, 1, 1)
    path = lora(tmp_path, {"patch.lora_down.weight": down, "patch.lora_up.weight": up})
    merged = merge_loras(weights, loras=((path, 1.0),))
    theirs = KERNEL + torch.einsum("or,rihab->oihab", up[:, :, 0, 0, 0], down)
    np.testing.assert_allclose(merged.read("patch.weight"), theirs.numpy(), rtol=0, atol=1e-6)


REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "a layer that is not there": ({"other.lora_A.weight": DOWN, "other.lora_B.weight": UP}, "does not have"),
    "one factor": ({"blocks.0.q.lora_A.weight": DOWN}, "one of the two"),
    "another rank": ({"blocks.0.q.lora_A.weight": DOWN, "blocks.0.q.lora_B.weight": drawn(6, 3)}, "do not make"),
    "another width": ({"blocks.0.q.lora_A.weight": drawn(2, 5), "blocks.0.q.lora_B.weight": UP}, "do not make"),
    "no LoRA": ({"blocks.0.q.weight": WEIGHT}, "no LoRA factors"),
    "nothing": ({}, "holds no LoRA"),
}


@pytest.mark.parametrize("case", REFUSED, ids=REFUSED)
def test_what_is_no_update_of_this_network_is_refused(tmp_path: Path, weights: Weights, case: str) -> None:
    tensors, message = REFUSED[case]
    path = lora(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=message):
        merge_loras(weights, loras=((path, 1.0),))


def test_a_pickled_lora_is_refused_by_its_name(tmp_path: Path, weights: Weights) -> None:
    with pytest.raises(CheckpointError, match="safetensors only"):
        merge_loras(weights, loras=((tmp_path / "lora.pt", 1.0),))


def test_a_scale_stands_after_a_colon(tmp_path: Path) -> None:
    assert parse_lora("a/lora.safetensors") == (Path("a/lora.safetensors"), 1.0)
    assert parse_lora("a/lora.safetensors:0.8") == (Path("a/lora.safetensors"), 0.8)
    assert parse_lora(r"C:\lora.safetensors") == (Path(r"C:\lora.safetensors"), 1.0)
    existing = tmp_path / "odd:1"
    existing.write_bytes(b"")
    assert parse_lora(str(existing)) == (existing, 1.0)
    with pytest.raises(ValueError, match="finite"):
        parse_lora("lora.safetensors:inf")
