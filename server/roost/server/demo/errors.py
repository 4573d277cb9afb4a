"""What ends the demo early: an error that is told in one line, or a signal."""

from __future__ import annotations


class DemoError(Exception):
    """The demo can't go on; the text is shown to the user as it is."""


class Interrupted(SystemExit):
    """The user has had enough (Ctrl-C), or a signal says so.

    Not a KeyboardInterrupt, because the event loop below tritonclient's HTTP client prints a traceback of that one.
    """
