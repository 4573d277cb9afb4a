"""Chooses the files that the demo asks about: a few of different kinds, near the current directory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path

MAX_FILES = 12
# However large the folder is, looking around in it takes no time.
_MAX_ENTRIES = 3000
_FIRST = (
    "README.md",
    "README.rst",
    "pyproject.toml",
    "Makefile",
    "Dockerfile",
    "LICENSE",
    "package.json",
    "Cargo.toml",
)
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "dist", "build"})


def choose_files(folder: Path, always: list[Path], suffixes: Collection[str]) -> list[Path]:
    """Up to ``MAX_FILES`` files: well-known ones of ``folder``, then one for each of ``suffixes``, then ``always``.

    A folder without any such file gives the files of this package instead.
    """
    others = set(suffixes) - {path.suffix for path in always}
    found = _one_per_suffix(folder, others, MAX_FILES - len(always))
    if not found:
        found = _one_per_suffix(Path(__file__).parent.parent, others, MAX_FILES - len(always))
    return found + always


def _one_per_suffix(folder: Path, suffixes: Collection[str], limit: int) -> list[Path]:
    chosen = [folder / name for name in _FIRST if (folder / name).is_file()]
    seen = {path.suffix for path in chosen}
    for path in _walk(folder):
        if len(chosen) >= limit:
            break
        if path.suffix in suffixes and path.suffix not in seen:
            seen.add(path.suffix)
            chosen.append(path)
    return chosen[:limit]


def _walk(folder: Path) -> Iterator[Path]:
    """Regular files that hold something, level by level, names in order, hidden ones left out."""
    waiting = deque([folder])
    seen = 0
    while waiting and seen < _MAX_ENTRIES:
        try:
            with os.scandir(waiting.popleft()) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            continue  # a folder that we may not read
        seen += len(entries)
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and entry.stat().st_size and os.access(entry.path, os.R_OK):
                yield Path(entry.path)
