# SPDX-License-Identifier: Apache-2.0
"""Frames as `edgereels render` makes them: sound in, through the command line, the box of the avatar out."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgereels.runtime import ModelPackage
from edgereels.runtime.planner import plan

from .speech import SAMPLE_RATE


@dataclass(frozen=True)
class Renderer:
    """What renders: a package on a device."""

    package: str
    """Folder, or "default"."""
    device: str = "cpu"
    """As of `edgereels render`."""
    compute: str = "auto"
    """As of `edgereels render`."""
    threads: int = 2

    @property
    def avatars(self) -> list[str]:
        """Names of the package's avatars."""
        return sorted(self._package.manifest.avatars)

    def seams(self, frames: int) -> list[int]:
        """Return the first frame of every window but the first, by the package's settings."""
        settings = self._package.manifest.settings
        made = plan(frames, window=settings.window, motion=settings.motion, drop=settings.drop)
        return [window.emit_frame for window in made.windows[1:]]

    @property
    def _package(self) -> ModelPackage:
        return ModelPackage.open(self.package, verify="size")

    @contextmanager
    def frames(
        self, waveform: npt.NDArray[np.float32], *, avatar: str, canvas: bool = False, options: tuple[str, ...] = ()
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Render 16 kHz sound; the frames (count, height, width, 3) are mapped from a file that goes with the context.

        Args:
            waveform: sound.
            avatar: name in the package.
            canvas: the whole still with the box blended in, instead of the box alone.
            options: more of `edgereels render`.
        """
        with tempfile.TemporaryDirectory() as folder:
            sound, output = write_sound(Path(folder) / "speech.wav", waveform), Path(folder) / "frames.npy"
            self.run(sound, avatar, "--frames", str(output), "--canvas", "on" if canvas else "off", *options)
            frames = np.load(output, mmap_mode="r")
            yield frames
            del frames

    def run(self, sound: Path, avatar: str, *options: str) -> None:
        """Run `edgereels render` on a sound file; a failure ends the program with its message."""
        command = ["edgereels", "render", "--package", self.package, "--avatar", avatar, "--audio", str(sound)]
        command += ["--device", self.device, "--compute", self.compute, "--threads", str(self.threads), "--json"]
        finished = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise SystemExit(f"edgereels render failed: {finished.stderr.strip()}")


def write_sound(path: Path, waveform: npt.NDArray[np.float32]) -> Path:
    """Write 16 kHz sound as 16-bit WAV and return where."""
    import soundfile

    soundfile.write(path, waveform, SAMPLE_RATE, subtype="PCM_16")
    return path
