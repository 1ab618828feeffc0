# SPDX-License-Identifier: Apache-2.0
"""`edgereels bench compare`: two recipes of settings against each other."""

import json
from collections.abc import Mapping
from pathlib import Path

from ..runtime import LATENCIES, EngineReport, load_speech
from ..runtime.options import OptionParser, add_run_options
from ..runtime.printable import printable
from .command_bench_options import add_utterance_options, canvas, count, end_line, engines_said, say_to, whole_frames
from .latency_compare import LEAST_PAIRS
from .latency_pairs import VOID, read_recipe, run_compare
from .latency_run import Surroundings
from .report_folder import COMPARISON, check_folder, report_folder


def compare(argv: list[str]) -> int:
    """Parse, compare, print."""
    parser = OptionParser(
        prog="edgereels bench compare",
        description="Compare two recipes of settings, interleaved in one run, after the noise of this machine. A "
        "recipe is a JSON file or text such as device=openvino:CPU,latency=low; what it leaves out the options say.",
    )
    parser.add_argument("first", metavar="A", help="recipe")
    parser.add_argument("second", metavar="B", help="recipe")
    parser.add_argument("--audio", type=Path, required=True, metavar="FILE", help="speech")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for comparison.json")
    parser.add_argument("--force", action="store_true", help="replace a comparison that exists")
    parser.add_argument(
        "--pairs", type=count, default=LEAST_PAIRS, metavar="N", help=f"default, and least for a verdict: {LEAST_PAIRS}"
    )
    parser.add_argument("--package", default="default", metavar="P", help="package folder (default: the embedded one)")
    parser.add_argument("--avatar", metavar="A", help="avatar file, or the name of an avatar inside the package")
    parser.add_argument("--canvas", choices=("on", "off"), default="off", help="default: off")
    parser.add_argument("--latency", choices=LATENCIES, default="low", help="default: low")
    parser.add_argument("--seed", type=int, help="seed of the random draws (default: 42)")
    add_utterance_options(parser)
    add_run_options(parser)
    arguments = parser.parse_args(argv)
    check_folder(arguments.out, force=arguments.force)
    names = ("package", "avatar", "latency", "seed", "device", "threads", "compute")
    defaults = {name: getattr(arguments, name) for name in names} | {"canvas": canvas(arguments.canvas)}
    first, second = (read_recipe(text, defaults=defaults) for text in (arguments.first, arguments.second))
    samples = load_speech(arguments.audio)
    engines: list[Mapping[str, EngineReport]] = []
    with report_folder(arguments.out, force=arguments.force) as folder:
        found = run_compare(
            first,
            second,
            samples,
            pairs=arguments.pairs,
            length_s=whole_frames(arguments.utterance),
            speed=arguments.push_speed,
            around=Surroundings(say=say_to(arguments), on_engines=engines.append),
        )
        (folder / COMPARISON).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    end_line(arguments)
    print(json.dumps(found) if arguments.json else printable(found["sentence"]))
    if not arguments.json:
        for name, recipe, of_side in zip(("first", "second"), (first, second), engines, strict=True):
            print(printable(f"{name}: {engines_said(of_side, recipe.session['device'])}"))
    return 1 if found["verdict"] == VOID else 0
