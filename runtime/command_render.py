# SPDX-License-Identifier: Apache-2.0
"""`edgereels render`: sound and a face in, video out."""

import argparse
import json
from pathlib import Path

from .command_progress import compile_progress, frames_progress
from .options import OptionParser, add_session_options, session_arguments, size
from .printable import printable
from .report import RenderReport, engines_line
from .session import AvatarSession


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(prog="edgereels render", description="Render a talking avatar from a sound file.")
    parser.add_argument("--package", default="default", metavar="P", help="package folder (default: the embedded one)")
    face = parser.add_mutually_exclusive_group()
    face.add_argument("--avatar", metavar="A", help="avatar file, or the name of an avatar inside the package")
    face.add_argument("--image", type=Path, metavar="I", help="portrait to animate")
    parser.add_argument("--audio", type=Path, required=True, metavar="FILE", help="speech, 0.4 s or longer")
    parser.add_argument("--out", type=Path, metavar="OUT.mp4", help="write a video with sound")
    parser.add_argument("--frames", type=Path, metavar="OUT.npy", help="write frames: uint8 (T, H, W, 3) RGB")
    parser.add_argument("--trace", type=Path, metavar="FILE.jsonl", help="write what happened when (docs/trace.md)")
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="pixels, multiples of 16 (default: the package's nearest to the portrait)",
    )
    parser.add_argument(
        "--canvas",
        choices=("on", "off"),
        help="show the avatar's whole still, or only what the network makes (default: on where there is a still and no "
        "--size)",
    )
    window = parser.add_argument_group("windows (default: the package's settings)")
    window.add_argument("--window", type=int, metavar="W", help="frames denoised together, 4n+1")
    window.add_argument("--motion", type=int, metavar="M", help="frames handed from one window to the next, 4n+1")
    window.add_argument("--drop", type=int, metavar="D", help="frames thrown away at a window's end, 4n")
    window.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    window.add_argument("--shift", type=float, metavar="S", help="shift of the timesteps")
    parser.add_argument(
        "--guidance-text",
        type=float,
        default=1.0,
        metavar="G",
        help="scale against the negative prompt, at least 1 (default: 1)",
    )
    parser.add_argument(
        "--guidance-audio", type=float, default=1.0, metavar="G", help="scale against silence, at least 1 (default: 1)"
    )
    parser.add_argument("--prompt", help="what the key-frame pass shows")
    parser.add_argument("--negative-prompt", help="what guidance leads away from")
    draws = parser.add_mutually_exclusive_group()
    draws.add_argument("--seed", type=int, help="seed of the random draws (default: 42)")
    draws.add_argument("--noise", type=Path, metavar="FILE", help="safetensors file with recorded draws rng.NNN.*")
    add_session_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Parse, render, print."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.out is None and arguments.frames is None:
        parser.error("nothing to write: give --out OUT.mp4, --frames OUT.npy or both")
    report = _render(arguments)
    print(json.dumps(report.as_dict()) if arguments.json else describe(report))
    return 0


def _render(arguments: argparse.Namespace) -> RenderReport:
    with AvatarSession.open(
        arguments.package, on_compile=compile_progress(arguments), **session_arguments(arguments)
    ) as session:
        return session.render(
            audio=arguments.audio,
            out=arguments.out,
            frames=arguments.frames,
            trace=arguments.trace,
            avatar=arguments.avatar,
            image=arguments.image,
            size=arguments.size,
            canvas={"on": True, "off": False, None: None}[arguments.canvas],
            window=arguments.window,
            motion=arguments.motion,
            drop=arguments.drop,
            steps=arguments.steps,
            shift=arguments.shift,
            guidance_text=arguments.guidance_text,
            guidance_audio=arguments.guidance_audio,
            prompt=arguments.prompt,
            negative_prompt=arguments.negative_prompt,
            seed=arguments.seed,
            noise=arguments.noise,
            on_progress=frames_progress(arguments),
        )


def describe(report: RenderReport) -> str:
    """Say in a few lines what was made and how fast."""
    lines = [f"wrote {path}" for path in report.files]
    made = " ({}x{} on a still)".format(*report.box_size) if report.box_size else ""
    lines.append(
        f"{report.frame_count} frames of {report.height}x{report.width}{made} at {report.fps} fps "
        f"({report.media_s:.2f} s) in {report.wall_s:.2f} s: real-time factor {report.real_time_factor:.2f}"
    )
    lines.append(
        f"{engines_line(report.engines)}; {report.threads} threads, asked for {report.device}; {report.machine}"
    )
    return "\n".join(map(printable, lines))
