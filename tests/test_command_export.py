# SPDX-License-Identifier: Apache-2.0
"""`edgereels export` as it is called: what it refuses before any work, and the whole way for the tiny checkpoint."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from torch import Tensor

from edgereels.export import export_checkpoint as export_checkpoint_module
from edgereels.export import package_parts
from edgereels.export.export_checkpoint import Request, export_checkpoint
from edgereels.export.overrides import Overrides
from edgereels.export.subnetworks import Subnetwork
from edgereels.runtime.cli import main
from edgereels.runtime.errors import CheckpointError
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.package_files import check_name

SHARDS = ("diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors")


@pytest.fixture
def a2v(golden_checkpoints: Path, tmp_path: Path) -> Path:
    """Return a talking-avatar checkpoint that a test may change: its files are links to the golden ones."""
    target = tmp_path / "a2v"
    shutil.copytree(
        golden_checkpoints / "a2v", target, copy_function=lambda source, copy: Path(copy).symlink_to(source)
    )
    return target


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where work begins that should not have begun."""

    def refuse(*_: object) -> None:
        raise AssertionError("tracing began")

    monkeypatch.setattr(package_parts, "trace", refuse)


def change_dit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrite the DiT as one file without an index."""
    tensors = {name: tensor for shard in SHARDS for name, tensor in load_torch(folder / shard).items()}
    change(tensors)
    for path in [*folder.glob("diffusion*")]:
        path.unlink()
    save_file(tensors, folder / "model.safetensors")


def export(folder: Path, *more: str, package: Path | None = None) -> int:
    target = package or folder.parent / "p.edgereels"
    return main(["export", str(folder), str(target), "--overrides", str(folder / "tiny.json"), "--threads", "1", *more])


# ── Refused before any work ──────────────────────────────────────────────────────────────────────────────────────────


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from edgereels.export.command_export import main\n"
        "try: main(['--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "--overrides" in found.stdout


def test_without_torch_the_pip_line_is_printed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from edgereels.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "export", str(tmp_path), str(tmp_path / "p")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert "pip install 'edgereels[export]'" in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--threads", "0"], id="threads"),
        pytest.param(["--precision", "int8"], id="precision"),
        pytest.param(["--task", "video"], id="task"),
        pytest.param(["--lora", "x.safetensors:inf"], id="lora"),
        pytest.param(["--only", ","], id="only"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path: Path, options: list[str]) -> None:
    assert main(["export", str(tmp_path), str(tmp_path / "p"), *options]) == 2


def test_a_target_that_exists_is_refused_first_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").mkdir()
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "p")]) == 1
    error = capsys.readouterr().err
    assert "--force" in error
    assert error.count("\n") == 1


def test_a_parent_that_does_not_exist_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), str(tmp_path / "none" / "p")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.golden
@pytest.mark.usefixtures("no_tracing")
def test_an_unknown_subnetwork_is_refused_with_those_that_exist(a2v: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(a2v, "--only", "dit,decoder") == 1
    error = capsys.readouterr().err
    assert "decoder" in error
    assert "vae_decoder" in error


@pytest.mark.golden
@pytest.mark.usefixtures("no_tracing")
def test_keys_that_do_not_fit_are_listed_in_one_line(a2v: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["blocks.1.norm3.bias"]
        tensors["blocks.0.ffn.0.bias"] = torch.zeros(3)
        tensors["stray"] = torch.zeros(1)

    change_dit(a2v, change)
    assert export(a2v) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for expected in ("1 missing (blocks.1.norm3.bias)", "1 unexpected (stray)", "blocks.0.ffn.0.bias is [3]"):
        assert expected in error
    assert [path.name for path in a2v.parent.iterdir()] == ["a2v"]


@pytest.mark.golden
@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize(
    ("stem", "kind"),
    [
        ("models_t5_umt5-xxl-enc-bf16", "text"),
        ("models_clip_open-clip-xlm-roberta-large-vit-huge-14", "image"),
    ],
    ids=["text", "image"],
)
def test_keys_without_their_encoder_are_refused(
    a2v: Path, stem: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (a2v / f"{stem}.pth").unlink()
    assert export(a2v) == 1
    assert f"lacks the {kind} encoder, but its DiT has keys for it" in capsys.readouterr().err


def without(*parts: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    return change


@pytest.mark.golden
@pytest.mark.usefixtures("no_tracing")
def test_an_encoder_without_its_keys_is_refused(a2v: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_dit(a2v, without("img_emb", "k_img", "v_img"))
    assert export(a2v) == 1
    assert "holds the image encoder, but its DiT no keys for it" in capsys.readouterr().err


@pytest.mark.golden
@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize(
    ("file", "name"),
    [("Wan2.1_VAE", "decoder.conv1.weight"), ("models_t5_umt5-xxl-enc-bf16", "blocks.0.attn.q.weight")],
    ids=["vae", "text"],
)
def test_a_missing_tensor_of_another_network_is_named(
    a2v: Path, file: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(a2v / f"{file}.pth", weights_only=True)
    del state[name]
    (a2v / f"{file}.pth").unlink()
    torch.save(state, a2v / f"{file}.pth")
    assert export(a2v) == 1
    assert f"1 missing ({name})" in capsys.readouterr().err


@pytest.mark.golden
@pytest.mark.usefixtures("no_tracing")
def test_half_of_the_speech_encoders_weight_norm_is_not_enough(a2v: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = a2v / "chinese-wav2vec2-base" / "model.safetensors"
    tensors = load_torch(path)
    name = next(name for name in tensors if name.endswith("pos_conv_embed.conv.weight_v"))
    del tensors[name]
    path.unlink()
    save_file(tensors, path)
    assert export(a2v) == 1
    assert "weight_v" in capsys.readouterr().err


@pytest.mark.golden
@pytest.mark.usefixtures("no_tracing")
def test_the_wrong_overrides_are_noticed(a2v: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(a2v), str(a2v.parent / "p")]) == 1
    assert "mis-shaped" in capsys.readouterr().err


@pytest.mark.golden
@pytest.mark.usefixtures("no_tracing")
def test_a_picture_of_an_avatar_that_is_none_is_refused(a2v: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (a2v / "overrides.json").write_text(json.dumps({"avatars": {"anna": "anna.png"}}))
    (a2v / "anna.png").write_text("no picture")
    assert export(a2v) == 1
    assert "anna.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        ("LICENSE", "LICENSE"),
        ("Skywork Community License (1).pdf.txt", "Skywork_Community_License__1_.pdf.txt"),
        (".Lizenz für alle.", "_Lizenz_f_r_alle_"),
    ],
    ids=["plain", "blanks", "dots"],
)
def test_a_licence_may_be_called_anything(outside: str, inside: str, tmp_path: Path) -> None:
    (tmp_path / outside).write_text("Terms")
    request = Request(tmp_path, tmp_path / "p", licence=tmp_path / outside)
    networks = [Subnetwork("dit", (), lambda: pytest.fail("built"))]
    title, file = export_checkpoint_module._licences(request, Overrides(), networks)["dit"]
    assert (title, file) == (f"Terms (licences/{inside})", tmp_path / outside)
    check_name(f"licences/{inside}", where="package")


# ── The whole way ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.golden
@pytest.mark.slow
def test_a_dit_exports_with_averages_lora_licence_and_half_precision(
    a2v: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original: dict[str, Tensor] = {}

    def nest(tensors: dict[str, Tensor]) -> None:
        original.update({name: tensor.float() for name, tensor in tensors.items()})
        averages = {f"ema.module.{name}": tensor.float() for name, tensor in tensors.items()}
        weights = {f"model.{name}": torch.zeros_like(tensor) for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(weights | averages)

    change_dit(a2v, nest)
    name = "blocks.1.ffn.0"
    down, up = torch.full((1, 64), 0.1), torch.full((128, 1), 0.1)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, a2v.parent / "lora.safetensors")
    (a2v.parent / "TERMS.txt").write_text("\nSome Terms\nand more\n")
    options = ["--ema", "--lora", f"{a2v.parent / 'lora.safetensors'}:2", "--precision", "fp16", "--only", "dit"]
    assert export(a2v, *options, "--license", str(a2v.parent / "TERMS.txt"), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    package = ModelPackage.open(a2v.parent / "p.edgereels")
    assert result["digest"] == package.digest
    assert package.manifest.precision == "fp16"
    assert package.manifest.licences == {"dit": "Some Terms (licences/TERMS.txt)"}
    assert (package.manifest.text, package.manifest.audio) == (None, None)
    assert "lora.safetensors" in [source.file for source in package.manifest.sources["dit"]]
    # The averages and not the zeros, and the update in its place.
    merged = (original[f"{name}.weight"] + 2 * up @ down).numpy()
    stored = tensor_of(package, "dit_block_01", f"{name}.weight.T.fp16").astype(np.float32).T
    np.testing.assert_allclose(stored, merged, rtol=2**-10, atol=1e-6)  # one rounding to float16
    assert {row["graph"] for row in result["graphs"]} == set(package.manifest.graphs)


def tensor_of(package: ModelPackage, graph: str, name: str) -> np.ndarray:
    import onnx

    model = onnx.load(package.graph_path(graph))
    return onnx.numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


@pytest.mark.golden
@pytest.mark.slow
def test_a_weight_that_is_nan_ends_the_export_and_leaves_nothing(a2v: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["time_embedding.0.bias"][3] = torch.nan

    change_dit(a2v, change)
    assert export(a2v, "--only", "dit") == 1
    assert "time_embedding.0.bias" in capsys.readouterr().err
    assert [path.name for path in a2v.parent.iterdir()] == ["a2v"]


@pytest.mark.golden
@pytest.mark.slow
def test_an_interrupted_export_resumes(a2v: Path) -> None:
    request = Request(a2v, a2v.parent / "p", only=("dit",), overrides=a2v / "tiny.json")

    def interrupt(part: str) -> None:
        if part == "dit_time":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(request, progress=interrupt)
    traced: list[str] = []
    real = package_parts.trace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package_parts, "trace", lambda spec: (traced.append(spec.name), real(spec))[1])
        export_checkpoint(request)
    assert traced == ["dit_time"]
    assert len(ModelPackage.open(request.package).manifest.graphs) == 6


@pytest.mark.golden
@pytest.mark.slow
def test_the_tiny_checkpoint_becomes_a_package(a2v: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(a2v) == 0
    table = capsys.readouterr().out
    package = ModelPackage.open(a2v.parent / "p.edgereels")
    manifest = package.manifest
    assert set(manifest.graphs) == {
        *("audio_encoder", "text_encoder", "image_encoder", "finish"),
        *("vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"),
        *("dit", "dit_prologue", "dit_block_00", "dit_block_01", "dit_epilogue", "dit_time"),
    }
    assert all(name in table for name in manifest.graphs)
    assert all(entry.parity is not None and entry.parity.max_rel < 2e-5 for entry in manifest.graphs.values())
    assert set(manifest.golden) == set(manifest.graphs)
    assert manifest.settings.window == 81
    tables = load_file(package.root / str(manifest.tables))
    assert {name: table.shape for name, table in tables.items()} == {
        "timesteps": (4,),
        "modulation": (4, 6, 64),
        "head_modulation": (4, 64),
        "text_connection": (tables["text_connection"].shape[0], 4096),
        "text_negative": (tables["text_negative"].shape[0], 4096),
    }
    with pytest.raises(CheckpointError, match="--task"):
        export_checkpoint(Request(a2v, a2v.parent / "q", task="video-extension"))
