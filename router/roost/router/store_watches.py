"""Watches for stores that see all writes themselves, since they all come through one process.

A watch keeps the latest state of each key that it has not told yet, so one that nobody asks takes no more memory than
the keys themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from roost.router.store import Changes, Entry, StoreError


class KeyWatch:
    """A watch on the keys with one prefix. Implements ``Watch``."""

    def __init__(self, watches: Watches, prefix: str, present: Mapping[str, Entry]) -> None:
        self._watches = watches
        self._prefix = prefix
        self._changed = threading.Condition()
        self._untold: Changes = dict(present)
        self._closed = False

    def next(self, timeout_s: float) -> Changes:
        """See ``Watch``."""
        give_up = time.monotonic() + timeout_s
        with self._changed:
            while not self._untold and not self._closed:
                left_s = give_up - time.monotonic()
                if left_s <= 0 or not self._changed.wait(min(left_s, threading.TIMEOUT_MAX)):
                    break
            if self._closed:
                raise StoreError("the watch is closed")
            untold, self._untold = self._untold, {}
        return untold

    def close(self) -> None:
        """See ``Watch``."""
        self._watches.drop(self)
        with self._changed:
            self._closed = True
            self._untold.clear()
            self._changed.notify_all()

    def tell(self, changes: Mapping[str, Entry | None]) -> None:
        """Keeps the states of those keys that it watches, newer than any it was told before."""
        mine = {key: entry for key, entry in changes.items() if key.startswith(self._prefix)}
        if mine:
            with self._changed:
                self._untold.update(mine)
                self._changed.notify_all()


class Watches:
    """All watches on one store. The store calls ``add`` and ``tell`` one at a time, in the order of its writes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[KeyWatch] = []

    def add(self, prefix: str, present: Mapping[str, Entry]) -> KeyWatch:
        """Begins a watch; ``present`` is what is there now."""
        watch = KeyWatch(self, prefix, present)
        with self._lock:
            self._open.append(watch)
        return watch

    def drop(self, watch: KeyWatch) -> None:
        """Forgets a watch."""
        with self._lock:
            if watch in self._open:
                self._open.remove(watch)

    def tell(self, changes: Mapping[str, Entry | None]) -> None:
        """Tells all watches of writes that are done."""
        with self._lock:
            watches = list(self._open)
        for watch in watches:
            watch.tell(changes)

    def close(self) -> None:
        """Ends all watches."""
        with self._lock:
            watches = list(self._open)
        for watch in watches:
            watch.close()
