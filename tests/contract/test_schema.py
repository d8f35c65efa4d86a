"""Every route of /openapi.json, asked with what its schema allows and with what it does not: the answers are those that
the document names, in status, media type and shape, and none is a fault of ours.

schemathesis makes the cases, the same ones on every machine; they go to a running gateway over loopback.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from gateway.protocol.dialects import PATHS
from gateway.serving.routes import PASSED
from tests.contract.targets import Target
from tests.fakes import FakeEngine

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_STEADY = settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def document(fake_target: tuple[Target, FakeEngine]) -> dict[str, Any]:
    found: dict[str, Any] = fake_target[0].get("/openapi.json").json
    return found


@pytest.fixture(scope="module")
def operations(document: dict[str, Any], fake_target: tuple[Target, FakeEngine]) -> dict[str, Any]:
    """The operations of the document, as `POST /v1/feedback`."""
    target = fake_target[0]
    exchange = target.chat(model="balanced").exchange
    target.send("/v1/feedback", {"exchange_id": exchange, "value": 1})  # so that the lists hold something
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=target.url)
    found = {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}
    del found["POST /detokenize"]  # the fake engine takes nothing but tokens there
    return found


def test_every_route_is_in_the_document(document: dict[str, Any]) -> None:
    asked = {path for path, item in document["paths"].items() if "post" in item}
    assert {*PATHS, *PASSED, "/generate", "/v1/feedback"} <= asked
    assert len(document["paths"]) >= 27


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_one_the_document_names(
    operations: dict[str, Any], engine: FakeEngine, mode: str, subtests: pytest.Subtests
) -> None:
    kind = GenerationMode(mode)
    tried = 0
    for label, operation in operations.items():
        with subtests.test(label), contextlib.suppress(Unsatisfiable):  # nothing in it can be wrong
            cases = operation.as_strategy(generation_mode=kind)
            _STEADY(given(cases)(_hold))()
            tried += 1
    assert tried >= (26 if mode == "positive" else 15)


def _hold(case: Any) -> None:
    case.call_and_validate(checks=CHECKS, timeout=30)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("since=1e306", "since"),
        ("until=-1", "until"),
        ("until=inf", "until"),
        ("limit=" + "9" * 5000, "limit"),
        ("by=temperature&limit=5", "limit"),
        ("by=temperature&before=x", "before"),
        ("by=temperature&format=csv", "format"),
        ("format=csv&limit=5", "limit"),
        ("by=preset", "by"),
    ],
)
def test_questions_the_log_cannot_answer(fake: Target, query: str, param: str) -> None:
    reply = fake.get(f"/v1/exchanges?{query}")
    assert (reply.status, reply.error["param"]) == (400, param)
