# SPDX-License-Identifier: Apache-2.0
"""`edgereels avatar`: prepare what is costly and constant about one identity."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .command_progress import compile_progress
from .options import OptionParser, add_session_options, session_arguments, size
from .report import EngineReport, engines_line
from .session import AvatarSession


def main(argv: list[str]) -> int:
    """Prepare a portrait for a package and write one avatar file."""
    parser = OptionParser(prog="edgereels avatar", description="Prepare a portrait for a package.")
    parser.add_argument("package", metavar="PACKAGE", help="package folder")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="portrait")
    parser.add_argument("out", type=Path, metavar="OUT", help="avatar file to write")
    parser.add_argument("--prompt", help="what the key-frame pass shows")
    parser.add_argument("--negative-prompt", help="what guidance leads away from")
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="pixels to prepare for (default: the package's nearest to the portrait)",
    )
    parser.add_argument(
        "--window", type=int, metavar="W", help="frames in a window to prepare for (default: the package's)"
    )
    add_session_options(parser)
    arguments = parser.parse_args(argv)
    with AvatarSession.open(
        arguments.package, on_compile=compile_progress(arguments), **session_arguments(arguments)
    ) as session:
        avatar = session.prepare_avatar(
            arguments.image,
            arguments.out,
            prompt=arguments.prompt,
            negative_prompt=arguments.negative_prompt,
            size=arguments.size,
            window=arguments.window,
        )
        engines = session.engine_reports
    summary = {
        "file": str(arguments.out),
        "size_bytes": arguments.out.stat().st_size,
        "size": avatar.size,
        "window": avatar.window,
        "package_digest": avatar.package_digest,
        "device": arguments.device,
        "engines": {graph: got.as_dict() for graph, got in engines.items()},
    }
    print(json.dumps(summary) if arguments.json else describe(summary, engines=engines))
    return 0


def describe(summary: Mapping[str, Any], *, engines: Mapping[str, EngineReport]) -> str:
    """Say in two lines what was made, and what computed it."""
    height, width = summary["size"]
    return (
        f"wrote {summary['file']} ({summary['size_bytes']} bytes), prepared for {height}x{width} and windows of "
        f"{summary['window']} frames\n{engines_line(engines)}; asked for {summary['device']}"
    )
