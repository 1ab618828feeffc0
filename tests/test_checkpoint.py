# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: what is read, and everything damaged or dishonest that is refused."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgereels.export.checkpoint import open_checkpoint, source_records, task_of
from edgereels.export.state_dicts import require, unwrap
from edgereels.export.weight_files import MAX_TENSORS, PickledFile, SafetensorsFile, ShardedWeights
from edgereels.runtime.errors import CheckpointError

Header = dict[str, Any]


def write_raw(path: Path, header: Header | bytes, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=["f32", "f16", "bf16", "f64"]
)
def test_every_float_type_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_file({"first": torch.zeros(7), "weight": theirs}, tmp_path / "w.safetensors")
    ours = SafetensorsFile(tmp_path / "w.safetensors").read("weight")
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs.float().numpy())


def test_a_scalar_and_an_empty_tensor_are_read(tmp_path: Path) -> None:
    save_file({"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}, tmp_path / "w.safetensors")
    weights = SafetensorsFile(tmp_path / "w.safetensors")
    assert weights.read("scalar") == 2.5
    assert weights.read("empty").shape == (0, 3)


BAD_HEADERS: dict[str, tuple[Header | bytes, bytes, str]] = {
    "data cut short": ({"a": entry([4], 0, 16)}, bytes(12), "truncated"),
    "data too long": ({"a": entry([4], 0, 16)}, bytes(20), "padded"),
    "shape larger than its bytes": ({"a": entry([400], 0, 16)}, bytes(16), "needs 1600 bytes"),
    "a hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), "begins at byte 8"),
    "an overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), "begins at byte 4"),
    "negative size": ({"a": entry([-4], 0, 16)}, bytes(16), "natural numbers"),
    "size that is no integer": ({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}, bytes(4), "natural"),
    "unknown type": ({"a": entry([4], 0, 16, dtype="F8_E4M3")}, bytes(16), "F8_E4M3"),
    "entry without offsets": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "malformed"),
    "a name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
        "twice",
    ),
    "no JSON": (b"not json", b"", "header"),
    "a list": (b"[1]", b"", "no JSON object"),
    "nested beyond reason": (b"[" * 100_000, b"", "header"),
    "too many tensors": ({f"t{i}": entry([0], 0, 0) for i in range(MAX_TENSORS + 1)}, b"", "at most"),
}


@pytest.mark.parametrize("case", BAD_HEADERS, ids=BAD_HEADERS)
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, case: str) -> None:
    header, data, message = BAD_HEADERS[case]
    path = write_raw(tmp_path / "w.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)


def test_a_header_longer_than_the_cap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(CheckpointError, match="header claims"):
        SafetensorsFile(path)


def test_a_file_of_five_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        SafetensorsFile(tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    save_file({"fine": torch.ones(3), "broken.weight": torch.tensor([1.0, value])}, tmp_path / "w.safetensors")
    weights = SafetensorsFile(tmp_path / "w.safetensors")
    weights.read("fine")
    with pytest.raises(CheckpointError, match=r"broken\.weight"):
        weights.read("broken.weight")


def test_large_finite_weights_whose_sum_overflows_are_fine(tmp_path: Path) -> None:
    save_file({"a": torch.full((4,), 1e308, dtype=torch.float64)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError):  # beyond float32: not usable
        SafetensorsFile(tmp_path / "w.safetensors").read("a")
    save_file({"a": torch.full((4,), 3e38)}, tmp_path / "w.safetensors")
    assert SafetensorsFile(tmp_path / "w.safetensors").read("a").shape == (4,)


# ── Pickles ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "code": Canary(tmp_path / "canary")}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="would run code"):
        PickledFile(tmp_path / "w.pth")
    assert not (tmp_path / "canary").exists()
    # Negative control: the same bytes do run code where they are trusted.
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "canary").exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"weight": Canary(tmp_path / "canary")}))
    with pytest.raises(CheckpointError):
        PickledFile(tmp_path / "w.pth")
    assert not (tmp_path / "canary").exists()


def test_a_truncated_pth_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1000)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        PickledFile(tmp_path / "w.pth")


def test_a_pth_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        PickledFile(tmp_path / "w.pth")


def test_a_pth_is_flattened_and_read(tmp_path: Path) -> None:
    theirs = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    torch.save({"state_dict": {"a.weight": theirs}, "epoch": 3, "note": "x"}, tmp_path / "w.pth")
    weights = PickledFile(tmp_path / "w.pth")
    assert set(weights.infos()) == {"state_dict.a.weight"}
    np.testing.assert_array_equal(weights.read("state_dict.a.weight"), theirs.float().numpy())


# ── Nesting, moving averages, strictness ─────────────────────────────────────────────────────────────────────────────

ONE, TWO = torch.full((2,), 1.0), torch.full((2,), 2.0)
NESTINGS: dict[str, dict[str, Any]] = {
    "plain": {"a.weight": ONE, "b": TWO},
    "state_dict": {"state_dict": {"a.weight": ONE, "b": TWO}},
    "model": {"model": {"a.weight": ONE, "b": TWO}, "epoch": 1},
    "module prefix": {"module.a.weight": ONE, "module.b": TWO},
    "model holds module prefix": {"model": {"module.a.weight": ONE, "module.b": TWO}},
    "state_dict with model prefix": {"state_dict": {"model.a.weight": ONE, "model.b": TWO}},
    "beside an optimizer": {
        "model": {"a.weight": ONE, "b": TWO},
        "optimizer": {"state": {0: {"exp_avg": TWO}}},
        "step": 5,
    },
    "beside averages": {"model": {"a.weight": ONE, "b": TWO}, "ema": {"a.weight": TWO, "b": ONE}},
    "plain beside averages": {"a.weight": ONE, "b": TWO, "ema": {"a.weight": TWO, "b": ONE}},
}


@pytest.mark.parametrize("nesting", NESTINGS, ids=NESTINGS)
def test_a_nested_state_dict_is_unwrapped(tmp_path: Path, nesting: str) -> None:
    torch.save(NESTINGS[nesting], tmp_path / "w.pth")
    found = unwrap(PickledFile(tmp_path / "w.pth"), ema=False)
    assert set(found.weights.infos()) == {"a.weight", "b"}
    assert (found.weights.read("a.weight")[0], found.weights.read("b")[0], found.is_ema) == (1.0, 2.0, False)


AVERAGES: dict[str, dict[str, Any]] = {
    "ema": {"model": {"a": ONE}, "ema": {"a": TWO}},
    "model_ema": {"a": ONE, "model_ema": {"a": TWO}},
    "ema of a wrapped module": {"model": {"a": ONE}, "ema": {"module": {"a": TWO}, "n_averaged": torch.tensor(7)}},
    "within state_dict": {"state_dict": {"a": ONE, "model_ema.a": TWO}},
}


@pytest.mark.parametrize("case", AVERAGES, ids=AVERAGES)
def test_moving_averages_are_taken_on_request(tmp_path: Path, case: str) -> None:
    torch.save(AVERAGES[case], tmp_path / "w.pth")
    found = unwrap(PickledFile(tmp_path / "w.pth"), ema=True)
    assert (set(found.weights.infos()), found.is_ema) == ({"a"}, True)
    assert found.weights.read("a")[0] == 2.0


def test_a_flat_safetensors_file_with_prefixes_is_unwrapped(tmp_path: Path) -> None:
    save_file({"model.a": ONE, "ema.a": TWO}, tmp_path / "w.safetensors")
    weights = SafetensorsFile(tmp_path / "w.safetensors")
    assert unwrap(weights, ema=False).weights.read("a")[0] == 1.0
    assert unwrap(weights, ema=True).weights.read("a")[0] == 2.0


def test_everything_that_does_not_fit_is_listed_in_one_error(tmp_path: Path) -> None:
    save_file({"a": ONE, "b": TWO, "stray": ONE.clone(), "table": torch.tensor([1])}, tmp_path / "w.safetensors")
    expected = {"a": (2,), "b": (3, 4), "gone": (1,), "table": (1,)}
    with pytest.raises(CheckpointError) as caught:
        require(SafetensorsFile(tmp_path / "w.safetensors"), expected=expected, what="the network")
    message = str(caught.value)
    assert "1 missing (gone)" in message
    assert "1 unexpected (stray)" in message
    assert "b is [2], expected [3, 4]" in message
    assert "table is I64" in message
    assert "\n" not in message


def test_names_that_are_known_and_not_used_are_allowed_only_by_the_list(tmp_path: Path) -> None:
    save_file({"a": ONE, "unused.weight": TWO}, tmp_path / "w.safetensors")
    weights = SafetensorsFile(tmp_path / "w.safetensors")
    fitting = require(weights, expected={"a": (2,)}, ignored=[r"unused\..+"], what="the network")
    assert set(fitting.infos()) == {"a"}
    with pytest.raises(CheckpointError, match=r"unused\.weight"):
        require(weights, expected={"a": (2,)}, ignored=[r"unused"], what="the network")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"a": ONE}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="two files"):
        ShardedWeights((tmp_path / "x.safetensors", tmp_path / "y.safetensors"))


# ── Layouts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def a2v(golden_checkpoints: Path, tmp_path: Path) -> Path:
    """Return a talking-avatar checkpoint that a test may damage."""
    return Path(shutil.copytree(golden_checkpoints / "a2v", tmp_path / "a2v", copy_function=link_weights))


def link_weights(source: str, target: str) -> None:
    """Copy what tests write into; the rest is 230 MB."""
    if source.endswith(".json"):
        shutil.copyfile(source, target)
    else:
        Path(target).symlink_to(source)


@pytest.mark.golden
def test_the_published_layout_is_understood(golden_checkpoints: Path) -> None:
    checkpoint = open_checkpoint(golden_checkpoints / "a2v")
    assert checkpoint.task == "talking-avatar"
    assert "blocks.1.ffn.2.bias" in checkpoint.dit.infos()
    assert checkpoint.text is not None
    assert checkpoint.image is not None
    assert checkpoint.tokenizer is not None
    assert (checkpoint.audio_config["model_type"], checkpoint.audio_normalise) == ("wav2vec2", True)


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "task"), [("v2v", "video-extension"), ("r2v", "reference-to-video")])
def test_another_layout_is_named_and_refused(golden_checkpoints: Path, folder: str, task: str) -> None:
    assert task_of(golden_checkpoints / folder) == task
    with pytest.raises(CheckpointError, match=task):
        open_checkpoint(golden_checkpoints / folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / "nothing")


@pytest.mark.golden
def test_a_missing_shard_is_named(a2v: Path) -> None:
    (a2v / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard diffusion_pytorch_model-00002-of-00002\.safetensors"):
        open_checkpoint(a2v)


@pytest.mark.golden
def test_a_missing_shard_is_named_without_an_index_too(a2v: Path) -> None:
    (a2v / "diffusion_pytorch_model.safetensors.index.json").unlink()
    (a2v / "diffusion_pytorch_model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00001-of-00002"):
        open_checkpoint(a2v)


@pytest.mark.golden
def test_shards_without_an_index_are_merged(a2v: Path) -> None:
    whole = set(open_checkpoint(a2v).dit.infos())
    (a2v / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert set(open_checkpoint(a2v).dit.infos()) == whole


@pytest.mark.golden
@pytest.mark.parametrize("name", ["../outside.safetensors", "sub/x.safetensors", "x.pth"])
def test_an_index_that_points_elsewhere_is_refused(a2v: Path, name: str) -> None:
    index = a2v / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="names the shard"):
        open_checkpoint(a2v)


@pytest.mark.golden
def test_a_dit_that_is_pickled_is_not_read(a2v: Path) -> None:
    for path in a2v.glob("diffusion*"):
        path.unlink()
    torch.save({"a": ONE}, a2v / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt is not read"):
        open_checkpoint(a2v)


@pytest.mark.golden
def test_a_safetensors_twin_is_preferred_to_a_pth(a2v: Path) -> None:
    save_file({"conv1.weight": ONE}, a2v / "Wan2.1_VAE.safetensors")
    assert set(open_checkpoint(a2v).vae.infos()) == {"conv1.weight"}


@pytest.mark.golden
def test_averages_that_are_not_there_are_an_error(a2v: Path) -> None:
    with pytest.raises(CheckpointError, match="--ema"):
        open_checkpoint(a2v, ema=True)


@pytest.mark.golden
def test_two_speech_encoders_are_refused(a2v: Path) -> None:
    shutil.copytree(a2v / "chinese-wav2vec2-base", a2v / "another")
    with pytest.raises(CheckpointError, match="exactly one"):
        open_checkpoint(a2v)


def test_sources_are_recorded_relative_to_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint" / "sub").mkdir(parents=True)
    inside, outside = tmp_path / "checkpoint" / "sub" / "a.bin", tmp_path / "b.bin"
    inside.write_bytes(b"abc")
    outside.write_bytes(b"")
    records = source_records([inside, outside, inside], folder=tmp_path / "checkpoint")
    assert [(record["file"], record["size_bytes"]) for record in records] == [("sub/a.bin", 3), ("b.bin", 0)]
    # SHA-256 of "abc" as FIPS 180-2 gives it.
    assert records[0]["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
