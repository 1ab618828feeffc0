# SPDX-License-Identifier: Apache-2.0
"""The image encoder against the recorded reference, block by block, and its exported graph."""

import json
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from edgereels.export.image_encoder import (
    CLIP_MEAN,
    CLIP_STD,
    ImageEncoder,
    ImageEncoderConfig,
    from_published_keys,
    graphs,
)

from .onnx_parity import export_and_compare

TINY = ImageEncoderConfig(image_size=28, patch_size=7, width=32, heads=2, layers=3)
# Ten times the noise floor of the golden README.
TOLERANCE = 5.2e-5
# The same float32 operations in another order; values of order one.
REORDERED = 2e-5


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "golden" / "clip_visual.safetensors")


@pytest.fixture(scope="module")
def published(golden_checkpoints: Path) -> ImageEncoder:
    folder = golden_checkpoints / "a2v"
    settings = json.loads((folder / "tiny.json").read_text())["clip_xlm_roberta_vit_h_14"]
    config = ImageEncoderConfig.from_mapping(settings)
    model = ImageEncoder(config).eval().requires_grad_(False)
    state = torch.load(folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", weights_only=True)
    model.load_state_dict(from_published_keys(state, config))
    return model


def furthest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def prepared(frame: Tensor) -> Tensor:
    """[1, 3, H, W] in [-1, 1] -> what the network takes; the runtime has its own resize."""
    resized = F.interpolate(frame, size=(224, 224), mode="bicubic", align_corners=False) * 0.5 + 0.5
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (resized - mean) / std


def picture(path: Path) -> Tensor:
    image = Image.open(path).convert("RGB")
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return (values.permute(2, 0, 1)[None].float() / 255 - 0.5) * 2


@pytest.mark.golden
def test_the_first_block_gives_the_recorded_tokens(recorded: dict[str, Tensor], published: ImageEncoder) -> None:
    tokens = published.transformer[0](published.embed(recorded["preprocessed_0"]))
    assert furthest(tokens[:, ::4], recorded["block0_0_every4th_token"]) < TOLERANCE


@pytest.mark.golden
def test_the_portrait_gives_the_recorded_features(recorded: dict[str, Tensor], published: ImageEncoder) -> None:
    assert furthest(published(recorded["preprocessed_0"]), recorded["features_0"]) < TOLERANCE


@pytest.mark.golden
def test_another_picture_from_its_file_gives_the_recorded_features(
    golden: Path, recorded: dict[str, Tensor], published: ImageEncoder
) -> None:
    ours = published(prepared(picture(golden / "inputs" / "image_b.png")))
    assert furthest(ours[:, ::8], recorded["features_1_every8th_token"]) < TOLERANCE


@pytest.mark.golden
def test_noise_gives_the_recorded_features(recorded: dict[str, Tensor], published: ImageEncoder) -> None:
    ours = published(prepared(recorded["input_2"][:, :, 0]))
    assert furthest(ours[:, ::4], recorded["features_2_every4th_token"]) < TOLERANCE


@pytest.mark.golden
def test_one_block_more_or_less_is_noticed(recorded: dict[str, Tensor], published: ImageEncoder) -> None:
    tokens = published.embed(recorded["preprocessed_0"])
    for block in list(published.transformer)[:-1]:
        tokens = block(tokens)
    assert furthest(tokens, recorded["features_0"]) > 100 * TOLERANCE


@pytest.mark.golden
def test_pixels_without_the_normalisation_are_noticed(recorded: dict[str, Tensor], published: ImageEncoder) -> None:
    std, mean = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_STD, CLIP_MEAN))
    assert furthest(published(recorded["preprocessed_0"] * std + mean), recorded["features_0"]) > 100 * TOLERANCE


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = ImageEncoder()
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 1) == 611.1


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="vision_pool"):
        ImageEncoderConfig.from_mapping({"vision_pool": "token"})


def test_the_exported_graph_agrees_on_both_pictures(tmp_path: Path) -> None:
    torch.manual_seed(5)
    assert export_and_compare(graphs(ImageEncoder(TINY).eval())[0], tmp_path) < REORDERED
    nodes = [node.op_type for node in onnx.load(tmp_path / "image_encoder.onnx").graph.node]
    assert nodes.count("Attention") == TINY.layers - 1
    assert not {"Softmax", "ScatterND", "Loop", "If"} & set(nodes)
