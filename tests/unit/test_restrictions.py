"""Calls that need a header, and headers that go to models."""

from __future__ import annotations

import re

import pytest
from pydantic import TypeAdapter
from roost.core.errors import PermissionDenied
from roost.server.forwarding import forwarded
from roost.server.restrictions import GROUPS, NO_RESTRICTIONS, Restrictions
from roost.server.values import OptionalPattern, pattern_text

PATTERN: TypeAdapter[re.Pattern[str] | None] = TypeAdapter(OptionalPattern)


def test_restricted_groups_need_their_header() -> None:
    restrictions = Restrictions.parse(["inference, health:X-Key=a=b", "trace:other=1"])
    headers = {"x-key": "a=b"}
    restrictions.check("inference", headers.get)
    restrictions.check("health", headers.get)
    restrictions.check("metadata", lambda name: None)
    with pytest.raises(PermissionDenied, match="expecting header 'other'"):
        restrictions.check("trace", headers.get)
    for wrong in ("", "a=", "a=bc", "\udc80", "ä"):
        with pytest.raises(PermissionDenied, match="expecting header 'x-key'") as caught:
            restrictions.check("inference", {"x-key": wrong}.get)
        assert "a=b" not in caught.value.message


def test_a_transport_may_put_something_before_the_name() -> None:
    restrictions = Restrictions.parse(["inference:key=s"])
    restrictions.check("inference", {"triton-grpc-protocol-key": "s"}.get, "triton-grpc-protocol-")
    with pytest.raises(PermissionDenied, match="'triton-grpc-protocol-key'"):
        restrictions.check("inference", {"key": "s"}.get, "triton-grpc-protocol-")


def test_nothing_is_restricted_by_default() -> None:
    for group in GROUPS:
        NO_RESTRICTIONS.check(group, lambda name: pytest.fail("looked"))


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(Restrictions.parse(["trace:key=hidden"]))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^x-", {"X-Tenant": "a, b", "x-emoji": "?"}),
        ("(?-i)^x-", {"x-tenant": "b", "x-emoji": "?"}),
        ("HOST", {"Host": "h"}),
        ("none", {}),
    ],
)
def test_forwarded_headers(pattern: str, expected: dict[str, str]) -> None:
    items = [("Host", "h"), ("X-Tenant", "a"), ("x-tenant", "b"), ("x-emoji", "\udc80")]
    compiled = PATTERN.validate_python(pattern)
    assert compiled is not None
    assert forwarded(compiled, items) == expected
    assert pattern_text(compiled) == pattern
