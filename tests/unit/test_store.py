"""What every store must do, and what SQLite's does when its file or disk is broken."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roost.router.store import ABSENT, Changes, Entry, Store, StoreError
from roost.router.store_sqlite import SqliteStore

from tests.memory_store import MemoryStore

OpenStore: TypeAlias = Callable[[], Store]

AT_ONCE_S = 0.0
LONG_S = 30.0

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=3) | st.sampled_from(
    ["", "a", "a/", "a/b", "a/\U0010ffff", "a/\U0010ffffz", "a\x00b", "b", "\U0010ffff"]
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put_all", "delete", "swap", "drop", "stale"]), KEYS, st.binary(max_size=4)),
    max_size=25,
)


def together(*jobs: Callable[[], object]) -> None:
    """Runs jobs in threads of their own; what one raises fails the test."""
    failed: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)


class StoreContract:
    """Tests of any store; a subclass says how one is opened, and opened again if it survives that."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Iterator[Store]:
        with closing(open_store()) as store:
            yield store

    def test_a_value_is_there_from_its_put_to_its_delete(self, store: Store) -> None:
        assert store.get("k") is None
        first = store.put("k", b"one")
        assert store.get("k") == Entry(b"one", first)
        second = store.put("k", b"")
        assert store.get("k") == Entry(b"", second)
        assert store.delete("k")
        assert store.get("k") is None
        assert not store.delete("k")

    def test_versions_grow_over_all_keys_and_deletions(self, store: Store) -> None:
        versions = [store.put("a", b"1"), store.put("b", b"1"), store.put("a", b"1")]
        store.delete("a")
        versions.append(store.put("a", b"1"))
        swapped = store.compare_and_set("b", versions[1], b"2")
        assert swapped is not None
        versions.append(swapped)
        store.put_all({"c": b"1", "d": b"1"})
        entry = store.get("d")
        assert entry is not None
        versions.append(entry.version)
        assert versions[0] > ABSENT
        assert versions == sorted(set(versions))

    def test_a_scan_finds_what_begins_with_the_prefix_in_order(self, store: Store) -> None:
        keys = ["a", "a/", "a/b", "a/c/d", "a/\U0010ffff", "a/\U0010ffffz", "a0", "b", "ä/ö"]
        store.put_all({key: key.encode() for key in reversed(keys)})
        assert [entry.value for entry in store.scan("a/").values()] == [key.encode() for key in keys[1:6]]
        assert list(store.scan("")) == keys
        assert list(store.scan("ä")) == ["ä/ö"]
        assert store.scan("x") == {}

    def test_compare_and_set_changes_only_what_was_seen(self, store: Store) -> None:
        assert store.compare_and_set("k", 7, b"no") is None
        assert store.get("k") is None
        first = store.compare_and_set("k", ABSENT, b"one")
        assert first is not None
        assert store.get("k") == Entry(b"one", first)
        assert store.compare_and_set("k", ABSENT, b"no") is None
        second = store.compare_and_set("k", first, b"two")
        assert second is not None
        assert store.compare_and_set("k", first, b"no") is None
        assert store.compare_and_set("k", first, None) is None
        assert store.get("k") == Entry(b"two", second)
        assert store.compare_and_set("k", second, None)
        assert store.get("k") is None
        again = store.put("k", b"two")
        assert again not in (first, second), "a deleted key that comes back is not taken for the one before"

    def test_of_many_who_compare_and_set_none_is_lost(self, store: Store) -> None:
        def count() -> None:
            for _ in range(25):
                while True:
                    seen = store.get("counter")
                    value = int(seen.value) + 1 if seen is not None else 1
                    version = seen.version if seen is not None else ABSENT
                    if store.compare_and_set("counter", version, str(value).encode()) is not None:
                        break

        together(*[count] * 4)
        entry = store.get("counter")
        assert entry is not None
        assert entry.value == b"100"

    def test_only_one_creates_a_key(self, store: Store) -> None:
        won: list[int] = []

        def create(number: int) -> None:
            mine = str(number).encode()
            won.extend(key for key in range(20) if store.compare_and_set(f"lock/{key}", ABSENT, mine))

        together(*[lambda number=number: create(number) for number in range(4)])
        assert sorted(won) == list(range(20))

    def test_a_watch_tells_what_is_there_and_what_becomes_of_it(self, store: Store) -> None:
        there = store.put("a/1", b"old")
        store.put("b", b"other")
        with closing(store.watch("a/")) as watch:
            assert watch.next(AT_ONCE_S) == {"a/1": Entry(b"old", there)}
            assert watch.next(AT_ONCE_S) == {}
            store.put("a/1", b"between")
            new = store.put("a/1", b"new")
            store.put("b", b"other")
            store.put_all({"a/2": b"x", "c": b"y"})
            store.delete("a/3")
            changes = watch.next(AT_ONCE_S)
            assert changes["a/1"] == Entry(b"new", new)
            assert changes.keys() == {"a/1", "a/2"}
            store.delete("a/1")
            created = store.compare_and_set("a/3", ABSENT, b"z")
            assert created is not None
            assert store.compare_and_set("a/3", created, None)
            assert watch.next(AT_ONCE_S) == {"a/1": None, "a/3": None}

    def test_a_watch_ends_with_every_key_as_it_is(self, store: Store) -> None:
        """Threads write while one watches: it sees the writes of each key in order, and the last one of all."""
        known: Changes = {}

        def write(number: int) -> None:
            for i in range(40):
                key = f"w/{i % 3}"
                if i % 5 == number:
                    store.delete(key)
                else:
                    store.put(key, f"{number} {i}".encode())

        def look() -> None:
            with closing(store.watch("w/")) as watch:
                while "w/end" not in known:
                    for key, entry in watch.next(LONG_S).items():
                        before = known.get(key)
                        assert before is None or entry is None or entry.version > before.version
                        known[key] = entry

        looker = threading.Thread(target=look)
        looker.start()
        together(*[lambda number=number: write(number) for number in range(3)])
        store.put("w/end", b"")
        looker.join(LONG_S)
        assert {key: entry for key, entry in known.items() if entry is not None} == store.scan("w/")

    def test_a_watch_that_waits_is_woken(self, store: Store) -> None:
        told: list[Changes] = []
        watch = store.watch("k")
        together(lambda: told.append(watch.next(LONG_S)), lambda: store.put("k", b"v"))
        assert [list(changes) for changes in told] == [["k"]]

        def wait() -> None:
            with pytest.raises(StoreError):
                watch.next(LONG_S)

        together(wait, watch.close)
        watch.close()

    def test_a_closed_store_says_so(self, open_store: OpenStore) -> None:
        store = open_store()
        store.put("k", b"v")
        watch = store.watch("")
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.get("k"),
            lambda: store.put("k", b"v"),
            lambda: store.put_all({"k": b"v"}),
            lambda: store.delete("k"),
            lambda: store.scan(""),
            lambda: store.compare_and_set("k", ABSENT, b"v"),
            lambda: store.watch(""),
            lambda: watch.next(LONG_S),
        ]
        for call in calls:
            with pytest.raises(StoreError):
                call()

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(STEPS, KEYS)
    def test_it_does_what_a_dictionary_does(self, store: Store, steps: list[tuple[str, str, bytes]], p: str) -> None:
        store = type(store)(*([Path(":memory:")] if isinstance(store, SqliteStore) else []))
        model: dict[str, bytes] = {}
        seen: Changes = {}
        with closing(store), closing(store.watch(p)) as watch:
            for what, key, value in steps:
                entry = store.get(key)
                assert (entry.value if entry is not None else None) == model.get(key)
                version = entry.version if entry is not None else ABSENT
                if what == "put":
                    store.put(key, value)
                elif what == "put_all":
                    store.put_all({key: value})
                elif what == "swap":
                    assert store.compare_and_set(key, version, value)
                elif what == "stale":
                    assert store.compare_and_set(key, version + 1, value) is None
                    continue
                elif what == "delete":
                    assert store.delete(key) == (key in model)
                else:
                    assert store.compare_and_set(key, version, None)
                if what in ("put", "put_all", "swap"):
                    model[key] = value
                else:
                    model.pop(key, None)
                if len(value) % 2:
                    seen |= watch.next(AT_ONCE_S)
            seen |= watch.next(AT_ONCE_S)
            found = [(key, entry.value) for key, entry in store.scan(p).items()]
            assert found == sorted(item for item in model.items() if item[0].startswith(p))
            assert {key: entry for key, entry in seen.items() if entry is not None} == store.scan(p)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return MemoryStore


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: SqliteStore(tmp_path / "roost.sqlite")

    def test_it_outlives_a_restart(self, open_store: OpenStore) -> None:
        with closing(open_store()) as store:
            store.put_all({"a": b"1", "b": b"2"})
            store.delete("b")
            last = store.put("c", b"3")
        with closing(open_store()) as store:
            assert [(key, entry.value) for key, entry in store.scan("").items()] == [("a", b"1"), ("c", b"3")]
            assert store.get("c") == Entry(b"3", last)
            store.delete("c")
        with closing(open_store()) as store:
            assert store.put("c", b"3") > last + 1, "no version is given twice"

    def test_two_processes_never_both_create_a_key(self, open_store: OpenStore) -> None:
        with closing(open_store()) as one, closing(open_store()) as other:
            version = one.compare_and_set("k", ABSENT, b"one")
            assert version is not None
            assert other.compare_and_set("k", ABSENT, b"other") is None
            assert other.get("k") == Entry(b"one", version)


def works(store: Store) -> bool:
    store.put("new", b"value")
    entry = store.get("new")
    return entry is not None and entry.value == b"value"


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "roost.sqlite"
    path.write_bytes(content)
    with closing(SqliteStore(path)) as store:
        assert works(store)
    assert (tmp_path / "roost.damaged").read_bytes() == content
    assert "kept as" in caplog.text
    with closing(SqliteStore(path)) as store:
        assert store.get("new")


def test_a_file_with_damage_in_its_middle_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "roost.sqlite"
    with closing(SqliteStore(path)) as store:
        store.put_all({f"key/{number:06}": b"value" * 20 for number in range(2000)})
    content = bytearray(path.read_bytes())
    for page in range(20 * 4096, len(content), 4096):
        content[page : page + 512] = b"\xa5" * 512
    path.write_bytes(content)
    with closing(SqliteStore(path)) as store:
        assert works(store)
        assert store.scan("key/") == {}
    assert (tmp_path / "roost.damaged").read_bytes() == content


def test_a_file_of_a_newer_version_is_set_aside_whole(tmp_path: Path) -> None:
    path = tmp_path / "roost.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE future (x); INSERT INTO future VALUES (42); PRAGMA user_version=99;")
    with closing(SqliteStore(path)) as store:
        assert works(store)
    with closing(sqlite3.connect(tmp_path / "roost.damaged")) as connection:
        assert connection.execute("SELECT x FROM future").fetchone() == (42,)


def test_a_file_damaged_while_it_is_in_use_says_so(tmp_path: Path) -> None:
    path = tmp_path / "roost.sqlite"
    with closing(SqliteStore(path)) as store:
        with closing(sqlite3.connect(path)) as other:
            other.execute("DROP TABLE entries")
        for call in (lambda: store.get("k"), lambda: store.put("k", b"v"), lambda: store.watch("k")):
            with pytest.raises(StoreError):
                call()
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, version INTEGER, value BLOB)")
        assert works(store), "no transaction was left open"


@pytest.mark.parametrize("obstacle", ["folder missing", "path is a folder"])
def test_without_a_usable_disk_memory_has_to_do(
    tmp_path: Path, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state" / "roost.sqlite"
    if obstacle == "path is a folder":
        path.mkdir(parents=True)
    with closing(SqliteStore(path)) as store:
        assert works(store)
    assert "can't be opened" in caplog.text


def test_the_folder_vanishes_while_it_is_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with closing(SqliteStore(folder / "roost.sqlite")) as store:
        store.put("k", b"v")
        shutil.rmtree(folder)
        with suppress(StoreError):
            assert works(store)


@pytest.mark.parametrize("key", ["\ud800", "a/\udfff"])
def test_text_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    with closing(SqliteStore(tmp_path / "roost.sqlite")) as store:
        with pytest.raises(StoreError):
            store.put(key, b"v")
        assert works(store)
