"""What a URL names."""

from __future__ import annotations

from aiohttp import web
from roost.core.errors import InvalidArgument

MODEL_PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version:[0-9]+}")
_MAX_VERSION = 2**63 - 1
_MAX_VERSION_DIGITS = 19


def model_in_path(request: web.Request) -> tuple[str, str]:
    """Model and version; the version is empty if the path has none.

    Raises:
        InvalidArgument: If the version is a number that no version can have.
    """
    match = request.match_info
    return match["model"], normal_version(match.get("version", ""))


def normal_version(version: str) -> str:
    """A version without zeros in front; empty if it is.

    Raises:
        InvalidArgument: If it is a number that no version can have.
    """
    if not version:
        return version
    # The length first: Python refuses to convert very long numbers.
    digits = version.lstrip("0")
    if len(digits) > _MAX_VERSION_DIGITS or int(digits or "0") > _MAX_VERSION:
        raise InvalidArgument(f"model version {version[:40]} is out of range: the largest is {_MAX_VERSION}")
    return digits or "0"
