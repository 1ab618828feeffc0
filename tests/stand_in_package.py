# SPDX-License-Identifier: Apache-2.0
"""A package that the runtime takes for a talking avatar, written in a second: simple arithmetic behind every graph.

Names, shapes and dynamic axes are those of real packages. Pictures show the condition in coarse blocks, their
brightness follows the sound, and a little of the noise stays, so that sound, portrait, seed and settings all show.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.parser
from PIL import Image
from safetensors.numpy import save

from edgereels.runtime.avatar import Avatar, write_avatar
from edgereels.runtime.canvas import Canvas
from edgereels.runtime.golden import golden_bytes
from edgereels.runtime.package_writer import PackageWriter
from edgereels.runtime.schedulers import euler_timesteps
from edgereels.runtime.still_file import still_bytes

DIM, CHANNELS, TEXT_WIDTH = 12, 4, 6
SETTINGS = {"fps": 25, "sample_rate": 16000, "window": 13, "motion": 5, "drop": 4, "steps": 1, "shift": 11.0}
SIZES = {"0.50": [32, 64], "1.00": [32, 32], "2.00": [64, 32]}
KERNELS, STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
NEGATIVE_PROMPT = "blurred"
VOCABULARY = ("<pad>", "</s>", "<unk>", "a", "person", "is", "talking", "singing", "blurred")

AUDIO_ENCODER = """
audio_encoder (float[1,samples] waveform, float[frames] positions) => (float[frames,1,4] features)
<float step = {320.0}, float[1,1,4] gains = {1.0, 0.5, -1.0, 0.25}, int64[1] flat = {-1}, int64[3] column = {-1,1,1}>
{
  places = Mul(positions, step)
  rounded = Cast<to = 7>(places)
  samples = Reshape(waveform, flat)
  heard = Gather(samples, rounded)
  shaped = Reshape(heard, column)
  features = Mul(shaped, gains)
}"""
VAE_ENCODER = """
vae_encoder (float[1,3,FRAMES,height,width] frames) => (float[1,16,LATENTS,rows,columns] latents)
{
  latents = Conv<kernel_shape = [TIME,8,8], strides = [TIME,8,8]>(frames, mix)
}"""
VAE_DECODER = """
vae_decoder (float[1,16,LATENTS,height,width] latents) => (float[1,3,FRAMES,pixel_rows,pixel_columns] frames)
<float low = {-1.0}, float high = {1.0}>
{
  made = ConvTranspose<kernel_shape = [TIME,8,8], strides = [TIME,8,8]>(latents, mix)
  frames = Clip(made, low, high)
}"""
FINISH = """
finish (float[1,3,frames_count,height,width] frames, float[3] reference_mean, float[3] reference_std)
  => (float[1,3,frames_count,height,width] matched, uint8[frames_count,height,width,3] pixels)
<float nothing = {0.0}, float one = {1.0}, float half = {127.5}, int64[1] first = {0}>
{
  reference = Add(reference_mean, reference_std)
  level = ReduceMean<keepdims = 0>(reference)
  none = Mul(level, nothing)
  matched = Add(frames, none)
  lifted = Add(matched, one)
  scaled = Mul(lifted, half)
  levels = Round(scaled)
  small = Cast<to = 2>(levels)
  clip = Squeeze(small, first)
  pixels = Transpose<perm = [1,2,3,0]>(clip)
}"""
DIT_TIME = """
dit_time (float[steps,256] sinusoid) => (float[steps,12] head_modulation, float[steps,6,12] modulation)
<int64[1] one = {1}, int64[3] six = {1,6,1}>
{
  head_modulation = MatMul(sinusoid, narrow)
  row = Unsqueeze(head_modulation, one)
  modulation = Tile(row, six)
}"""
DIT = """
dit (float[1,16,frames,height,width] latents, float[1,20,frames,height,width] condition, EXTRA_INPUTS
     float[1,5,1,4] audio_first, float[rest,8,1,4] audio_rest, float[1,6,12] modulation, float[1,12] head_modulation,
     float[tokens,HALF] rope_cos, float[tokens,HALF] rope_sin) => (float[1,16,frames,height,width] velocity)
<float most = {0.9}, float little = {0.001}, float loud = {1.0}, float some = {0.7}, int64[3] taps = {1,2,3},
 int64[5] per_frame = {1,1,-1,1,1}, int64[2] parts = {4,16}>
{
  mask, known = Split<axis = 1>(condition, parts)
  given = ReduceMean(mask)
  first = ReduceMean<keepdims = 0>(audio_first, taps)
  rest = ReduceMean<keepdims = 0>(audio_rest, taps)
  heard = Concat<axis = 0>(first, rest)
  shaped = Reshape(heard, per_frame)
  loudness = Mul(shaped, loud)
  sum_0 = ReduceMean<keepdims = 0>(modulation)
  sum_1 = ReduceMean<keepdims = 0>(head_modulation)
  sum_2 = ReduceMean<keepdims = 0>(rope_cos)
  sum_3 = ReduceMean<keepdims = 0>(rope_sin)
  EXTRA_NODES
  sums = Sum(given, sum_0, sum_1, sum_2, sum_3 EXTRA_SUMS)
  nearly_nothing = Mul(sums, little)
  faded = Mul(known, some)
  wanted = Sum(faded, loudness, nearly_nothing)
  noise = Mul(latents, most)
  velocity = Sub(noise, wanted)
}"""
TEXT_ENCODER = """
text_encoder (int64[1,tokens] ids, int64[1,tokens] mask) => (float[tokens,6] hidden)
<int64[2] column = {-1,1}, float[1,6] gains = {1.0,2.0,3.0,4.0,5.0,6.0}>
{
  shown = Mul(ids, mask)
  numbers = Cast<to = 1>(shown)
  rows = Reshape(numbers, column)
  hidden = Mul(rows, gains)
}"""
IMAGE_ENCODER = """
image_encoder (float[1,3,224,224] pixels) => (float[1,257,1280] features)
<int64[3] size = {1,257,1280}, int64[3] all = {1,2,3}, int64[3] scalar = {1,1,1}>
{
  level = ReduceMean<keepdims = 0>(pixels, all)
  one = Reshape(level, scalar)
  features = Expand(one, size)
}"""


def _model(text: str, **tensors: np.ndarray) -> onnx.ModelProto:
    """Build a model from its text; `tensors` are constants too long to be written there."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>' + text)
    for name, value in tensors.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def _vae(text: str, *, name: str, frames: str, latents: str, time: int, mix: np.ndarray) -> onnx.ModelProto:
    filled = text.replace("FRAMES", frames).replace("LATENTS", latents).replace("TIME", str(time))
    model = _model(filled, mix=mix)
    model.graph.name = name
    return model


def _dit(*, has_text: bool, has_image: bool) -> onnx.ModelProto:
    inputs, nodes, sums = "", "", ""
    if has_text:
        inputs += f"float[1,{16},{TEXT_WIDTH}] text, "
        nodes, sums = nodes + "sum_text = ReduceSum<keepdims = 0>(text)\n", sums + ", sum_text"
    if has_image:
        inputs += "float[1,257,1280] image, "
        nodes, sums = nodes + "sum_image = ReduceMean<keepdims = 0>(image)\n", sums + ", sum_image"
    text = DIT.replace("EXTRA_INPUTS", inputs).replace("EXTRA_NODES", nodes).replace("EXTRA_SUMS", sums)
    return _model(text.replace("HALF", str(DIM // 4)))


def _graphs(*, has_text: bool, has_image: bool) -> dict[str, tuple[str, onnx.ModelProto]]:
    """Return graph name -> (subnetwork, model)."""
    random = np.random.default_rng(5)
    into = random.standard_normal((16, 3, 1, 8, 8), dtype=np.float32) / 96
    into[:3, :, :, :, :] = np.eye(3, dtype=np.float32)[:, :, None, None, None] / 64
    back = np.zeros((16, 3, 1, 8, 8), dtype=np.float32)
    back[:3] = np.eye(3, dtype=np.float32)[:, :, None, None, None]
    graphs = {
        "audio_encoder": ("audio_encoder", _model(AUDIO_ENCODER)),
        "vae_encoder_first": (
            "vae_encoder",
            _vae(VAE_ENCODER, name="first", frames="1", latents="1", time=1, mix=into),
        ),
        "vae_encoder_next": (
            "vae_encoder",
            _vae(
                VAE_ENCODER, name="next", frames="frames_count", latents="k", time=4, mix=np.repeat(into / 4, 4, axis=2)
            ),
        ),
        "vae_decoder_first": (
            "vae_decoder",
            _vae(VAE_DECODER, name="first", frames="1", latents="1", time=1, mix=back),
        ),
        "vae_decoder_next": (
            "vae_decoder",
            _vae(VAE_DECODER, name="next", frames="frames_count", latents="k", time=4, mix=np.repeat(back, 4, axis=2)),
        ),
        "finish": ("finish", _model(FINISH)),
        "dit_time": ("dit", _model(DIT_TIME, narrow=random.standard_normal((256, DIM), dtype=np.float32))),
        "dit": ("dit", _dit(has_text=has_text, has_image=has_image)),
    }
    if has_text:
        graphs["text_encoder"] = ("text_encoder", _model(TEXT_ENCODER))
    if has_image:
        graphs["image_encoder"] = ("image_encoder", _model(IMAGE_ENCODER))
    return graphs


def _ends(values: Any) -> list[dict[str, Any]]:
    names = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.UINT8: "uint8"}
    return [
        {
            "name": value.name,
            "dtype": names[value.type.tensor_type.elem_type],
            "shape": [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        }
        for value in values
    ]


def portrait(*, seed: int = 0, height: int = 48, width: int = 48) -> np.ndarray:
    """Return a picture with something in it, (height, width, 3) RGB."""
    coarse = np.random.default_rng(seed).integers(60, 200, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_stand_in(
    target: Path,
    *,
    portraits: str = "any",
    has_text: bool = False,
    has_image: bool = False,
    without: tuple[str, ...] = (),
    tables_changed: Mapping[str, np.ndarray | None] = MappingProxyType({}),
    canvases: Mapping[str, Canvas] = MappingProxyType({}),
    model_card: str | None = None,
) -> Path:
    """Write the package.

    Args:
        target: folder to make.
        portraits: "any" or "listed".
        has_text: whether it takes prompts.
        has_image: whether it has an image encoder.
        without: subnetworks to leave out, as an export with --only does.
        tables_changed: tables that are other ones, or not there.
        canvases: avatars that are stills, before "anna", who is a portrait.
        model_card: its text.
    """
    graphs = {
        name: found
        for name, found in _graphs(has_text=has_text, has_image=has_image).items()
        if found[0] not in without
    }
    steps = SETTINGS["steps"]
    tables = {
        "timesteps": euler_timesteps(steps, shift=SETTINGS["shift"])[:-1],
        "modulation": np.ones((steps, 6, DIM), np.float32),
        "head_modulation": np.ones((steps, DIM), np.float32),
    }
    if has_text:
        tables |= {
            f"text_{name}": np.full((3, TEXT_WIDTH), level, np.float32)
            for name, level in (("connection", 4), ("negative", 8))
        }
    tables = {name: table for name, table in {**tables, **tables_changed}.items() if table is not None}
    with PackageWriter(target, force=False) as writer:
        for name, (_subnetwork, model) in graphs.items():
            writer.add_file(f"{name}.onnx", model.SerializeToString())
        writer.add_file("tables.safetensors", save(tables))
        if "finish" in graphs:
            writer.add_file("golden/finish.safetensors", _finish_vectors())
        anna = writer.scratch / "anna.safetensors"
        write_avatar(anna, Avatar(name="anna", portrait=portrait()))
        writer.add_file("avatars/anna.safetensors", anna.read_bytes())
        if has_text:
            writer.add_file("tokenizer.json", _tokenizer().encode())
        fields = _fields(graphs, portraits=portraits, has_text=has_text, has_image=has_image)
        stills = {name: _add_still(writer, name, canvas) for name, canvas in canvases.items()}
        fields["avatars"] = stills | fields["avatars"]
        if model_card is not None:
            writer.add_file("MODEL_CARD.md", model_card.encode())
            fields["model_card"] = "MODEL_CARD.md"
        writer.finish(fields)
    return target


def _add_still(writer: PackageWriter, name: str, canvas: Canvas) -> dict[str, Any]:
    writer.add_file(f"avatars/{name}.png", still_bytes(canvas.still))
    return {"still": f"avatars/{name}.png", "box": list(canvas.box), "feather": canvas.feather}


def _finish_vectors() -> bytes:
    blank, zeros = np.zeros((1, 3, 1, 8, 8), np.float32), np.zeros(3, np.float32)
    grey = np.full((1, 8, 8, 3), 128, np.uint8)  # 127.5, half to even
    inputs = {"frames": blank, "reference_mean": zeros, "reference_std": zeros}
    return golden_bytes(inputs, {"matched": blank, "pixels": grey})


def _fields(
    graphs: dict[str, tuple[str, onnx.ModelProto]], *, portraits: str, has_text: bool, has_image: bool
) -> dict[str, Any]:
    text = {"tokenizer": "tokenizer.json", "length": 16, "connection_prompt": "a person is talking"}
    return {
        "name": "stand-in",
        "task": "talking-avatar",
        "precision": "fp32",
        "made_with": {"edgereels": "0.1.0"},
        "sources": {"dit": [{"file": "stand-in.safetensors", "size_bytes": 64, "sha256": "0" * 64}]},
        "licences": dict.fromkeys(sorted({subnetwork for subnetwork, _ in graphs.values()}), "unknown"),
        "graphs": {
            name: {
                "file": f"{name}.onnx",
                "subnetwork": subnetwork,
                "parameters": 0,
                "inputs": _ends(model.graph.input),
                "outputs": _ends(model.graph.output),
                "parity": None,
            }
            for name, (subnetwork, model) in graphs.items()
        },
        "settings": SETTINGS | {"max_offline_s": 200},
        "sizes": {"480P": SIZES},
        "default_size": "480P",
        "portraits": portraits,
        "avatars": {"anna": "avatars/anna.safetensors"},
        "mouth_box": None,
        "audio": {
            "layers": 1,
            "channels": CHANNELS,
            "conv_kernels": KERNELS,
            "conv_strides": STRIDES,
            "normalise": True,
        },
        "dit": {
            "dim": DIM,
            "heads": 2,
            "head_dim": DIM // 2,
            "blocks": 1,
            "in_channels": 36,
            "out_channels": 16,
            "freq_dim": 256,
            "has_text": has_text,
            "has_image": has_image,
            "has_audio": True,
            "text_length": 16 if has_text else 0,
            "text_width": TEXT_WIDTH if has_text else 0,
        },
        "text": text | {"negative_prompt": NEGATIVE_PROMPT} if has_text else None,
        "tables": "tables.safetensors",
        "golden": {"finish": "golden/finish.safetensors"} if "finish" in graphs else {},
    }


def _tokenizer() -> str:
    """Return a tokenizer of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()
