# SPDX-License-Identifier: Apache-2.0
"""Make speech with known phonemes: espeak-ng through its library, flite through its command line.

Texts are drawn at random from word lists, so no corpus is needed. `random_speech` returns one utterance with
pauses; the same seed gives the same utterance.
"""

import ctypes
import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from .words import WORDS

SAMPLE_RATE = 16000

ESPEAK_TRAINING_VOICES = tuple(
    language + variant
    for language in (
        "en-us",
        "en",
        "en-us",
        "en",
        "en-gb-scotland",
        "de",
        "fr",
        "es",
        "it",
        "nl",
        "pt",
        "pl",
        "sv",
        "tr",
        "ru",
        "fi",
    )
    for variant in ("", "+m1", "+m2", "+m3", "+m4", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4")
)
ESPEAK_HELD_OUT_VOICES = ("en-us+f5", "en-gb-x-rp+m5", "en-us+m8", "en-029+f5")
FLITE_TRAINING_VOICES = ("slt", "slt", "slt", "awb", "kal16")
"""slt, which also speaks the demo, three times as often."""
FLITE_HELD_OUT_VOICES = ("rms",)

FLITE_TO_IPA = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "ay": "aɪ", "b": "b", "ch": "tʃ", "d": "d",
    "dh": "ð", "eh": "ɛ", "er": "ɜ", "ey": "eɪ", "f": "f", "g": "ɡ", "hh": "h", "ih": "ɪ", "iy": "i", "jh": "dʒ",
    "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ",
    "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ",
}  # fmt: skip


@dataclass(frozen=True)
class Speech:
    """One utterance and when each of its phonemes is spoken."""

    waveform: npt.NDArray[np.float32]
    """Mono, 16 kHz."""
    phonemes: list[tuple[float, float, str]]
    """(start_s, end_s, IPA characters), in order; silence is not listed."""
    voice: str
    """Which synthesiser and voice spoke."""


class _EspeakEvent(ctypes.Structure):
    class _Identity(ctypes.Union):
        _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))

    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position_ms", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("identity", _Identity),
    )  # fmt: skip


_ON_SYNTHESISED = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
)


class Espeak:
    """libespeak-ng, which speaks into memory and reports phonemes. One object per process."""

    _PHONEME_EVENT = 7
    _RATE, _PITCH, _RANGE = 1, 3, 4

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        # 2: synchronous, no playback. Options: phoneme events, IPA names, do not exit on error.
        self._sample_rate = self._library.espeak_Initialize(2, 500, None, 0x1 | 0x2 | 0x8000)
        if self._sample_rate <= 0:
            raise OSError("libespeak-ng could not be initialised: are its voice data installed?")
        self._pieces: list[npt.NDArray[np.int16]] = []
        self._events: list[tuple[float, str]] = []
        self._callback = _ON_SYNTHESISED(self._on_synthesised)  # kept: the library holds the pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def _on_synthesised(self, samples, count, events) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != 0:
            event = events[index]
            if event.type == self._PHONEME_EVENT:
                name = bytes(event.identity.string).split(b"\0")[0].decode("utf8", "ignore")
                self._events.append((event.audio_position_ms / 1000, name))
            index += 1
        return 0

    def say(self, text: str, *, voice: str, rate: int, pitch: int) -> Speech:
        """Speak `text`; `rate` in words per minute, `pitch` 0 to 100."""
        self._pieces, self._events = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(self._RATE, rate, 0)
        self._library.espeak_SetParameter(self._PITCH, pitch, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        waveform = resample(np.concatenate(self._pieces).astype(np.float32) / 32768, self._sample_rate)
        ends = [start_s for start_s, _ in self._events[1:]] + [len(waveform) / SAMPLE_RATE]
        phonemes = [
            (start_s, min(end_s, start_s + 0.3), name)
            for (start_s, name), end_s in zip(self._events, ends, strict=True)
            if any(character.isalpha() for character in name) and end_s > start_s
        ]
        return Speech(waveform, phonemes, f"espeak-ng {voice}")


def say_with_flite(text: str, *, voice: str, stretch: float = 1.0) -> Speech:
    """Speak `text` with one of flite's built-in voices; `stretch` > 1 is slower."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}", "-psdur", "-t", text, "-o"]
        report = subprocess.run([*command, str(path)], check=True, capture_output=True, text=True).stdout
        waveform = read_wav(path)
    phonemes: list[tuple[float, float, str]] = []
    start_s = 0.0
    for item in report.split():
        name, _, end = item.rpartition(":")
        end_s = float(end)
        if name in FLITE_TO_IPA:
            phonemes.append((start_s, end_s, FLITE_TO_IPA[name]))
        start_s = end_s
    return Speech(waveform, phonemes, f"flite {voice}")


def read_wav(path: Path) -> npt.NDArray[np.float32]:
    """Read a mono sound file and return it at 16 kHz."""
    import soundfile

    samples, sample_rate = soundfile.read(path, dtype="float32")
    return resample(np.asarray(samples, dtype=np.float32), sample_rate)


def resample(samples: npt.NDArray[np.floating], sample_rate: int) -> npt.NDArray[np.float32]:
    """Return the samples at 16 kHz."""
    if sample_rate == SAMPLE_RATE:
        return samples.astype(np.float32)
    return resample_poly(samples, SAMPLE_RATE, sample_rate).astype(np.float32)


def silence(duration_s: float) -> Speech:
    """Return a pause."""
    return Speech(np.zeros(int(duration_s * SAMPLE_RATE), np.float32), [], "silence")


def join(parts: list[Speech]) -> Speech:
    """Play the parts one after the other."""
    phonemes: list[tuple[float, float, str]] = []
    offset_s = 0.0
    for part in parts:
        phonemes += [(offset_s + start_s, offset_s + end_s, name) for start_s, end_s, name in part.phonemes]
        offset_s += len(part.waveform) / SAMPLE_RATE
    voice = next((part.voice for part in parts if part.phonemes), "silence")
    return Speech(np.concatenate([part.waveform for part in parts]), phonemes, voice)


def random_text(source: random.Random, language: str) -> str:
    """Return one to three short phrases of the language."""
    words = WORDS[language.split("-")[0].split("+")[0]].split()
    phrases = []
    for _ in range(source.randint(1, 3)):
        count = source.randint(3, 8)
        first = source.randrange(len(words) - count)
        # Half of the phrases are runs of the list (natural word order), half are shuffled words (variety).
        chosen = words[first : first + count] if source.random() < 0.5 else source.sample(words, count)
        phrases.append(" ".join(chosen))
    return source.choice([", ", ". ", ", "]).join(phrases) + source.choice([".", ".", "?"])


def random_sentence(espeak: Espeak, source: random.Random, *, held_out: bool) -> Speech:
    """Return one sentence by a random voice (of the held-out voices if `held_out`)."""
    if source.random() < (0.5 if held_out else 0.35):
        voice = source.choice(FLITE_HELD_OUT_VOICES if held_out else FLITE_TRAINING_VOICES)
        return say_with_flite(random_text(source, "en"), voice=voice, stretch=source.uniform(0.9, 1.2))
    voice = source.choice(ESPEAK_HELD_OUT_VOICES if held_out else ESPEAK_TRAINING_VOICES)
    text = random_text(source, voice)
    return espeak.say(text, voice=voice, rate=source.randint(115, 195), pitch=source.randint(25, 75))


def random_speech(espeak: Espeak, *, seed: int, duration_s: float, held_out: bool = False) -> Speech:
    """Return an utterance of exactly `duration_s`: sentences of random voices with pauses before and between them."""
    source = random.Random(seed)
    # One clip in five has long pauses: a face that listens has to be learned as well.
    pauses_s = [1.5, 3.0, 4.0] if source.random() < 0.2 else [0.0, 0.2, 0.5, 1.0]
    parts = [silence(source.choice([0.0, 0.1, 0.3, 0.6, pauses_s[-1]]))]
    length_s = len(parts[0].waveform) / SAMPLE_RATE
    while length_s < duration_s:
        sentence = random_sentence(espeak, source, held_out=held_out)
        peak = float(np.abs(sentence.waveform).max()) or 1.0
        level = Speech(sentence.waveform * (0.5 / peak), sentence.phonemes, sentence.voice)
        parts += [level, silence(source.choice(pauses_s))]
        length_s += (len(parts[-2].waveform) + len(parts[-1].waveform)) / SAMPLE_RATE
    whole = join(parts)
    kept = [(start_s, min(end_s, duration_s), name) for start_s, end_s, name in whole.phonemes if start_s < duration_s]
    return Speech(whole.waveform[: int(duration_s * SAMPLE_RATE)], kept, whole.voice)
