"""The settings of the server's log that clients of the logging extension may read and change."""

from __future__ import annotations

import logging
from collections.abc import Callable

from roost.core.errors import InvalidArgument, Unimplemented
from roost.server.data_plane_protocol import LogSettings

_FORMATS = ("default", "ISO8601")
_GREATEST = 2**32 - 1
# More severe than any line.
_NOTHING = logging.CRITICAL + 1


class LogBook:
    """What clients see of the log, and how it changes the least severe level that is written.

    Args:
        level: The least severe level at the start, as ``--log-level`` names it.
        apply: Called with a level of ``logging`` when it changes.
    """

    def __init__(self, level: str, apply: Callable[[int], None]) -> None:
        self._apply = apply
        severity = logging.getLevelNamesMapping()[level.upper()]
        self._settings: dict[str, bool | int | str] = {
            "log_file": "",
            "log_info": severity <= logging.INFO,
            "log_warning": severity <= logging.WARNING,
            "log_error": severity <= logging.ERROR,
            "log_verbose_level": int(severity <= logging.DEBUG),
            "log_format": "default",
        }

    def settings(self) -> LogSettings:
        """All of them."""
        return dict(self._settings)

    def update(self, updates: LogSettings) -> LogSettings:
        """Changes settings, all of them or none, and returns all; unknown ones are ignored.

        Raises:
            InvalidArgument: If a value makes no sense.
            Unimplemented: If a file is named.
        """
        known = {key: _checked(key, value) for key, value in updates.items() if key in self._settings}
        before = self._level()
        self._settings.update(known)
        if self._level() != before:
            self._apply(self._level())
        return self.settings()

    def _level(self) -> int:
        """The least severe level that is on; there is one threshold, so what is more severe is on with it."""
        settings = self._settings
        if settings["log_verbose_level"]:
            return logging.DEBUG
        for key, level in (("log_info", logging.INFO), ("log_warning", logging.WARNING), ("log_error", logging.ERROR)):
            if settings[key]:
                return level
        return _NOTHING


def _checked(key: str, value: bool | int | str) -> bool | int | str:
    match key:
        case "log_file":
            if not isinstance(value, str):
                raise InvalidArgument("log setting 'log_file' is a text")
            if value:
                raise Unimplemented("log file location can not be updated through network protocol")
        case "log_verbose_level":
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _GREATEST:
                raise InvalidArgument(f"log setting 'log_verbose_level' is a whole number from 0 to {_GREATEST}")
        case "log_format":
            if value not in _FORMATS:
                raise InvalidArgument(f"invalid argument for 'log_format': expected one of {', '.join(_FORMATS)}")
        case _:
            if not isinstance(value, bool):
                raise InvalidArgument(f"log setting '{key}' is true or false")
    return value
