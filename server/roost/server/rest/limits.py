"""The caps that keep one REST client from taking what belongs to all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestLimits:
    """Limits of the REST transport.

    Attributes:
        max_body_bytes: The largest request body, compressed or not.
        max_header_bytes: The longest request line and the longest header field.
        write_timeout_s: How long a client may take for the next 256 KiB of an answer before it is cut off.
        keepalive_timeout_s: How long a connection may stay idle.
    """

    max_body_bytes: int = 1 << 30
    max_header_bytes: int = 8190
    write_timeout_s: float = 60.0
    keepalive_timeout_s: float = 3600.0
