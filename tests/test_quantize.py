# SPDX-License-Identifier: Apache-2.0
"""A package goes in, a package comes out: what is shared, carried over, said, resumed and refused."""

import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgereels.quant import quantize
from edgereels.quant.learn import Learned
from edgereels.quant.quantize import TOLERANCES, Quantized, quantize_package
from edgereels.quant.recipes import BUILT_IN, Recipe, Rule, parse_recipe, recipe_bytes
from edgereels.quant.request import Request
from edgereels.quant.rewrite import Range
from edgereels.quant.stored_weights import copied
from edgereels.runtime.errors import PackageError, UsageError, VerificationError
from edgereels.runtime.golden import load_golden
from edgereels.runtime.ladder_gates import GateResult
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.package_files import sha256_of
from edgereels.runtime.quality import Quality, read_quality

from .layered_package import weights_of, write_layered

CHECKOUT = Path(__file__).parents[1]
MATMULS = ("MatMul", "Gemm")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_layered(tmp_path_factory.mktemp("quantize") / "layered")


def made(source: ModelPackage, target: Path, recipe: str | Recipe, **more: Any) -> Quantized:
    found = BUILT_IN[recipe] if isinstance(recipe, str) else recipe
    request = Request(source.root, target, found, **{"gate": False, **more})
    return quantize_package(request, progress=lambda _line: None)


def rules_for(form: str, **more: Any) -> Recipe:
    return Recipe(form, (Rule(("dit*",), ("*",), MATMULS, form, **more),))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def references(package: ModelPackage, graph: str, library: str = "onnxruntime") -> dict[str, tuple[str, ...]]:
    """Return stored tensor to the place that a graph takes it from."""
    model = onnx.load(package.graph_path(graph, library), load_external_data=False)
    return {
        tensor.name: tuple(entry.value for entry in tensor.external_data)
        for tensor in model.graph.initializer
        if tensor.external_data
    }


# ── What is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_fused_graph_and_its_blocks_share_the_same_bytes(source: ModelPackage, tmp_path: Path) -> None:
    package = made(source, tmp_path / "out", "int8").package
    fused, block = references(package, "dit"), references(package, "dit_block_00")
    assert "blocks.0.self_attn.q.weight.T.int8" in block
    assert {name: fused[name] for name in block} == block


def test_both_engines_siblings_share_the_same_bytes(source: ModelPackage, tmp_path: Path) -> None:
    package = made(source, tmp_path / "out", "int8-dynamic").package
    assert package.manifest.graphs["dit"].siblings == {"openvino": "dit.openvino.onnx"}
    assert package.manifest.graphs["vae_decoder_next"].siblings == {}
    ours, theirs = references(package, "dit"), references(package, "dit", "openvino")
    shared = {name for name in ours if name.endswith((".int8", ".int8_scales"))} & theirs.keys()
    assert len(shared) == 2 * 12
    assert all(ours[name] == theirs[name] for name in shared)


def test_one_file_where_both_engines_run_the_same(source: ModelPackage, tmp_path: Path) -> None:
    package = made(source, tmp_path / "out", "int8").package
    assert not any(entry.siblings for entry in package.manifest.graphs.values())


def test_each_weights_file_becomes_one(source: ModelPackage, tmp_path: Path) -> None:
    package = made(source, tmp_path / "out", rules_for("int8")).package
    before, after = (
        [name for name in found.manifest.files if name.startswith("weights/")] for found in (source, package)
    )
    assert len(before) == len(after) == 4
    assert len(set(before) & set(after)) == 1  # the decoder's, which no rule names


def test_what_no_rule_names_is_carried_over(source: ModelPackage, tmp_path: Path) -> None:
    package = made(source, tmp_path / "out", "int8").package
    assert package.manifest.files["licences/dit.txt"] == source.manifest.files["licences/dit.txt"]
    assert references(package, "vae_decoder_next") == references(source, "vae_decoder_next")


def test_a_layer_may_be_stored_differently_for_each_engine(source: ModelPackage, tmp_path: Path) -> None:
    recipe = Recipe("mixed", (Rule(("dit",), ("blocks.0.*",), MATMULS, "int8", engine="openvino"),))
    package = made(source, tmp_path / "out", recipe).package
    assert "blocks.0.ffn.0.weight.T" in references(package, "dit")
    assert "blocks.0.ffn.0.weight.T.int8" in references(package, "dit", "openvino")


def test_the_manifest_says_what_was_done(source: ModelPackage, tmp_path: Path) -> None:
    done = made(source, tmp_path / "out", "int8")
    manifest = done.package.manifest
    found = manifest.quantization
    assert found is not None
    assert (manifest.format_version, manifest.precision, manifest.quality) == (3, "fp32", None)
    assert (found.recipe, found.source, found.calibration) == ("int8", source.digest, None)
    # Two blocks of five matrices, the odd layer and the Gemm; not the head, the embedding or the decoder.
    blocks = 2 * (3 * 64 * 64 + 2 * 64 * 128)
    assert (found.covered.layers, found.covered.parameters) == (12, blocks + 40 * 64 + 64 * 128)
    assert found.covered.fp32_bytes == 4 * found.covered.parameters
    assert {"onnx", "numpy", "edgereels"} <= set(manifest.made_with)


@pytest.mark.parametrize(("form", "most"), [("int8", 0.30), ("int4", 0.20)])
def test_layers_shrink_as_promised(form: str, most: float, source: ModelPackage, tmp_path: Path) -> None:
    done = made(source, tmp_path / "out", rules_for(form))
    row = next(row for row in done.coverage if row.form == form)
    assert row.subnetwork == "dit"
    assert row.ratio <= most
    assert row.ratio > (0.125 if form == "int4" else 0.25), "scales count as well"


def test_the_same_input_gives_the_same_bytes(source: ModelPackage, tmp_path: Path) -> None:
    first, second = (made(source, tmp_path / name, "int4").package for name in ("one", "two"))
    assert first.digest == second.digest
    assert first.digest != made(source, tmp_path / "other", "int8").package.digest


def test_the_rules_in_the_package_replay_it(source: ModelPackage, tmp_path: Path) -> None:
    done = made(source, tmp_path / "out", "int4")
    recipe = parse_recipe(recipe_bytes(done.recipe), where="out")
    again = made(source, tmp_path / "again", recipe)
    assert again.notes == ()  # what was an exception is a rule now
    assert references(again.package, "dit") == references(done.package, "dit")


def test_storage_in_half_precision_is_named(tmp_path: Path) -> None:
    source = write_layered(tmp_path / "wide", dim=128)
    package = made(source, tmp_path / "out", "bf16").package
    assert package.manifest.precision == "bf16"
    stored = {tensor.dtype for tensor in package.summary("dit").tensors if tensor.location}
    assert stored == {"bfloat16", "float32"}  # what has fewer than 4096 values stays


def test_golden_vectors_get_the_tolerance_of_their_form(source: ModelPackage, tmp_path: Path) -> None:
    package = made(source, tmp_path / "out", rules_for("int4")).package
    path, untouched = package.golden_path("dit"), package.golden_path("vae_decoder_next")
    assert path and untouched
    assert load_golden(path).tolerance == TOLERANCES["int4"]
    assert load_golden(untouched).tolerance.rel_l2 == pytest.approx(1e-5)


def test_a_form_that_does_not_suit_a_layer_is_replaced_out_loud(source: ModelPackage, tmp_path: Path) -> None:
    done = made(source, tmp_path / "out", "int4")
    assert done.notes == ("int8 instead of int4, inputs no multiple of 64: audio.odd",)
    assert done.recipe.rules[0].layers == ("audio.odd",)
    assert "audio.odd.weight.T.int8" in references(done.package, "dit")


def test_static_layers_without_a_range_keep_whole_activations(
    source: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learned(_source: object, _graphs: object, *, request: Request, **_others: object) -> Learned:
        known = {"blocks.0.self_attn.q": Range(-4.0, 4.0)}
        return Learned(request.recipe, lambda layer: known.get(layer.name), None, None)

    monkeypatch.setattr(quantize, "learn", learned)
    done = made(source, tmp_path / "out", rules_for("int8-static"))
    assert len(done.notes) == 1
    assert done.notes[0].startswith("int8 weights only, no calibrated window ran these layers: blocks.0.self_attn.k")
    model = onnx.load(done.package.graph_path("dit_block_00"), load_external_data=False)
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1


def test_a_copy_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).bytes((8 << 20) + 12345)
    (tmp_path / "a").write_bytes(content)
    assert copied(tmp_path / "a", tmp_path / "b").read_bytes() == content

    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    assert copied(tmp_path / "a", tmp_path / "c").read_bytes() == content


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_package_is_quantized_from_the_original_only(source: ModelPackage, tmp_path: Path) -> None:
    first = made(source, tmp_path / "first", "int8").package
    with pytest.raises(PackageError, match=rf"quantized already \(int8\).*digest {source.digest[:12]}"):
        made(first, tmp_path / "second", "int4")
    assert names(tmp_path) == {"first"}


def test_a_target_that_exists_is_not_touched_without_force(source: ModelPackage, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PackageError, match="--force"):
        made(source, tmp_path / "out", "int8")
    assert made(source, tmp_path / "out", "int8", force=True).package.root.is_dir()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(("dit_blok_00",), ("*",), MATMULS, "int8"), "nearest: dit_block_0"),
        (Rule(("dit",), ("blocks.0.self_attn.w",), MATMULS, "int8"), "nearest: blocks.0.self_attn"),
    ],
    ids=["graph", "layer"],
)
def test_a_rule_that_names_nothing_is_an_error(rule: Rule, said: str, source: ModelPackage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        made(source, tmp_path / "out", Recipe("mine", (rule,)))
    assert names(tmp_path) == set()


def test_a_recipe_that_changes_nothing_writes_nothing(source: ModelPackage, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="changes nothing"):
        made(source, tmp_path / "out", rules_for("keep"))
    assert names(tmp_path) == set()


def test_weights_beyond_float16_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = weights_of(dim=128)
    huge["head"]["audio.gemm.weight"][0, 0] = 1e5
    monkeypatch.setitem(write_layered.__globals__, "weights_of", lambda **_: huge)
    source = write_layered(tmp_path / "huge", dim=128)
    with pytest.raises(PackageError, match="use the recipe bf16"):
        made(source, tmp_path / "out", "fp16")
    assert names(tmp_path) == {"huge"}


def test_a_full_disk_leaves_nothing(source: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_others: object) -> Iterator[bytes]:
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quantize, "pieces", full)
    with pytest.raises(PackageError, match="can not be written: No space left on device"):
        made(source, tmp_path / "out", "int8")
    assert names(tmp_path) == set()


def test_a_damaged_source_is_refused(source: ModelPackage, tmp_path: Path) -> None:
    import shutil

    broken = Path(shutil.copytree(source.root, tmp_path / "broken"))
    path = next((broken / "weights").iterdir())
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(PackageError, match="SHA-256"):
        made(replace(source, root=broken), tmp_path / "out", "int8")


# ── Killed and resumed ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_run_is_resumed_and_gives_the_same_bytes(source: ModelPackage, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from edgereels.quant import quantize
from edgereels.quant.recipes import BUILT_IN
from edgereels.quant.request import Request

def die(line):
    if line == "weights 3 of 4":
        os.kill(os.getpid(), signal.SIGKILL)

request = Request({str(source.root)!r}, Path({str(tmp_path / "out")!r}), BUILT_IN["int8"], gate=False)
quantize.quantize_package(request, progress=die)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, cwd=CHECKOUT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert names(tmp_path) == {"out.partial"}
    progress = json.loads((tmp_path / "out.partial" / "progress.json").read_text())
    assert len(progress["parts"]) == 2
    quantized: list[object] = []
    original = quantize.pieces

    def counting(slots: Any, *, root: Path) -> Any:
        quantized.append(slots)
        return original(slots, root=root)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "pieces", counting)
        resumed = made(source, tmp_path / "out", "int8").package
    assert len(quantized) == 1  # of four files two were finished, and one is taken over
    assert resumed.digest == made(source, tmp_path / "fresh", "int8").package.digest
    assert names(tmp_path) == {"out", "fresh"}


def test_what_a_killed_run_made_for_another_recipe_is_not_taken(source: ModelPackage, tmp_path: Path) -> None:
    def die(line: str) -> None:
        if line == "weights 4 of 4":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_package(Request(source.root, tmp_path / "out", BUILT_IN["int8"], gate=False), progress=die)
    assert names(tmp_path) == {"out.partial"}
    resumed = made(source, tmp_path / "out", "int4").package
    assert resumed.digest == made(source, tmp_path / "fresh", "int4").package.digest


# ── Memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """One of 142 MB, whose largest tensor has 9.4 MB."""
    return write_layered(tmp_path_factory.mktemp("large") / "large", dim=1088, golden=False)


@pytest.mark.parametrize("form", ["int8", "int4", "bf16"])
def test_memory_holds_one_tensor_and_not_the_model(form: str, large: ModelPackage, tmp_path: Path) -> None:
    sizes = [entry.size_bytes for name, entry in large.manifest.files.items() if name.startswith("weights/")]
    largest = 4 * 1088 * 2176
    assert sum(sizes) > 7 * largest
    recipe = BUILT_IN["bf16"] if form == "bf16" else rules_for(form)
    tracemalloc.start()
    try:
        made(large, tmp_path / "out", recipe)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The tensor, its integers before and after packing (a quarter each), and slices of 8 MB of float32 with a few
    # temporaries each; bfloat16 takes the bits of the whole tensor apart.
    assert peak < 3 * largest + 6 * (8 << 20)


# ── The gate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def ladder(*, passed: bool) -> Quality:
    gate = GateResult("graph", "dit", "sqnr_db", 31.0 if passed else 12.5, 30.0, "at least", passed, "a test")
    engine = {"library": "onnxruntime", "provider": "CPUExecutionProvider", "compute_got": "f32"}
    return Quality("0" * 64, {}, engine, {}, {}, {}, {}, (gate,), ())


def let_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the package, which renders nothing, for one that does."""
    monkeypatch.setattr(quantize, "check_judgeable", lambda _source: None)
    monkeypatch.setattr(quantize, "why_unjudgeable", lambda _source: "")


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[ModelPackage]:
    """Let the gate look at candidates and fail them; returns the candidates."""
    seen: list[ModelPackage] = []

    def judge(_source: object, candidate: ModelPackage, **_others: object) -> tuple[Quality, ...]:
        seen.append(ModelPackage.open(candidate.root))  # whole, where it was written
        return (ladder(passed=False),)

    let_judge(monkeypatch)
    monkeypatch.setattr(quantize, "judge", judge)
    return seen


def test_a_missed_gate_leaves_no_package_and_says_by_how_much(
    source: ModelPackage, tmp_path: Path, judged: list[ModelPackage]
) -> None:
    with pytest.raises(VerificationError, match=r"ONNX Runtime CPU f32: graph: dit: sqnr_db 12.5, .*missed by 17.5"):
        made(source, tmp_path / "out", "int8", gate=True)
    assert len(judged) == 1
    assert names(tmp_path) == set()


def test_without_the_gate_the_package_is_marked_as_failed(
    source: ModelPackage, tmp_path: Path, judged: list[ModelPackage]
) -> None:
    done = made(source, tmp_path / "out", "int8", gate=False)
    assert len(judged) == 1
    assert done.package.manifest.quality == "quality.json"
    assert [found.verdict for found in read_quality(ModelPackage.open(done.package.root))] == ["failed"]


def test_a_passed_gate_is_recorded(source: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_judge(monkeypatch)
    monkeypatch.setattr(quantize, "judge", lambda *_arguments, **_others: (ladder(passed=True),))
    done = made(source, tmp_path / "out", "int8", gate=True)
    assert [found.verdict for found in read_quality(done.package)] == ["passed"]


def test_what_can_not_render_is_refused_before_any_work(source: ModelPackage, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"has no audio_encoder.*--no-gate"):
        made(source, tmp_path / "out", "int8", gate=True)
    assert names(tmp_path) == set()


def test_without_an_engine_nothing_is_judged(
    source: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgereels.quant.gate.find_spec", lambda _module: None)
    with pytest.raises(VerificationError, match=r"no engine is installed.*edgereels\[cpu\]"):
        made(source, tmp_path / "out", "int8", gate=True)


def test_a_weight_file_is_called_after_what_it_holds(source: ModelPackage, tmp_path: Path) -> None:
    package = made(source, tmp_path / "out", "int8").package
    for path in (package.root / "weights").iterdir():
        assert sha256_of(path) == path.stem
