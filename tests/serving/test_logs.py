"""The process's own log: its two formats, what an exception tells, and what a line never holds."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.serving import logs
from gateway.settings import Settings
from tests.contract.targets import gateway, send
from tests.fakes import FakeEngine

CANARY = "the client wrote this"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What went to stderr; the root logger is put back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.captureWarnings(False)


def fail() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise ValueError(CANARY) from error


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_tells_where_and_what_kind_but_not_its_message(form: str, said: Callable[[], str]) -> None:
    logs.set_up(Settings(log_format=form))  # type: ignore[arg-type]
    try:
        fail()
    except ValueError:
        logging.getLogger("tempera.relay").exception("exchange %(exchange)s failed", {"exchange": "0190-7"})
    text = said()
    assert "exchange 0190-7 failed" in text
    for part in ("Traceback (most recent call last):", "builtins.KeyError", "builtins.ValueError", "in fail"):
        assert part in text
    assert text.index("KeyError") < text.index("ValueError"), "the cause comes first"
    assert CANARY not in text


def test_a_json_line_holds_the_fields_of_its_record(said: Callable[[], str]) -> None:
    logs.set_up(Settings(log_format="json"))
    logging.getLogger("tempera.x").warning(
        "%(outcome)s, %(time)s\n第二行", {"exchange": "e", "outcome": "ok", "time": 1}
    )
    logging.getLogger("uvicorn.error").error("port %d is taken", 8001)
    lines: list[dict[str, Any]] = [json.loads(line) for line in said().splitlines()]
    assert len(lines) == 2
    first, second = lines
    assert (first["level"], first["logger"], first["message"]) == ("warning", "tempera.x", "ok, 1\n第二行")
    assert (first["exchange"], first["outcome"]) == ("e", "ok")
    assert first["time"].endswith("Z")
    assert second["message"] == "port 8001 is taken"
    assert second.keys() == {"time", "level", "logger", "message"}


@pytest.mark.parametrize(
    ("settings", "otherwise", "told"),
    [
        (Settings(), "info", ["info", "warning"]),
        (Settings(), "warning", ["warning"]),
        (Settings(log_level="debug"), "warning", ["debug", "info", "warning"]),
        (Settings(log_level="error"), "info", []),
    ],
)
def test_the_level_is_the_one_set_else_the_commands(
    settings: Settings, otherwise: str, told: list[str], said: Callable[[], str]
) -> None:
    logs.set_up(settings, otherwise)
    for level in ("debug", "info", "warning"):
        logging.getLogger("tempera").log(logging.getLevelNamesMapping()[level.upper()], level)
    assert [line.rpartition(" ")[2] for line in said().splitlines()] == told


def test_every_line_of_a_gateway_is_an_object_and_quotes_nobody(tmp_path: Path) -> None:
    ids = []
    environment = {"TEMPERA_LOG_FORMAT": "json", "TEMPERA_LOG_LEVEL": "debug"}
    with FakeEngine.in_thread() as engine, gateway(tmp_path, "--upstream", engine.url, **environment) as url:
        for fields in ({}, {"stream": True}, {"model": CANARY}, {"temperature": CANARY}):
            body = json.dumps({"messages": [{"role": "user", "content": CANARY}], **fields}).encode()
            ids.append(send(url, "POST", "/v1/chat/completions", body, {"x-request-id": "canary"}).exchange)
    text = (tmp_path / "output.txt").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    told = {line["exchange"]: line for line in lines if line["logger"] == "tempera.exchange"}
    assert list(told) == ids
    assert [told[name]["outcome"] for name in ids] == ["ok", "ok", "rejected", "rejected"]
    assert [told[name]["status"] for name in ids] == [200, 200, 404, 400]
    assert any(line["message"].startswith("listening on") for line in lines)
    assert CANARY not in text
    assert "canary" not in text


def test_at_the_usual_level_there_is_no_line_for_a_request(tmp_path: Path) -> None:
    with FakeEngine.in_thread() as engine, gateway(tmp_path, "--upstream", engine.url) as url:
        body = json.dumps({"messages": [{"role": "user", "content": CANARY}]}).encode()
        before = (tmp_path / "output.txt").read_text()
        assert send(url, "POST", "/v1/chat/completions", body, {}).status == 200
        assert send(url, "POST", "/v1/chat/completions", b"{", {}).status == 400
        assert (tmp_path / "output.txt").read_text() == before
