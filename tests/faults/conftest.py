"""The gateways that faults are tried on, and the line at the end of a run that counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from tests.contract.targets import ROOT
from tests.faults.engine import ScriptedEngine
from tests.faults.house import Gateway, Ledger, running

Start = Callable[..., AbstractContextManager[Gateway]]
LEDGER = Ledger()  # of the whole run
HASTY = {"connect": 0.3, "headers": 0.3, "idle": 0.3}
MAX_REPLY = 1_000_000


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(row): one fault or fence, by its name in tests/faults/rows.py")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "fault" not in report.keywords:
        return
    if report.when == "call" or (report.when == "setup" and report.failed):
        LEDGER.tried += not report.skipped
        LEDGER.as_expected += report.passed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LEDGER.tried:
        as_expected = LEDGER.as_expected - len(LEDGER.surprises)
        terminalreporter.write_line(
            f"faults tried {LEDGER.tried}, as expected {as_expected}, requests lost {LEDGER.lost}"
        )


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    return LEDGER


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedEngine]:
    with ScriptedEngine() as engine:
        yield engine


def write_presets(path: Path, engine: ScriptedEngine, **more: object) -> Path:
    """The shipped presets and: `hasty`, whose engine gets little time; `nowhere`, whose engine has no address;
    `private` and `private-hasty`, of which the log keeps no texts.
    """
    document = yaml.safe_load((ROOT / "presets.yaml").read_text("utf-8"))
    named = {"title": {"en": "x", "zh": "x"}, "hint": {"en": "x", "zh": "x"}}
    document["presets"] |= {
        "hasty": {**named, "upstream": "hasty"},
        "nowhere": {**named, "upstream": "nowhere"},
        "private": {**named, "log": "parameters"},
        "private-hasty": {**named, "log": "parameters", "upstream": "hasty"},
    }
    document["upstreams"] = {
        "main": {"base_url": engine.url},
        "hasty": {"base_url": engine.url, "timeouts": HASTY},
        "nowhere": {"base_url": "http://nowhere.invalid:8000", "timeouts": HASTY},
    }
    path.write_text(yaml.safe_dump(document | more, allow_unicode=True, sort_keys=False), "utf-8")
    return path


@pytest.fixture(scope="session")
def open_gateway(
    tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedEngine, ledger: Ledger
) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("open")
    presets = write_presets(home / "presets.yaml", scripted)
    with running(home, ledger, "--presets", str(presets), TEMPERA_MAX_REPLY=str(MAX_REPLY)) as gateway:
        yield gateway


API_KEY, OPERATOR_KEY = "the-key-of-the-tests", "the-operators-key-of-the-tests"
BEARER = {"authorization": f"Bearer {API_KEY}"}
OPERATOR = {"authorization": f"Bearer {OPERATOR_KEY}"}


@pytest.fixture(scope="session")
def strict_gateway(
    tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedEngine, ledger: Ledger
) -> Iterator[Gateway]:
    """Keys are needed, and clients get little time."""
    home = tmp_path_factory.mktemp("strict")
    presets = write_presets(home / "presets.yaml", scripted)
    times = {"TEMPERA_READ_TIMEOUT": "0.5", "TEMPERA_WRITE_TIMEOUT": "0.5"}
    keys = {"TEMPERA_API_KEY": API_KEY, "TEMPERA_OPERATOR_KEY": OPERATOR_KEY}
    with running(home, ledger, "--presets", str(presets), **times, **keys) as gateway:
        yield gateway


@pytest.fixture
def strict(strict_gateway: Gateway, engine: ScriptedEngine) -> Iterator[Gateway]:
    yield strict_gateway
    engine.forget()
    assert strict_gateway.ask(headers=BEARER, model="balanced").status == 200


@pytest.fixture
def engine(scripted: ScriptedEngine) -> ScriptedEngine:
    """The engine, with no script and nothing seen."""
    scripted.forget()
    return scripted


@pytest.fixture
def gateway(open_gateway: Gateway, engine: ScriptedEngine) -> Iterator[Gateway]:
    """The gateway without keys. After every fault it serves, and both sides hold no more than before."""
    yield open_gateway
    engine.forget()
    assert open_gateway.ask(model="balanced").status == 200


@pytest.fixture
def start(tmp_path: Path, engine: ScriptedEngine, ledger: Ledger) -> Start:
    """Starts a gateway of the test's own, with more in its presets file and with these variables."""

    def start(more: Mapping[str, object] | None = None, /, **variables: str) -> AbstractContextManager[Gateway]:
        presets = write_presets(tmp_path / "presets.yaml", engine, **(more or {}))
        return running(tmp_path, ledger, "--presets", str(presets), **variables)

    return start
