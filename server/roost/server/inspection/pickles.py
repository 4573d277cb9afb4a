"""What a pickle would run, read from its instructions: none of them is followed."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path

PROTOCOLS = frozenset(bytes((0x80, version)) for version in range(2, 6))
"""How pickles begin, but for those of the first two protocols, which are text."""

_MAX_INSTRUCTIONS = 200_000
_MAX_BYTES = 64 << 20
_TEXTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})
_STORES = frozenset({"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"})
_FETCHES = frozenset({"GET", "BINGET", "LONG_BINGET"})
_FOR_SYSTEM = frozenset(
    {
        "asyncio",
        "bdb",
        "builtins",
        "code",
        "codecs",
        "commands",
        "ctypes",
        "importlib",
        "io",
        "multiprocessing",
        "nt",
        "os",
        "pdb",
        "posix",
        "pty",
        "runpy",
        "shutil",
        "socket",
        "subprocess",
        "sys",
        "timeit",
        "urllib",
        "webbrowser",
    }
)
_HARMLESS = frozenset(
    {
        "builtins.bool",
        "builtins.bytearray",
        "builtins.bytes",
        "builtins.complex",
        "builtins.dict",
        "builtins.float",
        "builtins.frozenset",
        "builtins.int",
        "builtins.list",
        "builtins.object",
        "builtins.range",
        "builtins.set",
        "builtins.slice",
        "builtins.str",
        "builtins.tuple",
        "codecs.encode",
    }
)


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a pickle, as far as that can be told."""
    return head[:2] in PROTOCOLS


def names_in(path: Path) -> set[str]:
    """The classes and functions that reading a pickle would look up, such as ``os.system``, as far as it can be read.

    Arrays lie between the instructions in joblib's files, where this ends.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES)
    return set(_names(data))


def _names(data: bytes) -> Iterator[str]:
    texts: list[str | None] = []  # what the last instructions have put on the stack: None for what is no text
    memo: dict[int, str | None] = {}
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MAX_INSTRUCTIONS:
                return
            name = instruction.name
            if name == "GLOBAL":
                yield str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")  # Python 2's name
                texts.append(None)
            elif name == "STACK_GLOBAL":
                yield ".".join(text or "?" for text in texts[-2:])
                texts.append(None)
            elif name in _STORES:
                memo[len(memo) if argument is None else int(str(argument))] = texts[-1] if texts else None
            elif name in _FETCHES:
                texts.append(memo.get(int(str(argument))))
            else:
                texts.append(str(argument) if name in _TEXTS else None)
            del texts[:-2]
    except (ValueError, IndexError, UnicodeDecodeError):  # no pickle, or none from here on
        return


def suspects(names: set[str]) -> list[str]:
    """Of the names that a pickle looks up those that reach for the system and not for a model."""
    found = (name for name in names - _HARMLESS if name.partition(".")[0] in _FOR_SYSTEM)
    return sorted(found)
