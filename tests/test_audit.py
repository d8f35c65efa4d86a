"""The audit of the lock files: a vulnerability fails it, a service that is away does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import audit


def report(*vulnerabilities: str, known: bool = True) -> str:
    """What pip-audit says of a package that the service knows (or not), and of one that it does not."""
    vulns = [{"id": name, "fix_versions": ["2"]} for name in vulnerabilities]
    found: list[dict[str, Any]] = [{"name": "a", "version": "1", "vulns": vulns}] if known else []
    return json.dumps({"dependencies": [*found, {"name": "b", "skip_reason": "not found"}]})


def test_a_vulnerability_is_told_and_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit.main(lambda _: report("CVE-1")) == 1
    assert "a 1: CVE-1, fixed in 2" in capsys.readouterr().out
    monkeypatch.setitem(audit.ACCEPTED, "CVE-1", "we do not call it")
    assert audit.main(lambda _: report("CVE-1")) == 0


def test_every_lock_is_asked_about() -> None:
    seen: list[str] = []

    def ask(lock: Path) -> str:
        seen.append(lock.name)
        return report()

    assert audit.main(ask) == 0
    assert sorted(seen) == sorted(path.name for path in (audit.ROOT / "deploy" / "locks").glob("*.txt"))


def test_without_the_service_it_says_why_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    def away(_: Path) -> str:
        raise audit.Unavailable("nobody answers")

    assert audit.main(away) == 0
    assert "nobody answers" in capsys.readouterr().out
    assert audit.main(lambda _: report(known=False)) == 0
    assert "knows none of its 1 packages" in capsys.readouterr().out
