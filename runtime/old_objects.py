# SPDX-License-Identifier: Apache-2.0
"""Keeps Python's garbage collection short while a stream is on."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Let garbage collection pass over everything that exists now, until the end of the block.

    A full collection looks at every object that there is and holds the interpreter meanwhile: 23 ms for the 55 000
    of a program that has opened a session, several times as long beside engine threads that keep all processors busy.
    A frame lasts 40 ms. What is made within the block is collected as ever. For programs, around their streams: it is
    about the whole process, so a library doesn't do it unasked.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
