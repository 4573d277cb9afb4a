"""What the preparer's process does for prepared copies; see ``roost.runtimes.preparer``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from roost.runtimes.prepared.cache import CopyCache
from roost.runtimes.prepared.identity import can_prepare
from roost.runtimes.prepared.making import CopyOrder, NotNow, in_fresh_process, make_copy


def prepare_copy(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Makes the copy of a model unless there is one; the reason why there is none may pass, or hold for these files."""
    try:
        cache = CopyCache(Path(fields["cache_dir"]), int(fields["cache_bytes"]))
        order = CopyOrder(**fields["order"])
        was_known = can_prepare(order.backend) and cache.look_up(order.key) is not None
        manifest = make_copy(cache, order, partial(in_fresh_process, keep_open=fields.get("keep_open")))
    except NotNow as error:
        return {"made": False, "reason": str(error), "passing": True}
    except OSError as error:
        return {"made": False, "reason": f"the cache can't be used: {error.strerror}", "passing": True}
    return {"made": not manifest.reason and not was_known, "reason": manifest.reason, "passing": False}


def check_copy(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Verifies the checksums of a copy, which is removed if they are wrong; or says why that is not known now."""
    try:
        cache = CopyCache(Path(fields["cache_dir"]), int(fields["cache_bytes"]))
        return {"whole": cache.check(str(fields["key"]))}
    except OSError as error:
        return {"reason": error.strerror}
