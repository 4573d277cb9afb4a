"""Threads that load are nicer than those that run, and what runs a model is as nice as whoever has made it."""

from __future__ import annotations

import os
import threading

import pytest
from roost.runtimes.niceness import LOAD_NICENESS, let_runs_go_first
from roost.runtimes.protocol import LoadSpec

NICEST = 19


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_one_thread_gets_nicer_and_no_other() -> None:
    before, seen = _niceness(), []

    def load() -> None:
        let_runs_go_first()
        seen.append(_niceness())

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert seen == [min(NICEST, before + LOAD_NICENESS)]
    assert _niceness() == before


@pytest.mark.parametrize(
    ("threads", "options", "expected"),
    [
        (1, {}, False),
        (2, {}, True),
        (1, {"intra_op_thread_count": "4"}, True),
        (1, {"graph_level": "all"}, False),
    ],
)
def test_what_makes_threads(threads: int, options: dict[str, str], expected: bool) -> None:
    assert LoadSpec("m.onnx", "/", threads, options).makes_threads is expected
