# SPDX-License-Identifier: Apache-2.0
"""Old objects cost no collection any more, and new garbage is still found."""

import gc
import time
import weakref

import pytest

from edgereels.runtime import old_objects_left_alone


class Node:
    """Something that can refer to itself."""

    def __init__(self) -> None:
        self.itself = self


def collection_s() -> float:
    began_s = time.perf_counter()
    gc.collect()
    return time.perf_counter() - began_s


def test_a_full_collection_passes_over_what_was_there() -> None:
    kept = [{number: [number]} for number in range(200_000)]
    before_s = min(collection_s() for _again in range(3))
    with old_objects_left_alone():
        assert gc.get_freeze_count() > len(kept)
        assert min(collection_s() for _again in range(3)) < before_s / 5
    assert gc.get_freeze_count() == 0


def test_what_is_made_meanwhile_is_collected() -> None:
    with old_objects_left_alone():
        node = Node()
        gone = weakref.ref(node)
        del node
        gc.collect()
        assert gone() is None


def test_it_ends_with_its_block() -> None:
    with pytest.raises(RuntimeError), old_objects_left_alone():
        raise RuntimeError
    assert gc.get_freeze_count() == 0
