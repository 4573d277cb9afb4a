"""Sounds to ask the voice activity model about: a real sentence, silence, and noise."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
SENTENCE = "He was not an ill-disposed young man"


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound of known content.

    Attributes:
        name: What it is, for people.
        samples: float32 ``[samples]`` from -1 to 1 at ``SAMPLE_RATE``.
        has_speech: What a right answer is.
    """

    name: str
    samples: npt.NDArray[np.float32]
    has_speech: bool

    @property
    def duration_s(self) -> float:
        """How long it plays, in seconds."""
        return len(self.samples) / SAMPLE_RATE


def write_clip(path: Path) -> Path:
    """Puts the sentence as a WAV file where the user can listen to it, and returns the path."""
    data = (resources.files("roost.server.demo") / "data" / "speech.wav").read_bytes()
    if not path.is_file() or path.read_bytes() != data:
        path.write_bytes(data)
    return path


def read_clip(path: Path) -> npt.NDArray[np.float32]:
    """Reads a 16 kHz mono 16-bit WAV file as float32 ``[samples]``.

    Raises:
        ValueError: If it is another kind of WAV file.
    """
    with wave.open(str(path), "rb") as clip:
        if (clip.getframerate(), clip.getnchannels(), clip.getsampwidth()) != (SAMPLE_RATE, 1, 2):
            raise ValueError(f"{path.name} is not a 16 kHz mono 16-bit WAV file")
        frames = clip.readframes(clip.getnframes())
    samples = np.frombuffer(frames, dtype="<i2").astype(np.float32)
    return samples / np.float32(2**15)


def demo_sounds(clip: Path) -> list[Sound]:
    """The sentence, and silence and noise of the same length to compare it with."""
    speech = read_clip(clip)
    # Seeded, so that every run asks the same questions.
    noise = np.random.default_rng(0).normal(0.0, 0.05, len(speech)).astype(np.float32)
    return [
        Sound("a sentence, read aloud", speech, has_speech=True),
        Sound("silence", np.zeros_like(speech), has_speech=False),
        Sound("white noise", noise, has_speech=False),
    ]
