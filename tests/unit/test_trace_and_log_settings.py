"""Settings of tracing and of the log: what may be set, what is refused, and what a change does."""

from __future__ import annotations

import logging

import pytest
from roost.core.errors import FailedPrecondition, InvalidArgument, RoostError, Unimplemented
from roost.server.log_settings import LogBook
from roost.server.trace import TraceBook

START = {
    "trace_level": ("OFF",),
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


def test_trace_settings_of_models_fall_back_to_the_servers() -> None:
    book = TraceBook()
    assert book.of() == book.of("m") == START
    assert book.update({"trace_rate": ("7",)}, "m") == {**START, "trace_rate": "7"}
    assert book.update({"trace_rate": ("9",), "log_frequency": ("+2",)}) == {
        **START,
        "trace_rate": "9",
        "log_frequency": "2",
    }
    assert book.of("m") == {**START, "trace_rate": "7", "log_frequency": "2"}
    assert book.update({"trace_rate": None}, "m")["trace_rate"] == "9"
    assert book.update({"trace_rate": (), "log_frequency": None}) == book.of("m") == START


def test_trace_settings_of_models_that_are_gone_are_forgotten() -> None:
    book = TraceBook()
    book.update({"trace_rate": ("7",)}, "m")
    book.update({"trace_rate": ("8",)}, "n")
    book.keep(["n"])
    assert (book.of("m")["trace_rate"], book.of("n")["trace_rate"]) == ("1000", "8")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("trace_level", ("OFF",)),
        ("trace_level", ("MIN",)),
        ("trace_level", ()),
        ("trace_level", None),
        ("trace_file", None),
        ("trace_file", ("",)),
        ("trace_mode", ("triton",)),
        ("something_else", ("x", "y")),
    ],
)
def test_trace_settings_that_change_nothing(key: str, values: tuple[str, ...] | None) -> None:
    assert TraceBook().update({key: values}) == START


@pytest.mark.parametrize(
    ("key", "values", "error"),
    [
        ("trace_level", ("TIMESTAMPS",), FailedPrecondition),
        ("trace_level", ("TENSORS", "x"), FailedPrecondition),
        ("trace_level", ("OFF", "TIMESTAMPS"), InvalidArgument),
        ("trace_rate", ("x",), InvalidArgument),
        ("trace_rate", ("",), InvalidArgument),
        ("trace_rate", ("1_0",), InvalidArgument),
        ("trace_rate", (" 5",), InvalidArgument),
        ("trace_rate", ("-1",), InvalidArgument),
        ("trace_rate", ("1", "2"), InvalidArgument),
        ("trace_rate", ("٣",), InvalidArgument),
        ("trace_count", ("-2",), InvalidArgument),
        ("log_frequency", ("9" * 5000,), InvalidArgument),
        ("log_frequency", ("2147483648",), InvalidArgument),
        ("trace_file", ("/tmp/x",), Unimplemented),
        ("trace_mode", ("opentelemetry",), Unimplemented),
    ],
)
def test_trace_settings_that_are_refused_change_nothing(
    key: str, values: tuple[str, ...], error: type[RoostError]
) -> None:
    book = TraceBook()
    with pytest.raises(error):
        book.update({"trace_count": ("5",), key: values})
    assert book.of() == START


@pytest.mark.parametrize(("level", "expected"), [("debug", (True, True, True, 1)), ("warning", (False, True, True, 0))])
def test_log_settings_at_the_start(level: str, expected: tuple[bool | int, ...]) -> None:
    settings = LogBook(level, lambda level: None).settings()
    assert tuple(settings[f"log_{key}"] for key in ("info", "warning", "error", "verbose_level")) == expected
    assert (settings["log_file"], settings["log_format"]) == ("", "default")


def test_log_settings_change_the_level() -> None:
    levels: list[int] = []
    book = LogBook("info", levels.append)
    assert book.update({"log_verbose_level": 2, "unknown": "x"})["log_verbose_level"] == 2
    assert "unknown" not in book.settings()
    book.update({"log_verbose_level": 0, "log_info": False})
    book.update({"log_format": "ISO8601"})
    book.update({"log_warning": False})
    book.update({"log_error": False})
    book.update({"log_warning": True})
    assert levels[:3] == [logging.DEBUG, logging.WARNING, logging.ERROR]
    assert levels[3] > logging.CRITICAL
    assert levels[4:] == [logging.WARNING]
    assert book.settings()["log_format"] == "ISO8601"


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("log_file", "/tmp/x", Unimplemented),
        ("log_file", 1, InvalidArgument),
        ("log_format", "json", InvalidArgument),
        ("log_format", True, InvalidArgument),
        ("log_info", 1, InvalidArgument),
        ("log_error", "true", InvalidArgument),
        ("log_verbose_level", True, InvalidArgument),
        ("log_verbose_level", -1, InvalidArgument),
        ("log_verbose_level", 2**32, InvalidArgument),
        ("log_verbose_level", "1", InvalidArgument),
    ],
)
def test_log_settings_that_are_refused_change_nothing(
    key: str, value: bool | int | str, error: type[RoostError]
) -> None:
    book = LogBook("info", lambda level: pytest.fail("changed"))
    before = book.settings()
    with pytest.raises(error):
        book.update({"log_info": False, key: value})
    assert book.settings() == before
