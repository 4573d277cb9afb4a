"""The demo's questions: which types are these files, and is there speech in these sounds?

Every question is asked over REST and over gRPC; the answers have to be the same to the last bit.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.server.demo import magika_client, vad_client
from roost.server.demo.clients import DemoClient, Place
from roost.server.demo.clip import Sound
from roost.server.demo.errors import DemoError
from roost.server.demo.magika_client import FileType, FileTypeModel
from roost.server.demo.repository import MAGIKA, SEQUENCES, SILERO
from roost.server.demo.vad_client import Arrays, Segment


@dataclass(frozen=True, slots=True)
class FileAnswer:
    """What a file is, and how long each transport took to say so, in milliseconds."""

    path: Path
    file_type: FileType
    rest_ms: float
    grpc_ms: float


@dataclass(frozen=True, slots=True)
class SoundAnswer:
    """Where speech is in a sound.

    Attributes:
        sound: What was asked about.
        segments: Stretches of speech.
        peak: The highest probability of speech in any chunk.
        chunks: How many requests that took each time.
        rest_ms: Median latency of a request over REST.
        grpc_ms: The same over gRPC.
        sequence_ms: The same over gRPC, with the state kept by the server.
    """

    sound: Sound
    segments: list[Segment]
    peak: float
    chunks: int
    rest_ms: float
    grpc_ms: float
    sequence_ms: float


@dataclass(frozen=True, slots=True)
class LoadCost:
    """What the request that brought a model into memory took, beside the median of those after it, in milliseconds."""

    model: str
    transport: str
    first_ms: float
    warm_ms: float


def ask_file_types(
    model: FileTypeModel, paths: Sequence[Path], rest: DemoClient, grpc: DemoClient
) -> tuple[list[FileAnswer], LoadCost]:
    """Asks magika about files; the first request, over REST, is the one that loads it.

    Raises:
        DemoError: If no file could be asked about, a request fails, or the transports disagree.
    """
    rows = [(path, features) for path in paths if (features := _features(model, path)) is not None]
    if not rows:
        raise DemoError("there is no readable file to ask about")
    _scores(rest, rows[0][1])
    first_ms = rest.latencies_ms[-1]
    answers = []
    for path, features in rows:
        scores = _scores(rest, features)
        _check_same(MAGIKA, scores, _scores(grpc, features))
        answers.append(FileAnswer(path, model.answer(scores), rest.latencies_ms[-1], grpc.latencies_ms[-1]))
    warm_ms = statistics.median(answer.rest_ms for answer in answers)
    return answers, LoadCost(MAGIKA, rest.transport, first_ms, warm_ms)


def ask_speech(sounds: Sequence[Sound], rest: DemoClient, grpc: DemoClient) -> tuple[list[SoundAnswer], LoadCost]:
    """Asks silero-vad about sounds; the first request, over gRPC, is the one that loads it.

    Raises:
        DemoError: If a request fails, or the transports disagree.
    """
    vad_client.speech_probabilities(np.zeros(vad_client.CHUNK_SAMPLES, dtype=np.float32), _vad(grpc))
    first_ms = grpc.latencies_ms[-1]
    answers = [_ask_about(number, sound, rest, grpc) for number, sound in enumerate(sounds, start=1)]
    warm_ms = statistics.median(answer.grpc_ms for answer in answers)
    return answers, LoadCost(SILERO, grpc.transport, first_ms, warm_ms)


def _ask_about(number: int, sound: Sound, rest: DemoClient, grpc: DemoClient) -> SoundAnswer:
    probabilities = vad_client.speech_probabilities(sound.samples, _vad(rest))
    again = vad_client.speech_probabilities(sound.samples, _vad(grpc))
    _check_same(SILERO, np.array(probabilities), np.array(again))
    chunks = len(probabilities)
    grpc_ms = statistics.median(grpc.latencies_ms[-chunks:])
    in_sequence = vad_client.speech_probabilities_in_sequence(sound.samples, _vad_in_sequence(grpc, number))
    if in_sequence != probabilities:
        raise DemoError(f"{SEQUENCES} gave other answers than {SILERO} to the same question")
    return SoundAnswer(
        sound,
        vad_client.speech_segments(probabilities),
        max(probabilities),
        chunks,
        statistics.median(rest.latencies_ms[-chunks:]),
        grpc_ms,
        statistics.median(grpc.latencies_ms[-chunks:]),
    )


def _features(model: FileTypeModel, path: Path) -> npt.NDArray[np.int32] | None:
    try:
        return model.features(path)
    except OSError:
        return None  # gone or unreadable since it was chosen: there are others


def _scores(client: DemoClient, features: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    outputs = client.infer(MAGIKA, {magika_client.INPUT: features}, [magika_client.OUTPUT])
    row: npt.NDArray[np.float32] = outputs[magika_client.OUTPUT][0]
    return row


def _vad(client: DemoClient) -> Any:
    def infer(inputs: Arrays) -> Arrays:
        return client.infer(SILERO, inputs, vad_client.OUTPUTS)

    return infer


def _vad_in_sequence(client: DemoClient, number: int) -> Any:
    def infer(inputs: Arrays, is_first: bool, is_last: bool) -> Arrays:
        return client.infer(SEQUENCES, inputs, vad_client.OUTPUTS[:1], Place(number, is_first, is_last))

    return infer


def _check_same(model: str, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> None:
    if not np.array_equal(one, other):
        raise DemoError(f"{model} gave different answers over REST and gRPC to the same question")
