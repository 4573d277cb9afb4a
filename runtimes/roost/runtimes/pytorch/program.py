"""What an artifact is once it is loaded: something to be called with tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from roost.core.tensors import TensorSpec
from roost.runtimes.pytorch.devices import CPU
from roost.runtimes.pytorch.naming import Argument


def _nothing() -> None:
    """Where dropping a program is enough."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program and what it says of itself.

    Attributes:
        call: Runs it, with values by the position of their argument.
        arguments: What it takes.
        results: What it gives, if it says so.
        has_keys: Whether its results come as a dict; those that it says what they are come one by one.
        keeps_state: Whether a run leaves something to the next one; then they must not overlap.
        release: Lets go of its weights, where references to it that go in circles would keep them.
        device: Where it wants its inputs.
    """

    call: Callable[[Mapping[int, Any]], Any]
    arguments: Sequence[Argument]
    results: Sequence[TensorSpec] | None = None
    has_keys: bool = False
    keeps_state: bool = False
    release: Callable[[], None] = _nothing
    device: torch.device = CPU
