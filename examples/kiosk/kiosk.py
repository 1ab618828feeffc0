# SPDX-License-Identifier: Apache-2.0
"""A kiosk that says what is typed, or piped in, line by line; a new line interrupts the one before.

::

    pip install 'edgereels[openvino,live,video]'
    apt install libportaudio2 espeak-ng          # Debian, Ubuntu
    python examples/kiosk/kiosk.py --full-screen

The voice is a program of its own that writes sound while it speaks. Its sound goes into the stream block by block, so
the face begins before the sentence is synthesized. Ends with the input, with its window, or with Ctrl-C.
"""

import argparse
import gc
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, suppress
from typing import Any

import numpy as np

from edgereels.runtime import LATENCIES, AvatarSession, EdgereelsError, Live, State, to_file, to_window

Lines = queue.Queue[str | None]
"""What is to be said; None at the end."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description="Say what comes on standard input; a new line interrupts the last.")
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--avatar", help="name of an avatar inside the package, or an avatar file")
    parser.add_argument("--device", default="openvino:CPU", help="cpu, openvino:CPU, cuda:0, … (default: openvino:CPU)")
    parser.add_argument("--threads", type=int, help="at most so many (default: all)")
    parser.add_argument("--latency", choices=LATENCIES, default="low")
    parser.add_argument("--voice", default="en", help="of espeak-ng: en, de, fr+f2, … (default: en)")
    parser.add_argument("--full-screen", action="store_true", help="over the whole screen; needs a window manager")
    parser.add_argument("--silent", action="store_true", help="don't play the sound")
    parser.add_argument("--film", metavar="OUT.mp4", help="film it as well")
    return parser.parse_args(argv)


def spoken(text: str, *, voice: str) -> Generator[tuple[np.ndarray, int]]:
    """Yield (samples int16 (n,), Hz) as a voice makes them; closing the generator ends the voice."""
    command = ["espeak-ng", "-v", voice, "--stdin", "--stdout"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(text.encode())
            process.stdin.close()
            header = process.stdout.read(44)  # of a WAV file whose length nobody knows yet
            rate, rest = int.from_bytes(header[24:28], "little"), b""
            while data := process.stdout.read(4096):
                data = rest + data
                rest = data[len(data) // 2 * 2 :]
                yield np.frombuffer(data[: len(data) // 2 * 2], "<i2"), rate
        finally:
            process.kill()


def read_lines(lines: Lines) -> None:
    """Put what comes on standard input into a queue; None at its end."""
    for line in sys.stdin:
        if line.strip():
            lines.put(line.strip())
    lines.put(None)


def say(live: Live, text: str, *, voice: str, lines: Lines) -> None:
    """Say a line, as far as it goes before a new one comes."""
    with closing(spoken(text, voice=voice)) as blocks:
        for samples, rate in blocks:
            while not (lines.qsize() and lines.queue[0] is not None):
                try:
                    live.push(samples, rate, wait=False)
                    break
                except queue.Full:  # 30 s wait to be said: a new line may still come
                    time.sleep(0.05)
            else:
                return
    live.end_utterance()


def run(live: Live, lines: Lines, stopping: threading.Event, *, voice: str) -> tuple[int, int]:
    """Say lines until the input ends; return how many were begun, and how many were interrupted."""
    begun = interrupted = 0
    while not stopping.is_set():
        with suppress(queue.Empty):
            line = lines.get(timeout=0.1)
            if line is None:
                break
            if not live.wait_idle(0.05):
                live.interrupt()
                interrupted += 1
            begun += 1
            say(live, line, voice=voice, lines=lines)
    while not stopping.is_set() and not live.wait_idle(0.2):
        pass
    return begun, interrupted


def main(argv: list[str] | None = None) -> int:
    """Open everything, say what comes, and how it went."""
    arguments = parse(argv)
    lines: Lines = queue.Queue()
    stopping = threading.Event()

    def note(event: dict[str, Any]) -> None:
        """Say on standard error what an operator wants to know; called from any thread."""
        if event["event"] == "state" or event["code"].startswith("AUDIO"):
            print(f"kiosk: {event['code']} {event.get('to', '')}", file=sys.stderr, flush=True)
        if event["code"] == "WINDOW_CLOSED" or event.get("to") == State.FAILED:
            stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    outputs = [to_window("kiosk", full_screen=arguments.full_screen)]
    outputs += [to_file(arguments.film)] if arguments.film else []
    with (
        AvatarSession.open(arguments.package, device=arguments.device, threads=arguments.threads) as session,
        session.live(
            avatar=arguments.avatar,
            latency=arguments.latency,
            outputs=outputs,
            speakers=not arguments.silent,
            on_event=note,
        ) as live,
    ):
        gc.freeze()  # collections pass over what is there now: the face doesn't wait for them
        print(f"kiosk: ready; {live.latency}", file=sys.stderr, flush=True)
        threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
        begun, interrupted = run(live, lines, stopping, voice=arguments.voice)
        counts, has_failed = live.counts, live.state is State.FAILED
    print(f"{begun} lines, {interrupted} interrupted; {counts.shown} frames spoken, {counts.stalls} stalls")
    return 1 if has_failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgereelsError as error:
        sys.exit(f"kiosk: {error}")
