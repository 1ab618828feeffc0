# SPDX-License-Identifier: Apache-2.0
"""One face, ready for a live stream: its windows at every quality, its ears, its rest loop, what a window costs."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .avatar import Avatar
from .live_hearing import LiveHearing
from .live_key_frames import KeyFrames
from .live_settings import LiveSettings
from .live_settling import settle, settling_frames
from .live_windows import Floats, LiveWindows, Pixels, heard_frames, last_frames
from .model_package import ModelPackage
from .passes import Passes
from .placement import OnCompile, Placement
from .prepare import Preparation
from .sampler import Guidance, SeededDraws
from .schedulers import euler_timesteps
from .shapes import PATCH, VAE_STRIDE, StreamSize, stream_shapes
from .stream_settings import as_usage
from .tables import RopeGrid, rope_tables
from .timing import Trace

REST_WINDOWS = 6
"""Windows of the rest loop; with 33 frames each, 6 s."""

TRIED_WINDOWS = 3
"""Of the settings that a slow machine falls back to: to learn what they cost."""


@dataclass(frozen=True)
class WindowCost:
    """What one window took that went on from frames of somebody else, as the first of an utterance does."""

    whole_s: float
    """Until all of its frames were there."""
    head_start_s: float
    """How long before its first frame is on it is to be begun, so that none of its frames is late."""


@dataclass(frozen=True, eq=False)
class LiveFace:
    """What a generator works with. Not safe for several threads at once."""

    windows: Mapping[LiveSettings, LiveWindows]
    """For every quality that a stream may use."""
    encode: Callable[[Floats], Floats]
    """Sound to features, as `LiveHearing` wants it."""
    normalise: bool
    """Whether the encoder wants sound of unit variance."""
    size: tuple[int, int]
    """(height, width) of its frames, pixels."""
    rest_loop: Pixels
    """(R, H, W, 3): what is on while nobody speaks; the rest pose first."""
    key_frames: KeyFrames
    """What windows end on."""
    costs: Mapping[LiveSettings, WindowCost]
    """What a window of each quality costs on this machine, hearing included: medians over those of the rest loop."""


def open_face(
    package: ModelPackage,
    placement: Placement,
    face: Avatar,
    *,
    settings: Sequence[LiveSettings],
    seed: int,
    trace: Trace,
    on_compile: OnCompile | None = None,
) -> LiveFace:
    """Compile, make the rest loop, and learn what a window costs.

    Args:
        package: open.
        placement: its engines.
        face: the avatar.
        settings: every quality that may be used, the wanted one first.
        seed: of the draws.
        trace: told of every run of a graph.
        on_compile: as of `AvatarSession.open`.

    Raises:
        PackageError: it lacks something that this needs.
        UsageError: settings that it can't have.
    """
    preparation = Preparation(package, placement, face, size=None, trace=trace)
    networks = tuple(dict.fromkeys(replace(wanted, repeat=1) for wanted in settings))
    for network in networks:
        _freeze(package, placement, network, size=preparation.size, on_compile=on_compile)
    draws = SeededDraws(seed)
    windows = {network: _windows(package, placement, preparation, network, draws, trace) for network in networks}

    def encode(sound: Floats) -> Floats:
        return preparation.encode_speech(np.ascontiguousarray(sound), frames=len(sound) // 640)

    normalise = preparation.hearing.normalise
    costs: dict[LiveSettings, WindowCost] = {}
    loops: list[Pixels] = []
    for network in networks:
        hearing = LiveHearing(encode, normalise=normalise)
        count = REST_WINDOWS if network is networks[0] else TRIED_WINDOWS
        loop, costs[network] = _rest(windows[network], hearing, network, rest_pose=preparation.portrait, count=count)
        loops.append(loop)
    return LiveFace(
        windows={wanted: windows[replace(wanted, repeat=1)] for wanted in settings},
        encode=encode,
        normalise=normalise,
        size=preparation.size,
        rest_loop=loops[0],
        key_frames=KeyFrames(loops[0], preparation.portrait),
        costs={wanted: costs[replace(wanted, repeat=1)] for wanted in settings},
    )


def _freeze(
    package: ModelPackage,
    placement: Placement,
    wanted: LiveSettings,
    *,
    size: tuple[int, int],
    on_compile: OnCompile | None,
) -> None:
    height, width = size
    stops = (wanted.window - wanted.drop, _pinned_stop(wanted))
    decoded = tuple(1 + (stop + 2) // 4 for stop in stops)
    with as_usage():
        shapes = stream_shapes(package.manifest, StreamSize(height, width, wanted.window, decoded))
    placement.freeze(shapes, on_compile=on_compile)


def _windows(
    package: ModelPackage,
    placement: Placement,
    preparation: Preparation,
    wanted: LiveSettings,
    draws: SeededDraws,
    trace: Trace,
) -> LiveWindows:
    height, width = preparation.size
    guidance = Guidance()
    with as_usage():
        timesteps = euler_timesteps(wanted.steps, shift=package.manifest.settings.shift)
        grid = RopeGrid(1 + (wanted.window - 1) // 4, height // VAE_STRIDE // PATCH, width // VAE_STRIDE // PATCH)
        rope = rope_tables(grid, head_dim=preparation.dit.head_dim)
    passes = Passes(
        engines=placement,
        conditions=preparation.conditions(prompt=None, negative_prompt=None, guidance=guidance, window=wanted.window),
        schedule=preparation.schedule(timesteps),
        rope=rope,
        guidance=guidance,
        draws=draws,
        trace=trace,
    )
    return LiveWindows(passes, window=wanted.window, motion=wanted.motion)


def _pinned_stop(wanted: LiveSettings) -> int:
    """Return where a window is cut that has to end on its key frame: behind the first of its repeats."""
    return wanted.motion + wanted.pinned_frames // wanted.repeat


def _rest(
    windows: LiveWindows, hearing: LiveHearing, wanted: LiveSettings, *, rest_pose: Floats, count: int
) -> tuple[Pixels, WindowCost]:
    """Return frames that begin with the rest pose and come back to it, and what a window costs."""
    made: list[Pixels] = []
    costs: list[WindowCost] = []
    hearing.push_silence(round(8.0 * 25))
    for number in range(count):
        began_s = time.perf_counter()
        heard = hearing.features(hearing.frames - heard_frames(wanted.window), hearing.frames)
        if not made:
            made += windows.first(heard, rest_pose, emit_stop=wanted.window - wanted.drop)
        else:
            stop = _pinned_stop(wanted) if number == count - 1 else wanted.window - wanted.drop
            pieces = windows.make(last_frames(made, count=wanted.motion), heard, rest_pose, emit_stop=stop)
            costs.append(_timed(pieces, made, began_s=began_s))
    loop = np.concatenate(made)
    way_back = settle(loop[-1], loop[0], count=settling_frames(loop[-1], loop[0]))
    cost = WindowCost(
        *(float(np.median([getattr(cost, name) for cost in costs])) for name in ("whole_s", "head_start_s"))
    )
    return np.concatenate([loop, way_back]), cost


def _timed(pieces: Iterable[Pixels], made: list[Pixels], *, began_s: float) -> WindowCost:
    """Take the pieces of a window and return what it cost."""
    head_start_s, frames = 0.0, 0
    for piece in pieces:
        head_start_s = max(head_start_s, time.perf_counter() - began_s - frames / 25)
        made.append(piece)
        frames += len(piece)
    return WindowCost(time.perf_counter() - began_s, head_start_s)
