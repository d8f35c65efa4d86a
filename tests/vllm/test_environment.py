"""When the environment of the real engine counts as complete, and what set-up never deletes. Installs nothing."""

from pathlib import Path

import pytest

from tests.vllm import environment


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEMPERA_VLLM_ENV", str(tmp_path / "env"))
    return tmp_path / "env"


def test_the_place_is_chosen_or_one_per_set_of_inputs(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.directory() == where
    monkeypatch.delenv("TEMPERA_VLLM_ENV")
    monkeypatch.setenv("XDG_CACHE_HOME", str(where))
    shared = environment.directory()
    assert shared.is_relative_to(where)
    monkeypatch.setattr(environment, "TORCH", "torch==0")
    assert environment.directory() != shared


@pytest.mark.parametrize("stamp", [None, "", "0" * 64])
def test_missing_cut_short_or_out_of_date_is_not_ready(where: Path, stamp: str | None) -> None:
    where.mkdir()
    if stamp is not None:
        (where / environment.STAMP).write_text(stamp)
    with pytest.raises(environment.NotSetUp, match="make test-vllm"):
        environment.ready()


def test_complete_is_left_alone(where: Path) -> None:
    where.mkdir()
    (where / environment.STAMP).write_text(environment.inputs())
    assert environment.set_up() == environment.ready() == where
    assert [path.name for path in where.iterdir()] == [environment.STAMP]


def test_what_it_did_not_make_is_never_deleted(where: Path) -> None:
    where.mkdir()
    (where / "thesis.tex").write_text("the only copy")
    with pytest.raises(SystemExit, match="TEMPERA_VLLM_ENV"):
        environment.set_up()
    assert (where / "thesis.tex").read_text() == "the only copy"


def test_the_lock_names_no_host() -> None:
    lock = environment.PACKAGES.read_text()
    assert "http:" not in lock
    assert "https:" not in lock
    assert "index-url" not in lock
