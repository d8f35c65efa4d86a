"""The real engine, started once per run. Skipped unless `make test-vllm` asks for it: it takes minutes and 3 GB.

`TEMPERA_TEST_VLLM=1` is the switch. Asked for and not set up is a failure, not a skip: a green run must mean that the
engine was there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.vllm import environment
from tests.vllm.server import Engine, serve

HERE = Path(__file__).parent
SKIPPED = pytest.mark.skip(reason="needs a real vLLM: run `make test-vllm`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TEMPERA_TEST_VLLM") == "1":
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(SKIPPED)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM as the product is deployed: `--generation-config vllm`."""
    yield from _started(tmp_path_factory, "neutral", "vllm")


@pytest.fixture(scope="session")
def inheriting_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM as it starts by default: the model's `generation_config.json` (here Qwen2.5's) fills in for requests."""
    yield from _started(tmp_path_factory, "inheriting", "auto")


def _started(tmp_path_factory: pytest.TempPathFactory, name: str, generation_config: str) -> Iterator[Engine]:
    log = tmp_path_factory.mktemp("vllm") / f"{name}.log"
    try:
        with serve(log, ("--generation-config", generation_config)) as engine:
            yield engine
    except environment.NotSetUp as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def direct(engine: Engine) -> Iterator[httpx.Client]:
    """A client straight at the engine."""
    with httpx.Client(base_url=engine.base_url, timeout=120, trust_env=False) as client:
        yield client
