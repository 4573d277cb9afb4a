"""What clients see of an error that nobody foresaw, whatever the protocol."""

from __future__ import annotations

import logging
import secrets

from roost.core.errors import Internal

log = logging.getLogger(__name__)


def unexpected(error: BaseException | None, where: str) -> Internal:
    """Makes what a client sees of such an error: an id, under which the log holds the traceback.

    Args:
        error: The error.
        where: What failed.
    """
    error_id = secrets.token_hex(4)
    log.error("unexpected error %s in %s", error_id, where, exc_info=error)
    return Internal(f"internal error {error_id}")
