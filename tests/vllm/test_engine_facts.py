"""What Tempera takes for granted about vLLM, seen on the live engine. When one of these fails, a page of ours lies."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.vllm.conftest import ENGINE_KEY
from tests.vllm.server import CONTEXT, FLAGS, MODEL, Engine, known_flags, serve

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
BATCH = "/v1/chat/completions/batch"
ASK = [{"role": "user", "content": "Name three colours."}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": ASK, "max_tokens": 2},
    COMPLETIONS: {"prompt": "The sky is", "max_tokens": 2},
    RESPONSES: {"input": "Name three colours.", "max_output_tokens": 2},
    MESSAGES: {"model": MODEL, "messages": ASK, "max_tokens": 2},
    BATCH: {"messages": [ASK, ASK], "max_tokens": 2},
}
every_route = pytest.mark.parametrize("route", BODIES)

NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
SENT = {
    "temperature": 0.3,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.02,
    "repetition_penalty": 1.07,
    "presence_penalty": 0.4,
    "frequency_penalty": -0.3,
}
INHERITED = NEUTRAL | {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
TAKEN_BY_MESSAGES = {"temperature", "top_p", "top_k"}
AUTHORISED = {"Authorization": f"Bearer {ENGINE_KEY}"}


def post(client: httpx.Client, route: str, **fields: Any) -> httpx.Response:
    return client.post(route, json=BODIES[route] | fields)


def sampled(engine: Engine, reply: httpx.Response, names: Any) -> dict[str, Any]:
    """The named SamplingParams of the reply's first engine request."""
    assert reply.status_code == 200, reply.text
    params = engine.sampled_with(reply.json()["id"])[0]
    return {name: params[name] for name in names}


def events(text: str) -> list[dict[str, Any]]:
    """The JSON data of a stream's events."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(item) for item in data if item != "[DONE]"]


# --- what a request runs with


@every_route
def test_sampler_fields_arrive(engine: Engine, direct: httpx.Client, route: str) -> None:
    expected = {k: v if route != MESSAGES or k in TAKEN_BY_MESSAGES else NEUTRAL[k] for k, v in SENT.items()}
    reply = post(direct, route, **SENT, seed=42)
    assert sampled(engine, reply, SENT) == expected
    assert sampled(engine, reply, ["seed"]) == {"seed": None if route == MESSAGES else 42}


@every_route
def test_neutral_fields_are_accepted_and_off(engine: Engine, direct: httpx.Client, route: str) -> None:
    assert sampled(engine, post(direct, route, **NEUTRAL), NEUTRAL) == NEUTRAL


@pytest.mark.parametrize("nulled", [False, True])
@every_route
def test_absent_and_null_are_neutral_with_generation_config_vllm(
    engine: Engine, direct: httpx.Client, route: str, nulled: bool
) -> None:
    assert sampled(engine, post(direct, route, **dict.fromkeys(NEUTRAL) if nulled else {}), NEUTRAL) == NEUTRAL


@every_route
def test_what_is_not_sent_is_inherited_without_it(inheriting_engine: Engine, route: str) -> None:
    with httpx.Client(base_url=inheriting_engine.base_url, timeout=120, trust_env=False, headers=AUTHORISED) as client:
        ran = [
            sampled(inheriting_engine, post(client, route, **fields), NEUTRAL)
            for fields in ({}, {"temperature": 0.2}, dict.fromkeys(NEUTRAL), NEUTRAL)
        ]
    # Messages cannot name the penalties, so there only the engine's flag keeps the model's own out.
    neutralised = NEUTRAL | ({"repetition_penalty": 1.05} if route == MESSAGES else {})
    assert ran == [INHERITED, INHERITED | {"temperature": 0.2}, INHERITED, neutralised]


def test_token_limits_have_a_name_per_route(engine: Engine, direct: httpx.Client) -> None:
    limits = {"max_tokens": 3, "max_completion_tokens": 4, "max_output_tokens": 5}
    wins = {CHAT: 4, COMPLETIONS: 3, RESPONSES: 5, MESSAGES: 3, BATCH: 4}
    assert {
        route: sampled(engine, post(direct, route, **limits), ["max_tokens"])["max_tokens"] for route in BODIES
    } == wins


def test_stop_has_a_name_per_route(engine: Engine, direct: httpx.Client) -> None:
    for route in BODIES:
        ran = sampled(engine, post(direct, route, stop=["one"], stop_sequences=["two"]), ["stop"])
        assert ran == {"stop": ["two"] if route == MESSAGES else ["one"]}, route


@pytest.mark.parametrize(("asked", "ran"), [("0.5", 0.5), (True, 1.0), (0.001, 0.01), (0, 0.0)])
def test_temperature_is_read_leniently(engine: Engine, direct: httpx.Client, asked: object, ran: float) -> None:
    assert sampled(engine, post(direct, CHAT, temperature=asked), ["temperature"]) == {"temperature": ran}


def test_greedy_turns_the_other_samplers_off(engine: Engine, direct: httpx.Client) -> None:
    ran = sampled(engine, post(direct, CHAT, **SENT | {"temperature": 0}), SENT)
    assert ran == SENT | {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.01),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**63),
        ("max_tokens", 0),
        ("max_tokens", CONTEXT + 1),
        ("n", 0),
        ("n", 16385),
        ("stop", ["a"] * 5),
        ("stop", [""]),
        ("stop_token_ids", [151643]),
        ("logit_bias", {"9999999": 1}),
    ],
)
def test_out_of_range_is_400(direct: httpx.Client, field: str, value: object) -> None:
    reply = post(direct, CHAT, **{field: value})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == 400
    assert field in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1e300},
        {"top_k": 2**63},
        {"top_k": -1},
        {"top_k": 7.0},
        {"seed": -1},
        {"n": None},
        {"stream": None},
        {"user": "someone", "safety_identifier": "x", "metadata": {"a": "b"}},
        {"preset": "unknown to the engine"},
    ],
    ids=repr,
)
def test_accepted(direct: httpx.Client, fields: dict[str, Any]) -> None:
    assert post(direct, CHAT, **fields).status_code == 200


def test_n_of_null_is_refused_by_completions_alone(direct: httpx.Client) -> None:
    assert {route: post(direct, route, n=None).status_code for route in BODIES} == {
        route: 400 if route == COMPLETIONS else 200 for route in BODIES
    }


@every_route
def test_removed_fields_are_silently_ignored(engine: Engine, direct: httpx.Client, route: str) -> None:
    removed = {"guided_json": {"type": "object"}, "guided_choice": ["alpha"], "guided_regex": "a", "best_of": 3}
    ran = sampled(engine, post(direct, route, **removed), ["structured_outputs", "n"])
    assert ran == {"structured_outputs": None, "n": 1}


def test_structured_outputs_bind(direct: httpx.Client) -> None:
    reply = post(direct, CHAT, structured_outputs={"choice": ["alpha", "beta"]}, max_tokens=9).json()
    assert reply["choices"][0]["message"]["content"] in {"alpha", "beta"}


def test_more_tokens_than_there_is_room_for_are_clipped(engine: Engine, direct: httpx.Client) -> None:
    prompt = [5] * (CONTEXT - 3)
    reply = post(direct, COMPLETIONS, prompt=prompt, max_tokens=100)
    assert sampled(engine, reply, ["max_tokens"]) == {"max_tokens": 3}


# --- what comes back


@every_route
def test_replies_repeat_when_greedy_or_seeded(direct: httpx.Client, route: str) -> None:
    def text(**fields: Any) -> str:
        said = post(direct, route, **fields).json()
        return json.dumps(said.get("choices") or said.get("content") or said["output"][0]["content"])

    assert text(temperature=0) == text(temperature=0)
    if route != MESSAGES:
        assert text(temperature=1, seed=7) == text(temperature=1, seed=7)


def test_logprobs_are_those_before_any_sampler(direct: httpx.Client) -> None:
    def top(**fields: Any) -> dict[str, float]:
        reply = post(direct, COMPLETIONS, max_tokens=1, logprobs=5, **fields).json()
        best = sorted(reply["choices"][0]["logprobs"]["top_logprobs"][0].items(), key=lambda pair: -pair[1])
        return dict(best[:5])

    plain = top(temperature=1)
    changed = top(temperature=0.2, repetition_penalty=1.5, presence_penalty=2, logit_bias={"28": 50}, top_k=2)
    assert changed == pytest.approx(plain, abs=1e-4)


def test_request_id_becomes_the_reply_id_but_for_responses(direct: httpx.Client) -> None:
    headers = {"X-Request-Id": "mine.1"}
    ids = {route: direct.post(route, json=body, headers=headers).json()["id"] for route, body in BODIES.items()}
    assert ids.pop(RESPONSES).startswith("resp_")
    assert ids.pop(COMPLETIONS) == "cmpl-mine.1"
    assert set(ids.values()) == {"chatcmpl-mine.1"}


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_usage_in_streams(direct: httpx.Client, route: str) -> None:
    def usages(**options: bool) -> list[bool]:
        fields = {"stream_options": options} if options else {}
        stream = post(direct, route, stream=True, ignore_eos=True, **fields).text
        assert stream.endswith("data: [DONE]\n\n")
        last = events(stream)[-1]
        assert (last["choices"] == []) == ("include_usage" in options)
        return ["usage" in event for event in events(stream)]

    assert not any(usages())
    assert not any(usages(continuous_usage_stats=True))
    *others, last = usages(include_usage=True)
    assert last
    assert not any(others)
    assert all(usages(include_usage=True, continuous_usage_stats=True))


def test_models_tell_the_context(direct: httpx.Client) -> None:
    (card,) = direct.get("/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"], card["parent"]) == (MODEL, CONTEXT, None)
    assert direct.get(f"/v1/models/{MODEL}").status_code == 404


def test_tokenize_and_back(direct: httpx.Client) -> None:
    tokens = direct.post("/tokenize", json={"prompt": "Hello world"}).json()
    assert (tokens["count"], tokens["max_model_len"]) == (len(tokens["tokens"]), CONTEXT)
    assert direct.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "Hello world"}
    assert direct.post("/v1/messages/count_tokens", json=BODIES[MESSAGES]).json()["input_tokens"] > 0


# --- refusals

JSON = "application/json"


@pytest.mark.parametrize(
    ("method", "route", "content", "status", "detail"),
    [
        ("GET", "/v1/nothing", b"", 404, "Not Found"),
        ("GET", CHAT, b"", 405, "Method Not Allowed"),
        ("POST", CHAT, b'{"model":"\xff"}', 400, "There was an error parsing the body"),
        ("POST", MESSAGES, b'{"model":"\xff"}', 400, "There was an error parsing the body"),
        ("POST", "/v1/embeddings", b"{}", 404, "Not Found"),
    ],
)
def test_some_refusals_are_not_in_the_error_shape(
    direct: httpx.Client, method: str, route: str, content: bytes, status: int, detail: str
) -> None:
    reply = direct.request(method, route, content=content, headers={"Content-Type": JSON})
    assert (reply.status_code, reply.json()) == (status, {"detail": detail})


@pytest.mark.parametrize(
    ("route", "content", "status", "kind", "param"),
    [
        (CHAT, b'{"a":', 400, "Bad Request", "body.5"),
        (CHAT, b"[1]", 400, "Bad Request", "body"),
        (CHAT, b"{}", 400, "Bad Request", "body.messages"),
        (CHAT, b'{"messages":[],"temperature":[1]}', 400, "Bad Request", "body.temperature"),
        (MESSAGES, b"{}", 400, "Bad Request", "body.model"),
        (CHAT, json.dumps(BODIES[CHAT] | {"model": "x"}).encode(), 404, "NotFoundError", "model"),
        (COMPLETIONS, json.dumps(BODIES[COMPLETIONS] | {"model": "x"}).encode(), 404, "NotFoundError", "model"),
        (RESPONSES, json.dumps(BODIES[RESPONSES] | {"model": "x"}).encode(), 404, "NotFoundError", "model"),
        (COMPLETIONS, json.dumps({"prompt": [5] * (CONTEXT + 1)}).encode(), 400, "BadRequestError", "input_tokens"),
    ],
)
def test_the_error_shape(direct: httpx.Client, route: str, content: bytes, status: int, kind: str, param: str) -> None:
    reply = direct.post(route, content=content, headers={"Content-Type": JSON})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"], error["param"]) == (status, status, kind, param)


def test_messages_have_a_shape_of_their_own_for_what_passed_the_schema(direct: httpx.Client) -> None:
    for fields, kind, status in (({"model": "x"}, "NotFoundError", 404), ({"temperature": 3}, "BadRequestError", 400)):
        reply = post(direct, MESSAGES, **fields)
        assert (reply.status_code, reply.json()["type"], reply.json()["error"]["type"]) == (status, "error", kind)


def test_the_key_guards_v1_alone(inheriting_engine: Engine) -> None:
    with httpx.Client(base_url=inheriting_engine.base_url, timeout=120, trust_env=False) as client:
        refused = post(client, CHAT)
        assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
        assert client.get("/v1/nothing").status_code == 401
        # The same inference by another door, which is why the gateway forwards an allow-list of routes.
        assert client.post("/invocations", json=BODIES[CHAT]).status_code == 200
        assert client.get("/metrics").status_code == 200


@pytest.mark.usefixtures("asked_for")
def test_the_engine_knows_every_flag_used_here() -> None:
    besides = {"--shutdown-timeout", "--max-num-queued-reqs", "--sse-keep-alive-interval", "--disable-fastapi-docs"}
    used = {flag for flag in FLAGS if flag.startswith("--")} | {"--generation-config", "--api-key"}
    assert used | besides <= known_flags()


# --- leaving and dying


def endless(route: str) -> dict[str, Any]:
    """A request still being answered when the test has seen enough. Messages cannot be told to ignore the end."""
    story = {"messages": [{"role": "user", "content": "Write a very long story."}]} if route == MESSAGES else {}
    limit = "max_output_tokens" if route == RESPONSES else "max_tokens"
    return BODIES[route] | story | {limit: 3000, "ignore_eos": True}


@pytest.mark.parametrize(
    ("route", "streaming"), [(r, s) for r in BODIES for s in (True, False) if not (s and r == BATCH)]
)
def test_a_client_that_leaves_frees_the_engine(engine: Engine, route: str, streaming: bool) -> None:
    url = httpx.URL(engine.base_url)
    content = json.dumps(endless(route) | {"stream": streaming}).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((url.host, url.port or 80)) as client:
        client.sendall(head.encode() + content)
        assert eventually(lambda: engine.running() > 0)
        if streaming:
            assert client.recv(12) == b"HTTP/1.1 200"
    assert eventually(lambda: engine.running() == 0)


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def doomed(asked_for: None, tmp_path: Path) -> Iterator[Engine]:
    """An engine of the test's own, to be ended by it."""
    with serve(tmp_path / "vllm.log") as engine:
        yield engine


def test_how_streams_end_when_the_engine_dies(doomed: Engine) -> None:
    ends: dict[str, str] = {}
    with contextlib.ExitStack() as open_streams:
        client = open_streams.enter_context(httpx.Client(base_url=doomed.base_url, timeout=60, trust_env=False))
        bodies = {
            route: open_streams.enter_context(client.stream("POST", route, json=endless(route) | {"stream": True}))
            for route in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
        }
        chunks = {route: body.iter_text() for route, body in bodies.items()}
        for said in chunks.values():
            next(said)
        os.kill(doomed.core(), signal.SIGKILL)
        for route, said in chunks.items():
            ends[route] = read_to_end(said)
    for route in (CHAT, COMPLETIONS):
        assert events(ends[route])[-1]["error"]["code"] == 500
        assert ends[route].endswith("data: [DONE]\n\n")
    assert ends[RESPONSES].endswith(CUT)
    assert events(ends[MESSAGES])[-1]["type"] == "error"
    assert "event: message_stop" not in ends[MESSAGES]


CUT = "<closed before the last chunk>"


def read_to_end(chunks: Iterator[str]) -> str:
    said = ""
    try:
        for chunk in chunks:
            said += chunk
    except httpx.RemoteProtocolError:
        return said + CUT
    return said


def test_sigterm_cuts_running_streams_short(doomed: Engine) -> None:
    said = ""
    story = endless(CHAT) | {"stream": True}
    try:
        with httpx.stream("POST", doomed.base_url + CHAT, json=story, timeout=10, trust_env=False) as reply:
            for chunk in reply.iter_text():
                if not said:
                    doomed.process.terminate()
                said += chunk
        if "[DONE]" in said:
            assert events(said)[-1]["error"]["code"] == 500
    except httpx.ReadTimeout:
        # Which of the three comes is a race in the engine: an error event at once, an end without a word (seen once, on
        # a busy machine), or silence on a connection left open.
        assert "[DONE]" not in said
    assert all(choice["finish_reason"] is None for event in events(said) for choice in event.get("choices", []))
    # In the last case it was waiting for this client to go.
    doomed.process.wait(30)
