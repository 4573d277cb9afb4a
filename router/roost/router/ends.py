"""Why a worker process ended, and what follows from that. Pure.

==============  ==========================================  ===========  ==============  =============
end             what happened                               what ran is  what ran again  what lay there
==============  ==========================================  ===========  ==============  =============
EXITED          it ended by itself                          suspected    no              comes back
CRASHED         a signal of its own doing, as SIGSEGV       suspected    no              comes back
OUT_OF_MEMORY   the kernel ended it, as memory ran out      suspected    no              stays away
HUNG            it answered nothing; the router ended it    suspected    no              comes back
KILLED          somebody else sent SIGKILL                  -            if stateless    comes back
STOPPED         it was stopped and stayed so; as above      -            if stateless    comes back
GIVEN_UP        a load or unload did not end; as above      what did it  if stateless    comes back
OVERRAN         a run went on for nobody; as above          what did it  if stateless    comes back
==============  ==========================================  ===========  ==============  =============

What had not begun to run always may run again, and what was asked for again comes back in any case.
"""

from __future__ import annotations

import signal
from enum import Enum, auto

HEALTHY_AFTER_S = 2.0
HEALTHY_AFTER_OOM_S = 60.0
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 10.0
LONGEST_BACKOFF_FOR_MODELS_S = 0.5
"""Where a model may have been the reason: it will not be the reason for ever, and the others wait."""


class End(Enum):
    """See the module."""

    EXITED = auto()
    CRASHED = auto()
    OUT_OF_MEMORY = auto()
    HUNG = auto()
    KILLED = auto()
    STOPPED = auto()
    GIVEN_UP = auto()
    OVERRAN = auto()

    @property
    def suspects(self) -> bool:
        """Whether anything that it ran or loaded may have been the reason; else, the router knows what was."""
        return self in _SUSPICIOUS

    @property
    def runs_again(self) -> bool:
        """Whether what it was running can't have been the reason, so that it harms nobody to run it again."""
        return self in _INNOCENT


_SUSPICIOUS = frozenset({End.EXITED, End.CRASHED, End.OUT_OF_MEMORY, End.HUNG})
_INNOCENT = frozenset({End.KILLED, End.STOPPED, End.GIVEN_UP, End.OVERRAN})


def end_of(code: int, ended_for: End | None, *, ran_out_of_memory: bool) -> End:
    """Tells why a process ended.

    Args:
        code: Its exit code, or ``-signal``.
        ended_for: Why the router has killed it, if it has.
        ran_out_of_memory: Whether the kernel has killed processes for memory at that time.
    """
    if code != -signal.SIGKILL:
        return End.CRASHED if code < 0 else End.EXITED
    if ended_for is not None:
        return ended_for
    return End.OUT_OF_MEMORY if ran_out_of_memory else End.KILLED


class Backoff:
    """How long a worker waits until its next start: not at all, unless its processes end again and again."""

    def __init__(self) -> None:
        self._short_lives = 0

    def after(self, lived_s: float, end: End, *, had_work: bool = False) -> float:
        """A process has ended: how many seconds to wait.

        Args:
            lived_s: How long it was up; 0 if it never was.
            end: Why it ended.
            had_work: Whether it ran or loaded something then.
        """
        healthy_after_s = HEALTHY_AFTER_OOM_S if end is End.OUT_OF_MEMORY else HEALTHY_AFTER_S
        if lived_s >= healthy_after_s:
            self._short_lives = 0
            return 0.0
        self._short_lives += 1
        if self._short_lives == 1:  # most often a one-off
            return 0.0
        is_models_fault = had_work and end is not End.OUT_OF_MEMORY
        longest_s = LONGEST_BACKOFF_FOR_MODELS_S if is_models_fault else LONGEST_BACKOFF_S
        return float(min(longest_s, FIRST_BACKOFF_S * 2 ** min(self._short_lives - 2, 16)))
