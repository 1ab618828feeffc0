# SPDX-License-Identifier: Apache-2.0
"""The walls of the house: which room may import what. Read from the source, so nothing needs to be installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "transformers", "diffusers", "optimum", "onnx", "onnxscript", "onnx_ir", "onnxsim"}
HEAVY |= {
    "onnxruntime",
    "openvino",
    "av",
    "nncf",
    "cv2",
    "soundfile",
    "soxr",
    "PIL",
    "tokenizers",
    "ftfy",
    "sounddevice",
}
ENGINES_AND_MEDIA = HEAVY & {
    "onnxruntime",
    "openvino",
    "av",
    "cv2",
    "soundfile",
    "soxr",
    "PIL",
    "tokenizers",
    "ftfy",
    "sounddevice",
}

# What of the runtime every room may share: pure arithmetic, the format, errors, and the engine that will run a graph.
SHARED = {
    "errors",
    "manifest",
    "model_package",
    "package_files",
    "package_writer",
    "onnx_preflight",
    "golden",
    "tables",
    "schedulers",
    "chunks",
    "planner",
    "options",
    "printable",
}
SHARED |= {"audio", "image", "avatar", "text", "engine", "engine_onnxruntime", "engine_openvino", "sinks", "metrics"}
SHARED |= {"canvas", "still_file"}
# What quant measures with: the same ladder that `edgereels verify` climbs, on the same faces; and what verbs ask of the
# files they make.
MEASURES = {"ladder", "ladder_gates", "ladder_recording", "quality", "render_files", "graph_identity"}


def public_names() -> set[str]:
    """Return what `edgereels.runtime` offers to everybody, as `imports` writes it."""
    tree = ast.parse((ROOT / "runtime" / "__init__.py").read_text(encoding="utf-8"))
    (names,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_all(node.targets)]
    return {f"runtime.{name}" for name in ast.literal_eval(names)}


def _is_all(targets: list[ast.expr]) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "runtime": (set(), ENGINES_AND_MEDIA),
    "export": ({f"runtime.{name}" for name in SHARED}, HEAVY - {"openvino", "av", "nncf", "sounddevice"}),
    "quant": ({f"runtime.{name}" for name in SHARED | MEASURES} | public_names(), {"onnx", "onnxruntime", "nncf"}),
    "benchmarks": (public_names(), set()),
}
# How a verb reads its options and prints is the same in every room.
VERB_PARTS = {"runtime.options", "runtime.printable", "runtime.report"}
# The same work in other hands, each with its own library; PyTorch's modules come from the export room.
PEERS: dict[str, tuple[set[str], set[str]]] = {
    "benchmarks/peer_torch.py": ({"export"}, {"torch"}),
    "benchmarks/peer_onnxruntime.py": (set(), {"onnx", "onnxruntime"}),
    "benchmarks/peer_openvino.py": (set(), {"openvino"}),
}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Return the modules a file imports, cross-room ones as `room.module`, third-party ones by top-level name."""
    _room, *inside = path.relative_to(ROOT).parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level > len(inside):  # climbs out of its room
            module = node.module or ""
            found |= (
                {f"{module}.{name.name}" for name in node.names} if "." not in module and module != "" else {module}
            )
    return found


def crossings(path: Path) -> set[str]:
    """Return what a file takes from other rooms."""
    return {name for name in imports(path) if name.split(".")[0] in ROOMS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    inside = path.relative_to(ROOT)
    rooms_allowed, heavy_allowed = PEERS.get(inside.as_posix(), ROOMS[inside.parts[0]])
    rooms_allowed = rooms_allowed | VERB_PARTS if inside.name.startswith("command_") else rooms_allowed
    found = imports(path)
    beyond = {name for name in crossings(path) if name not in rooms_allowed and name.split(".")[0] not in rooms_allowed}
    assert not beyond, f"{path} reaches into {beyond}"
    assert found & HEAVY <= heavy_allowed, f"{path} imports {found & HEAVY - heavy_allowed}"
    assert "edgereels" not in found, f"{path}: import other rooms relatively (editors follow that; see setup.py)"


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_needs_what_it_alone_may_import(peer: str) -> None:
    """So that no hole in the wall outlives its reason."""
    rooms_allowed, heavy_allowed = PEERS[peer]
    reached = {name.split(".")[0] for name in crossings(ROOT / peer)}
    assert rooms_allowed <= reached and heavy_allowed <= imports(ROOT / peer)


def test_a_module_behind_the_front_is_no_public_name() -> None:
    """Negative control: what a benchmark may not take is not in its list, and what it may is."""
    allowed, _heavy = ROOMS["benchmarks"]
    assert "runtime.AvatarSession" in allowed
    assert not {"runtime", "runtime.ladder", "runtime.session", "runtime.placement"} & allowed


LAZY = [*sorted((ROOT / "runtime").rglob("*.py")), *(ROOT / peer for peer in PEERS)]


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.name)
def test_runtime_and_peers_import_heavy_libraries_only_inside_functions(path: Path) -> None:
    assert not imports(path, top_level_only=True) & HEAVY


def test_the_rule_sees_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the reader above finds what it is there to find."""
    (tmp_path / "runtime").mkdir()
    wrong = tmp_path / "runtime" / "wrong.py"
    wrong.write_text("import torch\nfrom ..export import dit\nfrom ..export.vae import decode\n", encoding="utf-8")
    monkeypatch.setitem(imports.__globals__, "ROOT", tmp_path)
    assert imports(wrong) == {"torch", "export.dit", "export.vae"}


@pytest.mark.parametrize("room", ["runtime", "quant", "benchmarks"])
def test_importing_a_room_loads_nothing_heavy(room: str, tmp_path: Path) -> None:
    code = f"import sys, edgereels.{room}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == ""


def test_every_file_carries_its_licence() -> None:
    tracked = [path for folder in (*ROOMS, "tests", "examples") for path in (ROOT / folder).rglob("*.py")]
    bare = [
        str(path.relative_to(ROOT))
        for path in tracked
        if "SPDX-License-Identifier: Apache-2.0" not in path.read_text(encoding="utf-8")[:200]
    ]
    assert not bare
