# SPDX-License-Identifier: Apache-2.0
"""The manifest of a package: what its JSON may say, as frozen values.

Reading is strict. A key that is missing, unknown, written twice or of the wrong kind is refused with its place in the
file; docs/package-format.md explains each field.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import PackageError
from .planner import check_settings

FORMAT = "edgereels-package"
FORMAT_VERSION = 3
READ_VERSIONS = (1, 2, 3)
"""Version 2 adds siblings, quantization, quality and bf16_rel_l2, all of which may be absent; version 3 adds
model_card, which may be too, and lets an avatar be a still with a box."""
MAX_MANIFEST_BYTES = 4 << 20  # 40 DiT blocks with golden vectors need about 0.1 MB; the rest is room for long licences
MAX_JSON_DEPTH = 16  # the format itself nests 5 deep
DTYPES = ("float32", "float16", "int64", "uint8")
LIBRARIES = ("onnxruntime", "openvino")
"""Whose siblings a graph may have: the libraries that run graphs."""
WORD = re.compile(r"[a-z][a-z0-9_-]*")
LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
PATH = re.compile(r"[A-Za-z0-9._/-]+")
SHA256 = re.compile(r"[0-9a-f]{64}")
AXIS = re.compile(r"[A-Za-z0-9_*+/() -]+")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    """Name in the graph."""
    dtype: str
    """float32, float16, int64 or uint8."""
    shape: tuple[int | str, ...]
    """Sizes; a string names a dynamic axis (`frames`) or a product of one (`8*h`)."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How near a graph came to the PyTorch module that it was exported from."""

    max_abs: float
    """Largest absolute difference over all outputs and shapes."""
    max_rel: float
    """The same, relative to the largest absolute value of the reference output."""
    shapes: int
    """At how many input shapes the two were compared."""
    bf16_rel_l2: float | None
    """What PyTorch's own bfloat16 costs the module on the golden inputs, norm over norm; None where not recorded."""


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One ONNX graph of a package."""

    name: str
    """Key in the manifest, `dit_block_00` for example."""
    file: str
    """File at the package's root."""
    subnetwork: str
    """Which subnetwork it belongs to; `--only` of export works on these."""
    parameters: int
    """Number of trained values that the graph uses; graphs may share them."""
    inputs: tuple[TensorSpec, ...]
    """In the graph's order."""
    outputs: tuple[TensorSpec, ...]
    """In the graph's order."""
    parity: Parity | None
    """None where export was told not to compare."""
    siblings: Mapping[str, str]
    """Library to the file that it runs instead of `file`: same inputs and outputs, another arithmetic."""

    def file_for(self, library: str) -> str:
        """Return the file that a library runs, one of `LIBRARIES`."""
        return self.siblings.get(library, self.file)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the network was trained to be sampled; a render may ask for something else."""

    fps: float
    """Frames per second of the video."""
    sample_rate: int
    """Of the sound that the audio encoder hears, Hz."""
    window: int
    """Frames denoised together, 4n+1."""
    motion: int
    """Frames repeated from the window before, 4n+1."""
    drop: int
    """Frames thrown away at a window's end, 4n."""
    steps: int
    """Denoising steps."""
    shift: float
    """Time shift of the flow-match schedule."""
    max_offline_s: float
    """Longest sound that is encoded whole, seconds."""


@dataclass(frozen=True, slots=True)
class AudioSettings:
    """The audio encoder's front end."""

    layers: int
    """Hidden layers stacked in its output."""
    channels: int
    """Width of each."""
    conv_kernels: tuple[int, ...]
    """Kernel sizes of its convolutions over the waveform."""
    conv_strides: tuple[int, ...]
    """Strides of the same."""
    normalise: bool
    """Whether the waveform is brought to zero mean and unit variance first."""


@dataclass(frozen=True, slots=True)
class DitSettings:
    """Sizes of the denoising transformer."""

    dim: int
    """Width of a token."""
    heads: int
    """Attention heads."""
    head_dim: int
    """Width of a head; the rotary table has half of it."""
    blocks: int
    """Transformer blocks."""
    in_channels: int
    """Channels of latents and condition together."""
    out_channels: int
    """Channels of the velocity."""
    freq_dim: int
    """Width of the timestep's sinusoid."""
    has_text: bool
    """Whether it takes a text embedding."""
    has_image: bool
    """Whether it takes image features."""
    has_audio: bool
    """Whether it takes audio features."""
    text_length: int
    """Rows of the text embedding."""
    text_width: int
    """Columns of the same."""


@dataclass(frozen=True, slots=True)
class TextSettings:
    """The text encoder's front end."""

    tokenizer: str
    """File of the tokenizer."""
    length: int
    """Tokens; shorter prompts are padded."""
    connection_prompt: str
    """Prompt of every window after the first."""
    negative_prompt: str
    """Default of `--negative-prompt`."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a subnetwork was exported from."""

    file: str
    """Path relative to the checkpoint."""
    size_bytes: int
    """Its size."""
    sha256: str
    """Its digest."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the package."""

    size_bytes: int
    """Exact size."""
    sha256: str
    """Digest of its bytes, lower-case hexadecimal."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the ranges of activations were taken from."""

    clips: int
    """Sound files."""
    windows: int
    """Windows denoised."""
    duration_s: float
    """Of the sound, together."""
    sounds: tuple[str, ...]
    """SHA-256 of each sound file."""


@dataclass(frozen=True, slots=True)
class Covered:
    """What a recipe covers: layers whose weights it stores in fewer bits."""

    layers: int
    """How many."""
    parameters: int
    """Weights in them."""
    size_bytes: int
    """What they take now, scales included."""
    fp32_bytes: int
    """What they would take as float32."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a package was quantized."""

    recipe: str
    """Name of the recipe."""
    rules: tuple[Mapping[str, Any], ...]
    """Its rules as they stand in a recipe file, which replays them."""
    source: str
    """Digest of the package that it was made from."""
    calibration: Calibration | None
    """None where no activation is quantized."""
    covered: Covered
    """What was covered, and its size."""


@dataclass(frozen=True, slots=True)
class StillEntry:
    """An avatar that is a whole picture, of which the network moves a box."""

    still: str
    """PNG file."""
    box: tuple[int, int, int, int]
    """Top, left, bottom, right in pixels of the still; the last two are one past the box."""
    feather: int
    """Pixels over which the box is blended in."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole manifest; fields in the order of docs/package-format.md."""

    format_version: int
    """One of `READ_VERSIONS`."""
    digest: str
    """SHA-256 of the manifest without this field; names the package."""
    name: str
    """What people call it."""
    task: str
    """`talking-avatar`."""
    precision: str
    """Storage of the weights that are not quantized: fp32, fp16 or bf16."""
    made_with: Mapping[str, str]
    """Tool to version."""
    sources: Mapping[str, tuple[SourceFile, ...]]
    """Subnetwork to what it was exported from."""
    licences: Mapping[str, str]
    """Subnetwork to licence, or "unknown"."""
    graphs: Mapping[str, GraphEntry]
    """By name."""
    settings: Settings
    """How to sample."""
    sizes: Mapping[str, Mapping[str, tuple[int, int]]]
    """Table to ratio (height/width, as text) to (height, width)."""
    default_size: str
    """The table to use."""
    portraits: str
    """`any` face, or only the `listed` avatars."""
    avatars: Mapping[str, str | StillEntry]
    """Name to the file of a portrait, or to a still with its box."""
    mouth_box: tuple[float, float, float, float] | None
    """Top, left, bottom, right as fractions of the frame."""
    audio: AudioSettings | None
    """None without an audio encoder."""
    dit: DitSettings | None
    """None without a transformer."""
    text: TextSettings | None
    """None without a text encoder."""
    tables: str | None
    """File of the schedule's tables; None without a transformer."""
    golden: Mapping[str, str]
    """Graph to file of its golden vectors."""
    quantization: Quantization | None
    """None where nothing is quantized."""
    quality: str | None
    """File of the quality record; None where none was taken."""
    model_card: str | None
    """File that says in words what the model is; None without."""
    files: Mapping[str, FileEntry]
    """Every file but the manifest itself."""


# ── Strict JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────


def parse_json(data: bytes, *, where: str) -> Any:
    """Parse JSON that is UTF-8, has no key twice, no NaN or infinity, and nests at most 16 deep.

    Raises:
        PackageError: it is none of that; `where` begins the message.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, item in pairs:
            if key in table:
                raise PackageError(f"{where} has the key {key!r} twice; each key may stand once", code="json")
            table[key] = item
        return table

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise PackageError(f"{where} has the number {text}; only finite numbers are allowed", code="json")
        return number

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=finite, parse_float=finite)
    except RecursionError as error:
        raise PackageError(f"{where} is nested too deep (at most {MAX_JSON_DEPTH} levels)", code="json") from error
    except ValueError as error:  # also bad UTF-8 and integers of thousands of digits
        raise PackageError(f"{where} is no valid UTF-8 JSON: {_first_line(error)}", code="json") from error
    _check_depth(value, where=where)
    return value


def _check_depth(value: object, *, where: str) -> None:
    level: list[object] = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        outer = [item for item in level if isinstance(item, dict | list)]
        if not outer:
            return
        level = [inner for item in outer for inner in (item.values() if isinstance(item, dict) else item)]
    raise PackageError(f"{where} is nested too deep (at most {MAX_JSON_DEPTH} levels)", code="json")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def digest_of(fields: Mapping[str, Any]) -> str:
    """Return the digest of a manifest: SHA-256 of its canonical JSON without `digest`."""
    named = {key: value for key, value in fields.items() if key != "digest"}
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# ── From JSON to values ──────────────────────────────────────────────────────────────────────────────────────────────


class _Table:
    """A JSON object being read: each key is taken once, and what is left over is refused."""

    def __init__(self, value: object, *, where: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        self._left: dict[str, Any] = dict(value)
        self._where = where

    def take(self, key: str, read: Callable[[object, str], Value]) -> Value:
        if key not in self._left:
            raise PackageError(f"{self._where} has no {key!r}, which the format asks for", code="manifest")
        return read(self._left.pop(key), f"{self._where}: {key}")

    def take_if_there(self, key: str, read: Callable[[object, str], Value], *, absent: Value) -> Value:
        """Take a key that an earlier format version did not have."""
        return self.take(key, read) if key in self._left else absent

    def end(self) -> None:
        if self._left:
            names = ", ".join(repr(key) for key in sorted(self._left))
            raise PackageError(
                f"{self._where} has the unknown key {names}; this build knows those of format version {FORMAT_VERSION}",
                code="manifest",
            )


def _wrong(where: str, value: object, expected: str) -> PackageError:
    return PackageError(f"{where} is {_shorten(value)}, expected {expected}", code="manifest")


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, value, "text")
    return value


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[object, str], str]:
    def read(value: object, where: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _wrong(where, value, expected)
        return value

    return read


_word = _matching(WORD, "a word of a-z, 0-9, _ and -")
_label = _matching(LABEL, "a name of A-Z, a-z, 0-9, dot, _ and -")
_path = _matching(PATH, "a path of A-Z, a-z, 0-9, dot, _ and -, with slashes between")
_sha256 = _matching(SHA256, "a SHA-256 in lower-case hexadecimal")


def _one_of(*choices: str) -> Callable[[object, str], str]:
    def read(value: object, where: str) -> str:
        if value not in choices or not isinstance(value, str):
            raise _wrong(where, value, " or ".join(repr(choice) for choice in choices))
        return value

    return read


def _integer(minimum: int, maximum: int = 1 << 62) -> Callable[[object, str], int]:
    def read(value: object, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise _wrong(where, value, f"an integer of at least {minimum}")
        return value

    return read


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise _wrong(where, value, "a number of at least 0")
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def _listed(read: Callable[[object, str], Value]) -> Callable[[object, str], tuple[Value, ...]]:
    def read_all(value: object, where: str) -> tuple[Value, ...]:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(value))

    return read_all


def _mapped(
    read: Callable[[object, str], Value], *, keys: Callable[[object, str], str] = _label
) -> Callable[[object, str], dict[str, Value]]:
    def read_all(value: object, where: str) -> dict[str, Value]:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        # The key is read first, so that one with a line break never becomes part of a message.
        return {keys(key, f"{where}: key"): read(item, f"{where}: {key}") for key, item in value.items()}

    return read_all


def _optional(read: Callable[[object, str], Value]) -> Callable[[object, str], Value | None]:
    return lambda value, where: None if value is None else read(value, where)


def _record(make: Callable[..., Value], **readers: Callable[[object, str], Any]) -> Callable[[object, str], Value]:
    """Return a reader of objects with exactly these keys, which are also the arguments of `make`."""

    def read(value: object, where: str) -> Value:
        table = _Table(value, where=where)
        made = make(**{key: table.take(key, read) for key, read in readers.items()})
        table.end()
        return made

    return read


def _axis(value: object, where: str) -> int | str:
    if isinstance(value, str) and AXIS.fullmatch(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise _wrong(where, value, "a size or the name of a dynamic axis")


_tensor = _record(TensorSpec, name=_label, dtype=_one_of(*DTYPES), shape=_listed(_axis))


def _parity(value: object, where: str) -> Parity:
    table = _Table(value, where=where)
    parity = Parity(
        max_abs=table.take("max_abs", _number),
        max_rel=table.take("max_rel", _number),
        shapes=table.take("shapes", _integer(1)),
        bf16_rel_l2=table.take_if_there("bf16_rel_l2", _optional(_number), absent=None),
    )
    table.end()
    return parity


def _graphs(value: object, where: str) -> dict[str, GraphEntry]:
    tables = _mapped(lambda item, place: _Table(item, where=place), keys=_word)(value, where)
    entries: dict[str, GraphEntry] = {}
    for name, table in tables.items():
        entries[name] = GraphEntry(
            name=name,
            file=table.take("file", _label),
            subnetwork=table.take("subnetwork", _word),
            parameters=table.take("parameters", _integer(0)),
            inputs=table.take("inputs", _listed(_tensor)),
            outputs=table.take("outputs", _listed(_tensor)),
            parity=table.take("parity", _optional(_parity)),
            siblings=table.take_if_there("siblings", _mapped(_label, keys=_one_of(*LIBRARIES)), absent={}),
        )
        table.end()
    return entries


_plain_settings = _record(
    Settings,
    fps=_number,
    sample_rate=_integer(1),
    window=_integer(1),
    motion=_integer(1),
    drop=_integer(0),
    steps=_integer(1),
    shift=_number,
    max_offline_s=_number,
)


def _settings(value: object, where: str) -> Settings:
    settings = _plain_settings(value, where)
    try:
        check_settings(window=settings.window, motion=settings.motion, drop=settings.drop)
    except ValueError as error:
        raise PackageError(f"{where}: {error}", code="manifest") from error
    if not settings.fps or not settings.shift:
        raise PackageError(f"{where}: fps and shift must be above 0", code="manifest")
    return settings


_plain_audio = _record(
    AudioSettings,
    layers=_integer(1),
    channels=_integer(1),
    conv_kernels=_listed(_integer(1)),
    conv_strides=_listed(_integer(1)),
    normalise=_flag,
)


def _audio(value: object, where: str) -> AudioSettings:
    audio = _plain_audio(value, where)
    if len(audio.conv_kernels) != len(audio.conv_strides):
        raise PackageError(f"{where}: conv_kernels and conv_strides differ in length", code="manifest")
    return audio


_dit = _record(
    DitSettings,
    dim=_integer(1),
    heads=_integer(1),
    head_dim=_integer(1),
    blocks=_integer(1),
    in_channels=_integer(1),
    out_channels=_integer(1),
    freq_dim=_integer(1),
    has_text=_flag,
    has_image=_flag,
    has_audio=_flag,
    text_length=_integer(0),
    text_width=_integer(0),
)
_text_settings = _record(
    TextSettings, tokenizer=_text, length=_integer(1), connection_prompt=_text, negative_prompt=_text
)
_source = _record(SourceFile, file=_text, size_bytes=_integer(0), sha256=_sha256)
_file = _record(FileEntry, size_bytes=_integer(0), sha256=_sha256)
_calibration = _record(Calibration, clips=_integer(1), windows=_integer(1), duration_s=_number, sounds=_listed(_sha256))
_covered = _record(Covered, layers=_integer(0), parameters=_integer(0), size_bytes=_integer(0), fp32_bytes=_integer(0))


def _rule(value: object, where: str) -> Mapping[str, Any]:
    """Read a rule as it stands; the quant room, which alone follows it, says what it may hold."""
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return value


def _avatar(value: object, where: str) -> str | StillEntry:
    if isinstance(value, dict):
        return _still(value, where)
    if not isinstance(value, str):
        raise _wrong(where, value, "a file, or an object of still, box and feather")
    return value


_plain_still = _record(StillEntry, still=_text, box=_listed(_integer(0)), feather=_integer(0))


def _still(value: object, where: str) -> StillEntry:
    entry = _plain_still(value, where)
    if len(entry.box) != 4:  # whether it fits is judged beside the still
        raise _wrong(f"{where}: box", entry.box, "[top, left, bottom, right] in pixels")
    return entry


_quantization = _record(
    Quantization,
    recipe=_text,
    rules=_listed(_rule),
    source=_sha256,
    calibration=_optional(_calibration),
    covered=_covered,
)


def _frame_size(value: object, where: str) -> tuple[int, int]:
    sides = _listed(_integer(16))(value, where)
    if len(sides) != 2 or any(side % 16 for side in sides):
        raise _wrong(where, value, "[height, width], both multiples of 16")
    return sides[0], sides[1]


def _mouth_box(value: object, where: str) -> tuple[float, float, float, float]:
    sides = _listed(_number)(value, where)
    if len(sides) != 4 or not (sides[0] < sides[2] <= 1 and sides[1] < sides[3] <= 1):
        raise _wrong(where, value, "[top, left, bottom, right] as fractions of the frame")
    return sides[0], sides[1], sides[2], sides[3]


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Read the bytes of a manifest.json; `where` names the package in messages.

    Raises:
        PackageError: the format or its version is unknown, the digest is not that of the content, or a field is
            missing, unknown or wrong.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise PackageError(f"{where} has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are read", code="manifest")
    fields = parse_json(data, where=where)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise PackageError(f"{where} is not the manifest of an {FORMAT}", code="manifest")
    version = fields.get("format_version")
    if version not in READ_VERSIONS or isinstance(version, bool):
        *earlier, latest = READ_VERSIONS
        readable = f"{', '.join(map(str, earlier))} and {latest}"
        raise PackageError(
            f"{where} has format version {_shorten(version)}; this build reads {readable}", code="version"
        )
    manifest = _manifest(fields, where=where)
    found = digest_of(fields)
    if found != manifest.digest:
        raise PackageError(
            f"{where} was changed after it was written: its digest says {manifest.digest[:12]}, its content gives "
            f"{found[:12]}; export the package again",
            code="manifest-digest",
        )
    return manifest


def _manifest(fields: dict[str, Any], *, where: str) -> Manifest:
    table = _Table(fields, where=where)
    table.take("format", _text)
    manifest = Manifest(
        format_version=table.take("format_version", _integer(1)),
        digest=table.take("digest", _sha256),
        name=table.take("name", _text),
        task=table.take("task", _word),
        precision=table.take("precision", _one_of("fp32", "fp16", "bf16")),
        made_with=table.take("made_with", _mapped(_text)),
        sources=table.take("sources", _mapped(_listed(_source), keys=_word)),
        licences=table.take("licences", _mapped(_text, keys=_word)),
        graphs=table.take("graphs", _graphs),
        settings=table.take("settings", _settings),
        sizes=table.take("sizes", _mapped(_mapped(_frame_size))),
        default_size=table.take("default_size", _label),
        portraits=table.take("portraits", _one_of("any", "listed")),
        avatars=table.take("avatars", _mapped(_avatar)),
        mouth_box=table.take("mouth_box", _optional(_mouth_box)),
        audio=table.take("audio", _optional(_audio)),
        dit=table.take("dit", _optional(_dit)),
        text=table.take("text", _optional(_text_settings)),
        tables=table.take("tables", _optional(_text)),
        golden=table.take("golden", _mapped(_text, keys=_word)),
        quantization=table.take_if_there("quantization", _optional(_quantization), absent=None),
        quality=table.take_if_there("quality", _optional(_text), absent=None),
        model_card=table.take_if_there("model_card", _optional(_text), absent=None),
        files=table.take("files", _mapped(_file, keys=_path)),
    )
    table.end()
    return manifest
