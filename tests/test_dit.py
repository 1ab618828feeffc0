# SPDX-License-Identifier: Apache-2.0
"""The DiT against the recorded reference, and what its configuration, keys and parts promise."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgereels.export.dit import Dit, DitConfig
from edgereels.export.dit_block import rotate
from edgereels.export.dit_keys import (
    from_diffusers_keys,
    is_rotated,
    permute_rope_rows,
    rope_row_order,
    unpermute_rope_rows,
)
from edgereels.runtime.errors import CheckpointError

from .dit_sets import FOLDERS, TOLERANCES, RecordedRun, largest_difference, read_checkpoint, recorded_run

TINY = DitConfig(
    dim=64,
    heads=2,
    layers=2,
    ffn_dim=96,
    text_dim=24,
    text_len=8,
    image_dim=40,
    audio_intermediate_dim=16,
    audio_dim=24,
    audio_tokens=4,
    audio_layers=3,
    audio_channels=8,
)
PARTS = {
    "everything": TINY,
    "audio": dataclasses.replace(TINY, has_text=False, has_image=False),
    "text": dataclasses.replace(TINY, in_dim=16, has_image=False, has_audio=False, time_per_frame=True),
    "image": dataclasses.replace(TINY, has_text=False, has_audio=False, time_per_frame=True),
    "audio-text": dataclasses.replace(TINY, has_image=False),
    "nothing": dataclasses.replace(TINY, in_dim=16, has_text=False, has_image=False, has_audio=False),
}
# What the video-extension and the avatar checkpoints hold in public: facts, sections 3.2 and 3.3.
PUBLISHED_AVATAR_PARAMETERS = 18_882_046_784
PUBLISHED_EXTENSION_PARAMETERS = 14_288_491_584

parts = pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in PARTS.items()])


def seeded(config: DitConfig) -> Dit:
    torch.manual_seed(11)
    return Dit(config).eval()


def draw_inputs(config: DitConfig, *, batch: int, frames: int = 3, timesteps: int | None = None) -> dict[str, Tensor]:
    """Draw everything that a forward pass needs, for latents 4 rows high and 6 columns wide."""
    generator = torch.Generator().manual_seed(13)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    layers = (config.audio_layers, config.audio_channels)
    timesteps = (batch * frames if config.time_per_frame else batch) if timesteps is None else timesteps
    inputs = {
        "latents": normal(batch, config.out_dim, frames, 4, 6),
        "modulation": normal(timesteps, 6, config.dim),
        "head_modulation": normal(timesteps, config.dim),
        "rope_cos": normal(frames * 6, config.head_dim // 2),
        "rope_sin": normal(frames * 6, config.head_dim // 2),
    }
    if config.condition_dim:
        inputs["condition"] = normal(batch, config.condition_dim, frames, 4, 6)
    if config.has_text:
        inputs["text"] = normal(batch, config.text_len, config.text_dim)
    if config.has_image:
        inputs["image"] = normal(batch, 257, config.image_dim)
    if config.has_audio:
        inputs["audio_first"] = normal(batch, config.audio_window, *layers)
        inputs["audio_rest"] = normal(batch, frames - 1, config.audio_group, *layers)
    return inputs


def shapes_of(dit: Dit) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in dit.state_dict().items()}


def config_json(config: DitConfig) -> dict[str, Any]:
    return {
        "model_type": "t2v",
        "num_heads": config.heads,
        "text_len": config.text_len,
        "audio_channels": config.audio_channels,
    }


# --- against the reference ------------------------------------------------------------------------------------------


@pytest.fixture(params=TOLERANCES)
def run(request: pytest.FixtureRequest, golden: Path, golden_checkpoints: Path) -> RecordedRun:
    return recorded_run(request.param, golden=golden, checkpoints=golden_checkpoints)


@pytest.fixture
def avatar_run(golden: Path, golden_checkpoints: Path) -> RecordedRun:
    return recorded_run("a2v_dit_set0", golden=golden, checkpoints=golden_checkpoints)


def forward(dit: Dit, inputs: dict[str, Tensor]) -> Tensor:
    given = {name: value for name, value in inputs.items() if name != "sinusoid"}
    with torch.no_grad():
        return dit(given.pop("latents"), **given)


def velocity_difference(run: RecordedRun, dit: Dit, inputs: dict[str, Tensor]) -> float:
    return largest_difference(forward(dit, inputs)[:, :, : run.velocity.shape[2]], run.velocity)


@pytest.mark.golden
def test_the_recorded_velocity_is_reproduced(run: RecordedRun) -> None:
    assert velocity_difference(run, run.dit, run.inputs) < run.tolerance


@pytest.mark.golden
def test_every_recorded_intermediate_is_reproduced(run: RecordedRun) -> None:
    differences = intermediate_differences(run)
    assert set(differences) == set(run.intermediates)
    assert {name: value for name, value in differences.items() if not value < run.tolerance} == {}


def intermediate_differences(run: RecordedRun) -> dict[str, float]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    hooks = [run.dit.get_submodule(module_path(name)).register_forward_hook(keep(name)) for name in run.intermediates]
    try:
        forward(run.dit, run.inputs)
        with torch.no_grad():
            run.dit.time(run.inputs["sinusoid"])
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: largest_difference(as_recorded(name, found[name], theirs), theirs)
        for name, theirs in run.intermediates.items()
    }


def module_path(name: str) -> str:
    if name == "time_proj":
        return "time_projection"  # the diffusers word
    name = name.replace("block0.", "blocks.0.")
    return name.replace("block_", "blocks.") if name.startswith("block_") else name


def as_recorded(name: str, ours: Tensor, theirs: Tensor) -> Tensor:
    if name == "text_embedding":
        ours = ours[:, : theirs.shape[1]]  # the first 64 rows were kept
    return ours.reshape(theirs.shape)  # frames and persons are axes of their own there


@pytest.mark.golden
def test_the_rotary_embedding_turns_pairs_as_the_reference_does(golden: Path) -> None:
    recorded = load_file(golden / "golden" / "a2v_rope_time.safetensors")
    frames, rows, columns = recorded["rope_grid"][0].tolist()
    theirs = recorded["rope_out"].transpose(1, 2)
    order = rope_row_order(DitConfig(dim=32, heads=1))
    cos, sin = recorded_tables(recorded, (frames, rows, columns))
    ours = rotate(recorded["rope_in"].transpose(1, 2)[..., order], cos, sin)
    assert largest_difference(ours, theirs[..., order]) < 1e-6  # a table, so as near as float32 is


def recorded_tables(recorded: dict[str, Tensor], grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    index = torch.cartesian_prod(*(torch.arange(size) for size in grid)).unbind(1)
    widths = (6, 5, 5)  # a head of 32 has 16 pairs, of which time gets what a third leaves over
    columns = torch.arange(16).split(widths)
    halves = []
    for table in (recorded["freqs_cos"], recorded["freqs_sin"]):
        halves.append(
            torch.cat([table[rows][:, axis] for rows, axis in zip(index, columns, strict=True)], dim=1).float()
        )
    return halves[0], halves[1]


# --- negative controls: what must not go unnoticed ------------------------------------------------------------------


def with_permuted_head(run: RecordedRun) -> tuple[Dit, dict[str, Tensor]]:
    dit = copy.deepcopy(run.dit)
    weight = dit.get_parameter("blocks.0.self_attn.v.weight")
    weight.data = weight.data.flip(0)
    return dit, run.inputs


def with_published_row_order(run: RecordedRun) -> tuple[Dit, dict[str, Tensor]]:
    dit = copy.deepcopy(run.dit)
    dit.load_state_dict(unpermute_rope_rows(dit.state_dict(), dit.config))
    return dit, run.inputs


def with_audio_one_frame_late(run: RecordedRun) -> tuple[Dit, dict[str, Tensor]]:
    return run.dit, run.inputs | {"audio_rest": run.inputs["audio_rest"].roll(1, dims=1)}


def with_norms_swapped(run: RecordedRun) -> tuple[Dit, dict[str, Tensor]]:
    dit = copy.deepcopy(run.dit)
    block = dit.block(0)
    block.norm3, block.norm_x = block.norm_x, block.norm3
    return dit, run.inputs


def with_unpadded_text(run: RecordedRun) -> tuple[Dit, dict[str, Tensor]]:
    return run.dit, run.inputs | {"text": run.inputs["text"][:, :7]}


def with_sines_first(run: RecordedRun) -> tuple[Dit, dict[str, Tensor]]:
    with torch.no_grad():
        head_modulation, modulation = run.dit.time(run.inputs["sinusoid"].roll(128, dims=1))
    return run.dit, run.inputs | {"head_modulation": head_modulation, "modulation": modulation}


@pytest.mark.golden
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(with_permuted_head, id="permuted-head"),
        pytest.param(with_published_row_order, id="published-row-order"),
        pytest.param(with_audio_one_frame_late, id="audio-window-off-by-one"),
        pytest.param(with_norms_swapped, id="wrong-norm-order"),
        pytest.param(with_unpadded_text, id="text-without-padding"),
        pytest.param(with_sines_first, id="sines-first"),
    ],
)
def test_a_mistake_leaves_the_tolerance_by_far(
    avatar_run: RecordedRun, spoil: Callable[[RecordedRun], tuple[Dit, dict[str, Tensor]]]
) -> None:
    dit, inputs = spoil(avatar_run)
    assert velocity_difference(avatar_run, dit, inputs) > 30 * avatar_run.tolerance


@pytest.mark.golden
def test_positions_of_the_second_segment_matter(golden: Path, golden_checkpoints: Path) -> None:
    run = recorded_run("v2v_shot_transformer_set0", golden=golden, checkpoints=golden_checkpoints)
    contiguous = recorded_run("v2v_transformer_set0", golden=golden, checkpoints=golden_checkpoints)
    tables = {name: contiguous.inputs[name] for name in ("rope_cos", "rope_sin")}
    assert velocity_difference(run, run.dit, run.inputs | tables) > 30 * run.tolerance


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("folder", FOLDERS.values())
def test_a_published_checkpoint_fits_key_by_key(folder: str, golden_checkpoints: Path) -> None:
    config, state = read_checkpoint(golden_checkpoints / folder)
    assert shapes_of(Dit(config)) == {key: tuple(value.shape) for key, value in state.items()}


@parts
def test_published_row_order_comes_back(config: DitConfig) -> None:
    published = seeded(config).state_dict()
    back = unpermute_rope_rows(permute_rope_rows(published, config), config)
    assert all(torch.equal(back[key], value) for key, value in published.items())


def test_row_order_is_changed_for_queries_and_keys_only() -> None:
    published = seeded(TINY).state_dict()
    published["blocks.0.self_attn.norm_q.weight"] = torch.arange(64.0)
    ours = permute_rope_rows(published, TINY)
    changed = {key for key in published if not torch.equal(ours[key], published[key])}
    assert changed <= {key for key in published if is_rotated(key)}
    assert ours["blocks.0.self_attn.norm_q.weight"][:34].tolist() == [*range(0, 32, 2), *range(1, 32, 2), 32, 34]


def test_diffusers_names_are_translated_with_the_swapped_norms() -> None:
    theirs = ["blocks.3.norm2.weight", "blocks.3.attn2.norm_added_k.weight", "blocks.3.attn2.add_k_proj.bias",
              "blocks.3.attn1.to_out.0.weight", "condition_embedder.time_embedder.linear_2.bias",
              "condition_embedder.image_embedder.ff.net.0.proj.weight", "scale_shift_table",
              "blocks.3.scale_shift_table"]  # fmt: skip
    ours = ["blocks.3.norm3.weight", "blocks.3.cross_attn.norm_k_img.weight", "blocks.3.cross_attn.k_img.bias",
            "blocks.3.self_attn.o.weight", "time_embedding.2.bias",
            "img_emb.proj.1.weight", "head.modulation",
            "blocks.3.modulation"]  # fmt: skip
    assert list(from_diffusers_keys(dict.fromkeys(theirs, 0))) == ours


# --- configuration --------------------------------------------------------------------------------------------------


@parts
def test_configuration_is_read_back_from_shapes(config: DitConfig) -> None:
    found = DitConfig.from_json(config_json(config), shapes_of(seeded(config)))
    assert found == without_absent_widths(config, found)


def without_absent_widths(config: DitConfig, found: DitConfig) -> DitConfig:
    """Forget widths of parts that the network lacks; whether frames have own times is a matter of having audio."""
    absent = [
        field.name
        for has, prefixes in (
            (config.has_text, ("text_dim",)),
            (config.has_image, ("image_",)),
            (config.has_audio, ("audio_",)),
        )
        for field in dataclasses.fields(config)
        if not has and field.name.startswith(prefixes)
    ]
    return dataclasses.replace(
        config, time_per_frame=found.time_per_frame, **{name: getattr(DitConfig, name) for name in absent}
    )


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        pytest.param(DitConfig(), PUBLISHED_AVATAR_PARAMETERS, id="talking-avatar"),
        pytest.param(
            DitConfig(in_dim=16, has_image=False, has_audio=False), PUBLISHED_EXTENSION_PARAMETERS, id="video-extension"
        ),
    ],
)
def test_defaults_have_as_many_parameters_as_the_published_networks(config: DitConfig, parameters: int) -> None:
    with torch.device("meta"):
        dit = Dit(config)
    assert sum(parameter.numel() for parameter in dit.parameters()) == parameters


@pytest.mark.parametrize(
    ("words", "removed", "message"),
    [
        pytest.param({"num_heads": None}, "", "num_heads None", id="no-heads"),
        pytest.param({"num_heads": 3}, "", "64 wide and has 3 heads", id="heads-do-not-divide"),
        pytest.param({"num_layers": 3}, "", "num_layers 3, the weights 2", id="other-layers"),
        pytest.param({"audio_channels": 7}, "", "audio_proj takes 120 and 192", id="other-audio"),
        pytest.param({}, "blocks.0.", r"blocks \[1\]", id="a-block-is-missing"),
        pytest.param({}, "patch_embedding.", "no 'patch_embedding.weight'", id="no-latents"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(words: dict[str, Any], removed: str, message: str) -> None:
    shapes = {
        key: shape for key, shape in shapes_of(seeded(TINY)).items() if not removed or not key.startswith(removed)
    }
    with pytest.raises(CheckpointError, match=message):
        DitConfig.from_json(config_json(TINY) | words, shapes)


# --- parts ----------------------------------------------------------------------------------------------------------


@parts
def test_the_parts_one_after_another_are_the_whole(config: DitConfig) -> None:
    dit, inputs = seeded(config), draw_inputs(config, batch=1)
    whole = forward(dit, inputs)
    with torch.no_grad():
        tokens, *contexts = dit.prologue(*(inputs[name] for name in dit.prologue.input_names))
        for index in range(config.layers):
            (tokens,) = dit.block(index)(
                tokens, *contexts, *(inputs[name] for name in ("modulation", "rope_cos", "rope_sin"))
            )
        (velocity,) = dit.epilogue(tokens, inputs["head_modulation"], inputs["latents"])
    assert torch.equal(velocity, whole)


@parts
def test_a_batch_is_its_samples_side_by_side(config: DitConfig) -> None:
    dit, inputs = seeded(config), draw_inputs(config, batch=2)
    shared = {name: inputs.pop(name) for name in ("rope_cos", "rope_sin")}
    together = forward(dit, inputs | shared)
    for sample in range(2):
        alone = forward(dit, {name: value.chunk(2)[sample] for name, value in inputs.items()} | shared)
        assert largest_difference(together[sample : sample + 1], alone) < 1e-5  # other order of summation


def test_one_timestep_for_all_is_the_same_timestep_for_each_frame() -> None:
    dit, inputs = seeded(TINY), draw_inputs(TINY, batch=1)
    each = {name: inputs[name].repeat_interleave(3, dim=0) for name in ("modulation", "head_modulation")}
    assert largest_difference(forward(dit, inputs | each), forward(dit, inputs)) < 1e-5


def test_audio_of_one_sample_needs_no_batch_axis() -> None:
    dit, inputs = seeded(TINY), draw_inputs(TINY, batch=1)
    assert torch.equal(forward(dit, inputs | {"audio_rest": inputs["audio_rest"][0]}), forward(dit, inputs))


def test_audio_of_a_frame_is_heard_in_that_frame_only() -> None:
    attention = seeded(TINY).block(0).audio_cross_attn
    rows, audio = torch.randn(1, 18, 64), torch.randn(3, 4, 24)
    with torch.no_grad():
        before = attention(rows, audio)
        audio[1] += 1
        changed = (attention(rows, audio) != before).any(dim=-1)[0]
    assert changed.tolist() == [False] * 6 + [True] * 6 + [False] * 6


@parts
def test_every_parameter_learns(config: DitConfig) -> None:
    dit, inputs = seeded(config), draw_inputs(config, batch=2)
    head_modulation, modulation = dit.time(torch.randn(inputs["modulation"].shape[0], config.freq_dim))
    velocity = dit(inputs.pop("latents"), **inputs | {"modulation": modulation, "head_modulation": head_modulation})
    velocity.square().sum().backward()
    assert [name for name, parameter in dit.named_parameters() if parameter.grad is None] == []


def test_a_copy_and_its_parts_share_nothing_with_the_original() -> None:
    dit = seeded(TINY)
    twin = copy.deepcopy(dit)
    twin.load_state_dict({key: torch.zeros_like(value) for key, value in twin.state_dict().items()}, assign=True)
    inputs = draw_inputs(TINY, batch=1)
    assert not forward(twin, inputs).any()
    assert forward(dit, inputs).all()


def test_a_missing_input_is_named() -> None:
    inputs = draw_inputs(TINY, batch=1)
    del inputs["audio_rest"]
    with pytest.raises(ValueError, match="needs audio_rest"):
        forward(seeded(TINY), inputs)
