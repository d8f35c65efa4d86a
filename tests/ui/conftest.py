"""The real gateway before a fake engine, and the chat before it: once without and once with a login."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.targets import gateway
from tests.fakes import FakeEngine
from tests.ui.processes import chat

os.environ.setdefault("CHAINLIT_APP_ROOT", tempfile.mkdtemp(prefix="chainlit-"))  # it writes there when imported
pytest.importorskip("chainlit", reason="the chat is not installed (extra: ui)")

OPERATOR = "the-operators-key"
PASSWORD = "open sesame"


@pytest.fixture(scope="session")
def _engine() -> Iterator[FakeEngine]:
    with FakeEngine.in_thread(max_model_len=4096) as engine:
        yield engine


@pytest.fixture
def engine(_engine: FakeEngine) -> FakeEngine:
    """The engine behind `gateway_url`, well-behaved, having seen nothing yet."""
    _engine.forget()
    return _engine


@pytest.fixture(scope="session")
def gateway_url(_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("gateway")
    with gateway(home, "--upstream", _engine.url, "--dialect", "vllm", TEMPERA_OPERATOR_KEY=OPERATOR) as url:
        yield url


@pytest.fixture(scope="session")
def open_chat(gateway_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The chat's URL; nobody logs in."""
    with chat(tmp_path_factory.mktemp("chat"), gateway_url) as url:
        yield url


@pytest.fixture(scope="session")
def login_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("login")


@pytest.fixture(scope="session")
def login_chat(gateway_url: str, login_home: Path) -> Iterator[str]:
    """The chat's URL; anybody with the password logs in."""
    with chat(login_home, gateway_url, TEMPERA_UI_PASSWORD=PASSWORD) as url:
        yield url
