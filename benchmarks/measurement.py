# SPDX-License-Identifier: Apache-2.0
"""What one measurement is about, and its parts: each leaves a file in the work folder and is not done twice."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime import ModelPackage
from .rounds import write_part
from .sound import emulable, read_sound, write_sound
from .workload import record


@dataclass(frozen=True)
class Run:
    """What one run of this benchmark is about."""

    work: Path
    """Folder for its parts."""
    checkpoint: Path | None
    """What the package was exported from; None: PyTorch is left out."""
    package: str = "default"
    """What is compared."""
    quantized: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Recipe to a package that was made with it."""
    rounds: int = 7
    """Measured rounds."""
    threads: int = 2
    """Everybody's."""
    trial_limit_s: float = 240.0
    """For one variant of PyTorch, compilation included."""

    @property
    def workload(self) -> str:
        """Where the recorded calls are."""
        return str(self.work / "workload")

    @property
    def sound(self) -> str:
        """Where the clip's sound is."""
        return str(self.work / "sound.npy")

    @property
    def folder(self) -> str:
        """Where the package is."""
        return str(ModelPackage.open(self.package, verify="size").root)


Part = Callable[[Run], Any]


def record_workload(run: Run, *, audio: Path, seconds: float) -> None:
    """Record the calls of a render of the beginning of a sound file, unless that is done."""
    if (run.work / "workload" / "workload.json").exists():
        return
    sound = emulable(read_sound(audio, seconds=seconds))
    write_sound(Path(run.sound), sound)
    record(run.package, Path(run.workload), audio=sound, threads=run.threads)


def do_parts(run: Run, wanted: Mapping[str, Part], *, prefix: str = "", again: bool = False) -> None:
    """Do the parts that are not done yet, each into a file of its own."""
    for name, part in wanted.items():
        path = run.work / f"{prefix}{name}.json"
        if path.exists() and not again:
            print(f"{path.name} is there already", file=sys.stderr)
            continue
        start_s = time.perf_counter()
        write_part(path, part(run))
        print(f"{path.name} took {time.perf_counter() - start_s:.0f} s", file=sys.stderr, flush=True)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what a run is made of."""
    demo = Path(__file__).parents[1] / "runtime" / "embedded" / "demo.wav"
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for what is measured; made where it is missing"
    )
    parser.add_argument("--checkpoint", type=Path, help="what the package was exported from; without it, no PyTorch")
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument(
        "--quantized", action="append", default=[], metavar="RECIPE=FOLDER", help="a package made from it; repeatable"
    )
    parser.add_argument("--audio", type=Path, default=demo, help="speech: a WAV file, 16 kHz, one channel, 16 bits")
    parser.add_argument("--seconds", type=float, default=4.0, help="of it (default: 4)")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="for everybody (default: 2)")
    parser.add_argument("--again", action="store_true", help="measure again what lies in the folder")


def run_of(arguments: argparse.Namespace) -> Run:
    """Return the run that was asked for."""
    arguments.work.mkdir(exist_ok=True)
    pairs = (text.partition("=") for text in arguments.quantized)
    return Run(
        work=arguments.work.resolve(),
        checkpoint=arguments.checkpoint.resolve() if arguments.checkpoint else None,
        package=arguments.package,
        quantized={recipe: Path(folder).resolve() for recipe, _, folder in pairs},
        rounds=arguments.rounds,
        threads=arguments.threads,
    )
