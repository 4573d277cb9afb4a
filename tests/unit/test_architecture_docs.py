"""The state tables in docs/architecture.md are those of the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import pytest
from roost.router.states import AVAILABILITY_TABLE, INSTANCE_TABLE

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def _rows(heading: str) -> list[tuple[str, str, str]]:
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    return cells[1:]


@pytest.mark.parametrize(("heading", "table"), [("Instances", INSTANCE_TABLE), ("Availability", AVAILABILITY_TABLE)])
def test_table_is_the_one_in_the_code(heading: str, table: Mapping[tuple[StrEnum, StrEnum], StrEnum]) -> None:
    coded = [(state.value, event.value, following.value) for (state, event), following in table.items()]
    assert _rows(heading) == coded
