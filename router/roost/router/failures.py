"""Load failures, remembered with their cause so that a broken model answers in milliseconds, not by loading again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from roost.core.errors import Unavailable

if TYPE_CHECKING:
    from roost.router.revision import Revision

ARTIFACT_TRIES = 3
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class Fault(Enum):
    """Whose fault a failed load was."""

    ARTIFACT = auto()  # a broken file stays broken until it changes
    WORKER = auto()  # a crash, no memory, a timeout: another try may go well


@dataclass(slots=True)
class LoadFailure:
    """Why a revision can't be loaded now, and until when it is not tried again."""

    reason: str
    fault: Fault
    tries: int
    until: float

    @property
    def final(self) -> bool:
        """Whether only new files or a load call can mend it."""
        return self.until == math.inf

    def blocks(self, now: float) -> bool:
        """Whether a load is answered with this failure instead of a new try."""
        return now < self.until


def next_failure(previous: LoadFailure | None, reason: str, fault: Fault, now: float) -> LoadFailure:
    """Remembers another failure: pauses double from one second to a minute.

    An artifact's fault is final at the third try in a row; new files or a load call start afresh.
    """
    tries = 1 + (previous.tries if previous is not None else 0)
    if fault is Fault.ARTIFACT and tries >= ARTIFACT_TRIES:
        return LoadFailure(reason, fault, tries, math.inf)
    pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries - 1, 16))
    return LoadFailure(reason, fault, tries, now + pause_s)


def failure_error(revision: Revision, failure: LoadFailure, now: float) -> Unavailable:
    """What a client is told about a revision that can't be loaded."""
    retry_after_s = None if failure.until == math.inf else max(0.0, failure.until - now)
    name, version = revision.key.name, revision.key.version
    return Unavailable(
        f"model '{name}' version {version} is not at ready state: {failure.reason}", retry_after_s=retry_after_s
    )
