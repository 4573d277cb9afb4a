"""What a model prints, as lines of the worker's log: all of it, unless it is more than a log can bear."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

_log = logging.getLogger("roost.model")

MARK: Final = b"\x1e"
"""Begins a line that has a level: the letter behind it."""

LEVELS: Final = {"D": logging.DEBUG, "I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR}

BURST_LINES: Final = 200
LINES_PER_S: Final = 20.0
LINE_BYTES: Final = 4096


class Lines:
    """The output of one process; used by one thread at a time.

    Beyond ``BURST_LINES`` lines at once and ``LINES_PER_S`` after that, lines are counted and left out, and a line
    says so as soon as there is room for it.

    Args:
        fields: What each line carries, such as the model.
        who: Who prints, for what is said about that.
        log: Where they go.

    Attributes:
        last: The last line that was not empty.
    """

    def __init__(self, fields: Mapping[str, str | int], who: str = "the model", log: logging.Logger = _log) -> None:
        self._fields = fields
        self._who = who
        self._log = log
        self._rest = b""
        self._room = float(BURST_LINES)
        self._at = 0.0
        self._left_out = 0
        self.last = ""

    @property
    def is_behind(self) -> bool:
        """Whether lines were left out that nobody was told of."""
        return self._left_out > 0

    def feed(self, data: bytes, now: float) -> None:
        """Takes what was printed, in whatever pieces; nothing, to say what was left out."""
        self._room = min(BURST_LINES, self._room + max(0.0, now - self._at) * LINES_PER_S)
        self._at = now
        self._tell_left_out()
        if self._room < 1:
            self._skip(data)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._write(line)
        if len(self._rest) > LINE_BYTES:
            self._write(self._rest)
            self._rest = b""

    def note(self, text: str) -> None:
        """Writes a warning about the model, which is not its own."""
        self._log.warning(text, extra=self._fields)

    def end(self) -> None:
        """No more comes."""
        if self._rest:
            self._write(self._rest)
            self._rest = b""
        self._room = max(self._room, 1.0)
        self._tell_left_out()

    def _skip(self, data: bytes) -> None:
        """Counts lines without looking at them: there may be gigabytes."""
        self._left_out += data.count(b"\n")
        self._rest = data[data.rfind(b"\n") + 1 :][:LINE_BYTES]

    def _write(self, line: bytes) -> None:
        level = logging.INFO
        if line.startswith(MARK):
            level = LEVELS.get(line[1:2].decode("ascii", "replace"), logging.INFO)
            line = line[2:]
        text = line[:LINE_BYTES].decode("utf-8", "replace").rstrip()
        if not text:
            return
        self.last = text
        if self._room < 1:
            self._left_out += 1
        elif self._log.isEnabledFor(level):
            self._room -= 1
            self._log.log(level, "%s", text, extra=self._fields)

    def _tell_left_out(self) -> None:
        if self._left_out and self._room >= 1:
            self._room -= 1
            left_out, self._left_out = self._left_out, 0
            self._log.warning("%s prints too much: %d lines were left out", self._who, left_out, extra=self._fields)
