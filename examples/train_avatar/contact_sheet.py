# SPDX-License-Identifier: Apache-2.0
"""Show a package to the eye: drawn truth, through the autoencoder, rendered. A sheet, and a side-by-side video.

    python -m train_avatar.contact_sheet --package P --sheet sheet.webp --canvas --video both.mp4

The speech was never heard in training. Columns are moments worth looking at, not random ones. Blinks and glances that
chance decides fall at other moments in the render than in the drawn truth: nothing tells the network when.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from edgereels.runtime import Mp4Sink
from edgereels.runtime.metrics import correlation

from .autoencoder import Autoencoder, checkpoint_autoencoder, package_autoencoder
from .draw_footage import draw_clip
from .evaluate import renderer_avatars
from .face import Pose, draw_still
from .footage import FPS, SAMPLE_RATE, SIZE
from .gates import decibels
from .held_out_speech import SYNTHESIZERS, act, held_out_clips
from .identities import IDENTITIES
from .mouth_reader import MouthReader
from .performance import DRIVES, Performance, perform
from .rendering import Renderer
from .speech import Speech

MOST_BYTES = 1_000_000
"""Of a sheet."""
SHRINKS = ((1.0, None), (0.8, None), (0.65, None), (1.0, 256), (0.85, 256), (0.7, 256), (0.5, 256))
"""Scale and colours of a PNG sheet, tried one after the other until it is small enough; fewer colours show steps in
soft backgrounds that aren't there."""
WEBP_QUALITIES = (95, 90, 80, 60)
"""Of a WebP sheet, tried one after the other."""
_CAPTION = 16
"""Height of a caption, in pixels."""
_LEAD_FRAMES = 8
"""At the beginning, before anything has happened."""
_VIDEO_SIZE = 540

Pixels = npt.NDArray[np.uint8]


def moments(performance: Performance, poses: Sequence[Pose], *, count: int) -> list[int]:
    """Return frames worth looking at, in order: the mouth's extremes, a blink, turned heads, and what lies between."""
    column = {name: performance.drives[:, index] for index, name in enumerate(DRIVES)}
    yaw = np.array([pose.yaw for pose in poses])
    wanted = [
        performance.opening,
        column["blink"],
        -performance.lip_width,
        -performance.opening - 0.1 * np.abs(np.gradient(performance.opening)),
        yaw,
        -yaw,
        performance.lip_width,
    ]
    chosen: list[int] = []
    for series in wanted:
        free = [at for at in range(_LEAD_FRAMES, len(series)) if all(abs(at - other) >= 4 for other in chosen)]
        if free and len(chosen) < count:
            chosen.append(free[int(np.argmax(series[free]))])
    while len(chosen) < count:  # the middle of the widest gap
        edges = sorted([_LEAD_FRAMES, *chosen, len(poses) - 1])
        widest = int(np.argmax(np.diff(edges)))
        chosen.append((edges[widest] + edges[widest + 1]) // 2)
    return sorted(chosen)


def speech_for(avatars: Sequence[str], *, seconds: float) -> list[Speech]:
    """Return an utterance for each avatar, of the three synthesizers in turn."""
    spoken = {name: held_out_clips(name, count=2, duration_s=seconds) for name in SYNTHESIZERS}
    return [
        spoken[SYNTHESIZERS[index % len(SYNTHESIZERS)]][index // len(SYNTHESIZERS) % 2] for index in range(len(avatars))
    ]


def sheet_rows(
    renderer: Renderer, avatar: str, speech: Speech, *, through: Autoencoder, columns: int
) -> tuple[list[Pixels], list[int]]:
    """Return three captioned rows of one avatar, and which frames they show."""
    poses, performance = act(speech, seed=1), perform(speech)
    shown = moments(performance, poses, count=columns)
    truth = draw_clip(IDENTITIES[avatar], poses)
    coded = through(truth[: (len(truth) - 1) // 4 * 4 + 1])
    reader = MouthReader.fitted(avatar, size=SIZE)
    with renderer.frames(speech.waveform, avatar=avatar) as frames:
        rendered = np.array(frames)
    seen = reader.read(rendered)
    follows = correlation(seen.opening, performance.opening[: len(rendered)].astype(np.float64))
    widths = correlation(seen.width, performance.lip_width[: len(rendered)].astype(np.float64))
    fidelity = decibels(float(((coded.astype(np.float32) - truth[: len(coded)]) ** 2).mean()))
    shown = [min(at, len(coded) - 1, len(rendered) - 1) for at in shown]
    captions = (
        f"{avatar}, drawn truth: {speech.voice}, held out; seconds " + ", ".join(f"{at / FPS:.1f}" for at in shown),
        f"{avatar}, through the autoencoder: {fidelity:.1f} dB",
        f"{avatar}, edgereels render: opening {follows:.3f}, width {widths:.3f} over {len(rendered) / FPS:.0f} s",
    )
    for caption in captions:
        print(caption, flush=True)
    rows = [
        captioned(list(frames[shown]), text) for frames, text in zip((truth, coded, rendered), captions, strict=True)
    ]
    return rows, shown


def canvas_row(renderer: Renderer, avatar: str, speech: Speech, shown: Sequence[int], *, cell: int) -> Pixels:
    """Return whole stills with the box blended in, scaled to `cell` pixels."""
    with renderer.frames(speech.waveform, avatar=avatar, canvas=True) as frames:
        cells = [_resized(frames[at], cell) for at in shown]
        height = frames.shape[1]
    return captioned(cells, f"{avatar}, on its canvas of {height} pixels, here {cell}")


def captioned(pictures: Sequence[Pixels], caption: str) -> Pixels:
    """Return pictures side by side under a caption."""
    strip = np.concatenate(pictures, axis=1)
    bar = Image.new("RGB", (strip.shape[1], _CAPTION), "white")
    ImageDraw.Draw(bar).text((4, 2), caption, fill="black")
    return np.concatenate([np.asarray(bar), strip])


def save_small(picture: Pixels, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
    """Write a picture of at most so many bytes: WebP by its suffix, else PNG with fewer pixels and colours.

    Raises:
        ValueError: it doesn't fit at its smallest either.
    """
    for write in _ways(picture, webp=path.suffix == ".webp"):
        write(path)
        if path.stat().st_size <= most_bytes:
            return
    raise ValueError(
        f"{path} has {path.stat().st_size} bytes at its smallest; expected at most {most_bytes}: show less"
    )


def _ways(picture: Pixels, *, webp: bool) -> Iterator[Callable[[Path], None]]:
    """Yield ways to write a picture, the best and largest first."""
    whole = Image.fromarray(picture)
    if webp:
        yield from (partial(whole.save, quality=quality, method=6) for quality in WEBP_QUALITIES)
        return
    for scale, colours in SHRINKS:
        size = (round(whole.width * scale), round(whole.height * scale))
        image = whole.resize(size, Image.Resampling.LANCZOS) if scale < 1 else whole
        if colours:
            image = image.quantize(colours, dither=Image.Dither.FLOYDSTEINBERG)
        yield partial(image.save, optimize=True)


def write_video(renderer: Renderer, path: Path, *, seconds: float, canvas: bool) -> None:
    """Write the drawn truth beside the render, with sound; every avatar in turn."""
    avatars = renderer_avatars(renderer)
    spoken = speech_for(avatars, seconds=round(seconds / len(avatars), 2))
    sound = np.concatenate([speech.waveform for speech in spoken])
    with Mp4Sink(
        path, height=_VIDEO_SIZE, width=2 * _VIDEO_SIZE, fps=FPS, sound=sound, sample_rate=SAMPLE_RATE,
        comment="left: drawn truth; right: edgereels render, AI-generated",
    ) as sink:  # fmt: skip
        for avatar, speech in zip(avatars, spoken, strict=True):
            truth = _drawn(avatar, act(speech, seed=2), canvas=canvas)
            with renderer.frames(speech.waveform, avatar=avatar, canvas=canvas) as frames:
                for left, right in zip(truth, frames, strict=False):
                    sink.write(np.concatenate([left, _resized(right, _VIDEO_SIZE)], axis=1)[None])


def _drawn(avatar: str, poses: Sequence[Pose], *, canvas: bool) -> Iterator[Pixels]:
    for pose in poses:
        if canvas:
            yield draw_still(IDENTITIES[avatar], pose, size=_VIDEO_SIZE)
        else:
            yield _resized(draw_clip(IDENTITIES[avatar], [pose])[0], _VIDEO_SIZE)


def _resized(picture: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="contact_sheet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--checkpoint", type=Path, help="take the autoencoder from here (default: the package's own)")
    parser.add_argument("--sheet", type=Path, help="PNG or WebP to write, below 1 MB")
    parser.add_argument("--columns", type=int, default=8, help="moments (default: 8)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of speech per avatar (default: 8)")
    parser.add_argument("--canvas", action="store_true", help="whole stills as well; in the video, instead")
    parser.add_argument("--video", type=Path, metavar="OUT.mp4", help="drawn truth and render side by side, with sound")
    parser.add_argument("--video-seconds", type=float, default=20.0, help="(default: 20)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--device", default="cpu", help="as of `edgereels render`")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Write what was asked for."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.sheet is None and chosen.video is None:
        parser.error("nothing to write: give --sheet SHEET.png, --video OUT.mp4 or both")
    renderer = Renderer(chosen.package, device=chosen.device, threads=chosen.threads)
    if chosen.sheet:
        through = (
            checkpoint_autoencoder(chosen.checkpoint)
            if chosen.checkpoint
            else package_autoencoder(chosen.package, device=chosen.device, threads=chosen.threads)
        )
        avatars = renderer_avatars(renderer)
        spoken = speech_for(avatars, seconds=chosen.seconds)
        rows: list[Pixels] = []
        for avatar, speech in zip(avatars, spoken, strict=True):
            made, shown = sheet_rows(renderer, avatar, speech, through=through, columns=chosen.columns)
            rows += made
            if chosen.canvas:
                cells = shown[:: max(1, len(shown) // 4)][:4]
                rows.append(canvas_row(renderer, avatar, speech, cells, cell=SIZE * chosen.columns // len(cells)))
        save_small(np.concatenate(rows), chosen.sheet)
    if chosen.video:
        write_video(renderer, chosen.video, seconds=chosen.video_seconds, canvas=chosen.canvas)
    return 0


if __name__ == "__main__":
    sys.exit(main())
