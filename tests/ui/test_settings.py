"""What the chat may be told from outside, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ui.processes import ROOT
from ui.settings import BadSettings, is_loopback, read


@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        ({}, {}, {"gateway_url": "http://127.0.0.1:8001", "host": "127.0.0.1", "port": 8002, "login": False}),
        ({"TEMPERA_GATEWAY_URL": "http://gw:9/v1/"}, {}, {"gateway_url": "http://gw:9"}),
        ({"TEMPERA_UI_PORT": "9000"}, {"port": 9001}, {"port": 9001}),
        ({"TEMPERA_UI_HOST": "0.0.0.0", "TEMPERA_UI_PASSWORD": "p"}, {}, {"host": "0.0.0.0", "login": True}),
        ({"OAUTH_GITHUB_CLIENT_ID": "x"}, {"host": "::"}, {"login": True, "password": None}),
        ({"TEMPERA_DATA_DIR": "/d"}, {}, {"home": Path("/d/chat"), "history_url": "sqlite:////d/chat/history.db"}),
        ({"TEMPERA_UI_DATABASE_URL": "postgresql://h/d"}, {}, {"history_url": "postgresql://h/d"}),
    ],
)
def test_read(environ: dict[str, str], flags: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = read(environ, **flags)
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"TEMPERA_UI_HOST": "0.0.0.0"}, "TEMPERA_UI_PASSWORD"),
        ({"TEMPERA_UI_HOST": "chat.example.com"}, "chat.example.com"),
        ({"TEMPERA_UI_PORT": "many"}, "TEMPERA_UI_PORT"),
        ({"TEMPERA_UI_PORT": "70000"}, "70000"),
        ({"TEMPERA_GATEWAY_URL": "gw:8001"}, "TEMPERA_GATEWAY_URL"),
    ],
)
def test_read_refuses_by_name(environ: dict[str, str], named: str) -> None:
    with pytest.raises(BadSettings, match=named):
        read(environ)


@pytest.mark.parametrize(
    ("host", "is_it"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_is_loopback(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


def test_the_command_refuses_to_stand_open_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ui", "--host", "0.0.0.0", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "without a login" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
