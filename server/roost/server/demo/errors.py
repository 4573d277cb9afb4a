"""What stops the demo, in one line that says what to do about it."""

from __future__ import annotations


class DemoError(Exception):
    """The demo can't go on; the text is shown to the user as it is."""
