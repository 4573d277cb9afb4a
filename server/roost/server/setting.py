"""What each field of ``Settings`` says of itself: flags, help texts and documentation are made from that."""

from __future__ import annotations

from typing import Any

from pydantic import Field

MODELS = "Models"
LISTENERS = "Listeners"
CLIENTS = "What clients may do and see"
GRPC = "gRPC connections"
MEMORY = "Workers and memory"
LIMITS = "Limits and timeouts"
LOGS = "Logs and metrics"


def setting(
    default: Any,
    group: str,
    metavar: str,
    description: str,
    *,
    shown_default: str | None = None,
    separator: str = ",",
    hidden: bool = False,
    alone: str | None = None,
) -> Any:
    """A field with what flags and documentation need.

    Args:
        default: Its value if nobody sets it.
        group: The heading it stands under.
        metavar: What its value is called in help texts; empty for switches.
        description: Whole sentences; help and documentation print them.
        shown_default: The default in words, where it depends on the machine.
        separator: What separates the elements of a list in the environment.
        hidden: Leave it out of help and documentation.
        alone: What a flag without a value stands for, where that is allowed.
    """
    extra: dict[str, Any] = {
        "group": group,
        "metavar": metavar,
        "shown_default": shown_default,
        "separator": separator,
        "hidden": hidden,
        "alone": alone,
    }
    return Field(default, description=description, json_schema_extra=extra)
