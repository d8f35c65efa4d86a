"""When the router counts as complete. Installs nothing."""

from pathlib import Path

import pytest

from tests.scale import environment


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
    with pytest.raises(environment.NotSetUp, match="make test-scale"):
        environment.router()


def test_complete_is_left_alone(where: Path) -> None:
    (where / environment.STAMP).write_text(environment.inputs())
    assert environment.set_up() == where
    assert environment.router().is_relative_to(where)
    assert [path.name for path in where.iterdir()] == [environment.STAMP]


def test_the_router_is_the_version_that_the_docs_name() -> None:
    assert "\nvllm-router==0.1.17 " in environment.PACKAGES.read_text(encoding="utf-8")
