"""Command lines whose mistakes are told in one line, with a guess at what was meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn


class ConfigError(Exception):
    """A mistake in a flag, a variable or the file; its text is one line for the user."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``ConfigError`` where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        """Reports a mistake.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(message.removeprefix("argument ").replace("/--no-", " or --no-"))

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses arguments of which none may be left over.

        Raises:
            ConfigError: If one is unknown or wrong.
        """
        values, unknown = self.parse_known_args(argv)
        if unknown:
            given = unknown[0].partition("=")[0]
            if not given.startswith("-"):
                raise ConfigError(f"unexpected argument {given}")
            raise ConfigError(f"unknown flag {given}" + did_you_mean(given, self._flags()))
        return values

    def _flags(self) -> list[str]:
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        return [flag for action in shown for flag in action.option_strings]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the closest known name, empty if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""
