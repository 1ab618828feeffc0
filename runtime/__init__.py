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
from .machine import machine_facts, processor_name, resident_bytes
from .model_package import ModelPackage
from .observe import Observe
from .report import EngineReport, RenderReport
from .session import AvatarSession
from .sinks import ArraySink, Mp4Sink
from .stream_settings import StreamSettings
from .timing import Trace

__all__ = [
    "ArraySink",
    "Avatar",
    "AvatarSession",
    "Canvas",
    "CheckpointError",
    "Clock",
    "EdgereelsError",
    "Engine",
    "EngineError",
    "EngineReport",
    "MediaError",
    "MissingExtraError",
    "ModelPackage",
    "MonotonicClock",
    "Mp4Sink",
    "NoiseError",
    "Observe",
    "OutputError",
    "PackageError",
    "RenderReport",
    "Stopped",
    "StreamSettings",
    "Trace",
    "UsageError",
    "VerificationError",
    "VideoChunk",
    "__version__",
    "climb",
    "load_speech",
    "machine_facts",
    "open_engine",
    "processor_name",
    "read_avatar",
    "resident_bytes",
    "write_avatar",
]
