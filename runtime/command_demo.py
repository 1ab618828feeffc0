# SPDX-License-Identifier: Apache-2.0
"""`edgereels demo`: the embedded avatar speaks a bundled clip."""

import json
from pathlib import Path

from .command_progress import compile_progress, frames_progress
from .command_render import describe
from .model_package import DEMO_SPEECH
from .options import OptionParser, add_session_options, session_arguments
from .session import AvatarSession


def main(argv: list[str]) -> int:
    """Render the bundled clip and say where it is, how long it took, and the real-time factor."""
    parser = OptionParser(prog="edgereels demo", description="Render a bundled speech clip with the embedded avatar.")
    parser.add_argument(
        "--out", type=Path, default=Path("edgereels-demo.mp4"), help="where to write (default: edgereels-demo.mp4)"
    )
    parser.add_argument("--avatar", metavar="NAME", help="one of the embedded avatars (default: the first)")
    add_session_options(parser)
    arguments = parser.parse_args(argv)
    with AvatarSession.open(
        "default", on_compile=compile_progress(arguments), **session_arguments(arguments)
    ) as session:
        report = session.render(
            audio=DEMO_SPEECH,
            out=arguments.out.absolute(),
            avatar=arguments.avatar,
            on_progress=frames_progress(arguments),
        )
    print(json.dumps(report.as_dict()) if arguments.json else describe(report))
    return 0
