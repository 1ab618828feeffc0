# SPDX-License-Identifier: Apache-2.0
"""The text encoder against the recorded reference, block by block, and its exported graph."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgereels.export.text_encoder import (
    TextEncoder,
    TextEncoderConfig,
    bucket_table,
    from_transformers_keys,
    graphs,
)

from .onnx_parity import export_and_compare

TINY = TextEncoderConfig(vocab_size=50, dim=32, dim_attn=16, dim_ffn=48, num_heads=2, encoder_layers=2)
# "Bit-identical" in the golden README: 1e-5 of the tensor's standard deviation; the accumulation order is ours.
RELATIVE = 1e-5
# The same float32 operations in another order; values of order one.
REORDERED = 2e-5


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "golden" / "t5.safetensors")


@pytest.fixture(scope="module")
def published(golden_checkpoints: Path) -> TextEncoder:
    folder = golden_checkpoints / "a2v"
    config = TextEncoderConfig.from_mapping(json.loads((folder / "tiny.json").read_text())["umt5_xxl"])
    model = TextEncoder(config).eval().requires_grad_(False)
    state = torch.load(folder / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return model


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in standard deviations of the recorded tensor."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.std())


@pytest.mark.golden
@pytest.mark.parametrize("prompt", range(4), ids=lambda prompt: f"prompt-{prompt}")
def test_a_prompt_encodes_as_in_the_reference(recorded: dict[str, Tensor], published: TextEncoder, prompt: int) -> None:
    ours = published(recorded["ids"][prompt : prompt + 1], recorded["mask"][prompt : prompt + 1])[0]
    theirs = recorded[f"context_{prompt}"]
    assert relative(ours[: theirs.shape[0]], theirs) < RELATIVE
    assert not ours[theirs.shape[0] :].any()


@pytest.mark.golden
def test_the_longest_prompt_encodes_as_in_the_reference(recorded: dict[str, Tensor], published: TextEncoder) -> None:
    tokens = int(recorded["seq_lens"][4])
    ours = published(recorded["ids"][4:5], recorded["mask"][4:5])[0]
    assert relative(ours[:tokens:4], recorded["context_4_every4th_row"]) < RELATIVE


@pytest.mark.golden
def test_each_part_of_each_block_is_that_of_the_reference(recorded: dict[str, Tensor], published: TextEncoder) -> None:
    ids = recorded["ids"][1:2, : int(recorded["seq_lens"][1])]
    buckets, masked = published.pair_buckets(ids), torch.zeros(1, 1, 1, ids.shape[1])
    first = published.blocks[0]
    x = published.token_embedding(ids)
    attended = first.attn(first.norm1(x), first.pos_embedding(buckets))
    fed = first.ffn(first.norm2(x + attended))
    after = first(x, buckets=buckets, masked=masked)
    differences = {
        "block0_attn": relative(attended[0], recorded["block0_attn_prompt1"]),
        "block0_ffn": relative(fed[0], recorded["block0_ffn_prompt1"]),
        "block_0": relative(after[0], recorded["block_0_prompt1"]),
        "block_1": relative(published.blocks[1](after, buckets=buckets, masked=masked)[0], recorded["block_1_prompt1"]),
    }
    assert {name: value for name, value in differences.items() if value > RELATIVE} == {}


@pytest.mark.golden
def test_the_position_bias_is_that_of_the_reference(recorded: dict[str, Tensor], published: TextEncoder) -> None:
    bias = published.blocks[0].pos_embedding(published.pair_buckets(torch.zeros(1, 200, dtype=torch.int64)))
    assert torch.equal(bias[0][:, ::7, ::3], recorded["block0_pos_bias_first200"])


@pytest.mark.golden
def test_a_transposed_position_bias_is_noticed(recorded: dict[str, Tensor], published: TextEncoder) -> None:
    ids, mask = recorded["ids"][:1], recorded["mask"][:1]
    model = TextEncoder(published.config).eval().requires_grad_(False)
    model.load_state_dict(published.state_dict())
    model.buckets = model.buckets.flip(0)
    tokens = recorded["context_0"].shape[0]
    assert relative(model(ids, mask)[0, :tokens], recorded["context_0"]) > 100 * RELATIVE


@pytest.mark.golden
def test_forgetting_the_mask_is_noticed(recorded: dict[str, Tensor], published: TextEncoder) -> None:
    ids = recorded["ids"][:1]
    tokens = recorded["context_0"].shape[0]
    ours = published(ids, torch.ones_like(ids))[0, :tokens]
    assert relative(ours, recorded["context_0"]) > 100 * RELATIVE


@pytest.mark.golden
def test_the_tokens_alone_give_the_same_rows_as_with_padding(
    recorded: dict[str, Tensor], published: TextEncoder
) -> None:
    tokens = recorded["context_0"].shape[0]
    ids, mask = recorded["ids"][:1, :tokens], recorded["mask"][:1, :tokens]
    assert relative(published(ids, mask)[0], recorded["context_0"]) < RELATIVE


@pytest.mark.golden
def test_the_transformers_layout_holds_the_same_parameters(golden_checkpoints: Path, published: TextEncoder) -> None:
    folder = golden_checkpoints / "r2v" / "text_encoder"
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state.update(load_file(path))
    renamed = from_transformers_keys(state)
    assert renamed.keys() == published.state_dict().keys()
    assert all(torch.equal(renamed[key].float(), value) for key, value in published.state_dict().items())


def test_buckets_are_single_when_near_and_shared_when_far() -> None:
    table = bucket_table(TextEncoderConfig()).tolist()
    by_distance = dict(zip(range(-511, 512), table, strict=True))
    assert [by_distance[-distance] for distance in range(8)] == list(range(8))
    assert [by_distance[distance] for distance in (1, 7, 8)] == [17, 23, 24]
    assert {by_distance[-distance] for distance in range(128, 512)} == {15}
    assert {by_distance[distance] for distance in range(128, 512)} == {31}
    assert by_distance[-90] == 14 and by_distance[-91] == 15  # 8 * 16**(7/8) = 90.5


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = TextEncoder()
    assert sum(value.numel() for value in model.parameters()) == 5_680_910_336


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="shared_pos"):
        TextEncoderConfig.from_mapping({"shared_pos": True})


@pytest.mark.slow
def test_the_exported_graph_agrees_at_every_length(tmp_path: Path) -> None:
    torch.manual_seed(5)
    spec = graphs(TextEncoder(TINY).eval())[0]
    longest = torch.arange(512).unsqueeze(0) % TINY.vocab_size
    assert export_and_compare(spec, tmp_path, more_inputs=[(longest, torch.ones_like(longest))]) < REORDERED
    nodes = [node.op_type for node in onnx.load(tmp_path / "text_encoder.onnx").graph.node]
    assert nodes.count("Attention") == TINY.encoder_layers
    assert not {"Softmax", "ScatterND", "Loop", "If", "Log"} & set(nodes)
