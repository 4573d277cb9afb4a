"""The class that models in Python derive from, and the requests that they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from roost.core.tensors import NO_PARAMETERS, Parameters


class Request(Mapping[str, npt.NDArray[Any]]):
    """The inputs by name, of one request or of several that are run together; BYTES are arrays of ``bytes`` objects.

    Args:
        inputs: The arrays.
        parameters: The request's parameters.
        outputs: Names of the outputs that are wanted; empty: all.
        is_cancelled: Says whether anybody still waits.
        id: The client's id of the request; empty if it has none, or there are several.

    Attributes:
        parameters: See there.
        outputs: See there.
        id: See there.
    """

    def __init__(
        self,
        inputs: Mapping[str, npt.NDArray[Any]],
        parameters: Parameters = NO_PARAMETERS,
        outputs: Sequence[str] = (),
        is_cancelled: Callable[[], bool] = bool,
        id: str = "",
    ) -> None:
        self._inputs = inputs
        self._is_cancelled = is_cancelled
        self.parameters = parameters
        self.outputs = tuple(outputs)
        self.id = id

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more; a model that takes long looks now and then."""
        return self._is_cancelled()

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)


class Model:
    """A model in Python: ``model.py`` has one class that derives from this one.

    ``load``, ``predict`` and ``unload`` are called in the main thread of a process that the model has for itself.
    Whatever they raise fails their request or load and nothing else; a ``roost.core.errors.RoostError`` does so with
    its own code, such as INVALID_ARGUMENT for an input that makes no sense.

    Attributes:
        inputs: Datatype and shape by name, such as ``{"text": ("BYTES", [-1])}``; -1 is any number. Not needed if the
            configuration lists them, which wins.
        outputs: Likewise.
        name: The model's name.
        version: Its version.
        folder: The folder of the version's files.
        parameters: Those of its configuration.
        threads: How many threads it may use: its share of the CPUs.
    """

    inputs: ClassVar[Mapping[str, tuple[str, Sequence[int]]]] = {}
    outputs: ClassVar[Mapping[str, tuple[str, Sequence[int]]]] = {}
    name: str = ""
    version: str = ""
    folder: Path = Path()
    parameters: Mapping[str, str] = {}
    threads: int = 1

    def load(self) -> Any:
        """Called once, before everything else; may be ``async``."""

    def predict(self, request: Request) -> Any:
        """Answers a request.

        Returns:
            Arrays, or what numpy makes arrays of, by output name. As a generator it yields as many such answers as it
            likes; the configuration then says ``model_transaction_policy { decoupled: true }``. It may be ``async``,
            in either form, and is called for the next request before it has answered the last one then.
        """
        raise NotImplementedError("the model has no method predict")

    def unload(self) -> Any:
        """Called once, in the end, if the process gets so far; may be ``async``."""


def array_of(value: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Makes an array of what a model has given, as long as nothing of it is lost.

    Raises:
        TypeError: If values would be changed, such as 1.5 to an integer.
        ValueError: If it is no array; also OverflowError, of numbers that are too large.
    """
    found = np.asarray(value)
    if not np.can_cast(found.dtype, dtype, "same_kind"):
        raise TypeError(f"{found.dtype} can't be {np.dtype(dtype)}")
    return found.astype(dtype) if isinstance(value, np.ndarray | np.generic) else np.asarray(value, dtype)
