"""The management routes: models, presets, health, the docs; and that every reply has one shape and both ids."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.policy.choice import Engine, Facts, Model
from gateway.policy.config import load
from gateway.policy.params import PARAMS
from gateway.protocol.dialects import PATHS, VLLM
from gateway.protocol.errors import Unauthorized
from gateway.serving.access import ANYBODY
from gateway.serving.api import create_api, describe_rules
from gateway.serving.front import Front
from gateway.serving.metrics import Metrics
from gateway.serving.state import State
from tests.policy.made import MODEL, config_of, facts_of, one
from tests.policy.test_config import SHIPPED, TUTORIAL
from tests.serving.driven import ask, plain

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Doors:
    """Who may come in: anybody, or one key; an operator has another."""

    def __init__(self, key: bytes | None = None) -> None:
        self.key, self.trouble = key, None
        self.gate, self.limiter = None, SimpleNamespace(trouble=None)

    def admit(self, key: bytes | None) -> Any:
        if self.key is not None and key != self.key:
            raise Unauthorized("A valid API key is needed.")
        return ANYBODY

    def check_operator(self, key: bytes | None) -> None:
        self.admit(key)


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        assert found.keys() == {"message", "type", "param", "code"}
        return found


class Gateway:
    """The whole front with engines that are a list of models."""

    def __init__(self, config: Any = None, facts: Facts | None = None, doors: Doors | None = None) -> None:
        driven = ask(plain(b'{"choices":[]}'), config=config, facts=facts)
        self.state: State = driven.state
        self.state.access = doors or Doors()  # type: ignore[assignment]
        self.asked = 0
        self.later: Facts | None = None
        engines = self.state.facts.engines
        self.state.models = SimpleNamespace(  # type: ignore[assignment]
            refresh=self._refresh,
            reached={name: bool(engine.models) for name, engine in engines.items()},
            trouble={name: "nothing listens there" for name, engine in engines.items() if not engine.models},
        )
        self.problems: dict[str, Any] = {"database_error": None, "spool_error": None, "dropped": 0}
        self.state.log = SimpleNamespace(opened=True, stats=lambda: self.problems)  # type: ignore[assignment]
        self.metrics = Metrics(CollectorRegistry())
        self.state.offer = self.metrics.observe
        self.front = Front(self.state, self.metrics, create_api(self.state, self.page, None))

    async def page(self) -> bytes:
        return self.metrics.page()

    async def _refresh(self) -> None:
        self.asked += 1
        if self.later is not None:
            self.state.facts = self.later

    async def get(self, path: str, *, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        sent: list[Any] = []
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})

        async def send(message: Any) -> None:
            sent.append(message)

        bare, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": bare,
            "raw_path": bare.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"x"), *((k.replace("_", "-").encode(), v.encode()) for k, v in headers.items())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8001),
        }
        try:
            async with asyncio.timeout(10):
                await self.front(scope, inbox.get, send)
        except AttributeError as fault:  # raised again for the process's log, once the client has its answer
            self.fault: Exception = fault
        pairs = [(name.decode().lower(), value.decode()) for name, value in sent[0]["headers"]]
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), "no header twice"
        return Answer(sent[0]["status"], dict(pairs), b"".join(m.get("body", b"") for m in sent[1:]))


SHIPPED_CONFIG = load(SHIPPED, {}.__getitem__)


async def test_a_fault_of_ours_looks_like_every_error() -> None:
    gateway = Gateway()
    gateway.state.models = None  # type: ignore[assignment]
    answer = await gateway.get("/readyz", x_request_id="turn-1")
    assert (answer.status, answer.error["code"], answer.error["type"]) == (500, "internal_error", "server_error")
    assert "NoneType" not in answer.error["message"]
    assert UUID7.fullmatch(answer.headers["x-tempera-exchange"])
    assert answer.headers["x-request-id"] == "turn-1"
    assert "NoneType" in str(gateway.fault)


# --- models


async def test_models_are_the_engines_and_one_per_preset() -> None:
    gateway = Gateway(SHIPPED_CONFIG, facts_of(context=4096))
    found = (await gateway.get("/v1/models")).json
    assert found["object"] == "list"
    assert [entry["id"] for entry in found["data"]] == [MODEL, *(row[0] for row in TUTORIAL)]
    assert all(entry["object"] == "model" and isinstance(entry["created"], int) for entry in found["data"])
    assert found["data"][0]["max_model_len"] == 4096
    assert found["data"][0]["owned_by"] == "default"
    assert {entry["owned_by"] for entry in found["data"][1:]} == {"tempera"}
    assert all("root" not in entry for entry in found["data"]), "a path of the engine's machine"
    assert gateway.asked == 0


async def test_engines_that_were_never_reached_are_asked_again() -> None:
    gateway = Gateway(facts=facts_of(default=Engine(VLLM)))
    gateway.later = facts_of()
    assert MODEL in (await gateway.get("/v1/models")).body.decode()
    assert gateway.asked == 1


@pytest.mark.parametrize("name", [MODEL, "creative", "org/model-7b"])
async def test_one_model(name: str) -> None:
    gateway = Gateway(SHIPPED_CONFIG, facts_of(default=Engine(VLLM, (Model(MODEL), Model("org/model-7b")))))
    answer = await gateway.get(f"/v1/models/{name}")
    assert (answer.status, answer.json["id"], gateway.asked) == (200, name, 0)
    listed = (await gateway.get("/v1/models")).json["data"]
    assert answer.json in listed


async def test_a_model_with_a_preset_can_be_looked_up_as_it_can_be_asked_for() -> None:
    gateway = Gateway(SHIPPED_CONFIG, facts_of(default=Engine(VLLM, (Model(MODEL),))))
    answer = await gateway.get(f"/v1/models/{MODEL}:creative")
    assert (answer.status, answer.json["id"], answer.json["owned_by"]) == (200, f"{MODEL}:creative", "default")
    for name in (f"{MODEL}:nope", "creative:coding", "nope:creative"):
        assert (await gateway.get(f"/v1/models/{name}")).status == 404


async def test_a_model_that_is_not_known_is_asked_for_once_and_then_a_404() -> None:
    gateway = Gateway(SHIPPED_CONFIG)
    answer = await gateway.get("/v1/models/nope")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert gateway.asked == 1
    gateway.later = facts_of(default=Engine(VLLM, (Model("nope"),)))
    assert (await gateway.get("/v1/models/nope")).status == 200


# --- presets


async def test_presets_say_what_a_slider_needs() -> None:
    found = (await Gateway(SHIPPED_CONFIG).get("/v1/presets")).json
    assert (found["object"], found["default"], found["revision"]) == ("list", "balanced", SHIPPED_CONFIG.revision)
    assert [entry["name"] for entry in found["data"]] == [row[0] for row in TUTORIAL]
    for entry, (_, title, default, low, high, _others) in zip(found["data"], TUTORIAL, strict=True):
        assert entry["title"]["zh"] == title
        assert {"en", "zh"} == entry["hint"].keys() == entry["title"].keys()
        assert entry["parameters"]["temperature"] == {"default": default, "min": low, "max": high, "pin": None}
        assert entry["parameters"].keys() == PARAMS.keys()
        assert (entry["revision"], entry["experiment"]) == (SHIPPED_CONFIG.revision, None)
    creative = found["data"][3]
    assert creative["when_hot"] == {"above": 1.0, "repetition_penalty": 1.1}


async def test_one_preset_and_none() -> None:
    gateway = Gateway(SHIPPED_CONFIG)
    listed = (await gateway.get("/v1/presets")).json["data"]
    assert (await gateway.get("/v1/presets/coding")).json == listed[4]
    answer = await gateway.get("/v1/presets/nope")
    assert (answer.status, answer.error["code"]) == (404, "preset_not_found")
    assert all(row[0] in answer.error["message"] for row in TUTORIAL)


def test_every_parameters_default_is_what_is_sent_when_nobody_asks() -> None:
    rules = {
        "temperature": {"min": 0.9},
        "top_p": {"pin": 0.5},
        "top_k": {"max": 50},
        "min_p": 0,
        "seed": {"pin": 0},
        "stop": ["a"],
    }
    config = one(rules)
    found = describe_rules(config.presets["p"].arm.guard.rules)
    shown = {name: (entry["default"], entry["min"], entry["max"], entry["pin"]) for name, entry in found.items()}
    assert shown == {
        "temperature": (0.9, 0.9, None, None),
        "top_p": (0.5, None, None, 0.5),
        "top_k": (50, None, 50, None),
        "min_p": (0, None, None, None),
        "repetition_penalty": (1, None, None, None),
        "presence_penalty": (0, None, None, None),
        "frequency_penalty": (0, None, None, None),
        "max_tokens": (None, None, None, None),
        "seed": (0, None, None, 0),
        "stop": (("a",), None, None, None),
    }


async def test_a_preset_names_the_experiment_that_runs_on_it() -> None:
    arms = {"a": {}, "b": {}}
    experiments = {"e": {"preset": "p", "state": "running", "variants": arms}, "f": {"preset": "q", "variants": arms}}
    found = (await Gateway(config_of({"p": {}, "q": {}}, experiments=experiments)).get("/v1/presets")).json["data"]
    assert [(entry["name"], entry["experiment"]) for entry in found] == [("p", "e"), ("q", None)]


async def test_a_prompt_is_not_shown() -> None:
    config = config_of({"p": {"system_prompt": "a.md"}}, {"a.md": "the secret recipe"})
    answer = await Gateway(config).get("/v1/presets")
    assert b"secret" not in answer.body
    assert answer.json["data"][0]["system_prompt"] is True


# --- health


async def test_alive_is_not_ready() -> None:
    gateway = Gateway(facts=facts_of(default=Engine(VLLM)))
    for path in ("/healthz", "/health"):
        assert (await gateway.get(path)).json == {"status": "ok"}
    answer = await gateway.get("/readyz")
    assert (answer.status, answer.json["status"]) == (503, "not ready")
    assert answer.json["engines"] == {"default": "nothing listens there"}
    assert gateway.asked == 1


async def test_ready_says_what_is_in_force_and_what_is_wrong() -> None:
    gateway = Gateway(facts=facts_of(default=Engine(VLLM, (Model("m"),)), other=Engine(VLLM)))
    gateway.state.models.reached["default"] = True
    answer = await gateway.get("/readyz")
    assert (answer.status, answer.json["status"]) == (200, "ready"), "one engine of two can serve"
    assert answer.json["engines"] == {"default": "ok", "other": "nothing listens there"}
    assert answer.json["revision"] == gateway.state.config.revision
    assert (answer.json["presets"], answer.json["keys"], answer.json["log"]) == ("ok", "ok", "ok")
    gateway.state.trouble = "presets.yaml was refused"
    gateway.problems |= {"dropped": 3, "database_error": "away"}
    answer = await gateway.get("/readyz")
    assert (answer.status, answer.json["presets"]) == (200, "presets.yaml was refused"), "the old file serves on"
    assert answer.json["log"] == {"dropped": 3, "database_error": "away"}


async def test_a_gateway_that_shuts_down_is_not_ready_but_alive() -> None:
    gateway = Gateway()
    gateway.state.draining = True
    answer = await gateway.get("/readyz")
    assert (answer.status, answer.json["status"]) == (503, "draining")
    assert (await gateway.get("/healthz")).status == 200


# --- shape and ids of everything


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/invocations", 404, "not_found"),
        ("GET", "/../etc/passwd", 404, "not_found"),
        ("GET", "/" + "a" * 5000, 404, "not_found"),
        ("GET", "/温\u2028", 404, "not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/presets", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", 400, "invalid_json"),
    ],
)
async def test_every_error_has_one_shape_and_both_ids(method: str, path: str, status: int, code: str) -> None:
    answer = await Gateway().get(path, method=method, x_request_id="mine-1")
    assert (answer.status, answer.error["code"], answer.error["type"]) == (status, code, "invalid_request_error")
    assert len(answer.error["message"]) < 300
    assert answer.headers["content-type"] == "application/json"
    assert ("allow" in answer.headers) is (status == 405)
    assert UUID7.fullmatch(answer.headers["x-tempera-exchange"])
    assert answer.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/presets", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"]
)
async def test_ids_on_every_reply(path: str) -> None:
    gateway = Gateway()
    first, second = await gateway.get(path, x_request_id="a b"), await gateway.get(path)
    for answer in (first, second):
        assert answer.status == 200
        assert UUID7.fullmatch(answer.headers["x-tempera-exchange"])
        assert answer.headers["x-request-id"] == answer.headers["x-tempera-exchange"]
    assert first.headers["x-tempera-exchange"] != second.headers["x-tempera-exchange"]


async def test_ids_grow_with_time() -> None:
    gateway = Gateway()
    ids = []
    for _ in range(4):
        ids.append((await gateway.get("/healthz")).headers["x-tempera-exchange"])
        await asyncio.sleep(0.002)
    assert ids == sorted(ids)


async def test_what_a_key_opens() -> None:
    gateway = Gateway(doors=Doors(b"good"))
    for path in ("/v1/models", "/v1/models/p", "/v1/presets", "/v1/presets/p"):
        refused = await gateway.get(path)
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert (await gateway.get(path, authorization="Bearer bad")).status == 401
        assert (await gateway.get(path, authorization="Bearer good")).status == 200
        assert (await gateway.get(path, x_api_key="good")).status == 200
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await gateway.get(path)).status == 200


# --- documents


async def test_the_openapi_document_has_every_route_of_the_contract() -> None:
    document = (await Gateway().get("/openapi.json")).json
    paths = document["paths"]
    assert set(PATHS) | {"/generate", "/tokenize", "/v1/embeddings", "/v1/models", "/v1/presets", "/readyz"} <= set(
        paths
    )
    assert {"/v1/feedback", "/v1/experiments", "/v1/exchanges"} <= set(paths)
    for path in PATHS:
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        limit = {"/v1/responses": "max_output_tokens"}.get(path, "max_tokens")
        assert {"model", "preset", "stream", "temperature", limit} <= body.keys()
        headers = paths[path]["post"]["responses"]["200"]["headers"]
        assert {"X-Tempera-Params", "X-Tempera-Adjusted", "X-Request-Id"} <= headers.keys()
    assert document["components"]["schemas"]["Error"]["required"] == ["error"]
    json.dumps(document, allow_nan=False)


async def test_the_metrics_are_as_many_as_the_config_has_names() -> None:
    gateway = Gateway(SHIPPED_CONFIG)

    async def series() -> int:
        page = (await gateway.get("/metrics")).body.decode()
        return len([line for line in page.splitlines() if line and not line.startswith("#")])

    async def chat(model: str) -> int:
        body = json.dumps({"model": model, "messages": []}).encode()
        return (await gateway.get("/v1/chat/completions", method="POST", body=body)).status

    assert await chat("nope") == 404
    before = await series()
    for number in range(200):
        assert await chat(f"nope-{number}") == 404
    assert await series() == before
    assert (
        'tempera_requests_total{outcome="rejected",preset="none",protocol="chat",status="404"} 201.0'
        in (await gateway.get("/metrics")).body.decode()
    )
    assert b"tempera_in_flight 0.0" in (await gateway.get("/metrics")).body
