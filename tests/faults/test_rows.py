"""No row of the design's table of faults, and no fence, is without a test."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.faults import rows

HERE = Path(__file__).parent


def tried() -> set[str]:
    """The rows that the tests of this folder name."""
    names: set[str] = set()
    for path in HERE.glob("test_*.py"):
        module = importlib.import_module(f"tests.faults.{path.stem}")
        for name, test in vars(module).items():
            if name.startswith("test_"):
                names |= {mark.args[0] for mark in getattr(test, "pytestmark", ()) if mark.name == "fault"}
    return names


@pytest.mark.parametrize("row", [*rows.FAULTS, *rows.FENCES])
def test_every_row_is_tried(row: str) -> None:
    assert row in tried()


def test_nothing_else_is() -> None:
    assert tried() == {*rows.FAULTS, *rows.FENCES}
