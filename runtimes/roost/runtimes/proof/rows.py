"""The numeric half of the proof: a row's answer is the same alone, in a batch, at another place, and beside any mates.

The static half looks at the graph as it was written; this one at what the runtime makes of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
from roost.core.errors import Code, InvalidArgument, RoostError
from roost.core.tensors import TensorSpec, from_array, to_array
from roost.runtimes.proof.compare import TOLERANCE_EPS, distance_eps, says_anything
from roost.runtimes.proof.dims import NotProven
from roost.runtimes.proof.samples import INTEGER_LIMITS, MadeUp, Rows, Samples, WarmUp, made_up, mates
from roost.runtimes.protocol import LoadedModel, RunHandle

ROWS = 6
MATES = (1e4, 0.0, float("nan"), float("inf"), -float("inf"))
WANTED_SIZES = 2


class NoMemory(NotProven):
    """There is not enough memory for a run."""

    def __init__(self) -> None:
        super().__init__("needs too much memory to be tried")


class Budget:
    """So much time of the processor, and an end to it."""

    def __init__(self, seconds: float) -> None:
        self._end_s = time.process_time() + seconds

    def check(self) -> None:
        """Called before each run.

        Raises:
            NotProven: If the time is used up.
        """
        if time.process_time() > self._end_s:
            raise NotProven("took too long")


class RowCheck:
    """Runs rows of one model in different company.

    Args:
        model: The model, loaded.
        budget: How long it may take.
    """

    def __init__(self, model: LoadedModel, budget: Budget) -> None:
        self._model = model
        self._budget = budget
        self._inputs: Sequence[TensorSpec] = model.signature.inputs
        self._datatypes = {spec.name: spec.datatype for spec in model.signature.outputs}

    def check(self, warm_up: WarmUp | None, max_rows: int) -> int:
        """Checks that rows keep apart.

        Args:
            warm_up: Rows of the model's own, for a model that takes no made-up ones.
            max_rows: The largest batch that is wanted.

        Returns:
            The largest batch that there is memory for.

        Raises:
            NotProven: If they do not, or if that can't be tried.
        """
        for samples in self._samples(warm_up):
            max_rows = self._check(samples, max_rows)
        return max_rows

    def _samples(self, warm_up: WarmUp | None) -> Sequence[Samples]:
        """Rows that the model takes."""
        reason = ""
        for limit in INTEGER_LIMITS:
            accepted, reason = self._accepted(made_up(self._inputs, limit))
            if accepted:
                return accepted
        if warm_up is None:
            raise NotProven(f"it takes no made-up rows, and there are no samples for warming up: {reason}")
        reason = self._try(warm_up)
        if reason:
            raise NotProven(f"it does not take its samples for warming up: {reason}")
        return [warm_up]

    def _accepted(self, candidates: Iterable[MadeUp]) -> tuple[list[MadeUp], str]:
        """The first two that the model takes, and why it did not take another one."""
        accepted: list[MadeUp] = []
        reason = ""
        for samples in candidates:
            refusal = self._try(samples)
            if not refusal:
                accepted.append(samples)
            reason = refusal or reason
            if len(accepted) == WANTED_SIZES:
                break
        return accepted, reason

    def _try(self, samples: Samples) -> str:
        """Why the model does not take rows, if so."""
        try:
            answers = self._run(samples.rows(2))
        except RoostError as error:
            return error.message
        if not all(says_anything(self._datatypes[name], answer) for name, answer in answers.items()):
            return "its answers are NaN or infinite"
        return ""

    def _check(self, samples: Samples, max_rows: int) -> int:
        rows = samples.rows(ROWS)
        alone = [self._run_all(_taken(rows, [index])) for index in range(ROWS)]
        expected = {name: np.concatenate([answer[name] for answer in alone]) for name in self._datatypes}
        every = list(range(ROWS))
        self._compare(rows, every, expected, "in a batch")
        self._compare(rows, [*every[1:], every[0]], expected, "at another place in a batch")
        self._compare(rows, every[::-1], expected, "at another place in a batch")
        for kind in MATES:
            self._beside(rows, expected, kind)
        return self._largest(rows, expected, max_rows)

    def _largest(self, rows: Rows, expected: Rows, max_rows: int) -> int:
        """Runs the largest batch, or half of it as often as it takes to have the memory."""
        while max_rows > ROWS:
            try:
                self._compare(rows, [index % ROWS for index in range(max_rows)], expected, f"in a batch of {max_rows}")
                return max_rows
            except NoMemory:
                max_rows //= 2
        return max(max_rows, 2)

    def _compare(self, rows: Rows, order: list[int], expected: Rows, where: str) -> None:
        """Runs rows in an order, and compares the answer of each with that which it should have."""
        found = self._run_all(_taken(rows, order))
        self._agree(found, expected, list(enumerate(order)), where)

    def _beside(self, rows: Rows, expected: Rows, kind: float) -> None:
        """Runs the first and the last row beside mates that stand out; if those fail the batch, they harm nobody."""
        changed = mates(rows, self._inputs, kind)
        for kept in ([0], [ROWS - 1]):
            batch = {name: array.copy() for name, array in changed.items()}
            for name, array in batch.items():
                array[kept] = rows[name][kept]
            self._budget.check()
            try:
                found = self._run(batch)
            except InvalidArgument:
                continue
            self._agree(found, expected, [(index, index) for index in kept], "beside rows that stand out")

    def _agree(self, found: Rows, expected: Rows, pairs: Sequence[tuple[int, int]], where: str) -> None:
        for name, datatype in self._datatypes.items():
            for place, row in pairs:
                # Slices: a single string is no array.
                apart = distance_eps(datatype, expected[name][row : row + 1], found[name][place : place + 1])
                if apart > TOLERANCE_EPS.get(datatype, 0.0):
                    raise NotProven(f"rows have other answers {where} than alone: '{name}' is {apart:.3g} eps off")

    def _run_all(self, rows: Rows) -> Rows:
        try:
            return self._run(rows)
        except RoostError as error:
            if error.code is Code.RESOURCE_EXHAUSTED:
                raise NoMemory from None
            raise NotProven(f"it does not take every number of rows: {error.message}") from None

    def _run(self, rows: Rows) -> Rows:
        self._budget.check()
        count = len(next(iter(rows.values())))
        tensors = [from_array(spec.name, spec.datatype, rows[spec.name]) for spec in self._inputs]
        answers = {tensor.name: to_array(tensor) for tensor in self._model.run(tensors, (), RunHandle())}
        for name, answer in answers.items():
            if answer.ndim == 0 or len(answer) != count:
                raise NotProven(f"output '{name}' does not have one element of its first dimension for each row")
        return answers


def _taken(rows: Rows, order: list[int]) -> Rows:
    return {name: array[order] for name, array in rows.items()}
