# SPDX-License-Identifier: Apache-2.0
"""`edgereels avatar`: prepare what is costly and constant about one identity."""

import argparse
import json
from pathlib import Path

from .command_render import add_common_options, size
from .session import AvatarSession


def main(argv: list[str]) -> int:
    """Prepare a portrait for a package and write one avatar file."""
    parser = argparse.ArgumentParser(prog="edgereels avatar", description="Prepare a portrait for a package.")
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
    add_common_options(parser)
    arguments = parser.parse_args(argv)
    try:
        with AvatarSession.open(
            arguments.package, device=arguments.device, threads=arguments.threads, compute=arguments.compute
        ) as session:
            avatar = session.prepare_avatar(
                arguments.image,
                arguments.out,
                prompt=arguments.prompt,
                negative_prompt=arguments.negative_prompt,
                size=arguments.size,
                window=arguments.window,
            )
    except ValueError as error:
        parser.error(str(error))
    summary = {
        "file": str(arguments.out),
        "size_bytes": arguments.out.stat().st_size,
        "size": avatar.size,
        "window": avatar.window,
    }
    print(
        json.dumps(summary)
        if arguments.json
        else f"wrote {arguments.out} ({summary['size_bytes']} bytes) for {avatar.size}"
    )
    return 0
