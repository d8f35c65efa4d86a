"""The real engine, started once per run. Skipped unless `make test-vllm` asks for it: it takes minutes and 3 GB.

`TEMPERA_TEST_VLLM=1` is the switch. Asked for and not set up is a failure, not a skip: a green run must mean that the
engine was there.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.vllm import environment
from tests.vllm.server import NEUTRAL_DEFAULTS, Engine, serve

HERE = Path(__file__).parent
ENGINE_KEY = "engine-key"


@pytest.fixture(scope="session")
def asked_for() -> None:
    """Everything that needs the real engine depends on this."""
    if os.environ.get("TEMPERA_TEST_VLLM") != "1":
        pytest.skip("needs a real vLLM: run `make test-vllm`")


@pytest.fixture(scope="session")
def engine(asked_for: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM as the product is deployed: `--generation-config vllm`."""
    yield from _started(tmp_path_factory.mktemp("neutral"), NEUTRAL_DEFAULTS)


@pytest.fixture(scope="session")
def inheriting_engine(asked_for: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM as it starts by default: the model's `generation_config.json` (here Qwen2.5's) fills in. Wants a key."""
    yield from _started(tmp_path_factory.mktemp("inheriting"), ("--generation-config", "auto", "--api-key", ENGINE_KEY))


def _started(at: Path, flags: Sequence[str]) -> Iterator[Engine]:
    try:
        with serve(at / "vllm.log", flags) as engine:
            yield engine
    except environment.NotSetUp as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def direct(engine: Engine) -> Iterator[httpx.Client]:
    """A client straight at the engine."""
    with httpx.Client(base_url=engine.base_url, timeout=120, trust_env=False) as client:
        yield client
