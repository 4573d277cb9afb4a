"""The settings of request tracing: kept and given back, as clients expect of the extension; nothing is traced yet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from roost.core.errors import FailedPrecondition, InvalidArgument, Unimplemented
from roost.server.data_plane_protocol import TraceSettings

_START: TraceSettings = MappingProxyType(
    {
        "trace_level": ("OFF",),
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "triton",
    }
)
_LEVELS = frozenset({"TIMESTAMPS", "TENSORS"})
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}\Z")
# The least value of each number, and the greatest that all clients can read.
_LEAST = {"trace_rate": 0, "trace_count": -1, "log_frequency": 0}
_GREATEST = 2**31 - 1


class TraceBook:
    """The settings of the server, and those of models where they differ."""

    def __init__(self) -> None:
        self._server: dict[str, str | tuple[str, ...]] = {}
        self._models: dict[str, dict[str, str | tuple[str, ...]]] = {}

    def of(self, model: str = "") -> TraceSettings:
        """The settings of the server, or those in effect for a model."""
        return {**_START, **self._server, **self._models.get(model, {})}

    def update(self, updates: Mapping[str, tuple[str, ...] | None], model: str = "") -> TraceSettings:
        """Changes settings, all of them or none, and returns what is in effect then.

        Args:
            updates: Values by setting; None goes back to the server's value, or for the server to the first one.
                Unknown settings are ignored.
            model: Whose; empty for the server's.

        Raises:
            InvalidArgument: If a value makes no sense.
            FailedPrecondition: If a level would be on.
            Unimplemented: If a file is named.
        """
        changed = dict(self._models.get(model, {}) if model else self._server)
        for key, values in updates.items():
            if key not in _START:
                continue
            value = None if values is None else _read(key, values)
            if value is None:
                changed.pop(key, None)
            else:
                changed[key] = value
        if not model:
            self._server = changed
        elif changed:
            self._models[model] = changed
        else:
            self._models.pop(model, None)
        return self.of(model)

    def keep(self, models: Iterable[str]) -> None:
        """Forgets the settings of all other models."""
        known = frozenset(models)
        self._models = {name: settings for name, settings in self._models.items() if name in known}


def _read(key: str, values: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """A setting's value from the texts that came for it; None for one that is to be cleared."""
    if key == "trace_level":
        return _read_level(values)
    if not values:  # what gRPC sends to clear a setting
        return None
    if len(values) != 1:
        raise InvalidArgument(f"expected one value for trace setting '{key}', got {len(values)}")
    if key in _LEAST:
        return _read_number(key, values[0])
    if values[0] != _START[key]:
        what = "trace file location" if key == "trace_file" else "trace mode"
        raise Unimplemented(f"{what} can not be updated through network protocol")
    return values[0]


def _read_level(values: tuple[str, ...]) -> tuple[str, ...] | None:
    if not values:
        return None
    if "OFF" in values:
        if len(values) > 1:
            raise InvalidArgument("Expect only one trace level 'OFF' is specified")
        return ("OFF",)
    wanted = [value for value in values if value in _LEVELS]
    if wanted:
        raise FailedPrecondition(f"trace level '{wanted[0]}' can't be set: this server does not trace requests yet")
    return ("OFF",)  # unknown levels are ignored, and no other is left


def _read_number(key: str, text: str) -> str:
    number = int(text) if _NUMBER.match(text) else None
    if number is None or not _LEAST[key] <= number <= _GREATEST:
        raise InvalidArgument(
            f"Unable to parse '{key}', got: {text[:40]!r}; expected a whole number from {_LEAST[key]} to {_GREATEST}"
        )
    return str(number)
