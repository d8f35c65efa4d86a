"""When the client libraries count as complete, and that their locks name no host. Installs nothing."""

import json
from pathlib import Path

import pytest

from tests.clients import environment


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = environment.directory()
    assert made.is_relative_to(tmp_path)
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("stamp", [None, "", "0" * 64])
def test_missing_cut_short_or_out_of_date_is_not_ready(where: Path, stamp: str | None) -> None:
    if stamp is not None:
        (where / environment.STAMP).write_text(stamp)
    with pytest.raises(environment.NotSetUp, match="make test-clients"):
        environment.ready()


def test_complete_is_left_alone(where: Path) -> None:
    (where / environment.STAMP).write_text(environment.inputs())
    assert environment.set_up() == environment.ready() == where
    assert [path.name for path in where.iterdir()] == [environment.STAMP]


def test_other_packages_live_elsewhere(where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "clients.txt"
    other.write_text("anthropic==0\n")
    monkeypatch.setattr(environment, "PACKAGES", other)
    assert environment.directory() != where


def test_the_locks_are_exact_and_name_no_host() -> None:
    for path in (environment.PACKAGES, *environment.NODE_PACKAGES):
        assert "://" not in path.read_text("utf-8")
    asked, locked = (json.loads(path.read_text("utf-8")) for path in environment.NODE_PACKAGES)
    [(name, version)] = asked["dependencies"].items()
    assert locked["packages"][f"node_modules/{name}"]["version"] == version
    assert all(entry["integrity"] for where, entry in locked["packages"].items() if where)
