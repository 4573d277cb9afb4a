"""Questions to models and what they have to answer, which may be asked any number of times."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from roost.core.tensors import DATATYPES, ParameterValue, Tensor, from_array, to_array

from tests.clients import Client
from tests.server import RoostServer

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


class Check(Protocol):
    """A model and whether it answers as it should; may be asked any number of times."""

    @property
    def model(self) -> str: ...

    async def run(self, server: RoostServer, client: Client) -> None:
        """Asks, and fails if the answer is another."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """One request and its answer.

    Attributes:
        model: The model's name.
        inputs: Arrays by name.
        answers: Likewise; only these outputs are asked for.
        tolerance: By how much, and by which part of it, a number may be another.
    """

    model: str
    inputs: Arrays
    answers: Arrays
    tolerance: float = 1e-5

    async def run(self, server: RoostServer, client: Client) -> None:
        await self.ask(client)

    async def ask(self, client: Client, **parameters: ParameterValue) -> None:
        """Asks with parameters of the request."""
        inputs = [tensor_of(name, array) for name, array in self.inputs.items()]
        response = await client.infer(self.model, inputs, outputs=list(self.answers), parameters=parameters)
        self.compare({output.name: to_array(output) for output in response.outputs})

    def compare(self, found: Arrays) -> None:
        """Compares what came."""
        assert found.keys() == self.answers.keys(), self.model
        for name, wanted in self.answers.items():
            array = found[name]
            if wanted.dtype.kind in "SO":
                assert array.tolist() == wanted.astype(object).tolist(), self.model
                continue
            assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape), self.model
            np.testing.assert_allclose(array, wanted, self.tolerance, self.tolerance, err_msg=f"{self.model} {name}")


@dataclass(frozen=True, slots=True)
class InARow:
    """Several requests, one after the other and nobody else's between them, to a model that keeps something of them."""

    questions: Sequence[Question]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def model(self) -> str:
        return self.questions[0].model

    async def run(self, server: RoostServer, client: Client) -> None:
        async with self.lock:
            for question in self.questions:
                await question.run(server, client)


@dataclass(frozen=True, slots=True)
class OneSequence:
    """Several requests of one sequence, whose state the server keeps; others may go on at the same time."""

    questions: Sequence[Question]
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def model(self) -> str:
        return self.questions[0].model

    async def run(self, server: RoostServer, client: Client) -> None:
        identity, last = next(self.ids), len(self.questions) - 1
        for number, question in enumerate(self.questions):
            await question.ask(client, sequence_id=identity, sequence_start=number == 0, sequence_end=number == last)


@dataclass(frozen=True, slots=True)
class Stream:
    """A request to a decoupled model that counts from 0."""

    model: str
    count: int

    async def run(self, server: RoostServer, client: Client) -> None:
        events = await asyncio.to_thread(server.events, self.model, {"x": [self.count]})
        assert [event["y"] for event in events] == list(range(self.count))


def tensor_of(name: str, array: npt.NDArray[Any]) -> Tensor:
    """A tensor of the datatype that an array has."""
    if array.dtype.kind in "SO":
        return from_array(name, "BYTES", array.astype(object))
    datatypes = {
        np.dtype(known.dtype): known.name for known in reversed(list(DATATYPES.values())) if known.dtype is not None
    }
    return from_array(name, datatypes[array.dtype], array)
