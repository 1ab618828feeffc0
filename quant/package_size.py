# SPDX-License-Identifier: Apache-2.0
"""What a package will take on disk once a plan is followed: weights are laid out, graphs made, and nothing written."""

from ..runtime.model_package import MANIFEST, ModelPackage
from .layers import Layer, StoredTensor
from .plan import Plan
from .recipes import recipe_bytes
from .rewrite import Storage, StoredWeight, rewrite
from .stored_weights import by_file, changes, lay_out, named, unchanged

QUALITY_BYTES = 1 << 16
"""Room for the quality record of two engines; 40 kB for the embedded package."""

_LOCATION = f"weights/{'0' * 64}.bin"  # as long as a real one: it stands in the graphs


def package_bytes(package: ModelPackage) -> int:
    """Return what all files of a package take together."""
    return _manifest_size(package) + sum(entry.size_bytes for entry in package.manifest.files.values())


def predicted_bytes(plan: Plan, *, source: ModelPackage) -> int:
    """Return what all files of the package will take together, manifest and quality record included, at most.

    Of the embedded package 0.2 to 0.5 % more than what is written, nearly all of it room for the quality record.
    """
    files = source.manifest.files
    places: dict[tuple[StoredTensor, Storage], StoredWeight] = {}
    total = QUALITY_BYTES + _manifest_bytes(plan, source=source)
    for location, here in by_file(plan.wanted()).items():
        if changes(here):
            slots = lay_out(here)
            total += slots[-1].end
            places |= named(slots, location=_LOCATION)
        else:
            total += files[location].size_bytes
            places |= unchanged(here)

    def place(layer: Layer, storage: Storage) -> StoredWeight:
        return places[layer.stored, storage]

    for graph in plan.graphs:
        for library in graph.libraries:
            total += rewrite(graph.source.model, graph.decided[library], place=place, library=library).ByteSize()
    made_anew = {entry.file for entry in source.manifest.graphs.values()} | {source.manifest.quality}
    others = (name for name in files if not name.startswith("weights/") and name not in made_anew)
    return total + sum(files[name].size_bytes for name in others)


def _manifest_bytes(plan: Plan, *, source: ModelPackage) -> int:
    """Return about what the manifest takes: the source's, the recipe that it will hold, an entry for each sibling."""
    siblings = sum(len(graph.libraries) - 1 for graph in plan.graphs)
    return _manifest_size(source) + len(recipe_bytes(plan.recipe)) + 200 * siblings


def _manifest_size(package: ModelPackage) -> int:
    return (package.root / MANIFEST).stat().st_size
