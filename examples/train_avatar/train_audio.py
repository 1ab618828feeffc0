# SPDX-License-Identifier: Apache-2.0
"""Train the audio encoder: wav2vec 2.0's layout, small, taught to hear what the face does.

Like the published pipeline it resamples the convolutions' output to 25 frames per second before the transformer. Two
linear heads, thrown away afterwards, predict the drives of the face and the kind of sound.
"""

import json
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from . import start
from .dataset import SpeechSet, load_speech
from .footage import CLIP_FRAMES, FPS, SAMPLE_RATE
from .performance import DRIVES, REST, SOUND_CLASSES
from .state import save_state

CONFIG = {
    "model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"], "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "intermediate_size": 512, "conv_dim": [64] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_bias": False, "num_feat_extract_layers": 7,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu", "hidden_act": "gelu", "do_stable_layer_norm": False, "layer_norm_eps": 1e-5,
    "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 8, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "feat_proj_dropout": 0.0, "layerdrop": 0.0, "vocab_size": 32, "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}  # fmt: skip
PREPROCESSOR = {
    "do_normalize": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0, "return_attention_mask": False, "sampling_rate": SAMPLE_RATE,
}  # fmt: skip
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
TRAINING_CLIPS, HELD_OUT_CLIPS = 1500, 48
SPEECHLESS = 0.08
"""Share of the training rows that hold no speech, so that noise does not move the mouth."""


class AudioEncoder(nn.Module):
    """The network with its teaching heads."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        self.wav2vec2 = Wav2Vec2Model(Wav2Vec2Config(**CONFIG))
        width = CONFIG["hidden_size"]
        self.drives_head = nn.Linear(width, len(DRIVES))
        self.sounds_head = nn.Linear(width, len(SOUND_CLASSES))

    def layers(self, waveforms: Tensor) -> list[Tensor]:
        """Return the outputs of all layers, each (batch, frames, width), for normalised waveforms (batch, samples)."""
        frames = math.ceil(waveforms.shape[1] * FPS / SAMPLE_RATE)
        sound = self.wav2vec2.feature_extractor(waveforms)
        sound = F.interpolate(sound.float(), size=frames, mode="linear", align_corners=True)
        hidden = self.wav2vec2.feature_projection(sound.transpose(1, 2))[0]
        encoder = self.wav2vec2.encoder
        hidden = encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))
        outputs = []
        for layer in encoder.layers:
            result = layer(hidden)
            hidden = result[0] if isinstance(result, tuple) else result
            outputs.append(hidden)
        return outputs

    def features(self, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what the DiT sees of one utterance, shape (frames, layers, width)."""
        with torch.no_grad():
            outputs = self.layers(normalise(torch.from_numpy(waveform)[None]))
        return torch.stack([layer[0] for layer in outputs], dim=1).float().numpy()


def normalise(waveforms: Tensor) -> Tensor:
    """Bring every row to zero mean and unit variance, as the published feature extractor does."""
    mean = waveforms.mean(1, keepdim=True)
    return (waveforms - mean) / torch.sqrt(waveforms.var(1, unbiased=False, keepdim=True) + 1e-7)


def distort(waveforms: npt.NDArray[np.floating], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the waveforms as a room, a microphone and noise would change them; shape (batch, samples)."""
    length = waveforms.shape[1]
    spectrum = np.fft.rfft(waveforms, axis=1)
    knots = generator.normal(0, 4, (len(waveforms), 9))  # dB, over the spectrum
    knots[generator.random(len(waveforms)) < 0.3] = 0
    position = np.linspace(0, 8, spectrum.shape[1])
    gain_db = np.stack([np.interp(position, np.arange(9), row) for row in knots])
    spectrum *= 10 ** (gain_db / 20)
    for row in np.flatnonzero(generator.random(len(waveforms)) < 0.4):
        reverb = np.zeros(length)
        reverb[0] = 1.0
        tail = int(SAMPLE_RATE * generator.uniform(0.05, 0.25))
        decay = np.exp(-5 * np.arange(tail) / tail)
        reverb[80 : 80 + tail] += generator.normal(0, 1, tail) * decay * generator.uniform(0.005, 0.03)
        spectrum[row] *= np.fft.rfft(reverb)
    changed = np.fft.irfft(spectrum, length, axis=1)
    level = changed.std(1, keepdims=True) + 1e-6
    noise_db = generator.uniform(-60, -12, (len(waveforms), 1))
    noise = generator.standard_normal(changed.shape)
    pink = generator.random(len(waveforms)) < 0.5
    noise[pink] = noise[pink] * 0.3 + np.cumsum(noise[pink], 1) % 2 - 1
    return (changed + noise * level * 10 ** (noise_db / 20)).astype(np.float32)


def speechless(samples: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return sound that nobody speaks: near silence, coloured noise or a few swelling tones; shape (samples,)."""
    time_s = np.arange(samples) / SAMPLE_RATE
    kind = generator.random()
    if kind < 0.25:
        return (generator.standard_normal(samples) * 10 ** generator.uniform(-6, -3)).astype(np.float32)
    if kind < 0.65:
        spectrum = np.fft.rfft(generator.standard_normal(samples))
        slope = np.arange(1, len(spectrum) + 1) ** -generator.uniform(0.0, 1.2)
        sound = np.fft.irfft(spectrum * slope, samples)
    else:
        tones = generator.uniform(80, 2000, 5)[:, None]
        swell = 1 + np.sin(2 * np.pi * generator.uniform(0.2, 3, 5)[:, None] * time_s)
        sound = (swell * np.sin(2 * np.pi * tones * time_s) / tones**0.5).sum(0)
    return (sound / (np.abs(sound).max() + 1e-9) * 0.4).astype(np.float32)


def train(folder: Path, *, steps: int) -> None:
    """Train for `steps` steps in all, continuing from the last save in `folder`."""
    torch.manual_seed(0)
    speech = load_speech(folder, clips=TRAINING_CLIPS)
    held_out = load_speech(folder, clips=HELD_OUT_CLIPS, held_out=True)
    encoder = AudioEncoder()
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    path, done = folder / "audio.pt", 0
    if path.exists():
        saved = torch.load(path)
        encoder.load_state_dict(saved["encoder"])
        optimiser.load_state_dict(saved["optimiser"])
        done = saved["step"]
    elif (given := start.audio_encoder(folder)) is not None:
        encoder.wav2vec2.load_state_dict(given)
    spread = torch.from_numpy(speech.drives.reshape(-1, len(DRIVES)).std(0))
    losses: list[float] = []
    saved_at = time.monotonic()
    for step in range(done, steps):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, steps)
        loss = _loss(encoder, speech, spread, np.random.default_rng(step))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 99 or step == steps - 1:
            figures = evaluate(encoder, held_out) if step % 500 == 499 or step == steps - 1 else {}
            print(f"audio {step + 1}/{steps} loss {np.mean(losses[-100:]):.3f} {figures}", flush=True)
        if time.monotonic() - saved_at > 60 or step == steps - 1:
            save_state(path, {"encoder": encoder.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1})
            saved_at = time.monotonic()


def _learning_rate(step: int, steps: int) -> float:
    return 1.5e-3 * min(1, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _loss(encoder: AudioEncoder, speech: SpeechSet, spread: Tensor, generator: np.random.Generator) -> Tensor:
    frames = int(generator.choice([50, 75, 125, CLIP_FRAMES]))
    resting = np.array([*REST, *[0.0] * (len(DRIVES) - len(REST))], np.float32)
    chosen = generator.integers(0, len(speech), 1200 // frames)
    starts = generator.integers(0, CLIP_FRAMES - frames + 1, len(chosen))
    pairs = list(zip(chosen, starts, strict=True))
    waveforms = np.stack(
        [speech.waveforms[i, s * SAMPLES_PER_FRAME : (s + frames) * SAMPLES_PER_FRAME] for i, s in pairs]
    )
    drives = np.stack([speech.drives[i, s : s + frames] for i, s in pairs])
    sounds = np.stack([speech.sounds[i, s : s + frames] for i, s in pairs])
    heard = distort(waveforms.astype(np.float32) / 32768, generator)
    for row in np.flatnonzero(generator.random(len(pairs)) < SPEECHLESS):
        heard[row] = speechless(heard.shape[1], generator)
        drives[row], sounds[row] = resting, 0
    inputs = normalise(torch.from_numpy(heard))
    drives, sounds = torch.from_numpy(drives) / spread, torch.from_numpy(sounds)
    with torch.autocast("cpu", torch.bfloat16):
        last = encoder.layers(inputs)[-1]
        predicted, scores = encoder.drives_head(last).float(), encoder.sounds_head(last).float()
    weight = torch.tensor([3.0, 2.5, 2.0, 1.0, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5])
    difference = F.smooth_l1_loss(predicted, drives, reduction="none")
    return (difference * weight).mean() + 0.3 * F.cross_entropy(scores.flatten(0, 1), sounds.flatten())


def evaluate(encoder: AudioEncoder, held_out: SpeechSet) -> dict[str, float]:
    """Return the correlation of every predicted drive with the truth on voices never heard in training."""
    encoder.eval()
    with torch.no_grad():
        inputs = normalise(torch.from_numpy(held_out.waveforms.astype(np.float32) / 32768))
        predicted = torch.cat([encoder.drives_head(encoder.layers(part)[-1]) for part in inputs.split(8)]).numpy()
    encoder.train()
    truth = held_out.drives
    return {
        name: round(float(np.corrcoef(predicted[..., column].ravel(), truth[..., column].ravel())[0, 1]), 3)
        for column, name in enumerate(DRIVES)
    }


def load_encoder(folder: Path) -> AudioEncoder:
    """Return the trained encoder, or the one that training started from, ready to use."""
    encoder = AudioEncoder()
    if (folder / "audio.pt").exists():
        encoder.load_state_dict(torch.load(folder / "audio.pt")["encoder"])
    elif (given := start.audio_encoder(folder)) is not None:
        encoder.wav2vec2.load_state_dict(given)
    else:
        raise SystemExit(f"{folder} has no audio.pt; expected the stage `audio` to have run, or --from CHECKPOINT")
    return encoder.eval()


def write_checkpoint(folder: Path, target: Path) -> None:
    """Write the `wav2vec2` folder of the checkpoint: config, preprocessor and fp16 weights with published keys."""
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    tensors = {
        _published_key(key): value.half().contiguous()
        for key, value in load_encoder(folder).wav2vec2.state_dict().items()
    }
    save_file(tensors, str(target / "model.safetensors"), metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    (target / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1) + "\n")


def _published_key(key: str) -> str:
    """Spell the weight norm of the positional convolution as the published file does."""
    return key.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )
