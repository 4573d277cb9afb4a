"""Log lines: one a record, fields kept, nothing forged, no tensors."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from roost.core import logs
from roost.server.logs import configure_logging


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_human_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "human", stream)
    logging.getLogger("roost.router.mesh").info("loaded %s", "magika:1", extra={"worker": 0, "load_s": 0.049})
    (line,) = lines_of(stream)
    assert line[2] == line[5] == ":"
    assert line[12:] == " INFO    router.mesh: loaded magika:1 worker=0 load_s=0.049"


def test_colour_is_for_terminals() -> None:
    stream = Terminal()
    configure_logging("info", "human", stream)
    logging.getLogger("roost").warning("x")
    assert "\x1b[33mWARNING" in stream.getvalue()


def test_a_json_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    logging.getLogger("roost.router.mesh").warning(
        "lost worker %d", 1, extra={"worker": 1, "level": "mine", "why": None}
    )
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "roost.router.mesh",
        "message": "lost worker 1",
        "worker": 1,
        "level_": "mine",
        "why": None,
    }


@pytest.mark.parametrize("format_", ["human", "json"])
def test_a_client_can_not_forge_a_line(format_: str) -> None:
    stream = io.StringIO()
    configure_logging("info", format_, stream)
    evil = "x\n12:00:00.000 INFO server: all is well\x1b[2J"
    logging.getLogger("roost").info("no model %s", evil, extra={"model": evil})
    assert len(lines_of(stream)) == 1
    assert "\x1b" not in stream.getvalue()


def test_json_numbers_are_json() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    logging.getLogger("roost").info("x", extra={"a": float("nan"), "b": float("inf")})

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    assert json.loads(stream.getvalue(), parse_constant=refuse)["a"] == "nan"


@pytest.mark.parametrize("format_", ["human", "json"])
def test_elements_of_tensors_are_not_written(format_: str) -> None:
    stream = io.StringIO()
    configure_logging("info", format_, stream)
    secret = b"top secret"
    fields = {
        "a": secret,
        "b": memoryview(secret),
        "c": np.frombuffer(secret, np.uint8),
        "d": {"e": [bytearray(secret)]},
        "f": np.array([b"secret"], object),
        "g": np.arange(12).reshape(3, 4).T,
    }
    logging.getLogger("roost").info("request", extra=fields)
    assert "secret" not in stream.getvalue()
    assert "of 10 bytes" in stream.getvalue()
    assert len(lines_of(stream)) == 1


@pytest.mark.parametrize("format_", ["human", "json"])
def test_long_texts_are_cut(format_: str) -> None:
    stream = io.StringIO()
    configure_logging("info", format_, stream)
    logging.getLogger("roost").info("%s", "x" * 10**6, extra={"y": "y" * 10**6})
    assert len(stream.getvalue()) < 4000


def test_tracebacks() -> None:
    human, machine = io.StringIO(), io.StringIO()
    for format_, stream in (("human", human), ("json", machine)):
        configure_logging("info", format_, stream)
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("roost").exception("a request failed")
    assert lines_of(human)[-1] == "ValueError: broken"
    assert len(lines_of(machine)) == 1
    assert json.loads(machine.getvalue())["exception"].endswith("ValueError: broken")


def test_levels_chatty_libraries_and_warnings() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    logging.getLogger("roost").debug("no")
    logging.getLogger("aiohttp.access").info("no")
    logging.getLogger("asyncio").info("no")
    assert stream.getvalue() == ""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert json.loads(stream.getvalue())["logger"] == "py.warnings"


def test_fields_of_every_line() -> None:
    human, machine = io.StringIO(), io.StringIO()
    for format_, stream in (("human", human), ("json", machine)):
        logs.configure_logging("info", format_, stream, fields={"worker": 3})
        logging.getLogger("roost.runtimes").info("mine")
        logging.getLogger("roost.runtimes").info("of another", extra={"worker": 4})
    assert [line.rpartition(" ")[2] for line in lines_of(human)] == ["worker=3", "worker=4"]
    assert [json.loads(line)["worker"] for line in lines_of(machine)] == [3, 4]


def test_configuring_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "human", first)
    configure_logging("info", "human", second)
    logging.getLogger("roost").info("x")
    assert first.getvalue() == ""
    assert len(lines_of(second)) == 1
