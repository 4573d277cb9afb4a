"""Back-pressure of streams, the worker's end: a run waits while the router has no room for its next response."""

from __future__ import annotations

import threading

from roost.core.errors import Cancelled
from roost.core.frames import Credit


class CreditWindow:
    """What the router still takes of one stream; the run's thread takes, the thread that reads the link grants.

    A response may pass what is left of the bytes, and the next one waits then: so one that is larger than the whole
    window goes through, alone.
    """

    def __init__(self, credit: Credit) -> None:
        self._changed = threading.Condition()
        self._responses = credit.responses
        self._bytes = credit.bytes
        self._closed = False

    def take(self, size_bytes: int) -> None:
        """Blocks until a response may be sent, and takes it off the credit.

        Raises:
            Cancelled: If nobody waits for the run any more.
        """
        with self._changed:
            self._changed.wait_for(self._may_go_on)
            if self._closed:
                raise Cancelled("the run was cancelled")
            self._responses -= 1
            self._bytes -= size_bytes

    def grant(self, credit: Credit) -> None:
        """Lets the stream go on."""
        with self._changed:
            self._responses += credit.responses
            self._bytes += credit.bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing may be sent any more; a run that waits here is woken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _may_go_on(self) -> bool:
        return self._closed or (self._responses > 0 and self._bytes > 0)
