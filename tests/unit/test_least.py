"""Models that want to be loaded without being asked for are found, and no other folder is opened for that."""

from __future__ import annotations

from pathlib import Path

import pytest
from roost.registry_client.repository import LocalRepository
from roost.router.catalog import Catalog
from roost.router.learned import Learned
from roost.router.least import MODELS_AT_A_TIME, LeastCopies

from tests.memory_store import MemoryStore
from tests.models import write_dummy, write_policy
from tests.unit.mesh_fakes import InlineExecutor
from tests.virtual_time import virtual


def write(root: Path, name: str, **policy: str | int) -> None:
    write_dummy(root / name / "1" / "model.dummy")
    write_policy(root / name, "", **policy)


def wanted(least: LeastCopies) -> list[str]:
    return sorted(revision.key.name for revision in least.revisions())


@pytest.mark.parametrize("explicit", [False, True])
@virtual
async def test_only_those_that_say_so_are_opened(tmp_path: Path, explicit: bool) -> None:
    for number in range(2 * MODELS_AT_A_TIME):
        write(tmp_path, f"plain-{number}", max_copies=2)
    for name in ("two", "none", "broken"):
        write(tmp_path, name, min_copies={"two": 2, "none": 0, "broken": -1}[name])
    (tmp_path / "plain-0" / "config.pbtxt").unlink()
    repository = LocalRepository(tmp_path)
    catalog = Catalog([repository], Learned(MemoryStore()), InlineExecutor(), explicit=explicit)
    await catalog.scan()
    least = LeastCopies(catalog, InlineExecutor())
    await least.find()
    opened = [name for name in catalog.names() if catalog.present(name) is not None]
    assert opened == ([] if explicit else ["broken", "none", "two"])
    assert wanted(least) == ([] if explicit else ["two"])
    assert not catalog.unread
    if not explicit:
        write(tmp_path, "late", min_copies=1)
        write(tmp_path, "two", min_copies=0)
        catalog.appear("late", repository)
        catalog.install(await catalog.reopen("two"))
        await least.find()
        assert wanted(least) == ["late"]
