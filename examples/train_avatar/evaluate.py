# SPDX-License-Identifier: Apache-2.0
"""Measure lip-sync on held-out speech, from frames that came out of `edgereels render`; exit 1 when a gate is missed.

Speakers and sentences were never heard in training. The mouth's opening is read back from pixels by `JawReader`. Three
controls go the same way and must fail: another clip's sound, a static face, and frames interpolated between the ends of
the windows (what key frames alone would give).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgereels.export.vae import VideoVae

from .dataset import HELD_OUT_SEED, draw_clip
from .jaw_reader import JawReader
from .latents import DROP, MOTION, WINDOW
from .performance import FPS, perform, poses, slow_drift
from .speech import SAMPLE_RATE, Espeak, random_speech
from .train_vae import CONFIG, MOUTH_BOX, peak_ratio

MINIMUM_CORRELATION = 0.6
MAXIMUM_LAG_MS = 40.0
MAXIMUM_WRONG = 0.2
FIRST_SEED = HELD_OUT_SEED + 500
"""Apart from the held-out utterances that training prints figures of."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Clip:
    """One held-out utterance, what the mouth should do and what it was seen to do."""

    voice: str
    truth: Floats
    """Opening that belongs to the sound, shape (frames,)."""
    rendered: Floats
    """Opening read from the rendered frames."""
    interpolated: Floats
    """Opening read from frames interpolated between the ends of the windows."""


def correlation(ours: Floats, truth: Floats) -> float:
    """Return Pearson's correlation; 0 for a series that does not move."""
    if ours.std() < 1e-9 or truth.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(ours, truth)[0, 1])


def lag_ms(clips: list[Clip]) -> float:
    """Return by how much the rendered mouth is late (positive) or early, from the mean cross-correlation's peak."""
    reach = 6
    shifts = np.arange(-reach, reach + 1)
    means = []
    for shift in shifts:
        values = [
            correlation(clip.rendered[reach + shift : len(clip.rendered) - reach + shift], clip.truth[reach:-reach])
            for clip in clips
        ]
        means.append(np.mean(values))
    best = int(np.argmax(means))
    fine = 0.0
    if 0 < best < len(shifts) - 1:  # the parabola through the peak and its neighbours
        left, middle, right = means[best - 1 : best + 2]
        fine = 0.5 * (left - right) / (left - 2 * middle + right)
    return float((shifts[best] + fine) * 1000 / FPS)


def bootstrap(values: Floats, *, resamples: int = 10000) -> tuple[float, float]:
    """Return the 95 % interval of the mean over clips."""
    generator = np.random.default_rng(0)
    means = values[generator.integers(0, len(values), (resamples, len(values)))].mean(1)
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def render_clips(
    package: str, *, count: int, duration_s: float, threads: int, device: str = "cpu", compute: str = "auto"
) -> list[Clip]:
    """Render the held-out utterances with the command line and read the mouths."""
    asked = ("--threads", str(threads), "--device", device, "--compute", compute)
    espeak, reader = Espeak(), JawReader.fitted()
    clips = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            speech = random_speech(espeak, seed=FIRST_SEED + index, duration_s=duration_s, held_out=True)
            performance = perform(speech)
            frames = render(speech.waveform, package, folder=Path(folder), asked=asked)
            rendered = reader.opening(frames)
            length = min(len(rendered), len(performance.opening))
            truth = performance.opening[:length].astype(np.float64)
            interpolated = reader.opening(_between_keys(frames[:length]))
            clips.append(Clip(speech.voice, truth, rendered[:length], interpolated))
            print(f"{speech.voice}: {correlation(clips[-1].rendered, truth):.3f}", file=sys.stderr, flush=True)
    return clips


def render(
    waveform: npt.NDArray[np.float32], package: str, *, folder: Path, asked: tuple[str, ...] = ()
) -> npt.NDArray[np.float32]:
    """Run `edgereels render` on 16 kHz sound; return frames (count, h, w, 3) in [-1, 1].

    Args:
        waveform: sound.
        package: folder, or "default".
        folder: for its files.
        asked: more options, such as `--threads 2`.
    """
    import soundfile

    sound, output = folder / "speech.wav", folder / "frames.npy"
    soundfile.write(sound, waveform, SAMPLE_RATE, subtype="PCM_16")
    command = ["edgereels", "render", "--package", package, "--avatar", "anna", "--audio", str(sound)]
    command += ["--frames", str(output), *asked, "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"edgereels render failed: {finished.stderr.strip()}")
    frames = np.load(output).astype(np.float32) / 127.5 - 1
    output.unlink()
    return frames


def _between_keys(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Keep the last frame of every window and interpolate between them."""
    places = np.arange(0, len(frames), WINDOW - MOTION - DROP)
    result = np.empty_like(frames)
    for index in range(len(frames)):
        left = places[min(index // (WINDOW - MOTION - DROP), len(places) - 1)]
        right = min(left + WINDOW - MOTION - DROP, len(frames) - 1)
        share = (index - left) / max(1, right - left)
        result[index] = frames[left] * (1 - share) + frames[right] * share
    return result


def autoencoder_figures(checkpoint: Path, *, count: int = 6) -> dict[str, float]:
    """Return the autoencoder's PSNR on drawn held-out clips: whole frame and mouth box."""
    vae = stored_vae(checkpoint)
    espeak = Espeak()
    whole, mouth = [], []
    top, left, bottom, right = MOUTH_BOX
    for index in range(count):
        speech = random_speech(espeak, seed=FIRST_SEED + index, duration_s=4, held_out=True)
        performance = perform(speech)
        drift = slow_drift(np.random.default_rng(index), len(performance.drives))
        truth = draw_clip(poses(performance, drift))[30:63].astype(np.float32) / 127.5 - 1
        ours = through(vae, truth)
        whole.append(peak_ratio(ours, truth))
        mouth.append(peak_ratio(ours[:, top:bottom, left:right], truth[:, top:bottom, left:right]))
    return {"whole_db": round(float(np.mean(whole)), 2), "mouth_db": round(float(np.mean(mouth)), 2)}


def stored_vae(checkpoint: Path) -> VideoVae:
    """Return the autoencoder of a checkpoint folder."""
    from safetensors.torch import load_file

    vae = VideoVae(CONFIG)
    stored = load_file(str(checkpoint / "Wan2.1_VAE.safetensors"))
    vae.load_state_dict({key: value.float() for key, value in stored.items()})
    return vae


def through(vae: VideoVae, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return frames (4n + 1, h, w, 3) after encoding and decoding."""
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        return vae.decode(vae.encode(clip)).clamp(-1, 1)[0].permute(1, 2, 3, 0).numpy()


def summarise(clips: list[Clip]) -> dict[str, Any]:
    """Return all figures and whether each gate is met."""
    rendered = np.array([correlation(clip.rendered, clip.truth) for clip in clips])
    wrong = [_wrong(clips, index) for index in range(len(clips))]
    static = [correlation(np.full_like(clip.truth, clip.rendered[0]), clip.truth) for clip in clips]
    interpolated = [correlation(clip.interpolated, clip.truth) for clip in clips]
    low, high = bootstrap(rendered)
    figures = {
        "clips": len(clips),
        "seconds": round(sum(len(clip.truth) for clip in clips) / FPS, 1),
        "correlation": round(float(rendered.mean()), 3),
        "correlation_95": [round(low, 3), round(high, 3)],
        "correlation_lowest": round(float(rendered.min()), 3),
        "lag_ms": round(lag_ms(clips), 1),
        "amplitude_ratio": round(float(np.mean([clip.rendered.std() / clip.truth.std() for clip in clips])), 3),
        "wrong_audio": round(float(np.mean(wrong)), 3),
        "static_face": round(float(np.mean(static)), 3),
        "key_frames_only": round(float(np.mean(interpolated)), 3),
    }
    gates = {
        "correlation": figures["correlation"] >= MINIMUM_CORRELATION,
        "lag": abs(figures["lag_ms"]) <= MAXIMUM_LAG_MS,
        "wrong_audio": figures["wrong_audio"] < MAXIMUM_WRONG,
        "static_face_fails": figures["static_face"] < MINIMUM_CORRELATION,
        "key_frames_only_fails": figures["key_frames_only"] < MINIMUM_CORRELATION,
    }
    return figures | {"gates": gates}


def _wrong(clips: list[Clip], index: int) -> float:
    other = clips[(index + 1) % len(clips)]
    length = min(len(clips[index].rendered), len(other.truth))
    return correlation(clips[index].rendered[:length], other.truth[:length])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether every gate is met."""
    parser = argparse.ArgumentParser(description="Lip-sync of a package on held-out speech.")
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder, for the autoencoder's figures")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a clip")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="as of `edgereels render`: cpu, onnxruntime:CPU, openvino:CPU")
    parser.add_argument("--compute", default="auto", help="as of `edgereels render`: auto, f32, bf16")
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    chosen = parser.parse_args(arguments)
    clips = render_clips(
        chosen.package,
        count=chosen.clips,
        duration_s=chosen.seconds,
        threads=chosen.threads,
        device=chosen.device,
        compute=chosen.compute,
    )
    figures = summarise(clips)
    if chosen.checkpoint:
        figures["autoencoder"] = autoencoder_figures(chosen.checkpoint)
    gates: dict[str, bool] = figures["gates"]
    if chosen.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value}")
    missed = [name for name, met in gates.items() if not met]
    if missed:
        print(f"gates missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
