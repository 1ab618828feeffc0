# SPDX-License-Identifier: Apache-2.0
"""The speech encoder against the recorded reference, layer by layer, and its exported graph."""

import dataclasses
import json
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor

from edgereels.export.audio_encoder import (
    AudioEncoder,
    AudioEncoderConfig,
    frame_positions,
    from_published_keys,
    graphs,
    interpolate,
    to_published_keys,
)

from .onnx_parity import export_and_compare

TINY = AudioEncoderConfig(
    conv_dim=(16,) * 7,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
)
# Ten times the noise floor of the golden README (6.2e-6 to 1.3e-5 at the convolutions, 7.5e-6 at the layers).
LAYER_TOLERANCE = 6e-5
CONV_TOLERANCE = 1.3e-4
# The same float32 operations in another order; values of order one.
REORDERED = 2e-5


def seeded(config: AudioEncoderConfig = TINY) -> AudioEncoder:
    torch.manual_seed(11)
    return AudioEncoder(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def published(golden_checkpoints: Path) -> AudioEncoder:
    folder = golden_checkpoints / "a2v" / "chinese-wav2vec2-base"
    config = AudioEncoderConfig.from_mapping(json.loads((folder / "config.json").read_text()))
    model = AudioEncoder(config).eval().requires_grad_(False)
    model.load_state_dict(from_published_keys(load_file(folder / "model.safetensors")))
    return model


def furthest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def speech(golden: Path, name: str) -> tuple[dict[str, Tensor], Tensor, int]:
    recorded = load_file(golden / "golden" / f"wav2vec_{name}.safetensors")
    return recorded, recorded["input_values"][None], recorded["audio_emb"].shape[0]


@pytest.mark.golden
@pytest.mark.parametrize("name", ["speech_short", "speech_long"])
def test_the_convolutions_and_the_interpolation_are_those_of_the_reference(
    golden: Path, published: AudioEncoder, name: str
) -> None:
    recorded, waveform, frames = speech(golden, name)
    features = published.feature_extractor(waveform)
    positions = frame_positions(features.shape[1], frames=frames)
    assert furthest(features.transpose(1, 2), recorded["conv_features"]) < CONV_TOLERANCE
    assert furthest(interpolate(features, positions), recorded["interpolated"]) < CONV_TOLERANCE


@pytest.mark.golden
def test_each_stage_before_the_layers_is_that_of_the_reference(golden: Path, published: AudioEncoder) -> None:
    recorded, _, _ = speech(golden, "speech_short")
    projected = published.feature_projection(recorded["interpolated"])
    differences = {
        "feature_projection": furthest(projected, recorded["feature_projection"]),
        "pos_conv": furthest(published.encoder.pos_conv_embed(projected), recorded["pos_conv"]),
        "encoder_layer_norm": furthest(published.encoder.embed(projected), recorded["encoder_layer_norm"]),
    }
    assert {name: value for name, value in differences.items() if value > LAYER_TOLERANCE} == {}


@pytest.mark.golden
@pytest.mark.parametrize("name", ["speech_short", "speech_e2e", "speech_e2e_short", "speech_long"])
def test_every_layer_gives_the_recorded_features(golden: Path, published: AudioEncoder, name: str) -> None:
    recorded, waveform, frames = speech(golden, name)
    positions = frame_positions(published.config.conv_frames(waveform.shape[1]), frames=frames)
    ours = published(waveform, positions)[0]
    assert furthest(ours[:, :: 12 // recorded["audio_emb"].shape[1]], recorded["audio_emb"]) < LAYER_TOLERANCE


@pytest.mark.golden
def test_interpolating_without_aligned_corners_is_noticed(golden: Path, published: AudioEncoder) -> None:
    recorded, waveform, frames = speech(golden, "speech_short")
    features = published.feature_extractor(waveform)
    scale = features.shape[1] / frames
    positions = ((torch.arange(frames) + 0.5) * scale - 0.5).clamp(min=0)
    assert furthest(interpolate(features, positions), recorded["interpolated"]) > 100 * CONV_TOLERANCE


@pytest.mark.golden
def test_the_newer_names_of_the_weight_norm_give_the_same_weights(golden_checkpoints: Path) -> None:
    state = load_file(golden_checkpoints / "a2v" / "chinese-wav2vec2-base" / "model.safetensors")
    newer = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for key, tensor in state.items()
    }
    assert newer.keys() != state.keys()
    older = from_published_keys(state)
    assert older.keys() == from_published_keys(newer).keys()
    assert all(torch.equal(tensor, older[key]) for key, tensor in from_published_keys(newer).items())


@pytest.mark.golden
def test_the_published_parameters_of_pre_training_are_the_only_ones_dropped(
    golden_checkpoints: Path, published: AudioEncoder
) -> None:
    state = load_file(golden_checkpoints / "a2v" / "chinese-wav2vec2-base" / "model.safetensors")
    kept = from_published_keys(state)
    assert kept.keys() == published.state_dict().keys()
    dropped = {key.removeprefix("wav2vec2.") for key in state} - kept.keys()
    assert {key.split(".")[0] for key in dropped} == {
        "project_hid",
        "project_q",
        "quantizer",
        "masked_spec_embed",
        "encoder",
    }


def test_the_folded_weight_is_what_torch_s_weight_norm_computes() -> None:
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(8, 8, 4, groups=2), dim=2)
    torch.nn.init.uniform_(conv.parametrizations.weight.original0, 0.5, 1.5)  # pyright: ignore
    state = {f"encoder.pos_conv_embed.conv.{key}": value for key, value in conv.state_dict().items()}
    ours = from_published_keys(state)["encoder.pos_conv_embed.conv.weight"]
    assert furthest(ours, conv.weight.detach()) < 1e-6  # one rounding more or less


def test_what_is_written_for_others_loads_back_as_the_same_network() -> None:
    state = seeded().state_dict()
    back = from_published_keys(to_published_keys(state))
    assert back.keys() == state.keys()
    assert max(furthest(back[key], value) for key, value in state.items()) < 1e-6  # g * v / |v| rounds once


@pytest.mark.parametrize(("conv_frames", "frames"), [(25, 14), (150, 76), (9999, 5000), (7, 1), (3, 9)])
def test_positions_and_interpolation_are_torch_s(conv_frames: int, frames: int) -> None:
    features = torch.randn((1, conv_frames, 3), generator=torch.Generator().manual_seed(0))
    theirs = F.interpolate(features.transpose(1, 2), size=frames, mode="linear", align_corners=True).transpose(1, 2)
    ours = interpolate(features, frame_positions(conv_frames, frames=frames))
    assert furthest(ours, theirs) < 1e-6  # one rounding of values of order one


def test_frames_per_sample_count_is_that_of_the_convolutions() -> None:
    model = seeded()
    for samples in (400, 8_000, 8_321, 16_000):
        assert model.feature_extractor(torch.zeros(1, samples)).shape[1] == TINY.conv_frames(samples)
    assert AudioEncoderConfig().conv_frames(200 * 16_000) == 9_999


@pytest.mark.parametrize("stable", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_both_layouts_agree_with_transformers(stable: bool, norm: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(TINY, do_stable_layer_norm=stable, feat_extract_norm=norm, conv_bias=norm == "layer")
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**dataclasses.asdict(config), layerdrop=0.0)).eval()
    ours = AudioEncoder(config).eval().requires_grad_(False)
    ours.load_state_dict(from_published_keys(theirs.state_dict()))
    waveform = torch.randn((2, 6_000), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = theirs(waveform, output_hidden_states=True)
    expected = [*result.hidden_states[1:-1], result.last_hidden_state]  # 5.x records the last one before its norm
    frames = config.conv_frames(6_000)  # as many as the convolutions make: interpolation is then the identity
    features = ours(waveform, frame_positions(frames, frames=frames))
    assert furthest(features, torch.stack(expected, dim=2)) < REORDERED


def test_the_members_of_a_batch_do_not_touch_each_other() -> None:
    model = seeded()
    waveform = torch.randn((3, 6_000), generator=torch.Generator().manual_seed(0))
    positions = frame_positions(TINY.conv_frames(6_000), frames=9)
    alone = torch.cat([model(one, positions) for one in waveform.split(1)])
    assert furthest(model(waveform, positions), alone) < REORDERED


def test_gradients_reach_every_parameter() -> None:
    model = seeded().requires_grad_(True)
    positions = frame_positions(TINY.conv_frames(6_000), frames=9)
    waveform = torch.randn((1, 6_000), generator=torch.Generator().manual_seed(0))
    (model(waveform, positions) * torch.arange(32.0)).sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_another_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        AudioEncoderConfig.from_mapping({"hidden_act": "relu"})


@pytest.mark.slow
def test_the_exported_graph_agrees_at_both_shapes(tmp_path: Path) -> None:
    spec = graphs(seeded())[0]
    assert export_and_compare(spec, tmp_path) < REORDERED
    nodes = [node.op_type for node in onnx.load(tmp_path / "audio_encoder.onnx").graph.node]
    assert nodes.count("Attention") == TINY.num_hidden_layers
    assert not {"Softmax", "ScatterND", "Loop", "If"} & set(nodes)
