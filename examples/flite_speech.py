"""Speech whose phones are known: flite reads sentences of Python's reference topics, the same each time.

flite (Carnegie Mellon University) comes with Debian and its kin as `flite`. With `-psdur` it prints each phone with the
time at which it ends.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import wave
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np
from log_mel import RATE, log_mel
from tqdm import tqdm

# One a speaker, all at 16 kHz: flite's `kal` is the speaker of `kal16` at 8 kHz, and `awb_time` can only tell the time.
VOICES = ("kal16", "awb", "rms", "slt")
PAUSE = "pau"
UNLABELLED = 60  # sentences that a held-out voice is heard to speak, so that its features can be made like others
SHORTEST, LONGEST = 25, 90  # characters of a sentence
PROSE = re.compile(r"[A-Z][a-z]+(,? [A-Za-z][a-z]*([-'][a-z]+)?)*[.:;]")
READABLE = re.compile(r"[A-Za-z ,'()-]{14,200}[.:;]")


class Missing(Exception):
    """What is not here, and how to get it."""


class Utterance(NamedTuple):
    """A sentence spoken by a voice."""

    voice: str
    sentence: str
    features: np.ndarray  # (frames, MELS), as `log_mel` gives them
    phones: tuple[str, ...]
    ends: np.ndarray  # seconds, one a phone


def _sentences() -> list[str]:
    """Whatever ends in a full stop, colon or semicolon, each once."""
    found: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            found.update(dict.fromkeys(re.split(r"(?<=[.:;])\s+", " ".join(paragraph.split()))))
    return list(found)


def sentences(generator: np.random.Generator) -> list[str]:
    """Sentences of words alone, in an order that `generator` draws; 494 in Python 3.11."""
    drawn = [text for text in _sentences() if SHORTEST <= len(text) <= LONGEST and PROSE.fullmatch(text)]
    generator.shuffle(drawn)
    return drawn


def program() -> str:
    path = shutil.which("flite")
    if path is None:
        raise Missing("flite, which speaks the sentences, is not installed; apt install flite")
    return path


def speak(flite: str, voice: str, sentence: str) -> Utterance:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "speech.wav"
        command = [flite, "-voice", voice, "-psdur", "-t", sentence, "-o", str(path)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        with wave.open(str(path)) as file:
            if file.getframerate() != RATE:
                raise Missing(f"flite has no voice {voice} of {RATE} Hz here; Debian's flite 2.2 has")
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    segments = [segment.split(":") for segment in printed.split()]
    ends = np.array([float(end) for _, end in segments])
    return Utterance(voice, sentence, log_mel(samples), tuple(phone for phone, _ in segments), ends)


def transcribe_all(unread: list[str], most: int) -> list[tuple[str, ...]]:
    """Phones of up to `most` sentences but for the `unread` ones; Python 3.11 has 999 that can be read aloud."""
    flite, left_out = program(), set(unread)
    texts = [text for text in _sentences() if READABLE.fullmatch(text) and text not in left_out][:most]

    def phones(text: str) -> tuple[str, ...]:
        command = [flite, "-voice", VOICES[0], "-ps", "-t", text, "-o", "none"]
        return tuple(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(phones, texts), total=len(texts), unit="sentence", desc="flite reads"))


class Parts(NamedTuple):
    """Speech to learn from and to be tried with."""

    training: list[Utterance]
    validation: list[Utterance]  # other sentences by the voices of training, to choose settings by
    unlabelled: list[Utterance]  # of training's sentences by the held-out voice: nobody looks at phones and ends
    old: list[Utterance]  # sentences that are in none of the above, by the voices of training
    new: list[Utterance]  # and by the held-out voice

    def kept_away(self) -> list[str]:
        """Sentences that nothing is to be learned from."""
        return [utterance.sentence for utterance in (*self.validation, *self.new)]


def speak_parts(known: tuple[str, ...], held_out: str, settings: dict[str, Any], seed: int) -> Parts:
    """As many `sentences` to learn from, others for `validation`, and others to be `tried` with as `settings` say."""
    tried, validation = settings["tried"], settings["validation"]
    texts = sentences(np.random.default_rng(seed))[: tried + validation + settings["sentences"]]
    unread, checked, read = texts[:tried], texts[tried : tried + validation], texts[tried + validation :]
    return Parts(
        training=speak_all(known, read),
        validation=speak_all(known, checked),
        unlabelled=speak_all((held_out,), read[:UNLABELLED]),
        old=speak_all(known, unread),
        new=speak_all((held_out,), unread),
    )


def speak_all(voices: tuple[str, ...], texts: list[str]) -> list[Utterance]:
    """Every sentence by every voice, on as many processors as there are."""
    flite, orders = program(), list(product(voices, texts))
    with ThreadPoolExecutor() as pool:
        spoken = pool.map(lambda order: speak(flite, *order), orders)
        return list(tqdm(spoken, total=len(orders), unit="sentence", desc="flite speaks"))
