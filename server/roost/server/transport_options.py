"""What the operator chose for one transport besides its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from roost.server.restrictions import NO_RESTRICTIONS, Restrictions


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Choices that REST and gRPC have in common, each with its own.

    Attributes:
        compat_triton: Whether errors have the statuses that Triton gives them.
        forward_headers: Names of headers that models get as string parameters; None: no header.
        restrictions: Groups of calls that need a header.
    """

    compat_triton: bool = False
    forward_headers: re.Pattern[str] | None = None
    restrictions: Restrictions = NO_RESTRICTIONS
