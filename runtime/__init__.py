# SPDX-License-Identifier: Apache-2.0
"""Open a package, stream an avatar: numpy and one engine, no torch.

::

    from edgereels.runtime import AvatarSession

    with AvatarSession.open("default", device="cpu", threads=2) as session:
        for chunk in session.stream(avatar="anna", audio="speech.wav"):
            show(chunk.frames, chunk.start_s)  # (T, H, W, 3) uint8 RGB, seconds
"""

__version__ = "0.1.0"  # before the imports: what is written into files names it

from .audio import load_speech
from .avatar import Avatar, read_avatar, write_avatar
from .canvas import Canvas
from .chunks import VideoChunk
from .clock import Clock, MonotonicClock
from .engine import Engine, open_engine
from .errors import (
    CheckpointError,
    EdgereelsError,
    EngineError,
    MediaError,
    MissingExtraError,
    NoiseError,
    OutputError,
    PackageError,
    Stopped,
    UsageError,
    VerificationError,
)
from .ladder import climb
from .live import Live
from .live_outputs import Output, to_callback, to_file, to_window
from .live_reports import GRAPH_STAGES, ChunkMade, Piece, ShownMedia
from .live_settings import LATENCIES, LiveLatency
from .live_state import State
from .machine import machine_facts, processor_name, resident_bytes
from .microphone import MicrophoneSource
from .model_package import ModelPackage
from .observe import Observe
from .old_objects import old_objects_left_alone
from .playout_types import LatePolicy
from .push_source import PushSource
from .report import EngineReport, RenderReport
from .session import AvatarSession
from .sinks import ArraySink, Mp4Sink
from .sources import SoundBlock, Source, StdinSource, WavSource
from .stream_settings import StreamSettings
from .timing import Trace

__all__ = [
    "GRAPH_STAGES",
    "LATENCIES",
    "ArraySink",
    "Avatar",
    "AvatarSession",
    "Canvas",
    "CheckpointError",
    "ChunkMade",
    "Clock",
    "EdgereelsError",
    "Engine",
    "EngineError",
    "EngineReport",
    "LatePolicy",
    "Live",
    "LiveLatency",
    "MediaError",
    "MicrophoneSource",
    "MissingExtraError",
    "ModelPackage",
    "MonotonicClock",
    "Mp4Sink",
    "NoiseError",
    "Observe",
    "Output",
    "OutputError",
    "PackageError",
    "Piece",
    "PushSource",
    "RenderReport",
    "ShownMedia",
    "SoundBlock",
    "Source",
    "State",
    "StdinSource",
    "Stopped",
    "StreamSettings",
    "Trace",
    "UsageError",
    "VerificationError",
    "VideoChunk",
    "WavSource",
    "__version__",
    "climb",
    "load_speech",
    "machine_facts",
    "old_objects_left_alone",
    "open_engine",
    "processor_name",
    "read_avatar",
    "resident_bytes",
    "to_callback",
    "to_file",
    "to_window",
    "write_avatar",
]
