"""What every store must do, and what SQLite's does when its file or disk is broken."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.tensors import DATATYPES, Signature, TensorSpec
from roost.router.proof import Proof
from roost.router.store import SqliteStore, Store

OpenStore: TypeAlias = Callable[[], Store]

SIGNATURE = Signature(
    (TensorSpec("in", "FP32", (-1, 3)), TensorSpec("größe", "BYTES", (), optional=True)),
    (TensorSpec("out", "INT64", (-1,)),),
)


class StoreContract:
    """Tests of any store; a subclass says how one is opened, and opened again."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Iterator[Store]:
        with closing(open_store()) as store:
            yield store

    def test_what_was_never_put_is_not_there(self, store: Store) -> None:
        assert store.get_file_digest("/a", 1, 2, 3) is None
        assert store.get_signature("d", "onnxruntime") is None

    def test_a_digest_holds_while_the_file_is_the_same(self, store: Store) -> None:
        store.put_file_digest("/a", 1, 2, 3, "digest")
        assert store.get_file_digest("/a", 1, 2, 3) == "digest"
        for other in (("/b", 1, 2, 3), ("/a", 9, 2, 3), ("/a", 1, 9, 3), ("/a", 1, 2, 9)):
            assert store.get_file_digest(*other) is None

    def test_a_changed_file_takes_the_place_of_the_old(self, store: Store) -> None:
        store.put_file_digest("/a", 1, 2, 3, "old")
        store.put_file_digest("/a", 1, 2, 4, "new")
        assert store.get_file_digest("/a", 1, 2, 3) is None
        assert store.get_file_digest("/a", 1, 2, 4) == "new"

    def test_large_inodes_and_times(self, store: Store) -> None:
        store.put_file_digest("/ä b'\"", 2**63 - 1, 2**40, 2**62, "digest")
        assert store.get_file_digest("/ä b'\"", 2**63 - 1, 2**40, 2**62) == "digest"

    def test_signatures_are_kept_by_digest_and_backend(self, store: Store) -> None:
        store.put_signature("d", "onnxruntime", SIGNATURE)
        assert store.get_signature("d", "onnxruntime") == SIGNATURE
        assert store.get_signature("d", "dummy") is None
        assert store.get_signature("e", "onnxruntime") is None
        store.put_signature("d", "onnxruntime", Signature((), ()))
        assert store.get_signature("d", "onnxruntime") == Signature((), ())

    def test_proofs_are_kept_by_digest_and_conditions(self, store: Store) -> None:
        store.put_proof("d", "options", Proof(32))
        assert store.get_proof("d", "options") == Proof(32)
        assert store.get_proof("d", "others") is None
        assert store.get_proof("e", "options") is None
        store.put_proof("d", "options", Proof(0, "why", 2))
        assert store.get_proof("d", "options") == Proof(0, "why", 2)

    def test_it_outlives_a_restart(self, open_store: OpenStore) -> None:
        with closing(open_store()) as store:
            store.put_file_digest("/a", 1, 2, 3, "digest")
            store.put_signature("d", "onnxruntime", SIGNATURE)
            store.put_proof("d", "options", Proof(0, "why", 2))
        with closing(open_store()) as store:
            assert store.get_file_digest("/a", 1, 2, 3) == "digest"
            assert store.get_signature("d", "onnxruntime") == SIGNATURE
            assert store.get_proof("d", "options") == Proof(0, "why", 2)

    def test_threads_may_share_it(self, store: Store) -> None:
        def work(number: int) -> None:
            for i in range(20):
                store.put_file_digest(f"/{number}/{i}", i, i, i, f"{number}-{i}")
                found.append(store.get_file_digest(f"/{number}/{i}", i, i, i) == f"{number}-{i}")

        found: list[bool] = []
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 80

    def test_it_answers_as_if_empty_once_closed(self, open_store: OpenStore) -> None:
        store = open_store()
        store.put_file_digest("/a", 1, 2, 3, "digest")
        store.close()
        assert store.get_file_digest("/a", 1, 2, 3) is None
        assert store.get_signature("d", "onnxruntime") is None


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: SqliteStore(tmp_path / "roost.sqlite")


def works(store: Store) -> bool:
    store.put_file_digest("/new", 1, 2, 3, "digest")
    store.put_signature("new", "onnxruntime", SIGNATURE)
    return store.get_file_digest("/new", 1, 2, 3) == "digest" and store.get_signature("new", "onnxruntime") == SIGNATURE


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "roost.sqlite"
    path.write_bytes(content)
    with closing(SqliteStore(path)) as store:
        assert works(store)
    assert (tmp_path / "roost.damaged").read_bytes() == content
    assert "set aside" in caplog.text or "kept as" in caplog.text
    with closing(SqliteStore(path)) as store:
        assert store.get_file_digest("/new", 1, 2, 3) == "digest"


def test_a_file_of_a_newer_version_is_set_aside_whole(tmp_path: Path) -> None:
    path = tmp_path / "roost.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE future (x); INSERT INTO future VALUES (42); PRAGMA user_version=99;")
    with closing(SqliteStore(path)) as store:
        assert works(store)
    with closing(sqlite3.connect(tmp_path / "roost.damaged")) as connection:
        assert connection.execute("SELECT x FROM future").fetchone() == (42,)


def test_a_file_without_proofs_is_used_further(tmp_path: Path) -> None:
    path = tmp_path / "roost.sqlite"
    with closing(SqliteStore(path)) as store:
        assert works(store)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE proofs; PRAGMA user_version=1;")
    with closing(SqliteStore(path)) as store:
        assert store.get_signature("new", "onnxruntime") == SIGNATURE
        store.put_proof("d", "options", Proof(32))
    with closing(SqliteStore(path)) as store:
        assert store.get_proof("d", "options") == Proof(32)


def test_a_signature_that_can_not_be_read_is_learned_again(tmp_path: Path) -> None:
    path = tmp_path / "roost.sqlite"
    SqliteStore(path).close()
    damaged = ["", "{", "[]", "null", "{}", '{"inputs": [[1]], "outputs": []}', '{"inputs": 3, "outputs": 4}']
    with closing(sqlite3.connect(path)) as connection:
        rows = [(str(number), "onnxruntime", text) for number, text in enumerate(damaged)]
        connection.executemany("INSERT INTO signatures VALUES (?,?,?)", rows)
        connection.execute("INSERT INTO signatures VALUES ('blob', 'onnxruntime', CAST(x'ff00fe' AS TEXT))")
        connection.commit()
    with closing(SqliteStore(path)) as store:
        for digest, backend, _ in [*rows, ("blob", "onnxruntime", "")]:
            assert store.get_signature(digest, backend) is None
        store.put_signature("0", "onnxruntime", SIGNATURE)
        assert store.get_signature("0", "onnxruntime") == SIGNATURE


def test_a_file_damaged_while_it_is_in_use_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "roost.sqlite"
    with closing(SqliteStore(path)) as store:
        store.put_signature("d", "onnxruntime", SIGNATURE)
        with closing(sqlite3.connect(path)) as other:
            other.execute("DROP TABLE signatures")
        for _ in range(3):
            store.put_signature("e", "onnxruntime", SIGNATURE)
            assert store.get_signature("d", "onnxruntime") == SIGNATURE, "from memory"
            assert store.get_signature("f", "onnxruntime") is None
    assert caplog.text.count("the store fails") == 1, "said once, not for every request"


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
        store.put_signature("d", "onnxruntime", SIGNATURE)
        shutil.rmtree(folder)
        store.put_signature("e", "onnxruntime", SIGNATURE)
        assert store.get_signature("d", "onnxruntime") in (None, SIGNATURE)


SPECS = st.lists(
    st.builds(
        TensorSpec,
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(sorted(DATATYPES)),
        st.lists(st.integers(-1, 2**40)).map(tuple),
        st.booleans(),
    ),
    max_size=4,
).map(tuple)


@given(st.builds(Signature, SPECS, SPECS))
def test_any_signature_comes_back_as_it_was(signature: Signature) -> None:
    with closing(SqliteStore(Path(":memory:"))) as store:
        store.put_signature("d", "onnxruntime", signature)
        assert store.get_signature("d", "onnxruntime") == signature
