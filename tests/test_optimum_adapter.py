# SPDX-License-Identifier: Apache-2.0
"""Our graphs found and fed through Optimum's own functions."""

from typing import Any

import pytest
import torch

pytest.importorskip("optimum.exporters.tasks", reason="Optimum, or requests that it imports, is not installed")

from optimum.exporters.tasks import TasksManager

from edgereels.export.audio_encoder import AudioEncoderConfig
from edgereels.export.dit import DitConfig
from edgereels.export.image_encoder import ImageEncoderConfig
from edgereels.export.optimum_adapter import BACKEND, TASK, GraphExporterConfig, register
from edgereels.export.text_encoder import TextEncoderConfig
from edgereels.export.vae import VaeConfig

SPEECH = AudioEncoderConfig(
    conv_dim=(8,) * 7,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=16,
)
TEXT = TextEncoderConfig(vocab_size=64, dim=16, dim_attn=16, dim_ffn=16, num_heads=2, encoder_layers=1)
SMALL: dict[str, tuple[Any, str]] = {
    "audio-encoder": (SPEECH, "transformers"),
    "text-encoder": (TEXT, "transformers"),
    "image-encoder": (ImageEncoderConfig(width=32, heads=2, layers=2), "transformers"),
    "vae-encoder-first": (VaeConfig(dim=4, num_res_blocks=0), "diffusers"),
    "vae-encoder-next": (VaeConfig(dim=4, num_res_blocks=0), "diffusers"),
    "vae-decoder-first": (VaeConfig(dim=4, num_res_blocks=0), "diffusers"),
    "vae-decoder-next": (VaeConfig(dim=4, num_res_blocks=0), "diffusers"),
    "dit-prologue": (DitConfig(dim=16, heads=2, layers=1, ffn_dim=16), "diffusers"),
    "dit-block": (DitConfig(dim=16, heads=2, layers=1, ffn_dim=16), "diffusers"),
    "dit-epilogue": (DitConfig(dim=16, heads=2, layers=1, ffn_dim=16), "diffusers"),
    "dit-time": (DitConfig(dim=16, heads=2, layers=1, ffn_dim=16), "diffusers"),
    "finish": (None, "diffusers"),
}  # fmt: skip


def found(graph: str) -> GraphExporterConfig:
    register()
    network_config, library = SMALL[graph]
    make = TasksManager.get_exporter_config_constructor(
        BACKEND, model_type=f"skyreels-v3-{graph}", task=TASK, library_name=library
    )
    return make(network_config)


def test_every_graph_is_registered() -> None:
    assert {name.removeprefix("skyreels-v3-") for name in register()} == set(SMALL)


@pytest.mark.parametrize("graph", SMALL)
def test_a_graph_is_found_and_its_inputs_go_with_its_axes(graph: str) -> None:
    config = found(graph)
    small, large = config.generate_dummy_inputs(), config.generate_dummy_inputs(example=1)
    assert list(small) == list(config.inputs) == list(config.spec.input_names)
    for name, axes in config.inputs.items():
        differ = {axis for axis in range(small[name].ndim) if small[name].shape[axis] != large[name].shape[axis]}
        assert differ == set(axes)


def test_the_inputs_run_through_the_module() -> None:
    config = found("vae-decoder-next")
    with torch.no_grad():
        outputs = config.spec.module(*config.generate_dummy_inputs().values())
    assert len(outputs) == len(config.outputs)
    assert config.outputs["frames"] == {2: "4*k", 3: "8*h", 4: "8*w"}
    assert outputs[0].ndim == 5


def test_arrays_are_given_on_request() -> None:
    waveform = found("audio-encoder").generate_dummy_inputs(framework="np")["waveform"]
    assert waveform.dtype == "float32"


def test_other_types_than_the_graphs_are_refused() -> None:
    config = found("finish")
    config.float_dtype = "fp16"
    with pytest.raises(ValueError, match="fp32"):
        config.generate_dummy_inputs()
