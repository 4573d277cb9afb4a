"""What there is of the resources that runs share, as ``--rate-limit-resource`` gives it: ``NAME:COUNT[:DEVICE]``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from roost.core.names import shorten
from roost.router.rate_limits import RateLimit

MAX_COUNT = 2**31 - 1

_SPEC = re.compile(r"(?P<name>[^:\s][^:]*):(?P<count>[0-9]{1,10})(?::(?P<device>cpu|(?:cuda:)?[0-9]{1,4}))?", re.ASCII)


def read_rate_limit(spec: str) -> RateLimit:
    """Reads one; a device that is a number is a GPU.

    Raises:
        ValueError: With the end of a sentence that says what is wrong.
    """
    found = _SPEC.fullmatch(spec.strip())
    if found is None or not found["name"].isprintable():
        raise ValueError(f"'{shorten(spec)}' is not of the form name:count or name:count:device")
    count = int(found["count"])
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"{count} is not a number of units from 1 to {MAX_COUNT}")
    device = found["device"] or ""
    return RateLimit(found["name"], count, f"cuda:{device}" if device.isdigit() else device)


def rate_limit_spec(limit: RateLimit) -> str:
    """How one is written."""
    return ":".join(filter(None, (limit.name, str(limit.units), limit.device)))


def rate_limits(specs: Iterable[str]) -> tuple[RateLimit, ...]:
    """All of them; what is said last of the same counts."""
    limits = map(read_rate_limit, specs)
    return tuple({(limit.name, limit.device): limit for limit in limits}.values())
