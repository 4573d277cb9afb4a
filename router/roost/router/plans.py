"""Step 5, what may be taken of a device, and what is said of how there can be room for more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Limits:
    """What models may take.

    Attributes:
        private_bytes: Memory of their own, all together: the budget.
        memory_bytes: That and the page cache of the files that they map.
        mappings: In one process.
    """

    private_bytes: int
    memory_bytes: float = math.inf
    mappings: float = math.inf


class Figure(Enum):
    """One of those that are limited."""

    PRIVATE = auto()
    MEMORY = auto()
    MAPPINGS = auto()
    DEVICE = auto()  # memory of a GPU


@dataclass(frozen=True, slots=True)
class Fits:
    """There is room now, in the first of the ``places`` that have it, if any were named."""

    place: int | None = None


@dataclass(frozen=True, slots=True)
class Evict:
    """There is room once these are gone: ``idle`` ones at once, ``busy`` ones after their last lease."""

    idle: tuple[int, ...]
    busy: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may go yet; look again when something changes or at ``until``."""

    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Refuse:
    """It would not fit even if everything that may ever go were gone: of one figure there is no more than this."""

    available: float
    figure: Figure = Figure.PRIVATE


Plan: TypeAlias = Fits | Evict | Wait | Refuse
