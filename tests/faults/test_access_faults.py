"""Who may not come in, and what the gateway gives away about that: nothing."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from tests.faults import rows
from tests.faults.conftest import API_KEY, BEARER, OPERATOR, OPERATOR_KEY
from tests.faults.engine import MODEL, ScriptedEngine
from tests.faults.house import CHAT, GENERATION, MESSAGES, RECORDED, Client, Gateway, asking

WRONG: dict[str, dict[str, str]] = {
    "missing": {},
    "empty": {"authorization": ""},
    "only the word": {"authorization": "Bearer "},
    "another": {"authorization": "Bearer another-key-altogether"},
    "nearly": {"authorization": f"Bearer {API_KEY[:-1]}"},
    "and more": {"authorization": f"Bearer {API_KEY}x"},
    "another case": {"authorization": f"Bearer {API_KEY.upper()}"},
    "another scheme": {"authorization": f"Basic {API_KEY}"},
    "the operator's": OPERATOR,
    "x-api-key": {"x-api-key": "another-key-altogether"},
    "a cookie": {"cookie": f"key={API_KEY}"},
    "not ASCII": {"authorization": "Bearer caf\xe9"},
    "64 KB of it": {"authorization": "Bearer " + "x" * 30_000},
}


@pytest.mark.fault(rows.KEYS)
@pytest.mark.parametrize("path", RECORDED)
def test_every_wrong_key_gets_the_same_answer(strict: Gateway, engine: ScriptedEngine, path: str) -> None:
    answers = [strict.ask(path, headers=headers, model="balanced") for headers in WRONG.values()]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    varying = {"x-request-id", "x-tempera-exchange"}
    assert len({str({k: v for k, v in answer.headers.items() if k not in varying}) for answer in answers}) == 1
    error = answers[0].error
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
    assert engine.requests == []
    for answer in answers:
        strict.expect(answer.exchange, "rejected")


@pytest.mark.fault(rows.KEYS)
@pytest.mark.parametrize("path", GENERATION)
def test_the_right_one(strict: Gateway, engine: ScriptedEngine, path: str) -> None:
    headers = {"x-api-key": API_KEY} if path == MESSAGES else BEARER
    answer = strict.ask(path, headers=headers, model="balanced")
    assert answer.status == 200
    assert strict.row(answer.exchange)["key"] == "env"
    assert API_KEY not in str(engine.requests[0].headers)


@pytest.mark.fault(rows.DENY)
def test_every_route_wants_a_key(strict: Gateway, engine: ScriptedEngine) -> None:
    """All that the gateway says it has, but for what says how it is and how it is used."""
    free = {"/healthz", "/health", "/readyz", "/metrics", "/docs", "/openapi.json"}
    paths: dict[str, dict[str, Any]] = strict.get("/openapi.json").json["paths"]
    asked = 0
    for path, methods in paths.items():
        if path in free:
            continue
        concrete = re.sub(r"\{[^}]+\}", "some-id", path)
        for method in methods:
            with Client(strict) as client:
                client.ask(concrete, asking(concrete) if concrete in RECORDED else {}, method=method.upper())
                answer = client.answer()
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key"), (method, path)
            asked += 1
    assert asked > 12
    assert (engine.requests, engine.others) == ([], [])


@pytest.mark.fault(rows.DENY)
@pytest.mark.parametrize("path", ["/v1/exchanges", "/v1/exchanges/some-id", "/v1/revisions/abcdef123456"])
def test_a_clients_key_is_not_the_operators(strict: Gateway, path: str) -> None:
    assert strict.get(path, BEARER).status == 401
    assert strict.get(path, OPERATOR).status in (200, 404)


SQL = (
    "' OR '1'='1",
    "x' UNION SELECT hash FROM keys --",
    "'; DROP TABLE exchanges; --",
    '" OR 1=1',
    "\\'; --",
    "%27%20OR%201",
)


@pytest.mark.fault(rows.TOKEN)
@pytest.mark.parametrize("text", SQL)
def test_nothing_a_client_says_is_sql(strict: Gateway, text: str) -> None:
    assert strict.ask(headers={"authorization": f"Bearer {text}"}, model="balanced").status == 401
    answer = strict.ask(headers=BEARER | {"x-unit-id": text}, model="balanced", user=text, metadata={"user_id": text})
    assert answer.status == 200
    assert strict.row(answer.exchange)["outcome"] == "ok"
    fields = {"exchange_id": text, "name": text, "value": 1, "comment": text}
    with Client(strict) as client:
        client.ask("/v1/feedback", fields, BEARER)
        assert client.answer().status in (400, 404)
    for name in ("preset", "outcome", "since", "model", "after"):
        with Client(strict) as client:
            quoted = "".join(f"%{byte:02x}" for byte in text.encode())
            client.ask(f"/v1/exchanges?{name}={quoted}", None, OPERATOR, method="GET")
            assert client.answer().status in (200, 400)
    assert strict.row(answer.exchange)["outcome"] == "ok"


@pytest.mark.fault(rows.NAMES)
def test_ten_thousand_names_make_no_series(gateway: Gateway) -> None:
    """Models, presets, users, request ids and paths that a client makes up are in no label."""
    names = random.Random(7)

    def made_up() -> str:
        return f"{names.randbytes(6).hex()}-nobody"

    def series() -> set[str]:
        return {re.sub(r'le="[^"]*"', "", name) for name in gateway.metrics()}

    def round_(client: Client, count: int) -> None:
        for number in range(count):
            fields = {"model": made_up()} if number % 2 else {"model": MODEL, "preset": made_up()}
            path = (*GENERATION, "/generate")[number % 5]
            client.ask(path, asking(path, user=made_up(), **fields), {"x-unit-id": made_up(), "x-preset": made_up()})
            answer = client.answer()
            assert answer.status in (400, 404)
            assert answer.ended
            client.next()

    with Client(gateway) as client:
        round_(client, 20)
        for _ in range(5):
            gateway.get(f"/{made_up()}")
        before = series()
        round_(client, 10_000)
        for _ in range(50):
            gateway.get(f"/{made_up()}", method=names.choice(["GET", "POST", "PUT"]))
        assert series() == before
    page = gateway.get("/metrics").body
    assert b"nobody" not in page
    assert OPERATOR_KEY.encode() not in page
    assert page.count(CHAT.encode()) <= page.count(b"\n")
