"""Where prepared copies are kept if nobody says, and how much of the disk they may take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from roost.server.arguments import ConfigError

DEFAULT_BYTES = 20 << 30
_SHARE_OF_DISK = 10


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """``roost`` in the user's folder for caches.

    Raises:
        ConfigError: If there is no home folder.
    """
    base = environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification says to ignore relative ones
        return Path(base) / "roost"
    home = environ.get("HOME")
    try:
        return (Path(home) if home else Path.home()) / ".cache" / "roost"
    except RuntimeError:
        raise ConfigError("there is no home folder to keep prepared copies in: give --cache-dir") from None


def default_cache_bytes(folder: Path) -> int:
    """A tenth of the file system that the folder is or will be on, at most ``DEFAULT_BYTES``."""
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    status = os.statvfs(place)
    return min(DEFAULT_BYTES, status.f_blocks * status.f_frsize // _SHARE_OF_DISK)
