# SPDX-License-Identifier: Apache-2.0
"""From the length of the audio to the passes of the network: windows, key frames, seams. Integers only.

A stream longer than one window is made of one free-running *key-frame pass* over the first window, of which nothing is
shown, and then of windows a stride S = window - motion - drop apart. Each begins with the last motion frames of the one
before and ends on a frame of the key-frame pass, repeated; all but the last lose their tail of `drop` frames. A
shorter stream is the key-frame pass alone, cut (*clip mode*).

The control flow is that of SkyReels-V3, skyreels_v3/pipelines/talking_avatar_pipeline.py, commit 28c771e (facts only,
own code), with one addition: streams longer than `max_frames` are not cut (see `plan`).
"""

from dataclasses import dataclass

from .chunks import KEY_FRAME_REPEATS, WindowPlan

PUBLISHED_MAX_FRAMES = 5000
"""200 s at 25 frames per second: the longest audio that the published pipeline takes."""


@dataclass(frozen=True)
class Plan:
    """All passes of one stream, in order."""

    audio_frames: int
    """Frames of audio, and of video."""

    padded_frames: int
    """Frames that the windows cover; the difference is cut from the last one."""

    key_pass: WindowPlan
    """The free-running pass that the key frames are taken from; in clip mode it is also what is shown."""

    windows: tuple[WindowPlan, ...]
    """The windows; empty in clip mode."""

    @property
    def is_clip(self) -> bool:
        """True if the key-frame pass is all there is."""
        return not self.windows

    @property
    def passes(self) -> tuple[WindowPlan, ...]:
        """The key-frame pass and the windows: the order in which the network runs and noise is drawn."""
        return (self.key_pass, *self.windows)

    @property
    def shown(self) -> tuple[WindowPlan, ...]:
        """The passes whose frames go out."""
        return self.windows or (self.key_pass,)


def plan(
    audio_frames: int,
    *,
    window: int = 81,
    motion: int = 5,
    drop: int = 12,
    max_frames: int | None = PUBLISHED_MAX_FRAMES,
) -> Plan:
    """Plan every pass for an audio of a given length.

    Args:
        audio_frames: length of the audio in video frames, 1 or more.
        window: frames denoised together, 4n + 1.
        motion: frames that a window takes over from the one before, 4n + 1.
        drop: frames thrown away at the end of every window but the last, 4n.
        max_frames: the published cap. It bends the walk over the key frames once the padding reaches past it, so it
            is kept for audio up to that length; longer audio, and None, walk over the padded length and are not cut.

    Raises:
        ValueError: the settings do not fit together, or there is no audio.

    >>> made = plan(250)
    >>> made.padded_frames, [w.key_frame_index for w in made.windows]
    (273, [24, 42, 61, 80])
    >>> [(w.emit_frame, w.emit_frame + w.emit_stop - w.emit_start) for w in made.windows]
    [(0, 69), (69, 133), (133, 197), (197, 250)]
    >>> [w.decode_latents for w in made.windows]  # the last window is decoded up to the cut
    [18, 18, 18, 16]
    >>> plan(20).is_clip
    True
    """
    stride = check_settings(window=window, motion=motion, drop=drop)
    if audio_frames < 1:
        raise ValueError(f"audio_frames is {audio_frames}; expected 1 or more")
    if audio_frames < window:
        clip = _key_pass(window, audio_frames=audio_frames, padded_frames=audio_frames, shown=audio_frames)
        return Plan(audio_frames, audio_frames, clip, ())
    padded = audio_frames + -(audio_frames - window) % stride
    capped = padded if max_frames is None or audio_frames > max_frames else min(max_frames, padded)
    count = (padded - window) // stride + 1
    windows: list[WindowPlan] = []
    for j in range(count):
        is_last = j == count - 1
        start = j * stride
        emit_start = motion if j else 0
        emit_stop = audio_frames - start if is_last else window - drop
        windows.append(
            WindowPlan(
                pass_index=j + 1,
                window=window,
                start_frame=start,
                audio_frames=audio_frames,
                padded_frames=padded,
                condition_frames=motion if j else 1,
                condition_start=stride if j else None,
                key_frame_index=key_frame_index(start + window - 1, window=window, frames=capped),
                kept_frames=emit_stop,
                emit_start=emit_start,
                emit_stop=emit_stop,
            )
        )
    return Plan(
        audio_frames, padded, _key_pass(window, audio_frames=audio_frames, padded_frames=padded), tuple(windows)
    )


def check_settings(*, window: int, motion: int, drop: int) -> int:
    """Return the stride of these settings, in frames.

    Raises:
        ValueError: a setting has the wrong form, or nothing would be left of a window.
    """
    for name, value, rest in (("window", window, 1), ("motion", motion, 1), ("drop", drop, 0)):
        if value < rest or value % 4 != rest:
            form = "1, 5, 9, …" if rest else "0, 4, 8, …"
            raise ValueError(f"{name} is {value}; expected one of {form} (frames come four to a latent)")
    stride = window - motion - drop
    if stride <= 0:
        raise ValueError(
            f"window {window} - motion {motion} - drop {drop} leaves {stride} new frames a window; expected more than 0"
        )
    if window < motion + KEY_FRAME_REPEATS:
        raise ValueError(
            f"window {window} has no room for motion {motion} and {KEY_FRAME_REPEATS} repeats of the key frame; "
            f"expected a window of {motion + KEY_FRAME_REPEATS} frames or more"
        )
    return stride


def key_frame_index(position: int, *, window: int, frames: int) -> int:
    """Return the frame of the key-frame pass that belongs to a place in the stream.

    The pass is stretched over the whole stream: frame 0 lies at its start and frame window - 1 at its end.

    Args:
        position: absolute last frame of a window; past the end of the stream it is taken for the end.
        window: frames of the key-frame pass.
        frames: length of the stream, more than 1.

    >>> key_frame_index(80, window=81, frames=273)
    24
    """
    last = frames - 1
    whole, rest = divmod(min(position, last) * (window - 1), last)
    rounded = whole + (2 * rest > last or (2 * rest == last and whole % 2 == 1))  # half to even, as numpy rounds
    return min(max(rounded, 0), window - 1)


def _key_pass(window: int, *, audio_frames: int, padded_frames: int, shown: int = 0) -> WindowPlan:
    return WindowPlan(
        pass_index=0,
        window=window,
        start_frame=0,
        audio_frames=audio_frames,
        padded_frames=padded_frames,
        condition_frames=1,
        condition_start=None,
        key_frame_index=None,
        kept_frames=shown or window,
        emit_start=0,
        emit_stop=shown,
    )
