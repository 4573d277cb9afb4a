"""Step 2 of the data path: a name, and perhaps a version, becomes a version of a model.

A *route* is a public name whose requests are split over versions by weight. A route may bear the name of a model:
requests for the model that name no version then follow the route.
"""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from roost.core.errors import InvalidArgument
from roost.core.names import check_name, shorten


@dataclass(frozen=True, slots=True)
class Target:
    """One branch of a route; an empty version means what the model's version policy serves last."""

    model: str
    version: str
    weight: float


class Route:
    """A weighted split. Targets without weight get no traffic, but can be asked for by version."""

    def __init__(self, name: str, targets: Sequence[Target]) -> None:
        self.name = name
        self.targets = tuple(targets)
        self._weighted = [target for target in targets if target.weight > 0]
        self._edges = list(itertools.accumulate(target.weight for target in self._weighted))
        if not self._edges:
            raise InvalidArgument(f"route '{name}' needs at least one target with a weight above 0")
        if self._edges[-1] == math.inf:
            raise InvalidArgument(f"route '{name}' has weights whose sum is beyond all numbers")

    def pick(self, draw: float) -> Target:
        """The target for a draw from [0, 1): each gets the share that its weight has of the sum."""
        place = bisect.bisect_right(self._edges, draw * self._edges[-1])
        return self._weighted[min(place, len(self._weighted) - 1)]

    def main(self) -> Target:
        """The target with the most weight, the first of equals: what metadata calls answer for."""
        return max(self.targets, key=lambda target: target.weight)


class Traffic:
    """All routes."""

    def __init__(self, routes: Mapping[str, Route] | None = None) -> None:
        self.routes = dict(routes or {})

    def models(self) -> set[str]:
        """The names of all models that routes lead to."""
        return {target.model for route in self.routes.values() for target in route.targets}

    def resolve(self, name: str, version: str, draw: float) -> tuple[str, str]:
        """Says which model and version a request goes to; names that are no route pass through.

        Args:
            name: What the client asked for.
            version: Likewise; empty if it named none.
            draw: A number from [0, 1), uniform, which picks the branch.
        """
        route = self.routes.get(name)
        if route is None:
            return name, version
        if not version:
            target = route.pick(draw)
            return target.model, target.version
        for target in route.targets:
            if target.version == version:
                return target.model, version
        return name, version

    def resolve_main(self, name: str, version: str) -> tuple[str, str]:
        """The same for metadata calls, which answer for the branch with the most weight."""
        route = self.routes.get(name)
        if route is None or version:
            return self.resolve(name, version, 0.0)
        target = route.main()
        return target.model, target.version


def load_routes(path: Path) -> Traffic:
    """Reads a routes file; ``docs/operations.md`` has an example.

    Raises:
        InvalidArgument: If the file is not what it should be; the message says where.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InvalidArgument(f"routes file {path}: it is nested too deeply") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date or number that is none
        raise InvalidArgument(f"routes file {path}: {' '.join(str(error).split())}") from None
    return parse_routes(content, str(path))


def parse_routes(content: Any, where: str) -> Traffic:
    """Makes routes of parsed YAML.

    Raises:
        InvalidArgument: If it is not what it should be; the message says where.
    """
    if content is None:
        return Traffic()
    rows = _fields(content, where, required={"routes"})["routes"]
    if not isinstance(rows, list):
        raise InvalidArgument(f"{where}: 'routes' must be a list")
    routes: dict[str, Route] = {}
    for number, row in enumerate(rows, start=1):
        place = f"{where}, route {number}"
        fields = _fields(row, place, required={"name", "targets"})
        name = _name(fields["name"], "route name", place)
        if name in routes:
            raise InvalidArgument(f"{place}: there is a route '{name}' already")
        if not isinstance(fields["targets"], list):
            raise InvalidArgument(f"{place}: 'targets' must be a list")
        targets = [_target(t, name, place) for t in fields["targets"]]
        try:
            routes[name] = Route(name, targets)
        except InvalidArgument as error:
            raise InvalidArgument(f"{place}: {error.message}") from None
    return Traffic(routes)


def _target(row: Any, route: str, place: str) -> Target:
    fields = _fields(row, place, optional={"model", "version", "weight"})
    weight = fields.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= sys.float_info.max:
        raise InvalidArgument(f"{place}: weight {_shown(weight)} is not a number of 0 or more")
    version = _name(fields["version"], "version", place) if "version" in fields else ""
    return Target(_name(fields.get("model", route), "model name", place), version, float(weight))


def _name(value: Any, what: str, place: str) -> str:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or (isinstance(value, int) and abs(value) > sys.maxsize)
    ):
        raise InvalidArgument(f"{place}: {what} {_shown(value)} is not a text: write it in quotes")
    return check_name(str(value), f"{what} in {place}:")


def _shown(value: Any) -> str:
    """A scalar as it is; of anything larger only what it is, as aliases can make a small file huge."""
    if value is None or isinstance(value, bool | float):
        return str(value)
    if isinstance(value, str | int):
        is_plain = isinstance(value, str) or abs(value) <= sys.maxsize
        text = repr(value) if is_plain else f"{value:#x}"  # very long numbers have no decimal form
        return shorten(text)
    return f"that is a {type(value).__name__}"


def _fields(
    row: Any, place: str, required: frozenset[str] | set[str] = frozenset(), optional: set[str] | None = None
) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InvalidArgument(f"{place}: expected a mapping, got {type(row).__name__}")
    known = set(required) | (optional or set())
    unknown = [key for key in row if key not in known]
    if unknown:
        raise InvalidArgument(f"{place}: unknown key {_shown(unknown[0])}, known are {', '.join(sorted(known))}")
    missing = sorted(set(required) - set(row))
    if missing:
        raise InvalidArgument(f"{place}: '{missing[0]}' is missing")
    return row
