"""Runs silero-vad over a sound, chunk by chunk, with the model's state travelling in the requests.

The server keeps nothing between two requests: each one carries the state that the last answer gave, together with the
last samples of the chunk before, as silero-vad's own wrapper does for 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from roost.server.demo.clip import SAMPLE_RATE

CHUNK_SAMPLES = 512
CONTEXT_SAMPLES = 64
CHUNK_S = CHUNK_SAMPLES / SAMPLE_RATE
OUTPUTS = ("output", "stateN")

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, in seconds from the beginning."""

    start_s: float
    end_s: float


def chunk_inputs(samples: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """Cuts a sound into float32 ``[1, 576]``: each chunk behind the end of the one before; zeros elsewhere."""
    count = -(-len(samples) // CHUNK_SAMPLES)
    padded = np.zeros(CONTEXT_SAMPLES + count * CHUNK_SAMPLES, dtype=np.float32)
    padded[CONTEXT_SAMPLES : CONTEXT_SAMPLES + len(samples)] = samples
    for start in range(0, count * CHUNK_SAMPLES, CHUNK_SAMPLES):
        yield padded[np.newaxis, start : start + CONTEXT_SAMPLES + CHUNK_SAMPLES]


def first_state() -> npt.NDArray[np.float32]:
    """The state before the first chunk, float32 ``[2, 1, 128]``."""
    return np.zeros((2, 1, 128), dtype=np.float32)


def speech_probabilities(samples: npt.NDArray[np.float32], infer: Callable[[Arrays], Arrays]) -> list[float]:
    """Asks the model about every chunk of a sound.

    Args:
        samples: float32 ``[samples]`` at 16 kHz.
        infer: Runs the model: inputs by name to outputs by name.

    Returns:
        The probability of speech in each chunk of 32 ms.
    """
    state: npt.NDArray[Any] = first_state()
    rate = np.array(SAMPLE_RATE, dtype=np.int64)
    probabilities = []
    for chunk in chunk_inputs(samples):
        outputs = infer({"input": chunk, "state": state, "sr": rate})
        probabilities.append(float(outputs["output"].reshape(-1)[0]))
        state = outputs["stateN"]
    return probabilities


def speech_probabilities_in_sequence(
    samples: npt.NDArray[np.float32], infer: Callable[[Arrays, bool, bool], Arrays]
) -> list[float]:
    """The same of a model whose state the server keeps.

    Args:
        samples: float32 ``[samples]`` at 16 kHz.
        infer: Runs the model: inputs by name, whether they are the first and whether the last of the sound.

    Returns:
        The probability of speech in each chunk of 32 ms.
    """
    rate = np.array(SAMPLE_RATE, dtype=np.int64)
    chunks = list(chunk_inputs(samples))
    probabilities = []
    for index, chunk in enumerate(chunks):
        outputs = infer({"input": chunk, "sr": rate}, index == 0, index == len(chunks) - 1)
        probabilities.append(float(outputs["output"].reshape(-1)[0]))
    return probabilities


def speech_segments(
    probabilities: Sequence[float],
    *,
    enter: float = 0.5,
    leave: float = 0.35,
    min_speech_s: float = 0.25,
    min_silence_s: float = 0.1,
) -> list[Segment]:
    """Joins chunks of speech into segments; the defaults are those of silero-vad's documentation.

    Speech begins at a probability of ``enter``, and ends where it stays under ``leave`` for ``min_silence_s``. What is
    shorter than ``min_speech_s`` is dropped.
    """
    segments = []
    start: int | None = None
    silent_since: int | None = None
    for index, probability in enumerate([*probabilities, *[0.0] * (int(min_silence_s / CHUNK_S) + 1)]):
        if probability >= enter:
            start = index if start is None else start
            silent_since = None
        elif start is not None and (probability < leave or silent_since is not None):
            silent_since = index if silent_since is None else silent_since
            if (index + 1 - silent_since) * CHUNK_S >= min_silence_s:
                segments.append(Segment(start * CHUNK_S, min(silent_since, len(probabilities)) * CHUNK_S))
                start = silent_since = None
    return [segment for segment in segments if segment.end_s - segment.start_s >= min_speech_s]
