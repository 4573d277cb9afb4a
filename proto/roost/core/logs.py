"""Log lines on stderr, for people or for machines; what requests carry in their tensors never gets into them.

Server and workers write the same lines.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

_MAX_VALUE_CHARS = 1000
_COLOURS = {
    "DEBUG": "\x1b[2m",
    "INFO": "\x1b[32m",
    "WARNING": "\x1b[33m",
    "ERROR": "\x1b[31m",
    "CRITICAL": "\x1b[1;31m",
}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"

# What every record has; what else one has was given as extra fields.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_RESERVED = frozenset({"time", "level", "logger", "message", "exception"})


def configure_logging(
    level: str = "info", format_: str = "human", stream: TextIO | None = None, fields: Mapping[str, Any] | None = None
) -> None:
    """Sends the log of the whole process to a stream, instead of where it went before.

    Args:
        level: Least severe level: ``debug``, ``info``, ``warning`` or ``error``.
        format_: ``human``, in colour if the stream is a terminal, or ``json``, one object a line.
        stream: Where to; by default stderr.
        fields: Extra fields of every line, such as who writes it; those that a line brings itself win.
    """
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if format_ == "json" else HumanFormatter(colour=stream.isatty()))
    if fields:
        handler.addFilter(_filling(fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)


def _filling(fields: Mapping[str, Any]) -> Callable[[logging.LogRecord], bool]:
    def fill(record: logging.LogRecord) -> bool:
        for name, value in fields.items():
            vars(record).setdefault(name, value)
        return True

    return fill


class HumanFormatter(logging.Formatter):
    """One short line: time, level, where, what, and extra fields as ``name=value``; a traceback follows it."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Writes a record."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{name}={_one_line(str(value))}" for name, value in _extra_fields(record).items())
        line = " ".join(
            [
                self._paint(_DIM, time),
                self._paint(_COLOURS.get(record.levelname, ""), f"{record.levelname:<7}"),
                self._paint(_DIM, record.name.removeprefix("roost.") + ":"),
                _one_line(record.getMessage()),
                *([self._paint(_DIM, fields)] if fields else []),
            ]
        )
        trace = _traceback(self, record)
        return f"{line}\n{trace}" if trace else line

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colour and colour else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, extra fields, and the traceback as exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Writes a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _short(record.getMessage()),
        }
        for name, value in _extra_fields(record).items():
            line[f"{name}_" if name in _RESERVED else name] = value
        trace = _traceback(self, record)
        if trace:
            line["exception"] = trace
        return json.dumps(line, ensure_ascii=False)


def _extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD}


def _plain(value: Any) -> Any:
    """A value that may stand in a log line: numbers and short texts; of everything that holds elements, the kind."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "__array_interface__"):
        return f"<{type(value).__name__} of {memoryview(value).nbytes} bytes>"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in list(value)[:20]]
    return _short(str(value))


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_VALUE_CHARS else text[:_MAX_VALUE_CHARS] + "..."


def _one_line(text: str) -> str:
    """A text without line breaks and control characters, which a client could forge log lines with."""
    text = _short(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
