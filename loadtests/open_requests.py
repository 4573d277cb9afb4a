"""What the open-loop benches ask: several different rows of a model, one in each request, and what is right for each.

Were all requests alike, an answer that went to the wrong request would look right.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.bench_requests import WireRequest, build
from loadtests.models import Arrays, BenchModel
from loadtests.open_loop import post

QUESTIONS = 8
# Batches may differ from single rows in the last digits; neighbouring rows differ in the first ones.
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, slots=True)
class Questions:
    """Requests over REST JSON, which every server speaks, and their answers.

    Attributes:
        model: Whom they ask.
        requests: Whole HTTP requests.
        expected: What ONNX Runtime itself answers to each.
    """

    model: BenchModel
    requests: Sequence[bytes]
    expected: Sequence[Arrays]

    def is_right(self, number: int, body: bytes) -> bool:
        """Whether a body answers the request of that number."""
        try:
            outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
            return all(agrees(outputs[name], right) for name, right in self.expected[number].items())
        except (ValueError, KeyError, TypeError):
            return False


def agrees(output: dict[str, Any], right: npt.NDArray[Any]) -> bool:
    """Whether an output in JSON is what it should be."""
    values = np.array(output["data"], right.dtype).reshape(right.shape)
    return output["shape"] == list(right.shape) and bool(
        np.allclose(values, right, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)
    )


def questions(model: BenchModel, timeout_s: float, count: int = QUESTIONS) -> Questions:
    """Requests of one row each.

    Args:
        model: Whom they ask.
        timeout_s: What they carry as ``timeout``, for servers that honour it.
        count: How many there are.
    """
    rows = model.draw(count)
    built = [_build(model, {name: array[index : index + 1] for name, array in rows.items()}) for index in range(count)]
    requests = [_with_timeout(request, timeout_s) for request in built]
    return Questions(model, requests, [request.expected for request in built])


def _build(model: BenchModel, inputs: Arrays) -> WireRequest:
    return build(dataclasses.replace(model, draw=lambda _: inputs), "json", 1)


def _with_timeout(request: WireRequest, timeout_s: float) -> bytes:
    document = {**json.loads(request.body), "parameters": {"timeout": max(1, round(timeout_s * 1e6))}}
    return post(request.path, json.dumps(document, separators=(",", ":")).encode(), request.headers)
