# SPDX-License-Identifier: Apache-2.0
"""A package opens whole, or not at all and without an engine having seen it."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import edgereels.runtime.model_package as model_package
from edgereels.runtime.errors import PackageError
from edgereels.runtime.manifest import digest_of
from edgereels.runtime.model_package import DEFAULT_PACKAGE, ModelPackage, package_path
from edgereels.runtime.package_files import MAX_FILES

from .package_examples import (
    LOCATION,
    change_manifest,
    external_tensor,
    matmul_model,
    pixels_model,
    replace_file,
    write_package,
)

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good package, not to be changed."""
    return write_package(tmp_path_factory.mktemp("original") / "tiny.edgereels").root


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(original, tmp_path / "tiny.edgereels")


def refusal(package: Path, *, verify: str = "full") -> PackageError:
    with pytest.raises(PackageError) as caught:
        ModelPackage.open(package, verify=verify)
    message = str(caught.value)
    assert message.isprintable(), "a message is one line"
    return caught.value


# ── What opens ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verify", ["full", "size"])
def test_a_good_package_opens(original: Path, verify: str) -> None:
    package = ModelPackage.open(original, verify=verify)
    assert list(package.manifest.graphs) == ["dit_block_00", "dit_block_01", "finish"]


def test_opening_loads_no_engine_and_no_native_reader(original: Path) -> None:
    """In a fresh interpreter: neither engines nor onnx nor torch nor safetensors are imported by opening."""
    program = (
        "import sys; from edgereels.runtime.model_package import ModelPackage; ModelPackage.open(sys.argv[1]);"
        "names = {name.partition('.')[0] for name in sys.modules};"
        "print(*sorted(names & {'onnxruntime', 'openvino', 'onnx', 'torch', 'safetensors', 'google'}))"
    )
    result = subprocess.run([sys.executable, "-c", program, str(original)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_a_folder_called_default_is_named_by_a_path() -> None:
    assert package_path("default") == DEFAULT_PACKAGE
    assert package_path(Path("default")) == Path("default")
    assert package_path("./default") == Path("default")


def test_a_package_gives_its_files_and_tables(original: Path) -> None:
    package = ModelPackage.open(original)
    assert package.graph_path("finish") == original / "finish.onnx"
    assert package.avatar_path("anna") == original / "avatars" / "anna.safetensors"
    assert package.golden_path("finish") == original / "golden" / "finish.safetensors"
    np.testing.assert_array_equal(package.tables()["timesteps"], np.array([1000], np.float32))


def test_a_package_says_what_it_lacks(original: Path) -> None:
    package = ModelPackage.open(original)
    package.require("dit", "finish")
    assert package.has("dit") and not package.has("vae_decoder")
    with pytest.raises(PackageError, match=r"has no vae_decoder, audio_encoder;") as caught:
        package.require("dit", "vae_decoder", "audio_encoder")
    assert caught.value.code == "missing-subnetwork"


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda package: package.graph_path("dit"), "no graph 'dit'"),
        (lambda package: package.avatar_path("bob"), "no avatar 'bob'; its avatars: anna"),
        (lambda package: package.tokenizer_path(), "takes no prompts"),
    ],
    ids=["graph", "avatar", "tokenizer"],
)
def test_asking_for_what_is_not_there_names_it(
    original: Path, ask: Callable[[ModelPackage], object], match: str
) -> None:
    with pytest.raises(PackageError, match=match):
        ask(ModelPackage.open(original))


def test_a_package_without_a_transformer_opens(package: Path) -> None:
    """What `export --only` leaves: valid for inspect and verify."""

    def keep_finish(fields: Fields) -> None:
        fields.update(graphs={"finish": fields["graphs"]["finish"]}, dit=None, tables=None)
        fields["golden"] = {"finish": fields["golden"]["finish"]}
        for name in [name for name in fields["files"] if "dit_block" in name or name == "tables.safetensors"]:
            del fields["files"][name]
            (package / name).unlink()

    change_manifest(package, keep_finish)
    opened = ModelPackage.open(package)
    assert not opened.has("dit")
    with pytest.raises(PackageError, match="schedule tables"):
        opened.tables()


def test_a_link_to_the_whole_package_opens(original: Path, tmp_path: Path) -> None:
    """What may not be a link is what lies inside; `current -> anna-2.edgereels` is how people switch versions."""
    (tmp_path / "current").symlink_to(original)
    assert ModelPackage.open(tmp_path / "current").root == original


def test_an_unknown_way_to_verify_is_a_wrong_argument(original: Path) -> None:
    with pytest.raises(ValueError, match="expected 'full' or 'size'"):
        ModelPackage.open(original, verify="none")


# ── Files: kinds, names, listing ─────────────────────────────────────────────────────────────────────────────────────


def link_file(package: Path) -> None:
    (package / LOCATION).rename(package.parent / "elsewhere")
    (package / LOCATION).symlink_to(package.parent / "elsewhere")


def link_folder(package: Path) -> None:
    (package / "weights").rename(package.parent / "elsewhere")
    (package / "weights").symlink_to(package.parent / "elsewhere")


def hard_link(package: Path) -> None:
    os.link(package / LOCATION, package.parent / "elsewhere")


def pipe(package: Path) -> None:
    (package / LOCATION).unlink()
    os.mkfifo(package / LOCATION)


def link_to_device(package: Path) -> None:
    (package / LOCATION).unlink()
    (package / LOCATION).symlink_to("/dev/zero")


def socket_file(package: Path) -> None:
    (package / "tables.safetensors").unlink()
    here = os.getcwd()
    os.chdir(package)  # the path of a socket is at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("tables.safetensors")
    finally:
        os.chdir(here)


def add(name: str) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"x")

    return damage


def flip_a_byte(name: str) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        data = bytearray((package / name).read_bytes())
        data[len(data) // 2] ^= 1
        (package / name).write_bytes(data)

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda package: os.truncate(package / name, (package / name).stat().st_size - 1)


def remove(name: str) -> Callable[[Path], None]:
    return lambda package: (package / name).unlink()


def many_files(package: Path) -> None:
    (package / "licences" / "many").mkdir()
    for index in range(MAX_FILES + 1):
        (package / "licences" / "many" / f"{index}.txt").touch()


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "symbolic link to a file": (link_file, "link"),
    "symbolic link to a folder": (link_folder, "link"),
    "hard link": (hard_link, "link"),
    "named pipe": (pipe, "link"),
    "link to a device": (link_to_device, "link"),
    "socket": (socket_file, "link"),
    "unlisted library": (add("evil.so"), "unlisted"),
    "unlisted weights": (add("weights/other.bin"), "unlisted"),
    "unlisted folder": (lambda package: (package / "cache").mkdir(), "unlisted"),
    "hidden file": (add(".DS_Store"), "name"),
    "name with a blank": (add("licences/a b.txt"), "name"),
    "name with a colon": (add("licences/a:b"), "name"),
    "name with a backslash": (add("licences/a\\b"), "name"),
    "name with a line break": (add("licences/a\nb"), "name"),
    "name of a device on Windows": (add("licences/con.txt"), "name"),
    "name with a trailing dot": (add("licences/a."), "name"),
    "name beyond ASCII": (add("licences/ä"), "name"),
    "names that differ in case": (add("Finish.onnx"), "name"),
    "too deep": (add("licences/a/b/c/d"), "name"),
    "too many files": (many_files, "count"),
    "missing weights": (remove(LOCATION), "missing"),
    "missing graph": (remove("finish.onnx"), "missing"),
    "missing manifest": (remove("manifest.json"), "manifest"),
    "truncated weights": (cut(LOCATION), "size"),
    "flipped bit in weights": (flip_a_byte(LOCATION), "digest"),
    "flipped bit in a graph": (flip_a_byte("finish.onnx"), "digest"),
    "flipped bit in golden vectors": (flip_a_byte("golden/finish.safetensors"), "digest"),
    "flipped bit in a licence": (flip_a_byte("licences/dit.txt"), "digest"),
}


@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_package_is_refused(package: Path, case: tuple[Callable[[Path], None], str]) -> None:
    damage, code = case
    damage(package)
    assert refusal(package).code == code


def test_a_flipped_bit_is_found_by_digests_only(package: Path) -> None:
    """The control of the cases above: with verify="size" the weights are not read at all."""
    flip_a_byte(LOCATION)(package)
    ModelPackage.open(package, verify="size")


def test_a_hard_link_is_accepted_inside_the_installation(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Package managers link the files of a wheel from their cache."""
    hard_link(package)
    monkeypatch.setattr(model_package, "__file__", str(package.parent / "model_package.py"))
    ModelPackage.open(package)


def test_a_hard_link_inside_the_installation_is_hashed_in_any_case(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard_link(package)
    flip_a_byte(LOCATION)(package)
    monkeypatch.setattr(model_package, "__file__", str(package.parent / "model_package.py"))
    assert refusal(package, verify="size").code == "digest"


@pytest.mark.parametrize("kind", ["nothing", "file", "zip"])
def test_what_is_no_folder_is_refused(original: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tiny.edgereels"
    if kind == "file":
        path.write_bytes(b"package")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(original / "manifest.json", "manifest.json")
    assert refusal(path).code == "not-a-folder"


# ── The manifest ─────────────────────────────────────────────────────────────────────────────────────────────────────


def rewrite(package: Path, text: str | bytes) -> None:
    (package / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def manifest_text(package: Path) -> str:
    return (package / "manifest.json").read_text()


def with_key_twice(text: str) -> str:
    return text.replace('"name"', '"name": "other", "name"', 1)


TEXTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "a key twice": (with_key_twice, "json"),
    "five megabytes": (lambda text: text + " " * (5 << 20), "manifest"),
    "a thousand levels": (lambda text: '{"format": ' + "[" * 1000 + "]" * 1000 + "}", "json"),
    "a hundred thousand levels": (lambda text: "[" * 100_000 + "]" * 100_000, "json"),
    "not a number": (lambda text: text.replace('"shift": 11.0', '"shift": NaN'), "json"),
    "infinity": (lambda text: text.replace('"shift": 11.0', '"shift": 1e999'), "json"),
    "an integer of 5000 digits": (lambda text: text.replace('"steps": 1', '"steps": ' + "1" * 5000), "json"),
    "no UTF-8": (lambda text: text.encode().replace(b"tiny", b"\xff\xfe\xfd\xfc"), "json"),
    "UTF-16": (lambda text: text.encode("utf-16"), "json"),
    "truncated": (lambda text: text[:-20], "json"),
    "empty": (lambda text: "", "json"),
    "a list": (lambda text: "[]", "manifest"),
    "another format": (lambda text: text.replace("edgereels-package", "other-package"), "manifest"),
    "one changed letter": (lambda text: text.replace('"tiny"', '"tinx"'), "manifest-digest"),
    "a changed setting": (lambda text: text.replace('"fps": 25', '"fps": 24'), "manifest-digest"),
}


@pytest.mark.parametrize("case", TEXTS.values(), ids=TEXTS.keys())
def test_a_manifest_that_is_no_strict_json_is_refused(
    package: Path, case: tuple[Callable[[str], str | bytes], str]
) -> None:
    change, code = case
    rewrite(package, change(manifest_text(package)))
    assert refusal(package).code == code


def test_an_unknown_version_is_named_with_the_known_one(package: Path) -> None:
    change_manifest(package, lambda fields: fields.update(format_version=4))
    error = refusal(package)
    assert error.code == "version"
    assert "tiny.edgereels/manifest.json has format version 4; this build reads 1, 2 and 3" in str(error)


def add_sibling(package: Path, content: bytes, *, graph: str = "finish") -> None:
    """Give a graph a file of its own for OpenVINO."""
    name = f"{graph}.openvino.onnx"
    change_manifest(package, lambda fields: fields["graphs"][graph].update(siblings={"openvino": name}))
    replace_file(package, name, content)


def test_a_sibling_is_what_its_library_runs(package: Path) -> None:
    add_sibling(package, (package / "finish.onnx").read_bytes())
    opened = ModelPackage.open(package)
    assert opened.graph_path("finish", "openvino").name == "finish.openvino.onnx"
    assert opened.graph_path("finish", "onnxruntime").name == opened.graph_path("finish").name == "finish.onnx"
    assert opened.summary("finish", "openvino").node_count == opened.summary("finish").node_count


def test_a_sibling_with_other_outputs_is_refused(package: Path) -> None:
    add_sibling(package, matmul_model().SerializeToString())
    assert refusal(package).code == "ends"


def test_a_sibling_passes_the_same_checks_as_any_graph(package: Path) -> None:
    add_sibling(package, b"not a graph")
    assert refusal(package).code == "proto"


def test_a_sibling_that_nobody_names_is_refused(package: Path) -> None:
    replace_file(package, "finish.openvino.onnx", (package / "finish.onnx").read_bytes())
    assert refusal(package).code == "unlisted"


def test_the_quality_record_is_read_where_the_manifest_names_one(package: Path) -> None:
    assert ModelPackage.open(package).quality() is None
    change_manifest(package, lambda fields: fields.update(quality="quality.json"))
    replace_file(package, "quality.json", b'{"verdict": "passed"}')
    assert ModelPackage.open(package).quality() == {"verdict": "passed"}


def test_a_quality_record_that_nobody_names_is_refused(package: Path) -> None:
    replace_file(package, "quality.json", b"{}")
    assert refusal(package).code == "unlisted"


def at(*keys: str, to: object) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        inner = fields
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return change


def without(*keys: str) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        inner = fields
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


ENDS = [{"name": "tokens", "dtype": "float32", "shape": [1, "frames", 4]}]
CHANGES: dict[str, tuple[Callable[[Fields], None], str]] = {
    "an unknown key": (at("extra", to=1), "manifest"),
    "an unknown key inside": (at("settings", "extra", to=1), "manifest"),
    "a missing key": (without("portraits"), "manifest"),
    "a missing key inside": (without("graphs", "finish", "parameters"), "manifest"),
    "text for a number": (at("settings", "steps", to="4"), "manifest"),
    "true for a number": (at("settings", "steps", to=True), "manifest"),
    "a window that is not 4n+1": (at("settings", "window", to=32), "manifest"),
    "a window that leaves nothing": (at("settings", "window", to=9), "manifest"),
    "a window without room for the key frame": (
        lambda fields: fields["settings"].update(window=9, motion=5, drop=0),
        "manifest",
    ),
    "no frames per second": (at("settings", "fps", to=0), "manifest"),
    "a size that is no multiple of 16": (at("sizes", "480P", "1.00", to=[128, 120]), "manifest"),
    "an unknown table of sizes": (at("default_size", to="720P"), "manifest"),
    "a mouth box outside of the frame": (at("mouth_box", to=[0.5, 0.3, 1.8, 0.7]), "manifest"),
    "an unknown rule for portraits": (at("portraits", to="some"), "manifest"),
    "an avatar's file without the avatar": (at("avatars", to={}), "unlisted"),
    "an unknown element type": (at("graphs", "finish", "outputs", to=[{**ENDS[0], "dtype": "int32"}]), "manifest"),
    "a graph in a folder": (at("graphs", "finish", "file", to="weights/finish.onnx"), "manifest"),
    "a graph that is not listed": (at("graphs", "finish", "file", to="other.onnx"), "manifest"),
    "two graphs in one file": (at("graphs", "finish", "file", to="dit_block_00.onnx"), "manifest"),
    "an avatar outside of the package": (at("avatars", "anna", to="../anna.safetensors"), "manifest"),
    "golden vectors of no graph": (at("golden", "dit", to="golden/finish.safetensors"), "manifest"),
    "a file listed outside of the package": (
        at("files", "../../etc/passwd", to={"size_bytes": 1, "sha256": "0" * 64}),
        "name",
    ),
    "an absolute file": (at("files", "/etc/passwd", to={"size_bytes": 1, "sha256": "0" * 64}), "name"),
    "a negative size": (at("files", "finish.onnx", "size_bytes", to=-1), "manifest"),
    "a digest in capitals": (at("files", "finish.onnx", "sha256", to="A" * 64), "manifest"),
    "other inputs than the graph's": (at("graphs", "finish", "inputs", to=[{**ENDS[0], "name": "latents"}]), "ends"),
    "another type than the graph's": (at("graphs", "finish", "inputs", to=[{**ENDS[0], "dtype": "int64"}]), "ends"),
    "another rank than the graph's": (at("graphs", "finish", "inputs", to=[{**ENDS[0], "shape": [1, 4]}]), "ends"),
    "another size than the graph's": (
        at("graphs", "finish", "inputs", to=[{**ENDS[0], "shape": [1, "frames", 8]}]),
        "ends",
    ),
    "fewer inputs than the graph's": (at("graphs", "finish", "inputs", to=[]), "ends"),
    "other outputs than the graph's": (at("graphs", "finish", "outputs", to=ENDS), "ends"),
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES.keys())
def test_a_manifest_that_says_something_wrong_is_refused(
    package: Path, case: tuple[Callable[[Fields], None], str]
) -> None:
    change, code = case
    change_manifest(package, change)
    assert refusal(package).code == code


def test_a_changed_manifest_without_a_new_digest_is_refused(package: Path) -> None:
    change_manifest(package, at("settings", "steps", to=2), resign=False)
    assert refusal(package).code == "manifest-digest"


def test_the_digest_is_that_of_canonical_json(original: Path) -> None:
    """As docs/package-format.md says it, written out: sorted keys, no blanks, ASCII, without `digest`."""
    fields = json.loads((original / "manifest.json").read_bytes())
    named = fields.pop("digest")
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert hashlib.sha256(canonical.encode()).hexdigest() == named == digest_of(fields)


# ── Graphs and tensor files that are listed and bad ──────────────────────────────────────────────────────────────────


def test_a_bad_graph_is_refused_although_it_is_listed(package: Path) -> None:
    outside = external_tensor(entries=[("location", "../secret"), ("length", "64")])
    replace_file(package, "dit_block_00.onnx", matmul_model(weight=outside).SerializeToString())
    error = refusal(package)
    assert error.code == "external-path"
    assert str(error).startswith("tiny.edgereels/dit_block_00.onnx: ")


def test_the_graphs_are_looked_at_with_sizes_only_as_well(package: Path) -> None:
    node = helper.make_node("Loop", ["", "tokens"], ["velocity"], body=helper.make_graph([], "body", [], []))
    replace_file(package, "dit_block_00.onnx", matmul_model(nodes=[node]).SerializeToString())
    assert refusal(package, verify="size").code == "control-flow"


def test_a_graph_that_swaps_its_type_is_refused(package: Path) -> None:
    model = pixels_model()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    replace_file(package, "finish.onnx", model.SerializeToString())
    assert refusal(package).code == "ends"


def test_weights_are_called_after_their_digest(package: Path) -> None:
    other = np.ones((4, 4), np.float32).tobytes()
    replace_file(package, LOCATION, other)
    assert refusal(package).code == "name"


def test_a_listed_file_without_a_part_to_play_is_refused(package: Path) -> None:
    replace_file(package, "evil.so", b"\x7fELF")
    assert refusal(package).code == "unlisted"


def safetensors_bytes(header: str, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


ONE = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TWO = ONE.replace("a", "b", 1)
TENSOR_FILES = {
    "empty": b"",
    "header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "a tensor twice": safetensors_bytes(f"{{{ONE},{ONE}}}", b"\0" * 4),
    "no JSON": safetensors_bytes("{", b""),
    "trailing bytes": safetensors_bytes(f"{{{ONE}}}", b"\0" * 8),
    "truncated": safetensors_bytes(f"{{{ONE}}}", b"\0" * 2),
    "a shape that lies": safetensors_bytes(f"{{{ONE.replace('[1]', '[2]')}}}", b"\0" * 4),
    "an unknown type": safetensors_bytes(f"{{{ONE.replace('F32', 'F31')}}}", b"\0" * 4),
    "overlap": safetensors_bytes(f"{{{ONE},{TWO}}}", b"\0" * 4),
    "a hole": safetensors_bytes(f"{{{ONE.replace('[0,4]', '[4,8]')}}}", b"\0" * 8),
    "negative shape": safetensors_bytes(f"{{{ONE.replace('[1]', '[-1,-1]')}}}", b"\0" * 4),
}


@pytest.mark.parametrize("content", TENSOR_FILES.values(), ids=TENSOR_FILES.keys())
def test_a_tensor_file_that_lies_is_refused(package: Path, content: bytes) -> None:
    replace_file(package, "tables.safetensors", content)
    assert refusal(package).code in ("safetensors", "json")


def test_an_ordinary_tensor_file_passes(package: Path) -> None:
    """The control of the cases above."""
    replace_file(package, "tables.safetensors", safetensors_bytes(f"{{{ONE}}}", b"\0" * 4))
    ModelPackage.open(package)
