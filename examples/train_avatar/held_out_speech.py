# SPDX-License-Identifier: Apache-2.0
"""Speech that training never heard, for the gates: three synthesizers, other voices, other sentences, other words.

espeak-ng speaks with voices that were held out, in English and four other languages; flite with a held-out voice;
festival wasn't heard at all in training. Of festival's two voices `ked` is a speaker nobody heard; `slt` is the woman
whom flite also knows, made by another method.
"""

import random
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .chance import clip_draws
from .face import Pose
from .performance import perform, poses, slow_drift
from .speech import (
    ESPEAK_HELD_OUT_VOICES,
    FLITE_HELD_OUT_VOICES,
    FLITE_TO_IPA,
    SAMPLE_RATE,
    Espeak,
    Speech,
    join,
    read_wav,
    say_with_flite,
    silence,
)

SYNTHESIZERS = ("espeak-ng", "flite", "festival")
"""In the order of their figures; the last one was never heard in training."""

FESTIVAL_VOICES = ("ked_diphone", "cmu_us_slt_arctic_hts")
"""Debian's festvox-kdlpc16k and festvox-us-slt-hts."""
FESTIVAL_TO_IPA = FLITE_TO_IPA | {
    "axr": "əɹ", "dx": "ɾ", "el": "l", "em": "m", "en": "n", "hv": "ɦ", "nx": "ŋ",
}  # fmt: skip
"""Its English phones are flite's and a few more."""

_VARIANTS = ("+f5", "+m5", "+m8")
"""Timbres of espeak-ng that no training voice has."""
_INSTALL = "apt install festival festvox-kdlpc16k festvox-us-slt-hts"
_MOST_OFFSET_S = 4.0
"""Longer than a sentence and its pause: a clip begins anywhere in them."""
_LEVEL = 0.5
"""Peak of every sentence, as in training."""

SENTENCES = {
    "en": (
        "The weather turned cold before anyone had packed a jacket.",
        "Seven yellow buses waited outside the railway station.",
        "My uncle repairs watches in a workshop behind the bakery.",
        "Could somebody explain why the elevator always stops at four?",
        "She folded the letter twice and put it under the lamp.",
        "A violin can sound warmer than the finest human singer.",
        "They found an empty bottle floating near the harbour wall.",
        "Nothing tastes better than soup after skating on the lake.",
        "The carpenter measured each board with enormous patience.",
        "Yes, the museum opens at nine and closes around six.",
        "Vapour rose above the valley while the geese were feeding.",
        "Please turn left by the fountain, then cross both bridges.",
        "Our neighbour grows tomatoes, beans and purple cabbages.",
        "Who left these muddy boots in the middle of the corridor?",
        "The pilot announced that we would land in twenty minutes.",
        "Every farmer knows how quickly clouds may gather in autumn.",
        "He whispered the answer, although the room was nearly empty.",
        "A fox jumped across the ditch and vanished between the pines.",
        "Those paintings belong to a family from northern Portugal.",
        "Wash your hands, peel the onions and warm up the oven.",
        "The committee refused to publish its opinion on Thursday.",
        "Most of the passengers were asleep when the ferry arrived.",
        "I bought a cheap umbrella, and it broke within an hour.",
        "Fifty students applied for the job, but only two were hired.",
        "The moon looked huge above the roofs of the old factory.",
        "Perhaps we ought to paint the fence before winter comes.",
    ),
    "de": (
        "Der Zug nach Hamburg hat heute leider zwanzig Minuten Verspätung.",
        "Im Sommer sitzen die Leute abends gern unter den großen Kastanien.",
        "Könnten Sie mir vielleicht sagen, wo der nächste Bäcker ist?",
        "Unsere Katze schläft am liebsten auf dem warmen Ofen.",
    ),
    "fr": (
        "Le vieux pêcheur répare ses filets devant la porte ouverte.",
        "Pourriez-vous fermer la fenêtre, il fait vraiment trop froid.",
        "Mon oncle habite une petite ferme près de la rivière.",
        "Chaque automne, les voisins ramassent des pommes rouges.",
    ),
    "es": (
        "El tren de las ocho llega siempre con un poco de retraso.",
        "Mi abuela guarda las cartas viejas en una caja de madera.",
        "Los pájaros cantan muy temprano delante de nuestra ventana.",
        "¿Puede usted repetir la última pregunta, por favor?",
    ),
    "it": (
        "Il treno per Bologna parte alle otto dal secondo binario.",
        "Mia zia coltiva pomodori e basilico dietro la casa.",
        "Vorrei sapere quanto costa quel piccolo quadro azzurro.",
        "Ogni domenica i ragazzi giocano a pallone vicino al fiume.",
    ),
}
"""Written for this purpose; by language."""


@dataclass(frozen=True)
class _Sentence:
    """What is said, and by whom."""

    text: str
    voice: str
    pace: float
    """Above 1 is slower."""
    pitch: int
    """0 to 100; espeak-ng's alone."""


def held_out_clips(synthesizer: str, *, count: int, duration_s: float, espeak: Espeak | None = None) -> list[Speech]:
    """Return so many utterances of exactly `duration_s`, always the same ones; each is one voice's.

    Args:
        synthesizer: one of `SYNTHESIZERS`.
        count: of clips.
        duration_s: of each.
        espeak: the library where it is open already; a process can open it once.

    Raises:
        OSError: the synthesizer, or one of its voices, is not installed.
    """
    source = random.Random(f"{synthesizer} held out")
    voices = _voices(synthesizer)
    clips: list[Speech] = []
    for index in range(count):
        voice = voices[index % len(voices)]
        sentences = _sentences(source, voice, duration_s=duration_s)
        if synthesizer == "festival":
            spoken = say_with_festival([each.text for each in sentences], voice=voice, stretch=sentences[0].pace)
        elif synthesizer == "flite":
            spoken = [say_with_flite(each.text, voice=voice, stretch=each.pace) for each in sentences]
        else:
            espeak = espeak or Espeak()
            spoken = [
                espeak.say(each.text, voice=voice, rate=round(150 / each.pace), pitch=each.pitch) for each in sentences
            ]
        clips.append(_paced(source, spoken, duration_s=duration_s))
    return clips


def with_pauses(clips: Sequence[Speech], *, pause_s: float) -> tuple[Speech, list[float]]:
    """Play clips with a pause before, between and after them; return that and where each begins, in seconds."""
    parts, starts_s, place_s = [silence(pause_s)], list[float](), pause_s
    for clip in clips:
        starts_s.append(place_s)
        parts += [clip, silence(pause_s)]
        place_s += len(clip.waveform) / SAMPLE_RATE + pause_s
    return join(parts), starts_s


def act(speech: Speech, *, seed: int) -> list[Pose]:
    """Return a face's poses for an utterance, with the chance and the slow drift that the seed gives."""
    performance, generator = perform(speech), np.random.default_rng(seed)
    frames = len(performance.drives)
    return poses(performance, clip_draws(generator, 1 + -(-(frames - 1) // 4)), slow_drift(generator, frames))


def noise(duration_s: float, *, seed: int = 4) -> Speech:
    """Return white noise that nobody speaks, at a level that the loudness gate hears."""
    samples = np.random.default_rng(seed).standard_normal(round(duration_s * SAMPLE_RATE)) * 0.1
    return Speech(samples.astype(np.float32), [], "noise")


def say_with_festival(texts: Sequence[str], *, voice: str, stretch: float = 1.0) -> list[Speech]:
    """Speak texts with one of festival's voices, one process for all; `stretch` > 1 is slower.

    Raises:
        OSError: festival or the voice is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "speak.scm"
        script.write_text(_festival_script(texts, voice=voice, stretch=stretch, folder=Path(folder)), encoding="ascii")
        try:
            done = subprocess.run(["festival", "-b", str(script)], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise OSError(
                "festival is not installed: apt install festival festvox-kdlpc16k festvox-us-slt-hts"
            ) from error
        found = [Path(folder) / f"{index}.wav" for index in range(len(texts))]
        if done.returncode != 0 or not all(path.exists() for path in found):
            raise OSError(
                f"festival said nothing with the voice {voice} ({done.stderr.strip() or 'no message'}): {_INSTALL}"
            )
        return [
            Speech(read_wav(path), festival_phonemes(path.with_suffix(".segs").read_text()), f"festival {voice}")
            for path in found
        ]


def festival_phonemes(segments: str) -> list[tuple[float, float, str]]:
    """Return (start_s, end_s, IPA) from what `utt.save.segs` writes: lines `END_S 100 PHONE` after a line `#`."""
    phonemes: list[tuple[float, float, str]] = []
    start_s = 0.0
    for line in segments.splitlines():
        fields = line.split()
        if len(fields) != 3:
            continue
        end_s = float(fields[0])
        if fields[2] in FESTIVAL_TO_IPA:
            phonemes.append((start_s, end_s, FESTIVAL_TO_IPA[fields[2]]))
        start_s = end_s
    return phonemes


def pauses(speech: Speech, *, shortest_s: float) -> list[tuple[float, float]]:
    """Return where nobody speaks for at least so long, as (start_s, stop_s)."""
    edges = [0.0]
    for start_s, stop_s, _ in speech.phonemes:
        edges += [start_s, stop_s]
    edges.append(len(speech.waveform) / SAMPLE_RATE)
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [(start_s, stop_s) for start_s, stop_s in gaps if stop_s - start_s >= shortest_s]


def _voices(synthesizer: str) -> tuple[str, ...]:
    if synthesizer == "festival":
        return FESTIVAL_VOICES
    if synthesizer == "flite":
        return FLITE_HELD_OUT_VOICES
    if synthesizer != "espeak-ng":
        raise ValueError(f"synthesizer {synthesizer!r} is unknown; expected one of {', '.join(SYNTHESIZERS)}")
    foreign = [language + _VARIANTS[at % len(_VARIANTS)] for at, language in enumerate(("de", "fr", "es", "it"))]
    english = ESPEAK_HELD_OUT_VOICES
    # Every second clip is English, the others go round the other languages.
    return tuple(each for at, other in enumerate(foreign) for each in (english[at % len(english)], other))


def _sentences(source: random.Random, voice: str, *, duration_s: float) -> list[_Sentence]:
    """Choose enough sentences of the voice's language; nobody says a sentence in less than 1.5 s."""
    language = voice.partition("+")[0].partition("-")[0]
    texts = SENTENCES.get(language, SENTENCES["en"])
    chosen = source.sample(texts, min(len(texts), int((duration_s + _MOST_OFFSET_S) / 1.5) + 1))
    pace, pitch = source.uniform(0.9, 1.15), source.randint(30, 70)
    return [_Sentence(text, voice, pace, pitch) for text in chosen]


def _paced(source: random.Random, spoken: Sequence[Speech], *, duration_s: float) -> Speech:
    """Put sentences after one another, with short and long pauses; cut a piece out at a random place.

    Clips that all began where a sentence begins would correlate with each other, whoever speaks.
    """
    parts: list[Speech] = []
    begin_s = source.uniform(0.0, _MOST_OFFSET_S)
    filled_s, place = 0.0, 0
    while filled_s < begin_s + duration_s:
        sentence = _trimmed(spoken[place % len(spoken)])
        parts += [sentence, silence(source.choice([0.15, 0.3, 0.8, 1.2]))]
        filled_s += (len(parts[-2].waveform) + len(parts[-1].waveform)) / SAMPLE_RATE
        place += 1
    return cut(join(parts), begin_s, begin_s + duration_s)


def cut(speech: Speech, begin_s: float, end_s: float) -> Speech:
    """Return what is heard between two times."""
    first = round(begin_s * SAMPLE_RATE)
    phonemes = [
        (max(start_s, begin_s) - begin_s, min(stop_s, end_s) - begin_s, name)
        for start_s, stop_s, name in speech.phonemes
        if stop_s > begin_s and start_s < end_s
    ]
    samples = round((end_s - begin_s) * SAMPLE_RATE)
    return Speech(speech.waveform[first : first + samples], phonemes, speech.voice)


def _trimmed(sentence: Speech) -> Speech:
    """Cut away the silence that a synthesizer puts around a sentence, and bring the peak to training's."""
    first = max(0, int((sentence.phonemes[0][0] - 0.05) * SAMPLE_RATE))
    last = min(len(sentence.waveform), int((sentence.phonemes[-1][1] + 0.12) * SAMPLE_RATE))
    waveform = sentence.waveform[first:last]
    peak = float(np.abs(waveform).max()) or 1.0
    offset_s = first / SAMPLE_RATE
    phonemes = [(start_s - offset_s, stop_s - offset_s, name) for start_s, stop_s, name in sentence.phonemes]
    return Speech(waveform * np.float32(_LEVEL / peak), phonemes, sentence.voice)


def _festival_script(texts: Sequence[str], *, voice: str, stretch: float, folder: Path) -> str:
    lines = [f"(voice_{voice})", f"(Parameter.set 'Duration_Stretch {stretch:.3f})"]
    for index, text in enumerate(texts):
        quoted = text.replace("\\", "").replace('"', "")
        lines += [
            f'(set! spoken (utt.synth (Utterance Text "{quoted}")))',
            f'(utt.save.segs spoken "{folder / str(index)}.segs")',
            f'(utt.save.wave spoken "{folder / str(index)}.wav" \'riff)',
        ]
    return "\n".join(lines) + "\n"
