"""What somebody at a terminal has chosen to see, and which keys change that."""

from __future__ import annotations

from dataclasses import dataclass

from roost.router.activity_view import Order

ORDER_KEYS = {
    "r": Order.RATE,
    "m": Order.MEMORY,
    "w": Order.QUEUE,
    "c": Order.LOADS,
    "t": Order.LATENCY,
    "n": Order.NAME,
}
_ESCAPE, _END, _CLEAR = "\x1b", "\x03", "\x15"
_ENTER, _BACKSPACE = ("\r", "\n"), ("\x7f", "\b")
_MAX_NEEDLE_CHARS = 128


@dataclass(slots=True)
class Choice:
    """See the module.

    Attributes:
        order: Which models come first.
        needle: What their names have in them.
        typing: Whether keys are letters of the needle now.
        paused: Whether the picture stands still.
        done: Whether it is over.
    """

    order: Order = Order.RATE
    needle: str = ""
    typing: bool = False
    paused: bool = False
    done: bool = False

    def press(self, keys: str) -> None:
        """Acts upon what was typed since the last time. Keys that send a sequence (arrows, F1) do nothing."""
        if keys.startswith(_ESCAPE) and len(keys) > 1:
            return
        for key in keys:
            if self.typing:
                self._type(key)
            else:
                self._command(key)

    def _command(self, key: str) -> None:
        if key in ("q", _END):
            self.done = True
        elif key in ORDER_KEYS:
            self.order = ORDER_KEYS[key]
        elif key in ("/", "f"):
            self.typing = True
        elif key in (" ", "p"):
            self.paused = not self.paused
        elif key == _ESCAPE:
            self.needle = ""

    def _type(self, key: str) -> None:
        if key == _END:
            self.done = True
        elif key in _ENTER:
            self.typing = False
        elif key == _ESCAPE:
            self.typing, self.needle = False, ""
        elif key in _BACKSPACE:
            self.needle = self.needle[:-1]
        elif key == _CLEAR:
            self.needle = ""
        elif key.isprintable() and len(self.needle) < _MAX_NEEDLE_CHARS:
            self.needle += key
