# SPDX-License-Identifier: Apache-2.0
"""What the generator of a live stream works with: where sound comes from and chunks go to, and who is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .allowance import Allowance
from .clock import Clock
from .giving_up import GivingUp
from .live_ears import LiveEars
from .live_face import LiveFace
from .live_reports import ChunkMade
from .live_settings import LiveSettings
from .live_state import LiveState
from .playout import Playout

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class GeneratorParts:
    """What a generator works with."""

    open_face: Callable[[], LiveFace]
    """Opens the engines, anew where they were open."""
    ears: LiveEars
    """Where sound comes from."""
    playout: Playout
    """Where chunks go to."""
    position_s: Callable[[], float]
    """Media time that is on now."""
    clock: Clock
    """The one clock."""
    allowance: Allowance
    """Between the arrival of the last sound that an utterance's first chunk needs, and when that chunk is due."""
    qualities: tuple[LiveSettings, ...]
    """What `giving_up` chooses from, by its index."""
    giving_up: GivingUp
    """Chooses the quality."""
    graphs_s: dict[str, float]
    """Seconds that graphs have run, by stage, since the stream began."""
    state: LiveState
    """Of the stream."""
    on_event: OnEvent
    """Told what happens."""
    on_chunk: Callable[[ChunkMade], None] | None
    """Told of every chunk."""
