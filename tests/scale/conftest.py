"""The installation, started once per run, and the figures printed at its end. Skipped unless `make test-scale` asks.

`TEMPERA_TEST_SCALE=1` is the switch. Asked for and without a router is a failure, not a skip.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.scale.lines import Line, lines
from tests.scale.parts import WORKERS, Installation, running

Say = Callable[[str], None]
FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    if os.environ.get("TEMPERA_TEST_SCALE") != "1":
        pytest.skip("starts nine processes: run `make test-scale`")
    if sys.platform != "linux":
        pytest.skip("which process holds a connection is looked up in /proc: Linux only")
    with running(tmp_path_factory.mktemp("scale")) as made:
        yield made


@pytest.fixture
def everywhere(installation: Installation) -> Iterator[list[Line]]:
    """A line to each serving process of each gateway."""
    found = [line for gateway in installation.gateways for line in lines(gateway, WORKERS)]
    yield found
    for line in found:
        line.close()


@pytest.fixture
def say(pytestconfig: pytest.Config) -> Say:
    """A line of the figures at the end of the run."""
    return pytestconfig.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("what was shown")
        for line in figures:
            terminalreporter.write_line(line)
