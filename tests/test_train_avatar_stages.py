# SPDX-License-Identifier: Apache-2.0
"""The stages of the avatar's training go on where they were stopped, and start from what they were told to."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from .train_avatar_parts import part

for needed in ("torch", "skia", "scipy", "cv2"):
    pytest.importorskip(needed, reason=f"the training needs {needed}: pip install '.[train,export]'")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Footage of tiny frames."""
    footage = part("footage")
    monkeypatch.setattr(footage, "SIZE", 16)
    return footage


def clip(footage: ModuleType, value: int) -> tuple[np.ndarray, np.ndarray]:
    frames = np.full((footage.CLIP_FRAMES, 16, 16, 3), value, np.uint8)
    return frames, np.full(footage.CLIP_SAMPLES, value, np.int16)


def write_face(writer: object) -> None:
    writer.write_face("one", portrait=np.zeros((16, 16, 3), np.uint8), weight=np.ones((16, 16)))  # pyright: ignore[reportAttributeAccessIssue]


def test_footage_goes_on_after_the_last_clip_that_is_known(small: ModuleType, tmp_path: Path) -> None:
    first = small.FootageWriter(tmp_path, faces=["one"] * 3, held_out=[2])
    write_face(first)
    first.write_clip(*clip(small, 1))
    first.finish()
    first.write_clip(*clip(small, 2))  # killed before this one was made known
    again = small.FootageWriter(tmp_path, faces=["one"] * 3, held_out=[2])
    assert again.done == 1
    for value in (3, 4):
        again.write_clip(*clip(small, value))
    seen = small.Footage.open(tmp_path)
    assert seen.frames[:, 0, 0, 0, 0].tolist() == [1, 3, 4]
    assert seen.sound[:, 0].tolist() == [1, 3, 4]
    assert seen.training == [0, 1]
    assert seen.draws is None


def test_other_footage_is_not_overwritten(small: ModuleType, tmp_path: Path) -> None:
    small.FootageWriter(tmp_path, faces=["one"], held_out=[]).finish()
    with pytest.raises(SystemExit, match=r"other footage.*another --out"):
        small.FootageWriter(tmp_path, faces=["two"], held_out=[])


def test_a_folder_without_weights_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Wan2\.1_VAE\.safetensors"):
        part("start").remember(tmp_path / "out", tmp_path)


def test_a_checkpoint_of_another_autoencoder_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "Wan2.1_VAE.safetensors").touch()
    (tmp_path / "overrides.json").write_text(
        json.dumps({"_video_vae": {"dim": 8, "dim_mult": [1], "num_res_blocks": 0}})
    )
    with pytest.raises(SystemExit, match=r"'dim': 8.*expected.*--from"):
        part("start").remember(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_start_without_a_note_is_none(tmp_path: Path) -> None:
    start = part("start")
    assert start.vae(tmp_path) is None
    assert start.audio_encoder(tmp_path) is None
    assert start.videos(tmp_path) is None


def test_the_networks_start_from_the_checkpoint_that_was_noted(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    start, train_dit = part("start"), part("train_dit")
    from edgereels.export.dit_keys import unpermute_rope_rows

    given = {"Wan2.1_VAE.safetensors": {"conv1.weight": torch.ones(2).half()}}
    dit = train_dit.new_dit().state_dict()
    given["diffusion_pytorch_model.safetensors"] = unpermute_rope_rows(dit, train_dit.CONFIG)
    for name, tensors in given.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, str(tmp_path / name))
    (tmp_path / "overrides.json").write_text(json.dumps({"_video_vae": start.vae_settings()}))
    start.remember(tmp_path / "out", tmp_path, videos=tmp_path, name="me")
    assert start.vae(tmp_path / "out")["conv1.weight"].dtype == torch.float32
    read = start.dit(tmp_path / "out", train_dit.CONFIG)
    assert all(torch.equal(read[key], value) for key, value in dit.items())
    assert start.videos(tmp_path / "out") == start.Videos(tmp_path.resolve(), "me")


def test_a_state_is_written_aside_and_then_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    state = part("state")
    state.save_state(tmp_path / "x.pt", {"step": 1})

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        state.save_state(tmp_path / "x.pt", {"step": 2})
    assert torch.load(tmp_path / "x.pt")["step"] == 1


def test_a_card_says_what_was_measured_and_what_was_not() -> None:
    card = part("model_card").card
    told = {"name": "faces", "faces": ["anna"], "clips": 240, "compute": "Here."}
    figures = {"gates": [{"gate": "opening", "figure": "0.9", "limit": "at least 0.85", "met": True}]}
    assert "Nobody measured" in card(**told, figures=None)
    measured = card(**told, figures=figures)
    assert "| opening | 0.9 | at least 0.85 | yes |" in measured
    assert "depict nobody" in measured and "Apache-2.0" in measured


def test_a_card_for_filmed_faces_is_left_to_who_filmed_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps({"name": "me", "avatars": {"me": "me.png"}}))
    with pytest.raises(SystemExit):
        part("model_card").main(["--checkpoint", str(tmp_path)])
    assert "yourself" in capsys.readouterr().err
    assert not (tmp_path / "MODEL_CARD.md").exists()


@pytest.mark.slow
def test_workers_step_by_the_mean_of_their_gradients(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'examples')!r})\n"
        "from pathlib import Path\n"
        "from train_avatar import workers\n"
        "def run(folder, *, steps):\n"
        "    weight = torch.nn.Parameter(torch.zeros(2))\n"
        "    weight.grad = torch.full((2,), float(workers.rank() + steps))\n"
        "    workers.average_gradients([weight])\n"
        "    (folder / str(workers.rank())).write_text(str(weight.grad.tolist()))\n"
        "if __name__ == '__main__':\n"
        f"    workers.run_together(run, Path({str(tmp_path)!r}), steps=3, workers=2)\n"
    )
    import subprocess

    subprocess.run([sys.executable, str(script)], check=True, timeout=120)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["[3.5, 3.5]"] * 2


def test_a_process_alone_keeps_its_gradients() -> None:
    import torch

    workers = part("workers")
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    workers.average_gradients([weight])
    assert workers.rank() == 0
    assert weight.grad.tolist() == [1, 1]


def test_a_decoder_whose_values_grew_is_brought_back_to_the_bit() -> None:
    import torch

    vae, balance = part("train_vae").new_vae().eval(), part("balance")
    frames = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 9, 32, 32)).astype(np.float32))
    with torch.no_grad():
        for level in (1, 3, 5):
            vae.decoder.upsamples[level].resample[1].weight.mul_(64)
        latents = vae.encode(frames)
        expected = vae.decode(latents)
        levels = range(2, 7, 2)
        assert max(balance._lengths(vae, frames, levels=levels).values()) > 16_000  # control: float16 would not do
        balance.balance(vae, frames)
        assert torch.equal(vae.decode(latents), expected)
        assert max(balance._lengths(vae, frames, levels=levels).values()) < 64
        vae.decoder.upsamples[6].residual[6].weight.mul_(2)  # control: anything else that is rescaled shows
        assert not torch.equal(vae.decode(latents), expected)
