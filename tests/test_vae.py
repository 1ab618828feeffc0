# SPDX-License-Identifier: Apache-2.0
"""The video autoencoder against the recorded reference, layer by layer, and its exported graphs."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgereels.export.vae import VideoVae, graphs, make_spatial_only, trim_zero_taps
from edgereels.export.vae_config import VaeConfig, from_diffusers_keys
from edgereels.export.vae_layers import CacheTape, CausalConv3d, Decoder, Encoder

from .onnx_parity import export_and_compare

TINY = VaeConfig(dim=8, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(True,))
# Ten times the noise floor that the golden README gives for vae, vae_decode_stream, vae_encode_stream and r2v_vae.
CLIP_TOLERANCE = 2.6e-5
STREAM_TOLERANCE = 5.3e-5
R2V_TOLERANCE = 1.3e-5
# Two orders of summation of the same numbers (other chunks, 2-D instead of 3-D convolution), values of order one.
REORDERED = 2e-5


def seeded(config: VaeConfig = TINY) -> VideoVae:
    torch.manual_seed(7)
    model = VideoVae(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def published(golden_checkpoints: Path) -> VideoVae:
    model = VideoVae(VaeConfig(dim=8)).eval().requires_grad_(False)
    model.load_state_dict(torch.load(golden_checkpoints / "a2v" / "Wan2.1_VAE.pth", weights_only=True))
    return model


@pytest.fixture(scope="module")
def clip(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "golden" / "vae.safetensors")


def furthest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def clip_of(frames: int, *, batch: int = 1, config: VaeConfig = TINY) -> Tensor:
    side = config.spatial_factor
    return torch.rand((batch, 3, frames, 2 * side, 3 * side), generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.golden
@pytest.mark.parametrize("frames", [1, 5, 17], ids=lambda frames: f"{frames}-frames")
def test_a_clip_encodes_as_in_the_reference(published: VideoVae, clip: dict[str, Tensor], frames: int) -> None:
    assert furthest(published.encode(clip["video"][:, :, :frames]), clip[f"latent_T{frames}"]) < CLIP_TOLERANCE


@pytest.mark.golden
@pytest.mark.parametrize("latents", [1, 2], ids=lambda latents: f"{latents}-latents")
def test_latents_decode_as_in_the_reference(published: VideoVae, clip: dict[str, Tensor], latents: int) -> None:
    ours = published.decode(clip["z"][:, :, :latents]).clamp(-1, 1)
    assert furthest(ours, clip[f"video_z{latents}"]) < CLIP_TOLERANCE


@pytest.mark.golden
def test_the_decoder_before_the_clamp_is_that_of_the_reference(published: VideoVae, clip: dict[str, Tensor]) -> None:
    assert furthest(published.decode(clip["z"]), clip["video_z5_unclamped"]) < CLIP_TOLERANCE


@pytest.mark.golden
def test_without_the_latent_statistics_the_result_is_another(published: VideoVae, clip: dict[str, Tensor]) -> None:
    mean, _ = published.encode_moments(clip["video"])
    assert furthest(mean, clip["latent_T17"]) > 100 * CLIP_TOLERANCE


@pytest.mark.golden
def test_forgetting_the_caches_is_noticed(published: VideoVae, clip: dict[str, Tensor]) -> None:
    _, caches = published.decode_first(clip["z"][:, :, :1])
    frames, _ = published.decode_next(clip["z"][:, :, 1:], [torch.zeros_like(cache) for cache in caches])
    assert furthest(frames, clip["video_z5_unclamped"][:, :, 1:]) > 100 * CLIP_TOLERANCE


def cache_differences(recorded: dict[str, Tensor], half: Callable[..., Tensor], *, slots: int) -> dict[str, float]:
    """Run four recorded calls; per output and per cache slot the largest difference."""
    caches: list[Tensor] | None = None
    found: dict[str, float] = {}
    for step in range(4):
        tape = CacheTape(caches)
        found[f"step {step} output"] = furthest(
            half(recorded[f"step{step}.input"], tape), recorded[f"step{step}.output"]
        )
        caches = tape.newer
        assert len(caches) == slots
        for slot, cache in enumerate(caches):
            theirs = recorded.get(f"step{step}.cache_after.{slot:02d}", torch.zeros_like(cache))  # None or "Rep"
            found[f"step {step} slot {slot}"] = furthest(cache[:, :, -theirs.shape[2] :], theirs)
            assert not cache[:, :, : -theirs.shape[2]].any()
    return found


@pytest.mark.golden
@pytest.mark.parametrize(("part", "slots"), [("decode", 32), ("encode", 24)], ids=["decoder", "encoder"])
def test_every_cache_of_every_call_is_the_recorded_slot(
    golden: Path, published: VideoVae, part: str, slots: int
) -> None:
    recorded = load_file(golden / "golden" / f"vae_{part}_stream.safetensors")
    half = published.decoder if part == "decode" else published.encoder
    found = cache_differences(recorded, half, slots=slots)
    assert {name: value for name, value in found.items() if value > STREAM_TOLERANCE} == {}


@pytest.mark.golden
def test_a_cache_in_the_wrong_slot_is_noticed(golden: Path, published: VideoVae) -> None:
    recorded = load_file(golden / "golden" / "vae_decode_stream.safetensors")
    keys = ("step2.cache_after.05", "step2.cache_after.06")
    swapped = {**recorded, keys[0]: recorded[keys[1]], keys[1]: recorded[keys[0]]}
    found = cache_differences(swapped, published.decoder, slots=32)
    wrong = {name for name, value in found.items() if value > STREAM_TOLERANCE}
    assert wrong == {"step 2 slot 5", "step 2 slot 6"}


@pytest.mark.golden
def test_the_diffusers_layout_loads_and_gives_the_recorded_result(golden: Path, golden_checkpoints: Path) -> None:
    folder = golden_checkpoints / "r2v" / "vae"
    config = VaeConfig.from_mapping(json.loads((folder / "config.json").read_text()))
    model = VideoVae(config).eval().requires_grad_(False)
    model.load_state_dict(from_diffusers_keys(load_file(folder / "diffusion_pytorch_model.safetensors"), config))
    recorded = load_file(golden / "golden" / "r2v_vae.safetensors")
    mean, log_variance = model.encode_moments(recorded["image"])
    differences = {
        "posterior_mean": furthest(mean, recorded["posterior_mean"]),
        "posterior_logvar": furthest(log_variance.clamp(-30, 20), recorded["posterior_logvar"]),
        "normalised_mode": furthest(model.encode(recorded["image"]), recorded["normalised_mode"]),
        "decoded": furthest(model.decode(recorded["z"]).clamp(-1, 1), recorded["decoded"]),
    }
    assert {name: value for name, value in differences.items() if value > R2V_TOLERANCE} == {}


@pytest.mark.parametrize("split", [(1, 1, 1, 1), (4,), (1, 3), (2, 2)], ids=str)
def test_any_split_into_calls_decodes_to_the_same_clip(split: tuple[int, ...]) -> None:
    model = seeded()
    latents = torch.randn((1, 16, 1 + sum(split), 2, 3), generator=torch.Generator().manual_seed(1))
    frames, caches = model.decode_first(latents[:, :, :1])
    parts, done = [frames], 1
    for count in split:
        frames, caches = model.decode_next(latents[:, :, done : done + count], caches)
        parts.append(frames)
        done += count
    assert furthest(torch.cat(parts, dim=2), model.decode(latents)) < REORDERED


@pytest.mark.parametrize("split", [(1, 1, 1, 1), (4,), (1, 3)], ids=str)
def test_any_split_into_calls_encodes_to_the_same_latents(split: tuple[int, ...]) -> None:
    model = seeded()
    frames = clip_of(1 + 2 * sum(split))
    latents, caches = model.encode_first(frames[:, :, :1])
    parts, done = [latents], 1
    for count in split:
        latents, caches = model.encode_next(frames[:, :, done : done + 2 * count], caches)
        parts.append(latents)
        done += 2 * count
    assert furthest(torch.cat(parts, dim=2), model.encode(frames)) < REORDERED


def test_later_frames_never_change_earlier_latents() -> None:
    model = seeded()
    frames = clip_of(9)
    other = torch.cat([frames[:, :, :5], -frames[:, :, 5:]], dim=2)
    ours, theirs = model.encode(frames), model.encode(other)
    assert furthest(ours[:, :, :3], theirs[:, :, :3]) < REORDERED
    assert furthest(ours[:, :, 3:], theirs[:, :, 3:]) > 100 * REORDERED


def test_the_members_of_a_batch_do_not_touch_each_other() -> None:
    model = seeded()
    frames = clip_of(5, batch=3)
    alone = torch.cat([model.encode(one) for one in frames.split(1)])
    assert furthest(model.encode(frames), alone) < REORDERED


def test_gradients_reach_every_parameter() -> None:
    model = seeded().requires_grad_(True)
    mean, log_variance = model.encode_moments(clip_of(5, batch=2))
    latents = model.scale.normalise(mean + log_variance)
    model.decode(latents).square().mean().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_a_flat_region_has_finite_gradients() -> None:
    """All channels zero at a position: the norm's derivative must not become not-a-number."""
    model = seeded().requires_grad_(True)
    torch.nn.init.zeros_(model.encoder.conv1.bias)
    model.encode(torch.zeros(1, 3, 1, 4, 4)).sum().backward()
    assert all(value.grad is None or bool(value.grad.isfinite().all()) for value in model.parameters())


def test_channels_last_gives_the_same_clip() -> None:
    model, frames = seeded(), clip_of(5)
    last = frames.contiguous(memory_format=torch.channels_last_3d)
    assert furthest(model.encode(last), model.encode(frames)) < REORDERED


@pytest.mark.parametrize("shape", [(1, 3, 4, 4, 4), (1, 3, 5, 3, 4)], ids=["frames", "side"])
def test_a_clip_that_does_not_divide_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="number of frames must be 1"):
        seeded().encode(torch.zeros(shape))


def test_too_few_caches_are_refused() -> None:
    model = seeded()
    _, caches = model.decode_first(torch.zeros(1, 16, 1, 2, 2))
    with pytest.raises(ValueError, match="caches given"):
        model.decode_next(torch.zeros(1, 16, 1, 2, 2), caches[:-1])


@pytest.mark.parametrize("drop", [False, True], ids=["weights kept", "weights dropped"])
def test_trimming_zero_taps_changes_nothing_but_the_number_of_caches(drop: bool) -> None:
    model = seeded()
    convs = [part for part in model.decoder.modules() if isinstance(part, CausalConv3d) and part.can_be_spatial]
    for conv in convs[1::2]:
        conv.weight[:, :, :2] = 0.0
    latents = torch.randn((1, 16, 4, 2, 3), generator=torch.Generator().manual_seed(1))
    theirs, caches = model.decode(latents), model.decode_first(latents[:, :, :1])[1]
    assert trim_zero_taps(model, drop=drop) == len(convs[1::2])
    assert furthest(model.decode(latents), theirs) < REORDERED
    assert len(model.decode_first(latents[:, :, :1])[1]) == len(caches) - len(convs[1::2])


def test_a_tap_that_is_almost_zero_is_not_trimmed() -> None:
    model = seeded()
    conv = model.decoder.conv1
    conv.weight[:, :, :2] = 0.0
    conv.weight[0, 0, 0, 1, 1] = 1e-30
    assert trim_zero_taps(model) == 0
    assert not conv.spatial_only


def test_spatial_training_moves_only_the_newest_tap() -> None:
    model = seeded().requires_grad_(True)
    assert make_spatial_only([model.decoder.upsamples[0]]) == 2
    model.decode(torch.ones(1, 16, 3, 2, 2)).square().mean().backward()
    conv = model.decoder.upsamples[0].residual[2]
    assert isinstance(conv, CausalConv3d) and conv.weight.grad is not None
    assert not conv.weight[:, :, :2].any() and not conv.weight.grad[:, :, :2].any()
    assert conv.weight.grad[:, :, 2].any()


def test_what_was_trained_spatially_is_found_by_the_exporter() -> None:
    model = seeded()
    made = make_spatial_only([model.decoder])
    copy = seeded()
    copy.load_state_dict(model.state_dict())
    assert trim_zero_taps(copy) == made
    latents = torch.randn((1, 16, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    assert furthest(copy.decode(latents), model.decode(latents)) < REORDERED
    assert copy.decode_first(latents[:, :, :1])[1] == []


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown setting levels"):
        VaeConfig.from_mapping({"levels": 3})


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        halves = [Encoder(VaeConfig()), Decoder(VaeConfig())]
    assert [round(sum(p.numel() for p in half.parameters()) / 1e6, 2) for half in halves] == [53.60, 73.30]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[float, Path]]:
    """Export a graph once: (largest difference, path)."""
    folder = tmp_path_factory.mktemp("graphs")

    @functools.cache
    def export(index: int) -> tuple[float, Path]:
        spec = graphs(seeded())[index]
        extra = []
        if "cache_00" in spec.input_names:  # one step at a time, as a live stream runs it
            first, *caches = spec.examples[0]
            extra = [(first[:, :, : first.shape[2] // 2], *caches)]
        return export_and_compare(spec, folder, more_inputs=extra), folder / f"{spec.name}.onnx"

    return export


@pytest.mark.slow  # 10 s each; the embedded package's graphs, made by the same code, run in many other tests
@pytest.mark.parametrize("index", range(4), ids=["encoder first", "encoder next", "decoder first", "decoder next"])
def test_the_exported_graph_agrees_at_every_shape(exported: Callable[[int], tuple[float, Path]], index: int) -> None:
    assert exported(index)[0] < REORDERED


@pytest.mark.slow
def test_the_exported_attention_is_one_node(exported: Callable[[int], tuple[float, Path]]) -> None:
    nodes = [node.op_type for node in onnx.load(exported(3)[1]).graph.node]
    assert nodes.count("Attention") == 1
    assert not {"Softmax", "ScatterND", "Loop", "If"} & set(nodes)
