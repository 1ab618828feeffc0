# SPDX-License-Identifier: Apache-2.0
"""LoRA files merged into the weights as they are read: one tensor at a time, nothing else in memory.

A merged weight is ``W + scale * alpha / rank * B @ A``. Two spellings are read: PEFT's ``lora_A`` / ``lora_B`` and the
older ``lora_down`` / ``lora_up``; names may carry the prefixes that trainers put before the network's own.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..runtime.errors import CheckpointError
from .weight_files import SafetensorsFile, TensorInfo, Weights, read_json

_FACTOR = re.compile(r"(?P<layer>.+)\.(?:(?P<down>lora_A|lora_down)|(?P<up>lora_B|lora_up))(?:\.default)?\.weight")
_PEFT_CONFIG = "adapter_config.json"
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "module.")


@dataclass(frozen=True)
class _Update:
    """One layer's low-rank update, as names in its file."""

    file: SafetensorsFile
    down: str
    up: str
    factor: float
    """What ``up @ down`` is multiplied with: scale, alpha and rank together."""


class LoraWeights:
    """A state dict with low-rank updates added at every read."""

    def __init__(
        self, weights: Weights, *, updates: Mapping[str, tuple[_Update, ...]], files: tuple[Path, ...]
    ) -> None:
        self._weights = weights
        self._updates = updates
        self._files = files

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the weights and of the updates."""
        return (*self._weights.files, *self._files)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Return every name with its shape and storage type; an update changes neither."""
        return self._weights.infos()

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor, merged, as a fresh float32 array."""
        values = self._weights.read(name)
        for update in self._updates.get(name, ()):
            down = update.file.read(update.down)
            up = update.file.read(update.up)
            product = up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)
            product *= np.float32(update.factor)
            values += product.reshape(values.shape)
        return values


def merge_loras(weights: Weights, *, loras: tuple[tuple[Path, float], ...]) -> Weights:
    """Return the weights with LoRA files merged in.

    Args:
        weights: the plain state dict of the network.
        loras: files and the scale of each.

    Raises:
        CheckpointError: a file is no safetensors file, holds anything but low-rank updates, or updates a layer that
            the network does not have or whose shape differs.
    """
    if not loras:
        return weights
    updates: dict[str, tuple[_Update, ...]] = {}
    for path, scale in loras:
        for name, update in _updates_of(path, scale=scale, infos=weights.infos()).items():
            updates[name] = (*updates.get(name, ()), update)
    files = (file for path, _ in loras for file in (path, path.with_name(_PEFT_CONFIG)) if file.is_file())
    return LoraWeights(weights, updates=updates, files=tuple(files))


def parse_lora(text: str) -> tuple[Path, float]:
    """Read ``FILE[:SCALE]``; the scale is 1 where none is given.

    Raises:
        ValueError: the scale is no finite number.
    """
    file, colon, scale = text.rpartition(":")
    if not colon or Path(text).is_file():
        return Path(text), 1.0
    try:
        value = float(scale)
    except ValueError:
        return Path(text), 1.0
    if not np.isfinite(value):
        raise ValueError(f"the scale of --lora {text!r} is not finite; expected a number such as 0.8")
    return Path(file), value


def _updates_of(path: Path, *, scale: float, infos: Mapping[str, TensorInfo]) -> dict[str, _Update]:
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise CheckpointError(f"{path}: LoRA weights are read from .safetensors only")
    file = SafetensorsFile(path)
    down, up, alpha = _factors(file, path=path)
    updates: dict[str, _Update] = {}
    for layer in sorted({*down, *up}):
        if layer not in down or layer not in up:
            raise CheckpointError(f"{path}: layer {layer!r} has one of the two LoRA factors, expected both")
        name = _target(layer, infos=infos, path=path)
        up_shape, down_shape = (file.infos()[factor].shape for factor in (up[layer], down[layer]))
        _check_shapes(up_shape, down_shape, target=infos[name].shape, name=name, path=path)
        rank = down_shape[0]
        factor = scale * alpha.get(layer, _peft_alpha(path, rank=rank)) / rank
        updates[name] = _Update(file, down=down[layer], up=up[layer], factor=factor)
    if not updates:
        raise CheckpointError(f"{path} holds no LoRA weights; expected names ending in lora_A.weight and lora_B.weight")
    return updates


def _factors(file: SafetensorsFile, *, path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, float]]:
    """Return names of the down factors, names of the up factors, and alphas, each per layer."""
    down: dict[str, str] = {}
    up: dict[str, str] = {}
    alpha: dict[str, float] = {}
    unknown: list[str] = []
    for name in file.infos():
        if match := _FACTOR.fullmatch(name):
            (down if match["down"] else up)[match["layer"]] = name
        elif name.endswith(".alpha"):
            alpha[name.removesuffix(".alpha")] = float(file.read(name).reshape(-1)[0])
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{path} holds {len(unknown)} tensors that are no LoRA factors ({', '.join(unknown[:8])}); "
            "expected lora_A/lora_B or lora_down/lora_up, and alpha"
        )
    return down, up, alpha


def _target(layer: str, *, infos: Mapping[str, TensorInfo], path: Path) -> str:
    """Return the weight that a layer's update belongs to: under its own name, or with trainers' prefixes taken off."""
    plain = layer
    while f"{plain}.weight" not in infos:
        prefix = next((prefix for prefix in _PREFIXES if plain.startswith(prefix)), None)
        if prefix is None:
            raise CheckpointError(f"{path} updates the layer {layer!r}, which the network does not have")
        plain = plain.removeprefix(prefix)
    return f"{plain}.weight"


def _check_shapes(
    up: tuple[int, ...], down: tuple[int, ...], *, target: tuple[int, ...], name: str, path: Path
) -> None:
    matrices = min(len(up), len(down), len(target)) >= 2 and 0 < down[0] == int(np.prod(up[1:]))
    if matrices and (up[0], *down[1:]) in (target, _flat(target)):
        return
    raise CheckpointError(
        f"{path}: LoRA factors {list(up)} and {list(down)} do not make an update of {name} {list(target)}"
    )


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], int(np.prod(shape[1:])))


def _peft_alpha(path: Path, *, rank: int) -> float:
    """Return alpha from PEFT's adapter_config.json beside the file; without one, the rank, so that the factor is 1.

    Raises:
        CheckpointError: alpha is no number, or each layer has its own.
    """
    config_path = path.with_name(_PEFT_CONFIG)
    if not config_path.is_file():
        return float(rank)
    config = read_json(config_path)
    if config.get("alpha_pattern"):
        raise CheckpointError(f"{config_path} has an alpha_pattern, which is not read: merge that LoRA with PEFT")
    alpha = config.get("lora_alpha", rank)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"{config_path}: lora_alpha is {alpha!r}, expected a number such as {rank}")
    return alpha * rank**0.5 if config.get("use_rslora") else float(alpha)
