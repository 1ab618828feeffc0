# SPDX-License-Identifier: Apache-2.0
"""The manifest's reader: strict, and never surprised."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from edgereels.runtime.errors import PackageError
from edgereels.runtime.manifest import FORMAT, Manifest, StillEntry, digest_of, parse_json, parse_manifest

from .package_examples import manifest_fields

Place = tuple[str | int, ...]


def example() -> dict[str, Any]:
    fields = manifest_fields()
    fields |= {"format": FORMAT, "format_version": 3, "files": {"a.onnx": {"size_bytes": 1, "sha256": "0" * 64}}}
    fields["audio"] = {
        "layers": 4, "channels": 128, "conv_kernels": [10, 3], "conv_strides": [5, 2], "normalise": True,
    }  # fmt: skip
    fields["text"] = {"tokenizer": "tokenizer.json", "length": 512, "connection_prompt": "ä", "negative_prompt": ""}
    fields["graphs"]["finish"]["siblings"] = {"openvino": "finish.openvino.onnx"}
    fields["graphs"]["finish"]["parity"] = {"max_abs": 1e-6, "max_rel": 1e-6, "shapes": 2, "bf16_rel_l2": 0.01}
    fields["quantization"] = {
        "recipe": "w8a8",
        "rules": [{"graphs": ["dit"], "form": "int8"}],
        "source": "0" * 64,
        "calibration": {"clips": 1, "windows": 8, "duration_s": 7.9, "sounds": ["1" * 64]},
        "covered": {"layers": 3, "parameters": 12, "size_bytes": 14, "fp32_bytes": 48},
    }
    fields["quality"] = "quality.json"
    fields["model_card"] = "MODEL_CARD.md"
    fields["avatars"]["bruno"] = {"still": "avatars/bruno.png", "box": [8, 8, 40, 40], "feather": 4}
    return fields


NEW = ("quantization", "quality", "model_card")
"""What version 1 did not have."""


def signed(fields: dict[str, Any]) -> bytes:
    return json.dumps({**fields, "digest": digest_of(fields)}).encode()


def parse(fields: dict[str, Any]) -> Manifest:
    return parse_manifest(signed(fields), where="tiny/manifest.json")


def places(value: object, place: Place = ()) -> Iterator[Place]:
    """Yield the place of every value inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield (*place, key)
        yield from places(inner, (*place, key))


PLACES = {".".join(map(str, place)): place for place in places(example())}
ODD = (None, True, -1, 0, 1e308, 1 << 80, "", "../x", "a\nb", [], [[]], {}, {"a": 1})


def replaced(place: Place, value: object) -> dict[str, Any]:
    fields = copy.deepcopy(example())
    inner: Any = fields
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return fields


def test_the_example_is_read() -> None:
    manifest = parse(example())
    assert manifest.settings.window == 33
    assert manifest.sizes == {"480P": {"1.00": (128, 128)}}
    assert manifest.graphs["finish"].inputs[0].shape == (1, "frames", 4)
    assert manifest.avatars["bruno"] == StillEntry("avatars/bruno.png", (8, 8, 40, 40), 4)
    assert manifest.text is not None and manifest.text.connection_prompt == "ä"
    assert manifest.audio is not None and manifest.audio.conv_strides == (5, 2)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_odd_values_are_refused_in_one_line_or_read(place: Place) -> None:
    """Wherever a value of another kind or an absurd one stands, nothing but our own error comes out."""
    for value in ODD:
        try:
            parse(replaced(place, value))
        except PackageError as error:
            assert str(error).isprintable() and str(error).startswith("tiny/manifest.json")


REQUIRED = {name: place for name, place in PLACES.items() if len(place) == 1 and name not in NEW}


@pytest.mark.parametrize("place", REQUIRED.values(), ids=REQUIRED.keys())
def test_every_top_level_key_is_required(place: Place) -> None:
    fields = example()
    del fields[place[0]]
    with pytest.raises(PackageError):
        parse(fields)


def test_a_sibling_belongs_to_its_library_and_other_libraries_run_the_graphs_own_file() -> None:
    entry = parse(example()).graphs["finish"]
    assert entry.file_for("openvino") == "finish.openvino.onnx"
    assert entry.file_for("onnxruntime") == entry.file != "finish.openvino.onnx"


def test_a_sibling_for_an_unknown_library_is_refused() -> None:
    fields = example()
    fields["graphs"]["finish"]["siblings"] = {"tensorflow": "finish.tf.onnx"}
    with pytest.raises(PackageError, match="tensorflow"):
        parse(fields)


def test_a_manifest_of_version_1_is_read() -> None:
    """Written before siblings, quantization, quality and stills existed."""
    fields = example()
    for key in NEW:
        del fields[key]
    del fields["avatars"]["bruno"]
    del fields["graphs"]["finish"]["siblings"]
    del fields["graphs"]["finish"]["parity"]["bf16_rel_l2"]
    manifest = parse(fields | {"format_version": 1})
    assert (manifest.quantization, manifest.quality) == (None, None)
    assert manifest.graphs["finish"].parity and manifest.graphs["finish"].parity.bf16_rel_l2 is None
    assert manifest.format_version == 1


def test_a_manifest_of_version_2_is_read() -> None:
    """Written before stills and model cards existed."""
    fields = example()
    del fields["model_card"], fields["avatars"]["bruno"]
    manifest = parse(fields | {"format_version": 2})
    assert manifest.model_card is None
    assert manifest.avatars == {"anna": "avatars/anna.safetensors"}


@pytest.mark.parametrize(
    "still",
    [
        pytest.param({"still": "a.png", "box": [8, 8, 40], "feather": 4}, id="three sides"),
        pytest.param({"still": "a.png", "box": [8, 8, 40, 40.5], "feather": 4}, id="part of a pixel"),
        pytest.param({"still": "a.png", "box": [8, 8, 40, True], "feather": 4}, id="true for a number"),
        pytest.param({"still": "a.png", "box": [-8, 8, 40, 40], "feather": 4}, id="below 0"),
        pytest.param({"still": "a.png", "box": {"top": 8}, "feather": 4}, id="no list"),
        pytest.param({"still": "a.png", "box": [8, 8, 40, 40], "feather": -1}, id="feather below 0"),
        pytest.param({"still": "a.png", "box": [8, 8, 40, 40]}, id="no feather"),
        pytest.param({"still": 3, "box": [8, 8, 40, 40], "feather": 4}, id="still that is no file"),
        pytest.param({"still": "a.png", "box": [8, 8, 40, 40], "feather": 4, "blur": 1}, id="unknown key"),
    ],
)
def test_a_still_of_another_form_is_refused(still: dict[str, Any]) -> None:
    fields = example()
    fields["avatars"]["bruno"] = still
    with pytest.raises(PackageError, match="avatars: bruno"):
        parse(fields)


@pytest.mark.parametrize("key", ["settings", "audio", "dit", "text", "quantization"])
def test_an_unknown_key_is_refused_inside_of_objects(key: str) -> None:
    fields = example()
    fields[key]["extra"] = 1
    with pytest.raises(PackageError, match="unknown key 'extra'"):
        parse(fields)


def test_the_digest_does_not_depend_on_order_or_blanks() -> None:
    fields = example()
    turned = dict(reversed(list(fields.items())))
    assert digest_of(fields) == digest_of(turned)
    assert (
        parse_manifest(json.dumps({**turned, "digest": digest_of(fields)}, indent=4).encode(), where="x").name == "tiny"
    )


def test_the_digest_of_a_known_manifest_is_known() -> None:
    """Written down once: a change of the canonical form would make every package in the world unreadable."""
    known = digest_of({"b": [1, 2.5, None, True], "a": {"é": "x/y"}, "digest": "ignored"})
    assert known == "a040030cf9e42eda5cda9db60df555841482e175472dcc3ffca27b2d24a60b30"


@pytest.mark.parametrize("text", ["1", '"a"', "null", "[1, 2]", '{"a": {"b": 1.5}}', "[" * 16 + "]" * 16])
def test_strict_json_is_read(text: str) -> None:
    assert parse_json(text.encode(), where="x") == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": 1, "a": 1}',
        '{"x": {"a": 1, "b": 2, "a": 1}}',
        "NaN",
        "[-Infinity]",
        "1e400",
        "[" * 17 + "]" * 17,
    ],
)
def test_loose_json_is_refused(text: str) -> None:
    with pytest.raises(PackageError) as caught:
        parse_json(text.encode(), where="x")
    assert caught.value.code == "json"
