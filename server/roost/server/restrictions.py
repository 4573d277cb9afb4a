"""Groups of calls that only clients with a secret header may make, as Triton's restricted APIs.

This keeps honest clients apart; it is no authentication, since the secret travels in the clear.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from roost.core.errors import PermissionDenied

GROUPS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)
# What both HTTP and gRPC take as the name of a header.
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class Restrictions:
    """Which header each restricted group needs.

    Attributes:
        specs: As they were written.
        rules: Name and value of the header by group; the name in lower case.
    """

    specs: tuple[str, ...] = field(default=(), repr=False)
    rules: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, specs: Sequence[str]) -> Restrictions:
        """Reads restrictions such as ``inference,health:x-key=secret``.

        Raises:
            ValueError: Saying what is wrong, without the secret.
        """
        rules: dict[str, tuple[str, str]] = {}
        for spec in specs:
            groups, _, pair = spec.partition(":")
            name, _, value = pair.partition("=")
            if not name or not value:
                raise ValueError("expected GROUP[,GROUP...]:HEADER=VALUE")
            if not _HEADER.match(name.lower()):
                raise ValueError(f"{name!r} is not the name of a header")
            for group in (part.strip() for part in groups.split(",")):
                if group not in GROUPS:
                    raise ValueError(f"{group!r} is not one of {', '.join(GROUPS)}")
                if group in rules:
                    raise ValueError(f"{group!r} is restricted twice")
                rules[group] = (name.lower(), value)
        return cls(tuple(specs), rules)

    def check(self, group: str, header_of: Callable[[str], str | None], prefix: str = "") -> None:
        """Lets a call pass, or not.

        Args:
            group: One of ``GROUPS``.
            header_of: The value of a header of the call, by its name in lower case; None if it has none.
            prefix: What the transport puts in front of the names of such headers.

        Raises:
            PermissionDenied: If the header is missing or has another value.
        """
        rule = self.rules.get(group)
        if rule is None:
            return
        name, expected = prefix + rule[0], rule[1]
        given = header_of(name)
        # In constant time, so that answers do not tell how much of a guess is right.
        if given is None or not hmac.compare_digest(_bytes(given), _bytes(expected)):
            what = "protocol" if prefix else "API"  # Triton's words, which clients match on
            raise PermissionDenied(f"This {what} is restricted, expecting header '{name}'")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # bytes that are not UTF-8 come as surrogates


NO_RESTRICTIONS = Restrictions()
