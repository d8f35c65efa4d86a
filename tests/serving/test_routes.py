"""What reaches an engine, and what each request becomes on its way there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.policy.choice import Engine, Facts, Model
from gateway.protocol.dialects import VLLM
from gateway.protocol.errors import UpstreamReset
from gateway.serving.routes import PASSED, find
from gateway.settings import Settings
from tests.policy.made import MODEL, config_of, facts_of, one
from tests.serving.driven import CHAT, Driven, ask, plain, stream

GENERATION = [CHAT, f"{CHAT}/batch", "/v1/completions", "/v1/responses", "/v1/messages", "/generate"]
PASSING = ["/v1/embeddings", "/tokenize", "/detokenize", "/v1/messages/count_tokens", "/v1/responses/resp_1/cancel"]
SHUT = [
    "/metrics",
    "/invocations",
    "/generative_scoring",
    "/v1/systemone",
    "/scale_elastic_ep",
    "/sleep",
    "/collective_rpc",
    "/v1/load_lora_adapter",
    "/v1/chat/completions/render",
    "/v1/messages/render",
    "/inference/v1/generate",
    "/slots",
    "/props",
    "/completion",
    "/apply-template",
    "/v1/models",
    "/openapi.json",
    "/",
    "",
    "/v1/chat/completions/",
    "//v1/chat/completions",
    "/V1/chat/completions",
    "/v1/chat/completions/../../metrics",
    "/v1/responses/",
    "/v1/responses/a/b",
    "/v1/responses/..",
    "/v1/responses/../../metrics",
    "/v1/responses/a%2Fb",
    "/v1/responses/a b",
    "/v1/responses/a\n",
    "/v1/responses/é",
    "/v1/responses/" + "a" * 129,
    "/v1/responses/a/cancel/b",
    "/v1/responses//cancel",
    "/http://127.0.0.1/v1/chat/completions",
]


@pytest.mark.parametrize("path", SHUT)
def test_what_is_not_on_the_list_is_not_on_the_way(path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert find(method, path) is None


@pytest.mark.parametrize("path", [*GENERATION, *PASSING])
async def test_the_list(path: str) -> None:
    body = b'{"prompt":"x"}' if path == "/generate" else None
    driven = await ask(plain(b'{"choices":[{"message":{"content":"x"}}]}'), path=path, body=body).start().finish()
    assert driven.status == 200
    expected = CHAT if path == "/generate" else path
    assert [(method, to) for method, to, _, _ in driven.pool.sent] == [(b"POST", expected.encode())]
    assert set(PASSED) >= {"/v1/embeddings", "/tokenize", "/detokenize", "/v1/messages/count_tokens"}


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", [*GENERATION, *PASSING])
async def test_another_method_is_a_405(method: str, path: str) -> None:
    driven = await ask(plain(b"{}"), path=path, method=method).start().finish()
    assert (driven.status, driven.error["code"], driven.headers[b"allow"]) == (405, "method_not_allowed", b"POST")
    assert driven.pool.sent == []


async def test_a_stored_response() -> None:
    path = "/v1/responses/resp_1-A"
    query = b"stream=true&starting_after=5&include=%0d%0ax&url=http://x&stream=a b"
    driven = await ask(plain(b"{}"), path=path, method="GET", query=query).start().finish()
    [(method, to, _, body)] = driven.pool.sent
    assert (method, to, body) == (b"GET", path.encode() + b"?stream=true&starting_after=5", b"")
    assert driven.offered == [], "nothing was generated"
    refused = await ask(plain(b"{}"), path=path, method="DELETE").start().finish()
    assert (refused.status, refused.headers[b"allow"]) == (405, b"GET")


# --- routes without sampling


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (b'{"model":"p","prompt":"a\\u0041", "x":1.10}', b'{"model":"%s","prompt":"a\\u0041","x":1.10}'),
        (b'{"prompt":"a"}', b'{"prompt":"a"}'),
        (b'{"model":"%s:p","prompt":"a","preset":"p"}', b'{"model":"%s","prompt":"a"}'),
        (b"", b""),
    ],
)
async def test_a_passing_body_changes_only_its_names(sent: bytes, received: bytes) -> None:
    name = MODEL.encode()
    driven = await ask(plain(b"{}"), path="/tokenize", body=sent.replace(b"%s", name)).start().finish()
    assert driven.status == 200
    assert driven.pool.sent[0][3] == received.replace(b"%s", name)
    assert not any(header.startswith(b"x-tempera-p") for header in driven.headers)
    assert driven.offered == []


HTTP = "http://169.254.169.254/latest"
PICTURE = {"content": [{"type": "image_url", "image_url": {"url": HTTP}}]}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {"chat_template": "{{ 1 }}"}),
        ("/tokenize", {"chat_template_kwargs": {"x": 1}}),
        ("/tokenize", {"mm_processor_kwargs": {"x": 1}}),
        ("/v1/messages/count_tokens", {"chat_template": "x"}),
        ("/v1/embeddings", {"priority": 1}),
        ("/v1/embeddings", {"messages": [{"role": "user", **PICTURE}]}),
        ("/tokenize", {"messages": [{"role": "user", **PICTURE}]}),
        ("/v1/rerank", {"query": "x", "documents": [PICTURE]}),
        ("/v1/rerank", {"query": PICTURE, "documents": ["x"]}),
        ("/v1/score", {"data_1": "x", "data_2": [PICTURE]}),
        ("/v1/responses/resp_1/cancel", {"api_base": HTTP}),
    ],
)
async def test_the_fences_stand_on_every_route(path: str, fields: dict[str, Any]) -> None:
    driven = await ask(plain(b"{}"), path=path, body=json.dumps(fields).encode()).start().finish()
    assert driven.status == 400
    assert driven.error["param"] in fields
    assert driven.pool.sent == []


async def test_an_address_in_a_text_is_a_text() -> None:
    fields = {"input": [f"see {HTTP} image_url", "b"], "model": "p"}
    driven = await ask(plain(b"{}"), path="/v1/embeddings", body=json.dumps(fields).encode()).start().finish()
    assert (driven.status, json.loads(driven.pool.sent[0][3])["input"]) == (200, fields["input"])


# --- models that are not known yet


async def with_models(body: dict[str, Any], before: Facts, after: Facts) -> Driven:
    driven = ask(plain(b'{"choices":[]}'), body=body, facts=before)

    async def refresh() -> None:
        driven.state.models.asked.append(1)  # type: ignore[attr-defined]
        driven.state.facts = after

    driven.state.models.refresh = refresh  # type: ignore[method-assign]
    return await driven.start().finish()


NOBODY, KNOWN = facts_of(default=Engine(VLLM)), facts_of(default=Engine(VLLM, (Model(MODEL), Model("new"))))


@pytest.mark.parametrize(
    ("model", "before", "after", "status", "asked"),
    [
        ("p", KNOWN, KNOWN, 200, 0),
        ("p", NOBODY, KNOWN, 200, 1),
        ("new", facts_of(), KNOWN, 200, 1),
        ("new:p", facts_of(), KNOWN, 200, 1),
        ("nope", KNOWN, KNOWN, 404, 1),
        ("p", NOBODY, NOBODY, 503, 1),
        ("nope", NOBODY, NOBODY, 503, 1),  # never reached: nobody knows that it is not there
        (f"{MODEL}:nope", KNOWN, KNOWN, 404, 0),  # no engine has presets
    ],
)
async def test_a_miss_asks_the_engines_once(model: str, before: Facts, after: Facts, status: int, asked: int) -> None:
    driven = await with_models({"model": model}, before, after)
    assert (driven.status, len(driven.state.models.asked)) == (status, asked)  # type: ignore[attr-defined]
    assert status != 503 or driven.headers[b"retry-after"]


# --- the tutorial's /generate


def generate(body: Any, **more: Any) -> Driven:
    text = json.dumps(body).encode() if not isinstance(body, bytes) else body
    return ask(plain('{"choices":[{"message":{"content":"诗\u2028"}}]}'.encode()), path="/generate", body=text, **more)


async def test_generate() -> None:
    driven = await generate({"prompt": "写诗"}).start().finish()
    assert json.loads(driven.body) == {"response": "诗\u2028"}
    assert driven.headers[b"content-length"] == str(len(driven.body)).encode()
    body = json.loads(driven.pool.sent[0][3])
    assert body["messages"] == [{"role": "user", "content": "写诗"}]
    assert (body["temperature"], body["max_tokens"]) == (0.7, 512)
    assert "prompt" not in body
    assert driven.headers[b"x-tempera-preset"] == b"p"
    assert b"x-tempera-adjusted" not in driven.headers
    assert (driven.exchange.protocol, driven.exchange.outcome) == ("chat", "ok")


@pytest.mark.parametrize(
    ("parameters", "asked", "temperature", "limit", "adjusted"),
    [
        ({}, {"temperature": 0, "max_tokens": 5}, 0, 5, None),
        ({"temperature": {"max": 0.5}}, {"temperature": 1.4}, 0.5, 512, b"temperature=(1.4 0.5);by=bound"),
        ({"temperature": 0.2, "max_tokens": 100}, {}, 0.2, 100, None),
        ({"max_tokens": {"max": 300}}, {}, 0.7, 300, None),  # nobody asked for 512
        ({"max_tokens": {"min": 600}}, {"max_tokens": None}, 0.7, 600, None),
        ({"max_tokens": {"max": 300}}, {"max_tokens": 400}, 0.7, 300, b"max_tokens=(400 300);by=bound"),
    ],
)
@pytest.mark.parametrize("preset", ["p", None])
async def test_generate_with_a_preset(
    parameters: Any, asked: Any, temperature: float, limit: int, adjusted: bytes | None, preset: str | None
) -> None:
    config = config_of({"p": {"parameters": parameters}, "q": {}})
    driven = await generate({"prompt": "x", "preset": preset, **asked}, config=config).start().finish()
    body = json.loads(driven.pool.sent[0][3])
    assert (body["temperature"], body["max_tokens"]) == (temperature, limit)
    assert driven.headers.get(b"x-tempera-adjusted") == adjusted
    assert "preset" not in body


async def test_generate_where_the_preset_rejects() -> None:
    config = one({"max_tokens": {"max": 300}}, on_violation="reject")
    assert (await generate({"prompt": "x"}, config=config).start().finish()).status == 200
    refused = await generate({"prompt": "x", "max_tokens": 400}, config=config).start().finish()
    assert (refused.status, refused.error["param"]) == (400, "max_tokens")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": ["x"]}, 400, "prompt"),
        ({"prompt": "x", "top_p": 0.5}, 400, "top_p"),
        ({"prompt": "x", "stream": True}, 400, "stream"),
        ({"prompt": "x", "temperature": "0.7"}, 400, "temperature"),
        ({"prompt": "x", "temperature": 3}, 400, "temperature"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "x", "preset": "nope"}, 404, "preset"),
        (b'{"prompt":"x","temperature":NaN}', 400, "temperature"),
        (b"{", 400, None),
    ],
)
async def test_generate_refuses_clearly(body: Any, status: int, param: str | None) -> None:
    driven = await generate(body).start().finish()
    assert (driven.status, driven.error["param"]) == (status, param)
    assert param is None or param in driven.error["message"]
    assert (driven.pool.sent, driven.exchange.outcome) == ([], "rejected")


@pytest.mark.parametrize(
    "reply", [b"{}", b'{"choices":[]}', b'{"choices":[{"message":{"content":[1]}}]}', b"[1]", b"5"]
)
async def test_generate_where_the_engine_says_nothing(reply: bytes) -> None:
    driven = await ask(plain(reply), path="/generate", body=b'{"prompt":"x"}').start().finish()
    assert (driven.status, driven.error["code"]) == (502, "upstream_invalid_response")


async def test_a_tool_call_has_an_empty_text() -> None:
    reply = plain(b'{"choices":[{"message":{"content":null}}]}')
    driven = await ask(reply, path="/generate", body=b'{"prompt":"x"}').start().finish()
    assert json.loads(driven.body) == {"response": ""}


# --- who may come in, and when


class OneKey:
    """Lets in one key only."""

    gate = None

    def admit(self, key: bytes | None) -> Any:
        from gateway.protocol.errors import Unauthorized
        from gateway.serving.access import Caller

        if key != b"good":
            raise Unauthorized("A valid API key is needed.")
        return Caller("team", "q", frozenset({"q"}))


@pytest.mark.parametrize("path", [*GENERATION, *PASSING])
@pytest.mark.parametrize("body", [b"{}", b"{", b'{"model":"nope","prompt":"x"}'])
async def test_without_a_key_nothing_is_said_but_that(path: str, body: bytes) -> None:
    """Not even whether the body was right, or which presets there are."""
    for headers in ([], [(b"authorization", b"Bearer bad")], [(b"x-api-key", b"bad")]):
        driven = ask(plain(b"{}"), path=path, body=body, headers=headers)
        driven.state.access = OneKey()  # type: ignore[assignment]
        await driven.start().finish()
        assert (driven.status, driven.error["code"]) == (401, "invalid_api_key")
        assert driven.pool.sent == []


@pytest.mark.parametrize("header", [(b"authorization", b"Bearer good"), (b"x-api-key", b"good")])
async def test_a_key_has_a_name_a_preset_and_limits(header: tuple[bytes, bytes]) -> None:
    for model, status in ((MODEL, 200), ("q", 200), ("p", 403)):
        driven = ask(plain(b"{}"), body={"model": model}, headers=[header], config=config_of({"p": {}, "q": {}}))
        driven.state.access = OneKey()  # type: ignore[assignment]
        await driven.start().finish()
        assert driven.status == status
        assert driven.exchange.key == "team"
        assert status != 200 or driven.headers[b"x-tempera-preset"] == b"q"
        assert all(b"good" not in b"".join(headers.values()) + body for _, _, headers, body in driven.pool.sent)


@pytest.mark.parametrize("path", [*GENERATION, *PASSING])
async def test_a_gateway_that_shuts_down_says_so(path: str) -> None:
    driven = ask(plain(b"{}"), path=path)
    driven.state.draining = True
    await driven.start().finish()
    assert (driven.status, driven.error["code"]) == (503, "shutting_down")
    assert driven.headers[b"retry-after"]
    assert driven.pool.sent == []


async def test_identifiers_for_experiments_come_from_the_headers() -> None:
    arms = {"a": {}, "b": {}}
    config = config_of({"p": {}}, experiments={"e": {"preset": "p", "state": "running", "variants": arms}})
    for name, kind in ((b"x-unit-id", "unit"), (b"x-conversation-id", "conversation")):
        driven = await ask(plain(b"{}"), headers=[(name, b"u1")], config=config).start().finish()
        plan = driven.exchange.plan
        assert plan is not None
        assert plan.assignment is not None
        assert plan.assignment.unit_kind == kind
        assert driven.headers[b"x-tempera-variant"] == f"e={plan.assignment.variant}".encode()


async def test_a_small_cap_for_bodies_holds_on_every_route() -> None:
    for path in (*GENERATION, "/tokenize"):
        driven = await ask(plain(b"{}"), path=path, body=b"x" * 200, settings=Settings(max_body=100)).start().finish()
        assert driven.status == 413


async def test_a_stored_responses_stream_that_breaks_off() -> None:
    reply = stream(b"event: a\ndata: {}\n\n", UpstreamReset("x"))
    driven = await ask(reply, path="/v1/responses/r1", method="GET", query=b"stream=true").start().finish()
    assert driven.body.startswith(b"event: a\ndata: {}\n\n")
    assert b'"upstream_reset"' in driven.body
