# SPDX-License-Identifier: Apache-2.0
"""A desktop window with an avatar and a line to type in; what is typed is spoken, and a new line interrupts.

::

    pip install 'edgereels[openvino,live]' PySide6-Essentials
    apt install libportaudio2 espeak-ng libxcb-cursor0          # Debian, Ubuntu
    python examples/qt_window/qt_window.py

Engines, stream and voice have a thread of their own, so the window always answers; a timer measures whether it does.
"""

import argparse
import queue
import signal
import subprocess
import threading
import time
from typing import Any

import numpy as np
from PySide6.QtCore import QObject, Qt, QTimer, Signal
from PySide6.QtGui import QImage, QKeySequence, QPixmap, QShortcut
from PySide6.QtWidgets import QApplication, QLabel, QLineEdit, QVBoxLayout, QWidget

from edgereels.runtime import LATENCIES, AvatarSession, EdgereelsError, Live, ShownMedia, to_callback


class Actor(QObject):
    """The avatar. `say` and `leave` may be called from the window's thread; nothing there ever waits."""

    came = Signal()  # there is a new frame
    told = Signal(str)

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.newest: np.ndarray | None = None  # (H, W, 3) RGB; None once it was taken
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(arguments,))
        self._thread.start()

    def say(self, text: str) -> None:
        """Say a line instead of what is being said."""
        self._lines.put(text)

    def leave(self) -> None:
        """End it all, and wait for that."""
        self._lines.put(None)
        self._thread.join()

    def _show(self, media: ShownMedia) -> None:
        """Keep a frame; called by the stream, from a thread of its own. A slow window sees fewer frames."""
        is_first, self.newest = self.newest is None, media.frames[0]
        if is_first:
            self.came.emit()

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "state":
            self.told.emit(f"{event['to']} ({event['code']})")

    def _run(self, given: argparse.Namespace) -> None:
        try:
            with (
                AvatarSession.open(given.package, device=given.device, threads=given.threads) as session,
                session.live(
                    avatar=given.avatar,
                    latency=given.latency,
                    outputs=[to_callback(self._show)],
                    speakers=not given.silent,
                    on_event=self._note,
                ) as live,
            ):
                while (line := self._lines.get()) is not None:
                    if not live.wait_idle(0.05):
                        live.interrupt()
                    self._speak(live, line)
                counts = live.counts
            print(f"{counts.shown} frames spoken, {counts.rest} at rest, {counts.stalls} stalls")
        except EdgereelsError as error:
            self.told.emit(str(error))

    def _speak(self, live: Live, line: str) -> None:
        """Hand a line to the stream as espeak-ng makes it, until a new line comes."""
        with subprocess.Popen(["espeak-ng", "--stdout", "--", line], stdout=subprocess.PIPE) as voice:
            assert voice.stdout is not None
            rate = int.from_bytes(voice.stdout.read(44)[24:28], "little")  # the header of a WAV file
            while self._lines.empty() and (data := voice.stdout.read(4096)):
                live.push(np.frombuffer(data, "<i2"), rate)  # waits while 30 s wait to be said
            voice.kill()
        live.end_utterance()


class Window(QWidget):
    """A picture, a line to type in, a line that tells."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(windowTitle="edgereels")
        self._actor, self._line, self._told = actor, QLineEdit(), QLabel("opens …")
        self._picture = QLabel(alignment=Qt.AlignmentFlag.AlignCenter)
        self._picture.setMinimumSize(360, 360)
        layout = QVBoxLayout(self)
        for part in (self._picture, self._line, self._told):
            layout.addWidget(part, stretch=1 if part is self._picture else 0)
        self._line.returnPressed.connect(lambda: (actor.say(self._line.text()), self._line.clear()))
        QShortcut(QKeySequence("Ctrl+Q"), self, self.close)
        actor.came.connect(self._draw)
        actor.told.connect(self._told.setText)
        self.beats, self.longest_s, self._last_s = 0, 0.0, time.perf_counter()
        heart = QTimer(self, interval=10, timerType=Qt.TimerType.PreciseTimer)
        heart.timeout.connect(self._beat)
        heart.start()

    def _beat(self) -> None:
        before_s, self._last_s = self._last_s, time.perf_counter()
        self.beats, self.longest_s = self.beats + 1, max(self.longest_s, self._last_s - before_s)

    def _draw(self) -> None:
        frame, self._actor.newest = self._actor.newest, None
        if frame is not None:
            height, width = frame.shape[:2]
            image = QImage(frame.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
            size, keep = self._picture.size(), Qt.AspectRatioMode.KeepAspectRatio
            self._picture.setPixmap(QPixmap(image.scaled(size, keep, Qt.TransformationMode.SmoothTransformation)))


def main(argv: list[str] | None = None) -> None:
    """Open the window; return when it is closed."""
    parser = argparse.ArgumentParser(description="Type what an avatar says.")
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--avatar", help="name of an avatar inside the package, or an avatar file")
    parser.add_argument("--device", default="openvino:CPU", help="cpu, openvino:CPU, cuda:0, … (default: openvino:CPU)")
    parser.add_argument("--threads", type=int, help="at most so many (default: all)")
    parser.add_argument("--latency", choices=LATENCIES, default="low")
    parser.add_argument("--silent", action="store_true", help="don't play the sound")
    app = QApplication([])
    actor = Actor(parser.parse_args(argv))
    window = Window(actor)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: window.close())  # seen at the next beat
    window.show()
    app.exec()
    print(f"the window didn't answer for {1000 * window.longest_s:.0f} ms at most ({window.beats} beats)")
    actor.leave()


if __name__ == "__main__":
    main()
