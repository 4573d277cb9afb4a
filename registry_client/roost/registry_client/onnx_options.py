"""What a configuration may ask of ONNX Runtime, as options of the load that the worker is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from roost.core.errors import InvalidArgument
from roost.core.names import shorten
from roost.proto import model_config_pb2 as mc

MAX_THREADS = 1024

_LEVELS: Mapping[int, str] = {-1: "basic", 1: "extended", 2: "off"}


def onnx_options(config: mc.ModelConfig) -> dict[str, str]:
    """Reads the options that are honoured; ``graph_level`` is one of basic, extended, off and all.

    Raises:
        InvalidArgument: If one makes no sense; the text names it.
    """
    options: dict[str, str] = {}
    for name, check in OPTIONS.items():
        if name in config.parameters:
            value = config.parameters[name].string_value.strip()
            reason = check(value)
            if reason:
                raise InvalidArgument(f"parameter '{name}': '{shorten(value)}' is not {reason}")
            options[name] = value
    if config.optimization.HasField("graph"):
        options["graph_level"] = _LEVELS.get(config.optimization.graph.level, "all")
    return options


def _threads(value: str) -> str:
    is_number = value.isascii() and value.isdigit() and len(value) <= 4 and int(value) <= MAX_THREADS
    return "" if is_number else f"a number of threads from 0 to {MAX_THREADS}"


def _mode(value: str) -> str:
    return "" if value in ("0", "1") else "0 (operators one after another) or 1 (in parallel)"


OPTIONS: Mapping[str, Callable[[str], str]] = {
    "intra_op_thread_count": _threads,
    "inter_op_thread_count": _threads,
    "execution_mode": _mode,
}
"""Parameters that are honoured, and what says what is wrong with a value."""
