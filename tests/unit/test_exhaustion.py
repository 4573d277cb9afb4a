"""What is exhausted, and threads that are there before they are needed."""

from __future__ import annotations

import errno
import threading

import pytest
from roost.core.exhaustion import is_exhausted, what_is_missing
from roost.core.threads import thread_pool


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (OSError(errno.EMFILE, ""), "file descriptors"),
        (OSError(errno.ENFILE, ""), "file descriptors"),
        (OSError(errno.ENOMEM, ""), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (FileNotFoundError(errno.ENOENT, ""), ""),
        (OSError(errno.EIO, ""), ""),
        (RuntimeError("anything else"), ""),
        (ValueError("can't start new thread"), ""),
    ],
)
def test_what_is_exhausted(error: Exception, missing: str) -> None:
    assert is_exhausted(error) == bool(missing)
    assert not missing or what_is_missing(error) == missing


def test_pythons_own_words() -> None:
    """If they change, want of threads is not recognised any more."""
    before = threading.stack_size()
    threading.stack_size(1 << 46)  # of which there is not so much
    try:
        with pytest.raises(RuntimeError) as refused:
            threading.Thread(target=int).start()
    finally:
        threading.stack_size(before)
    assert is_exhausted(refused.value)


def test_a_pool_has_its_threads_from_the_beginning() -> None:
    before = threading.active_count()
    with thread_pool(3, "test") as pool:
        assert threading.active_count() == before + 3
        assert pool.submit(int).result() == 0
    assert threading.active_count() == before


def test_a_pool_that_can_not_have_them_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    start, started = threading.Thread.start, 0

    def start_two(thread: threading.Thread) -> None:
        nonlocal started
        started += 1
        if started > 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start new thread"), thread_pool(3, "test"):
        pass
    assert threading.active_count() == before
