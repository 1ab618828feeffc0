# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint: check everything, write part after part, and give the package its name at the very end."""

import contextlib
import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..runtime.avatar import Avatar, write_avatar
from ..runtime.canvas import Canvas, check_shape
from ..runtime.engine import open_engine
from ..runtime.errors import CheckpointError
from ..runtime.image import PUBLISHED_SIZES, load_portrait, nearest_size
from ..runtime.model_package import ModelPackage
from ..runtime.package_writer import PackageWriter
from ..runtime.schedulers import euler_timesteps
from ..runtime.still_file import still_bytes
from ..runtime.tables import sinusoid
from ..runtime.text import tokenize
from . import published
from .checkpoint import Checkpoint, open_checkpoint, source_records
from .dit import Dit
from .lazy_weights import materialised
from .lora import merge_loras
from .overrides import Overrides, Picture, read_overrides
from .package_parts import Options, PartsWriter, part_key
from .subnetworks import AvatarModel, Subnetwork, plan
from .to_onnx import parameter_names

Progress = Callable[[str], None]
Array = npt.NDArray[Any]

_TABLES = "tables.safetensors"
_TOKENIZER = "tokenizer.json"
_UNKNOWN = "unknown"
_MODEL_CARD = "MODEL_CARD.md"
_MOST_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """What to export, and how."""

    checkpoint: Path
    """Folder of the checkpoint."""
    package: Path
    """Folder to write."""
    task: str | None = None
    """What the checkpoint is for, where its layout doesn't say."""
    only: tuple[str, ...] = ()
    """Subnetworks to export; all where empty."""
    precision: str = "fp32"
    """How weights are stored: fp32 or fp16."""
    ema: bool = False
    """Take moving averages."""
    loras: tuple[tuple[Path, float], ...] = ()
    """LoRA files and their scales, merged into the DiT."""
    licence: Path | None = None
    """Text of the checkpoint's licence."""
    overrides: Path | None = None
    """JSON of what the layout doesn't carry."""
    force: bool = False
    """Replace a package that is there."""
    threads: int = 1
    """For PyTorch and the engine."""


@dataclass(frozen=True)
class Exported:
    """A finished package and what its making showed."""

    package: ModelPackage
    """The package, as it opens."""
    graphs: Mapping[str, Mapping[str, Any]]
    """Graph -> entry in the manifest."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Graph -> how long it took."""
    size_bytes: Mapping[str, int] = field(default_factory=dict)
    """Graph -> bytes of the graph and of the tensors that it refers to."""


def export_checkpoint(request: Request, *, progress: Progress = lambda _: None) -> Exported:
    """Export a checkpoint into a package.

    Args:
        request: what and how.
        progress: called with the name of each part before it is worked on.

    Raises:
        CheckpointError: the checkpoint can't be read or doesn't fit; found before any graph is made where possible.
        PackageError: the target exists, or the result would not open.
        VerificationError: a graph is not its PyTorch module.
    """
    target = PackageWriter(request.package, force=request.force)
    target.check_target()
    # Read and planned before the writer takes over an earlier, killed run: a slip here must not cost that run's work.
    checkpoint = open_checkpoint(request.checkpoint, task=request.task, ema=request.ema)
    checkpoint = dataclasses.replace(checkpoint, dit=merge_loras(checkpoint.dit, loras=request.loras))
    overrides = read_overrides(checkpoint.folder, file=request.overrides)
    model = plan(checkpoint, overrides)
    chosen = _chosen(model, request.only)
    licences = _licences(request, overrides, chosen)
    avatars = {name: _avatar(name, picture, overrides) for name, picture in overrides.avatars.items()}
    card = _model_card(checkpoint.folder)
    names = {subnetwork.name for subnetwork in chosen}
    prompts = _own_prompts(checkpoint) if {"text_encoder", "dit"} <= names else {}
    with _torch_threads(request.threads), target as writer:
        progress("digests of the checkpoint")
        sources = _sources(chosen, folder=checkpoint.folder)
        options = Options(request.precision, request.threads)
        parts = PartsWriter(writer, options)
        for subnetwork in chosen:
            key = _key(subnetwork.name, sources=sources, request=request, overrides=overrides, checkpoint=checkpoint)
            for part in parts.write(subnetwork, key=key):
                progress(part)
        texts = _embedded(prompts, writer=writer, threads=request.threads)
        fields = {
            "name": overrides.name or request.package.name.removesuffix(".edgereels"),
            "task": checkpoint.task,
            "precision": request.precision,
            "made_with": _versions(),
            "sources": sources,
            "licences": {name: text for name, (text, _) in licences.items()},
            "graphs": parts.graphs,
            **_settings(overrides),
            "avatars": {name: _add_avatar(writer, avatar) for name, avatar in avatars.items()},
            "audio": _audio(checkpoint, model) if "audio_encoder" in names else None,
            "dit": _dit(model) if "dit" in names else None,
            "text": _add_text(writer, checkpoint) if "text_encoder" in names else None,
            "tables": _add_tables(writer, chosen, overrides, texts=texts) if "dit" in names else None,
            "golden": parts.golden,
            "model_card": _MODEL_CARD if card else None,
        }
        if card:
            writer.add_file(_MODEL_CARD, card)
        for file in {path for _, path in licences.values() if path}:
            writer.add_file(_licence_file(file), file.read_bytes())
        progress("checks")
        package = writer.finish(fields)
    return Exported(package, parts.graphs, parts.seconds, parts.sizes)


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads, for as long as it is ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(model: AvatarModel, only: Sequence[str]) -> tuple[Subnetwork, ...]:
    known = [subnetwork.name for subnetwork in model.subnetworks]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise CheckpointError(
            f"--only names {', '.join(unknown)}, which this checkpoint does not have; it has {', '.join(known)}"
        )
    return tuple(subnetwork for subnetwork in model.subnetworks if not only or subnetwork.name in only)


def _sources(chosen: Sequence[Subnetwork], *, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the digests of every subnetwork's files; a file that two of them share is read once."""
    files = dict.fromkeys(path for subnetwork in chosen for path in subnetwork.files)
    records = dict(zip(files, source_records(files, folder=folder), strict=True))
    return {subnetwork.name: [records[path] for path in dict.fromkeys(subnetwork.files)] for subnetwork in chosen}


def _key(
    name: str, *, sources: Mapping[str, Any], request: Request, overrides: Overrides, checkpoint: Checkpoint
) -> str:
    return part_key(
        sources=sources[name],
        precision=request.precision,
        ema=request.ema,
        scales=[scale for _, scale in request.loras],
        constructors=[dict(overrides.umt5), dict(overrides.clip), dict(overrides.vae)],
        configs=[dict(checkpoint.dit_config), dict(checkpoint.audio_config)],
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("edgereels", "torch", "onnx", "onnxscript", "onnxruntime")}


# ── What the manifest says ───────────────────────────────────────────────────────────────────────────────────────────


def _settings(overrides: Overrides) -> dict[str, Any]:
    given = overrides.settings
    settings = {name: int(given[name]) for name in ("window", "motion", "drop", "steps")}
    sizes = {"own": dict(overrides.sizes)} if overrides.sizes else PUBLISHED_SIZES
    return {
        "settings": {
            "fps": given["fps"],
            "sample_rate": published.SAMPLE_RATE,
            **settings,
            "shift": float(given["shift"]),
            "max_offline_s": published.MAX_OFFLINE_S,
        },
        "sizes": {name: {ratio: list(size) for ratio, size in table.items()} for name, table in sizes.items()},
        "default_size": "own" if overrides.sizes else published.DEFAULT_SIZE,
        "portraits": overrides.portraits,
        "mouth_box": list(overrides.mouth_box) if overrides.mouth_box else None,
    }


def _audio(checkpoint: Checkpoint, model: AvatarModel) -> dict[str, Any]:
    return {
        "layers": model.audio.num_hidden_layers,
        "channels": model.audio.hidden_size,
        "conv_kernels": list(model.audio.conv_kernel),
        "conv_strides": list(model.audio.conv_stride),
        "normalise": checkpoint.audio_normalise,
    }


def _dit(model: AvatarModel) -> dict[str, Any]:
    config = model.dit
    return {
        "dim": config.dim,
        "heads": config.heads,
        "head_dim": config.head_dim,
        "blocks": config.layers,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "freq_dim": config.freq_dim,
        "has_text": config.has_text,
        "has_image": config.has_image,
        "has_audio": config.has_audio,
        "text_length": config.text_len if config.has_text else 0,
        "text_width": config.text_dim if config.has_text else 0,
    }


# ── Files beside the graphs ──────────────────────────────────────────────────────────────────────────────────────────


def _add_text(writer: PackageWriter, checkpoint: Checkpoint) -> dict[str, Any] | None:
    if checkpoint.tokenizer is None:
        return None
    writer.add_file(_TOKENIZER, checkpoint.tokenizer.read_bytes())
    return {
        "tokenizer": _TOKENIZER,
        "length": published.TEXT_LENGTH,
        "connection_prompt": published.CONNECTION_PROMPT,
        "negative_prompt": published.NEGATIVE_PROMPT,
    }


def _own_prompts(checkpoint: Checkpoint) -> dict[str, Array]:
    """Return the token ids of the prompts that every render needs, by the names of their embeddings.

    Before any work, so that a tokenizer that can't be read, or a library that is not installed, is found at once.
    """
    assert checkpoint.tokenizer is not None  # open_checkpoint refuses a text encoder without one
    prompts = {"text_connection": published.CONNECTION_PROMPT, "text_negative": published.NEGATIVE_PROMPT}
    ids = tokenize(list(prompts.values()), tokenizer=checkpoint.tokenizer, length=published.TEXT_LENGTH)
    return dict(zip(prompts, ids, strict=True))


def _embedded(prompts: Mapping[str, Array], *, writer: PackageWriter, threads: int) -> dict[str, Array]:
    """Return the embeddings of prompts, [tokens, width] each, so that only a user's own prompt needs the encoder."""
    if not prompts:
        return {}
    engine = open_engine(writer.folder / "text_encoder.onnx", device="cpu", threads=threads, compute="f32")
    try:
        feeds = {name: {"ids": ids[None], "mask": np.ones_like(ids)[None]} for name, ids in prompts.items()}
        return {name: engine.run(feed)["hidden"] for name, feed in feeds.items()}
    finally:
        engine.close()


def _add_tables(
    writer: PackageWriter, chosen: Sequence[Subnetwork], overrides: Overrides, *, texts: Mapping[str, Array]
) -> str:
    """Write the modulations of the package's own timesteps, from the time MLP in float64, and its own texts."""
    from safetensors.numpy import save

    built = next(subnetwork for subnetwork in chosen if subnetwork.name == "dit").build()
    assert isinstance(built.model, Dit)  # what the subnetwork of that name builds
    timesteps = euler_timesteps(int(overrides.settings["steps"]), shift=float(overrides.settings["shift"]))
    timesteps = np.asarray(timesteps, dtype=np.float32)[: int(overrides.settings["steps"])]
    time = built.model.time
    with materialised(time, names=parameter_names(time, built.model), read=built.read), torch.no_grad():
        precise = copy.deepcopy(time).double()
        waves = torch.from_numpy(sinusoid(timesteps, freq_dim=built.model.config.freq_dim)).double()
        head_modulation, modulation = (output.float().numpy() for output in precise(waves))
    tables = {"timesteps": timesteps, "modulation": modulation, "head_modulation": head_modulation, **texts}
    writer.add_file(_TABLES, save({name: np.ascontiguousarray(table) for name, table in tables.items()}))
    return _TABLES


def _avatar(name: str, picture: Picture, overrides: Overrides) -> Avatar:
    """Read a portrait, or a still whose box has the shape of the network's frames."""
    pixels = load_portrait(picture.file)
    if picture.box is None:
        return Avatar(name=name, portrait=pixels)
    table = overrides.sizes or PUBLISHED_SIZES[published.DEFAULT_SIZE]
    try:
        canvas = Canvas(pixels, picture.box, picture.feather)
        height, width = canvas.portrait.shape[:2]
        check_shape(canvas.box, size=nearest_size(height, width, table=table))
    except ValueError as error:
        raise CheckpointError(f"avatar {name!r} ({picture.file.name}): {error}") from error
    return Avatar(name=name, portrait=canvas.portrait, canvas=canvas)


def _add_avatar(writer: PackageWriter, avatar: Avatar) -> str | dict[str, Any]:
    """Write an avatar and return what the manifest says of it."""
    if avatar.canvas is None:
        incoming = writer.scratch / f"{avatar.name}.safetensors"
        write_avatar(incoming, avatar)
        file = f"avatars/{avatar.name}.safetensors"
        writer.add_file(file, incoming)
        return file
    file = f"avatars/{avatar.name}.png"
    writer.add_file(file, still_bytes(avatar.canvas.still))
    return {"still": file, "box": list(avatar.canvas.box), "feather": avatar.canvas.feather}


def _model_card(folder: Path) -> bytes | None:
    """Return the text that says what the model is, where the checkpoint has one."""
    path = folder / _MODEL_CARD
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MOST_CARD_BYTES:
            raise CheckpointError(f"{path} has more than {_MOST_CARD_BYTES} bytes; expected a text: shorten it")
        card = path.read_bytes()
        card.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no UTF-8 text; expected a model card") from error
    return card


def _licences(
    request: Request, overrides: Overrides, chosen: Sequence[Subnetwork]
) -> dict[str, tuple[str, Path | None]]:
    """Return for each subnetwork what the manifest says, and the file with the whole text where there is one."""
    names = [subnetwork.name for subnetwork in chosen]
    unknown = sorted(set(overrides.licences) - {*names, *_SUBNETWORKS})
    if unknown:
        raise CheckpointError(f"licences names {', '.join(unknown)}; known are {', '.join(_SUBNETWORKS)}")
    file = request.licence
    if file is None:
        file = next((path for path in sorted(request.checkpoint.glob("LICENSE*")) if path.is_file()), None)
    elif not file.is_file():
        raise CheckpointError(f"--license names {file}, which is not a file")
    title = _title(file) if file else _UNKNOWN
    return {
        name: (overrides.licences[name], None) if name in overrides.licences else (title, file)
        for name in names
        if name != "finish"
    }


_SUBNETWORKS = ("audio_encoder", "text_encoder", "image_encoder", "vae_encoder", "vae_decoder", "dit")


def _title(file: Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is no UTF-8 text; expected a licence") from error
    heading = next((line.strip() for line in lines if line.strip()), _UNKNOWN)
    return f"{heading[:120]} ({_licence_file(file)})"


def _licence_file(file: Path) -> str:
    """Return what a licence's file is called in a package, whatever it is called outside."""
    return "licences/" + re.sub(r"^[^A-Za-z0-9_]+|[^A-Za-z0-9._-]|\.+$", "_", file.name)
