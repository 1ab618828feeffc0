# SPDX-License-Identifier: Apache-2.0
"""From WAV, picture and recorded draws to the recorded videos, through the command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edgereels.runtime import passes, stream
from edgereels.runtime.chunks import WindowPlan
from edgereels.runtime.cli import main

pytestmark = [pytest.mark.golden, pytest.mark.slow]

SETS = ("e2e_a2v_cfg", "e2e_a2v_nocfg", "e2e_a2v_short")
MOST_LEVELS_APART = 2
SHARE_IDENTICAL = 0.99


def arguments(golden: Path, name: str) -> list[str]:
    """Return the options of `render` that repeat a recorded run."""
    notes = json.loads((golden / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    run = notes["args"]
    height, width = load_file(golden / "golden" / f"{name}.safetensors")["video"].shape[1:3]
    speech = notes["audio_emb"].split(":")[0].removeprefix("wav2vec_").removesuffix(".safetensors")
    options: dict[str, Any] = {
        "--image": golden / "inputs" / notes["image"],
        "--audio": golden / "inputs" / f"{speech}.wav",
        "--noise": golden / "golden" / f"{name}.safetensors",
        "--size": f"{height}x{width}",
        "--window": run["frame_num"],
        "--motion": run["motion_frame"],
        "--drop": run["drop_frame"],
        "--steps": run["sampling_steps"],
        "--shift": run["shift"],
        "--guidance-text": run["text_guide_scale"],
        "--guidance-audio": run["audio_guide_scale"],
        "--prompt": notes["prompt"],
    }
    return [str(part) for option in options.items() for part in option]


def render(
    golden: Path, name: str, package: Path, folder: Path, *, device: str = "onnxruntime:CPU"
) -> npt.NDArray[np.uint8]:
    out = folder / f"{name}.npy"
    run = ["render", "--package", str(package), "--frames", str(out), "--device", device, "--compute", "f32"]
    assert main([*run, *arguments(golden, name)]) == 0
    return np.load(out)


def agrees(ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> bool:
    """Apply the gate: at most 2 levels apart anywhere, at least 99 % of values identical."""
    apart = np.abs(ours.astype(np.int16) - theirs)
    return bool(apart.max() <= MOST_LEVELS_APART and np.mean(apart == 0) >= SHARE_IDENTICAL)


@pytest.mark.parametrize("device", ["onnxruntime:CPU", "openvino:CPU"])
@pytest.mark.parametrize("name", SETS)
def test_the_recorded_video_is_reproduced(
    name: str, device: str, golden: Path, tiny_package: Path, tmp_path: Path
) -> None:
    ours = render(golden, name, tiny_package, tmp_path, device=device)
    theirs = load_file(golden / "golden" / f"{name}.safetensors")["video"]
    assert ours.shape == theirs.shape
    assert agrees(ours, theirs)


def test_a_prepared_avatar_gives_the_same_video_and_leaves_the_text_encoder_alone(
    golden: Path, tiny_package: Path, tmp_path: Path
) -> None:
    name = "e2e_a2v_nocfg"
    options = dict(zip(*[iter(arguments(golden, name))] * 2, strict=True))
    prompt, image = options.pop("--prompt"), options.pop("--image")
    prepare = ["--prompt", prompt, "--size", options["--size"], "--window", options["--window"]]
    assert main(["avatar", str(tiny_package), image, str(tmp_path / "a"), *prepare]) == 0
    flat = [part for option in options.items() for part in option]
    out, trace = tmp_path / "f.npy", tmp_path / "t.jsonl"
    files = ["--frames", str(out), "--trace", str(trace), "--avatar", str(tmp_path / "a")]
    assert main(["render", "--package", str(tiny_package), *files, *flat]) == 0
    assert agrees(np.load(out), load_file(golden / "golden" / f"{name}.safetensors")["video"])
    opened = {event.get("graph") for event in map(json.loads, trace.read_text(encoding="utf-8").splitlines())}
    assert "dit" in opened
    assert "text_encoder" not in opened


def test_an_audio_window_off_by_one_is_noticed(
    golden: Path, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    right = stream.slice_audio

    def late(features: npt.NDArray[Any], window: WindowPlan) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return right(features, dataclasses.replace(window, start_frame=window.start_frame + 1))

    monkeypatch.setattr(stream, "slice_audio", late)
    ours = render(golden, "e2e_a2v_short", tiny_package, tmp_path)
    assert not agrees(ours, load_file(golden / "golden" / "e2e_a2v_short.safetensors")["video"])


def test_a_wrong_key_frame_is_noticed(
    golden: Path, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: every window is pinned by the frame after the right one."""
    right = passes.Passes.finish

    def wrong(self: passes.Passes, window: WindowPlan, latents: np.ndarray, **named: Any) -> passes.Finished:
        made = right(self, window, latents, **named)
        keys = sorted(made.key_frames)
        shifted = {key: made.key_frames[keys[(place + 1) % len(keys)]] for place, key in enumerate(keys)}
        return dataclasses.replace(made, key_frames=shifted)

    monkeypatch.setattr(passes.Passes, "finish", wrong)
    ours = render(golden, "e2e_a2v_nocfg", tiny_package, tmp_path)
    assert not agrees(ours, load_file(golden / "golden" / "e2e_a2v_nocfg.safetensors")["video"])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    golden: Path, tiny_package: Path, tmp_path: Path
) -> None:
    options = dict(zip(*[iter(arguments(golden, "e2e_a2v_short"))] * 2, strict=True))
    del options["--noise"], options["--prompt"]
    flat = [part for option in options.items() for part in option]
    made = []
    for index, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{index}.npy"
        assert main(["render", "--package", str(tiny_package), "--frames", str(out), "--seed", str(seed), *flat]) == 0
        made.append(np.load(out))
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
