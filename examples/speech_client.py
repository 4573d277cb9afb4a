"""Says where in a sound somebody speaks, chunk by chunk over one gRPC stream; the server keeps the model's state.

::

    python examples/assemble.py models speech
    roost serve --model-repository models
    python examples/speech_client.py sound.wav
"""

from __future__ import annotations

import argparse
import queue
import sys
import wave
from collections.abc import Iterator

import numpy as np
import tritonclient.grpc as grpcclient

RATE = 16_000
CHUNK = 512
CONTEXT = 64  # the end of the chunk before, which the model wants in front of each


def main() -> None:
    """Prints the probability of speech for each chunk of 32 ms."""
    parser = argparse.ArgumentParser(description="Says where in a sound somebody speaks.")
    parser.add_argument("sound", help="a WAV file: 16 kHz, one channel, 16 bits")
    parser.add_argument("--url", default="127.0.0.1:8081", help="the server's gRPC address")
    parser.add_argument("--sequence-id", type=int, default=1, help="other clients must use another one")
    options = parser.parse_args()
    answers: queue.Queue = queue.Queue()
    with grpcclient.InferenceServerClient(options.url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        chunks = list(cut(read(options.sound)))
        for number, chunk in enumerate(chunks):
            client.async_stream_infer(
                "speech",
                inputs_of(chunk),
                sequence_id=options.sequence_id,
                sequence_start=number == 0,
                sequence_end=number == len(chunks) - 1,
            )
        for number in range(len(chunks)):
            answer = answers.get(timeout=60)
            if isinstance(answer, Exception):
                raise answer
            probability = float(answer.as_numpy("output")[0, 0])
            sys.stdout.write(f"{number * CHUNK / RATE:7.3f} s  {probability:.3f}  {'#' * round(probability * 40)}\n")


def read(path: str) -> np.ndarray:
    """The samples of a WAV file, from -1 to 1."""
    with wave.open(path, "rb") as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (RATE, 1, 2):
            sys.exit(f"{path} is not a WAV file of 16 kHz, one channel and 16 bits")
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 2**15


def cut(samples: np.ndarray) -> Iterator[np.ndarray]:
    """The chunks of a sound, each behind the end of the one before."""
    count = max(1, -(-len(samples) // CHUNK))
    padded = np.zeros(CONTEXT + count * CHUNK, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    for start in range(0, count * CHUNK, CHUNK):
        yield padded[np.newaxis, start : start + CONTEXT + CHUNK]


def inputs_of(chunk: np.ndarray) -> list:
    """The request for one chunk."""
    sound = grpcclient.InferInput("input", list(chunk.shape), "FP32")
    sound.set_data_from_numpy(chunk)
    rate = grpcclient.InferInput("sr", [], "INT64")
    rate.set_data_from_numpy(np.array(RATE, np.int64))
    return [sound, rate]


if __name__ == "__main__":
    main()
