# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint folder holds: which task it is for, and where the weights of each subnetwork are.

Two layouts are read. The published talking avatar, and a training run's output in the same shape::

    config.json, *.safetensors [+ *.safetensors.index.json]          the DiT
    Wan2.1_VAE.pth                                                   the VAE
    models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/tokenizer.json  the text encoder, optional
    models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth          the image encoder, optional
    <any folder>/config.json with model_type wav2vec2                the audio encoder

Each `.pth` may also be a `.safetensors` of the same stem, which is preferred where both exist. Nothing but the
published `.pth` names is unpickled, always with ``weights_only=True``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import CheckpointError
from ..runtime.package_files import sha256_of
from .state_dicts import unwrap
from .weight_files import PickledFile, SafetensorsFile, ShardedWeights, Weights, read_json

TALKING_AVATAR = "talking-avatar"
VAE_STEM = "Wan2.1_VAE"
TEXT_STEM = "models_t5_umt5-xxl-enc-bf16"
IMAGE_STEM = "models_clip_open-clip-xlm-roberta-large-vit-huge-14"
TOKENIZER = Path("google/umt5-xxl/tokenizer.json")

_STEMS = (VAE_STEM, TEXT_STEM, IMAGE_STEM)
# wav2vec2 folders are published by transformers' save_pretrained, whose older form is a pickle of this name.
_AUDIO_FILES = ("model.safetensors", "pytorch_model.bin")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; weights are names and shapes until they are read."""

    folder: Path
    """Where it is."""
    task: str
    """What it is for: "talking-avatar"."""
    dit: Weights
    """The denoising transformer, names as in the file."""
    dit_config: Mapping[str, Any]
    """config.json of the DiT."""
    vae: Weights
    """The autoencoder."""
    audio: Weights
    """The speech encoder."""
    audio_config: Mapping[str, Any]
    """Its config.json."""
    audio_normalise: bool
    """Whether its preprocessor brings waveforms to zero mean and unit variance."""
    text: Weights | None
    """The text encoder, where there is one."""
    tokenizer: Path | None
    """Its tokenizer.json."""
    image: Weights | None
    """The image encoder, where there is one."""
    ema: frozenset[str]
    """Subnetworks whose weights are moving averages."""


def open_checkpoint(folder: Path, *, task: str | None = None, ema: bool = False) -> Checkpoint:
    """Look at a folder and open what it holds; no weight is read.

    Args:
        folder: the checkpoint.
        task: what it is for, where the layout doesn't say; a task that contradicts the layout is refused.
        ema: take moving averages where a file has them.

    Raises:
        CheckpointError: no known layout, a part is missing or damaged, or the DiT has no moving averages although
                they were asked for.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; expected a checkpoint in the published SkyReels-V3 layout")
    found = task_of(folder)
    if task is not None and task != found:
        raise CheckpointError(f"{folder} holds a {found} checkpoint, but --task says {task}")
    if found != TALKING_AVATAR:
        raise CheckpointError(f"{folder} holds a {found} checkpoint; this build exports {TALKING_AVATAR} packages")
    averaged: set[str] = set()

    def plain(weights: Weights, part: str) -> Weights:
        unwrapped = unwrap(weights, ema=ema)
        averaged.update([part] if unwrapped.is_ema else [])
        return unwrapped.weights

    audio_folder = _audio_folder(folder)
    text, image = _by_stem(folder, TEXT_STEM), _by_stem(folder, IMAGE_STEM)
    checkpoint = Checkpoint(
        folder=folder,
        task=found,
        dit=plain(_dit_weights(folder), "dit"),
        dit_config=read_json(folder / "config.json"),
        vae=plain(_required(_by_stem(folder, VAE_STEM), folder, f"{VAE_STEM}.pth or .safetensors"), "vae"),
        audio=plain(_audio_weights(audio_folder), "audio_encoder"),
        audio_config=read_json(audio_folder / "config.json"),
        audio_normalise=_normalises(audio_folder),
        text=plain(text, "text_encoder") if text else None,
        tokenizer=_tokenizer(folder) if text else None,
        image=plain(image, "image_encoder") if image else None,
        ema=frozenset(averaged),
    )
    if ema and "dit" not in averaged:
        raise CheckpointError(f"{folder}: the DiT has no moving averages (ema or model_ema), which --ema asks for")
    return checkpoint


def task_of(folder: Path) -> str:
    """Say what a checkpoint is for by its layout.

    Raises:
        CheckpointError: the layout is not known.
    """
    if (folder / "config.json").is_file():
        return TALKING_AVATAR
    if (folder / "model_index.json").is_file():
        return "reference-to-video"
    if (folder / "transformer" / "config.json").is_file():
        return "video-extension"
    raise CheckpointError(
        f"{folder} has no config.json; expected a checkpoint in the published SkyReels-V3 layout "
        f"(config.json, *.safetensors, {VAE_STEM}.pth, a wav2vec2 folder)"
    )


def source_records(files: Iterable[Path], *, folder: Path) -> list[dict[str, Any]]:
    """Return name, size and SHA-256 of each file, names relative to the checkpoint where they lie inside."""
    records: list[dict[str, Any]] = []
    for path in dict.fromkeys(files):
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        records.append({"file": name, "size_bytes": path.stat().st_size, "sha256": sha256_of(path)})
    return records


def _dit_weights(folder: Path) -> Weights:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise CheckpointError(f"{folder} has {len(indexes)} safetensors indexes, expected one DiT")
    if indexes:
        return _indexed(indexes[0])
    paths = [path for path in sorted(folder.glob("*.safetensors")) if path.stem not in _STEMS]
    if not paths:
        pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in _PICKLES and p.stem not in _STEMS]
        hint = f"; {', '.join(pickles[:4])} is not read: convert it to .safetensors" if pickles else ""
        raise CheckpointError(f"{folder} has no DiT weights: expected *.safetensors beside config.json{hint}")
    _require_all_shards(paths)
    return SafetensorsFile(paths[0]) if len(paths) == 1 else ShardedWeights(tuple(paths))


def _indexed(index: Path) -> Weights:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names the shard {name!r}, expected a .safetensors file beside the index")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks the shard {', '.join(missing)} that {index.name} names; fetch it")
    return ShardedWeights(tuple(index.parent / name for name in names), weight_map=weight_map)


def _require_all_shards(paths: list[Path]) -> None:
    """Without an index, file names still say how many shards there are."""
    for path in paths:
        if match := _SHARD.fullmatch(path.name):
            count = int(match["count"])
            names = [f"{match['stem']}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
            missing = [name for name in names if not path.with_name(name).is_file()]
            if missing:
                raise CheckpointError(f"{path.parent} lacks the shard {', '.join(missing)} of {count}; fetch it")


def _by_stem(folder: Path, stem: str) -> Weights | None:
    safe, pickled = folder / f"{stem}.safetensors", folder / f"{stem}.pth"
    if safe.is_file():
        return SafetensorsFile(safe)
    return PickledFile(pickled) if pickled.is_file() else None


def _required(weights: Weights | None, folder: Path, what: str) -> Weights:
    if weights is None:
        raise CheckpointError(f"{folder} has no {what}")
    return weights


def _audio_folder(folder: Path) -> Path:
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if (path / "config.json").is_file() and read_json(path / "config.json").get("model_type") == "wav2vec2":
            found.append(path)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"{folder} has these wav2vec2 folders: {names}; expected exactly one")
    return found[0]


def _audio_weights(folder: Path) -> Weights:
    safe, pickled = (folder / name for name in _AUDIO_FILES)
    if safe.is_file():
        return SafetensorsFile(safe)
    if pickled.is_file():
        return PickledFile(pickled)
    raise CheckpointError(f"{folder} has neither {_AUDIO_FILES[0]} nor {_AUDIO_FILES[1]}")


def _normalises(audio_folder: Path) -> bool:
    path = audio_folder / "preprocessor_config.json"
    # Wav2Vec2FeatureExtractor's own default is to normalise.
    value = read_json(path).get("do_normalize", True) if path.is_file() else True
    if not isinstance(value, bool):
        raise CheckpointError(f"{path}: do_normalize is {value!r}, expected true or false")
    return value


def _tokenizer(folder: Path) -> Path:
    path = folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(f"{folder} has a text encoder but no {TOKENIZER}; fetch the tokenizer")
    return path
