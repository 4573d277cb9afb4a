"""What the preparer's process does to say what an instance of a model takes; see ``roost.runtimes.preparer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.runtimes.prepared.making import CopyOrder, NotNow, in_fresh_process

LEAST_BYTES = 8 << 10
MARGIN = 16
"""Beside others an instance takes a part of that more, since memory between them is lost."""


def measure(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Has a fresh process load and run the model; what it took, or the reason why that can't be said now."""
    order = CopyOrder(**fields["order"])
    try:
        taken = in_fresh_process(order, {"job": "figures", "watch": True}, fields.get("keep_open"))
    except NotNow as error:
        return {"reason": str(error)}
    if not order.unchanged():
        return {"reason": "its files changed"}
    private_bytes = int(taken["private_bytes"])
    private_bytes += private_bytes // MARGIN + LEAST_BYTES
    peak_bytes = max(private_bytes, int(taken["peak_bytes"]))
    return {"taken": {**taken, "private_bytes": private_bytes, "peak_bytes": peak_bytes}}
