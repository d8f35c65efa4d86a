"""What a request can hold that must not pass: every one is refused in our shape, the engine sees nothing, and the log
has it. And what must pass untouched.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import json
import re
import time
import zlib
from typing import Any

import pytest

from tests.faults import rows
from tests.faults.conftest import Start
from tests.faults.engine import MODEL, ScriptedEngine
from tests.faults.house import (
    CHAT,
    GENERATION,
    MESSAGES,
    RECORDED,
    RESPONSES,
    TEXT,
    Answer,
    Client,
    Gateway,
    asking,
    eventually,
)

TALK = b'"messages":[{"role":"user","content":"Hi"}]'
UUID7 = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def refused(gateway: Gateway, engine: ScriptedEngine, answer: Answer, status: int, code: str | None = None) -> None:
    error = answer.error
    assert (answer.status, answer.ended, error["type"]) == (status, True, "invalid_request_error"), answer.body
    assert code is None or error["code"] == code
    assert engine.requests == []
    assert engine.others == []
    gateway.expect(answer.exchange, "rejected")


def chat_with(member: bytes) -> bytes:
    return b'{"model":"balanced",' + TALK + b"," + member + b"}"


# --- bodies

BODIES: dict[str, tuple[bytes, int, str]] = {
    "17 MB": (b'{"a":"' + b"x" * 17_000_000 + b'"}', 413, "body_too_large"),
    "65 levels": (chat_with(b'"a":' + b"[" * 64 + b"]" * 64), 400, "too_deep"),
    "100,000 levels": (chat_with(b'"a":' + b"[" * 100_000 + b"]" * 100_000), 400, "too_deep"),
    "100,000 objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, "too_deep"),
    "a name twice": (chat_with(b'"temperature":0.1,"temperature":0.2'), 400, "duplicate_field"),
    "a name twice, once escaped": (chat_with(b'"temperature":0.1,"\\u0074emperature":0.2'), 400, "duplicate_field"),
    "a model twice": (b'{"model":"balanced","model":"creative",' + TALK + b"}", 400, "duplicate_field"),
    "nothing": (b"", 400, "invalid_json"),
    "a list": (b"[]", 400, "invalid_json"),
    "two documents": (b"{}{}", 400, "invalid_json"),
    "a form": (b"model=balanced", 400, "invalid_json"),
    "UTF-16": (json.dumps(asking()).encode("utf-16"), 400, "invalid_utf8"),
}


@pytest.mark.fault(rows.BODY)
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", RECORDED)
def test_bodies(gateway: Gateway, engine: ScriptedEngine, path: str, name: str) -> None:
    body, status, code = BODIES[name]
    refused(gateway, engine, gateway.ask(path, body), status, code)


@pytest.mark.fault(rows.BODY)
def test_sixty_four_levels_pass(gateway: Gateway, engine: ScriptedEngine) -> None:
    body = chat_with(b'"a":' + b"[" * 63 + b"]" * 63)
    assert gateway.ask(CHAT, body).status == 200
    assert b'"a":' + b"[" * 63 + b"]" * 63 in engine.requests[0].body


@pytest.mark.fault(rows.BODY)
def test_a_body_that_lies_about_its_length(gateway: Gateway, engine: ScriptedEngine) -> None:
    """A length beyond the limit is refused before a byte of it was sent."""
    with Client(gateway) as client:
        client.head(CHAT, 17_000_000)
        refused(gateway, engine, client.answer(), 413, "body_too_large")


@pytest.mark.fault(rows.BODY)
def test_a_chunked_body_without_end(gateway: Gateway, engine: ScriptedEngine) -> None:
    before = gateway.memory()
    with Client(gateway) as client:
        client.head(CHAT, None, {"transfer-encoding": "chunked"})
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        try:
            for _ in range(2000):
                client.raw(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        refused(gateway, engine, client.answer(), 413, "body_too_large")
    assert gateway.memory() - before < 64_000_000


# --- numbers and texts

NUMBERS: dict[str, bytes] = {
    "NaN": b'"temperature":NaN',
    "Infinity": b'"temperature":Infinity',
    "-Infinity": b'"top_p":-Infinity',
    "1e999": b'"temperature":1e999',
    "-1e999": b'"presence_penalty":-1e999',
    "a string": b'"temperature":"0.5"',
    "a boolean": b'"temperature":true',
    "a boolean for an integer": b'"max_tokens":true',
    "a fraction for an integer": b'"max_tokens":64.0',
    "a list": b'"temperature":[0.5]',
    "an object": b'"top_k":{}',
    "out of its range": b'"temperature":2.5',
    "a number for a switch": b'"stream":1',
    "a string for a switch": b'"stream":"yes"',
    "a lone surrogate": b'"stop":"\\ud800"',
    "half a pair in a prompt": b'"user":"\\udc00x"',
    "bad UTF-8": b'"user":"\xff"',
    "a surrogate in UTF-8": b'"user":"\xed\xa0\x80"',
    "an overlong UTF-8": b'"user":"\xc0\xaf"',
}


@pytest.mark.fault(rows.NUMBERS)
@pytest.mark.parametrize("name", NUMBERS)
def test_values(gateway: Gateway, engine: ScriptedEngine, name: str) -> None:
    refused(gateway, engine, gateway.ask(CHAT, chat_with(NUMBERS[name])), 400)


@pytest.mark.fault(rows.NUMBERS)
@pytest.mark.parametrize("value", [b"NaN", b"1e999", b"true", b'"0.5"', b"-0.1", b"2.1"])
@pytest.mark.parametrize("path", GENERATION)
def test_a_temperature_in_every_protocol(gateway: Gateway, engine: ScriptedEngine, path: str, value: bytes) -> None:
    body = json.dumps(asking(path, model="balanced"))[:-1].encode() + b',"temperature":' + value + b"}"
    answer = gateway.ask(path, body)
    refused(gateway, engine, answer, 400)
    assert answer.error["param"] == "temperature"


# --- heads

IDS: dict[str, tuple[str, bool]] = {
    "plain": ("abc-1._Z", True),
    "128 long": ("a" * 128, True),
    "129 long": ("a" * 129, False),
    "a space": ("a b", False),
    "markup": ("<script>", False),
    "not ASCII": ("caf\xe9", False),
    "SQL": ("'; DROP TABLE exchanges; --", False),
    "a log line": ("x%0aERROR", False),
    "a tab": ("a\tb", False),
}


@pytest.mark.fault(rows.HEADERS)
@pytest.mark.parametrize("name", IDS)
def test_request_ids(gateway: Gateway, engine: ScriptedEngine, name: str) -> None:
    """A sane one is the client's; any other is replaced by ours, towards both sides."""
    sent, kept = IDS[name]
    with Client(gateway) as client:
        identifier = client.ask(CHAT, asking(model="balanced"), {"x-request-id": sent})
        gateway.offered.remove(identifier)
        answer = client.answer()
        gateway.offered.append(answer.exchange)
    assert answer.status == 200
    assert answer.headers["x-request-id"] == (sent if kept else answer.exchange)
    assert engine.requests[0].headers["x-request-id"] == answer.headers["x-request-id"]
    assert gateway.row(answer.exchange)["request_id"] == answer.headers["x-request-id"]


BROKEN: dict[str, bytes] = {
    "LF in a header": b"x-request-id: a\nx-admin: 1\n b\r\n",
    "CR in a header": b"x-request-id: a\rx-admin: 1\r\n",
    "NUL in a header": b"x-request-id: a\0b\r\n",
    "a space before the colon": b"content-length : 5\r\n",
    "a folded header": b"x-a: b\r\n c\r\n",
    "a header without a name": b": b\r\n",
    "two lengths": b"content-length: 5\r\ncontent-length: 6\r\n",
    "a length and chunks": b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
    "chunks, in disguise": b"transfer-encoding: xchunked\r\n",
    "a negative length": b"content-length: -5\r\n",
    "a length in words": b"content-length: five\r\n",
    "a length with a plus": b"content-length: +5\r\n",
    "a length beyond counting": b"content-length: 99999999999999999999\r\n",
    "a head of 200 KB": b"x-a: " + b"b" * 200_000 + b"\r\n",
    "200 KB of headers": b"x-a: b\r\n" * 25_000,
}


@pytest.mark.fault(rows.HEADERS)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_heads(gateway: Gateway, engine: ScriptedEngine, name: str) -> None:
    """400 and the end: after a head that can be read in two ways there is no second request on the connection."""
    smuggled = b"GET /v1/responses/smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    with Client(gateway) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.raw(
                b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\n" + BROKEN[name] + b"\r\n" + b"hello" + smuggled
            )
        said = client.rest()
    status = said[:12]
    top, _, body = said.partition(b"\r\n\r\n")
    assert status in (b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 431"), said[:300]
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert UUID7.search(top)
    assert len(re.findall(rb"HTTP/1\.1 \d", said)) == 1
    assert (engine.requests, engine.others) == ([], [])


LINES: dict[str, bytes] = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2's greeting": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method nobody knows": b"BREW /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a line break in the path": b"GET /v1/models\nx HTTP/1.1\r\n\r\n",
    "an endless path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
}


@pytest.mark.fault(rows.HEADERS)
@pytest.mark.parametrize("name", LINES)
def test_broken_request_lines(gateway: Gateway, engine: ScriptedEngine, name: str) -> None:
    with Client(gateway) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.raw(LINES[name])
        said = client.rest()
    assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 414 ")), said[:300]
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


WISHES = {"an upgrade": {"upgrade": "h2c", "connection": "upgrade"}, "100-continue": {"expect": "100-continue"}}


@pytest.mark.fault(rows.HEADERS)
@pytest.mark.parametrize("name", WISHES)
def test_what_is_asked_for_besides_is_no_trouble(gateway: Gateway, engine: ScriptedEngine, name: str) -> None:
    with Client(gateway) as client:
        client.ask(CHAT, asking(model="balanced"), WISHES[name])
        assert (client.answer().status, len(engine.requests)) == (200, 1)
    assert not {"upgrade", "expect"} & set(engine.requests[0].headers)


@pytest.mark.fault(rows.HEADERS)
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("pieces", [1, 2, 7, 60])
def test_an_offer_to_upgrade_is_declined(gateway: Gateway, engine: ScriptedEngine, pieces: int, framing: str) -> None:
    """Java's own client makes one with every first request, body and all; wherever the bytes are cut."""
    body, identifier = json.dumps(asking(model="balanced")).encode(), f"upgrade-{pieces}-{framing}"
    how, sent = f"content-length: {len(body)}", body
    if framing == "chunks":
        how, sent = "transfer-encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    raw = (
        f"POST {CHAT} HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nHost: x\r\nHTTP2-Settings: AAEAAEAA\r\n"
        f"Upgrade: h2c\r\nX-Request-Id: {identifier}\r\nContent-Type: application/json\r\n{how}\r\n\r\n"
    ).encode() + sent
    gateway.offered.append(identifier)
    with Client(gateway) as client:
        size = -(-len(raw) // pieces)
        for at in range(0, len(raw), size):
            client.raw(raw[at : at + size])
            time.sleep(0.002)
        assert client.answer().status == 200
        client.next()
        client.ask(CHAT, asking(model="balanced"))  # and the connection is as good as before
        assert client.answer().status == 200
    assert len(engine.requests) == 2


@pytest.mark.fault(rows.HEADERS)
@pytest.mark.parametrize("header", ["x-preset", "x-unit-id", "x-conversation-id"])
@pytest.mark.parametrize("value", ["caf\xe9", "a, b", '"quoted"', "x" * 8000, "a=1;by=bound"])
def test_odd_values_make_no_broken_reply(gateway: Gateway, engine: ScriptedEngine, header: str, value: str) -> None:
    """What a header says is told back in a body or not at all."""
    answer = gateway.ask(headers={header: value}, model="balanced")
    assert answer.status == (404 if header == "x-preset" else 200)
    assert answer.json  # whole, and JSON


# --- ways out

TRICKS: tuple[tuple[str, str], ...] = (
    ("POST", "/v1/chat/completions/"),
    ("POST", "/v1/chat/completions/../../../invocations"),
    ("POST", "/v1//chat/completions"),
    ("POST", "//v1/chat/completions"),
    ("POST", "/v1/responses/../chat/completions/cancel"),
    ("POST", "/v1/responses/%2e%2e/cancel"),
    ("GET", "/v1/responses/a%2fb"),
    ("GET", "/v1/responses/a%00b"),
    ("GET", "/v1/responses/a%0d%0ax-admin:%201"),
    ("GET", "/v1/responses/" + "a" * 129),
    ("GET", "/v1/responses/a@127.0.0.1"),
    ("GET", "/v1/../metrics/x"),
    ("POST", "/v1/embeddings/../../invocations"),
    ("POST", "/V1/CHAT/COMPLETIONS"),
    ("POST", "/v1/chat/completions;/../../invocations"),
    ("POST", "/v1\\chat\\completions"),
)


@pytest.mark.fault(rows.PATHS)
@pytest.mark.parametrize(("method", "path"), TRICKS, ids=[path[:48] for _, path in TRICKS])
def test_path_tricks(gateway: Gateway, engine: ScriptedEngine, method: str, path: str) -> None:
    with Client(gateway) as client:
        client.ask(path, asking(model="balanced") if method == "POST" else None, method=method)
        answer = client.answer()
    assert (answer.status, answer.error["type"]) in ((404, "invalid_request_error"), (400, "invalid_request_error"))
    assert (engine.requests, engine.others) == ([], [])


@pytest.mark.fault(rows.PATHS)
@pytest.mark.parametrize(
    ("encoded", "status"), [("/v1/chat/complet%69ons", 200), ("/v1/chat%2fcompletions", 200)], ids=["letter", "slash"]
)
def test_an_encoded_path_is_the_path_it_means(
    gateway: Gateway, engine: ScriptedEngine, encoded: str, status: int
) -> None:
    """The decision is made on the decoded path, and the engine's path comes from our table, not from the client."""
    with Client(gateway) as client:
        identifier = client.ask(encoded, asking(model="balanced"))
        answer = client.answer()
    if answer.status == 200:
        gateway.offered.append(identifier)
        assert [seen.path for seen in engine.requests] == [CHAT]
    else:
        assert (answer.status, engine.requests) == (404, [])


@pytest.mark.fault(rows.PATHS)
@pytest.mark.parametrize(
    "model",
    [
        "http://127.0.0.1:1/v1",
        "//127.0.0.1/x",
        "../../etc/passwd",
        "file:///etc/passwd",
        f"{MODEL}@127.0.0.1",
        f"{MODEL}:x",
    ],
)
@pytest.mark.parametrize("path", GENERATION)
def test_a_model_is_a_name(gateway: Gateway, engine: ScriptedEngine, path: str, model: str) -> None:
    answer = gateway.ask(path, model=model)
    refused(gateway, engine, answer, 404)
    assert answer.error["code"] in ("model_not_found", "preset_not_found")


@pytest.mark.fault(rows.PATHS)
@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key"])
@pytest.mark.parametrize("path", GENERATION)
def test_no_address_in_the_body(gateway: Gateway, engine: ScriptedEngine, path: str, field: str) -> None:
    answer = gateway.ask(path, model="balanced", **{field: engine.url})
    refused(gateway, engine, answer, 400, "field_not_allowed")
    assert (answer.error["param"], engine.url in answer.error["message"]) == (field, False)


@pytest.mark.fault(rows.PATHS)
def test_an_absolute_url_is_no_way_out(gateway: Gateway, engine: ScriptedEngine) -> None:
    with Client(gateway) as client:
        client.ask(f"{engine.url}/invocations", {})
        assert client.answer().status in (400, 404)
    with Client(gateway) as client:
        client.raw(f"CONNECT 127.0.0.1:{engine.port} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert client.answer().status in (400, 404, 405)
    assert (engine.requests, engine.others) == ([], [])


# --- codings


@pytest.mark.fault(rows.CODING)
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "gzip, gzip", "x"])
@pytest.mark.parametrize("path", RECORDED)
def test_encoded_requests(gateway: Gateway, engine: ScriptedEngine, path: str, coding: str) -> None:
    body = json.dumps(asking(path)).encode()
    packed = gzip.compress(body) if "gzip" in coding.lower() else zlib.compress(body)
    refused(gateway, engine, gateway.ask(path, packed, {"content-encoding": coding}), 415, "unsupported_media_type")


@pytest.mark.fault(rows.CODING)
def test_a_bomb_is_not_unpacked(gateway: Gateway, engine: ScriptedEngine) -> None:
    before = gateway.memory()
    bomb = gzip.compress(b'{"a":"' + b"x" * 200_000_000 + b'"}')
    refused(gateway, engine, gateway.ask(CHAT, bomb, {"content-encoding": "gzip"}), 415)
    assert gateway.memory() - before < 24_000_000


# --- fences (design, section 6)

ROUTES = (
    ("POST", "/invocations"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/is_scaling_elastic_ep"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("POST", "/collective_rpc"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/start_profile"),
    ("POST", "/pooling"),
    ("POST", "/classify"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/add_worker"),
    ("GET", "/version"),
    ("GET", "/server_info"),
    ("GET", "/slots"),
    ("GET", "/props"),
    ("POST", "/completion"),
)  # fmt: skip


@pytest.mark.fault(rows.FENCED_ROUTES)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_routes_that_are_not_there(gateway: Gateway, engine: ScriptedEngine, method: str, path: str) -> None:
    reply = gateway.get(path, method=method)
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert (engine.requests, engine.others) == ([], [])


FIELDS: dict[str, Any] = {
    "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {"evil": 1},
    "mm_processor_kwargs": {"a": 1},
    "media_io_kwargs": {"a": {}},
    "prompt_embeds": "AAAA",
    "kv_transfer_params": {"a": 1},
    "ec_transfer_params": {"a": 1},
    "vllm_xargs": {"a": 1},
    "priority": -1,
    "request_id": "mine",
    "session_id": "mine",
    "api_base": "http://127.0.0.1:1",
    "base_url": "http://127.0.0.1:1",
    "api_key": "stolen",
}


@pytest.mark.fault(rows.FENCED_FIELDS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("path", GENERATION)
def test_fenced_fields(gateway: Gateway, engine: ScriptedEngine, path: str, field: str) -> None:
    answer = gateway.ask(path, model="balanced", **{field: FIELDS[field]})
    refused(gateway, engine, answer, 400, "field_not_allowed")
    assert answer.error["param"] == field
    assert "stolen" not in answer.error["message"]


@pytest.mark.fault(rows.FENCED_FIELDS)
@pytest.mark.parametrize("body", [{}, {"enable_thinking": True, "evil": 1}])
def test_only_thinking_of_the_templates_arguments(gateway: Gateway, engine: ScriptedEngine, body: Any) -> None:
    wanted = {"enable_thinking": False}
    assert gateway.ask(model="balanced", chat_template_kwargs=wanted).status == 200
    assert json.loads(engine.requests[0].body)["chat_template_kwargs"] == wanted
    if body:
        assert gateway.ask(model="balanced", chat_template_kwargs=body).status == 400


PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "URL"}}]}]}),
    "chat, short form": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "URL"}]}]},
    ),
    "video": (CHAT, {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "URL"}}]}]}),
    "responses": (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "URL"}]}]}),
    "messages": (
        MESSAGES,
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "URL"}}]}]},
    ),
}


@pytest.mark.fault(rows.FENCED_MEDIA)
@pytest.mark.parametrize(
    "address", ["http://169.254.169.254/latest", "HTTPS://x.example/a.png", "file:///etc/passwd", "//x/a"]
)
@pytest.mark.parametrize("name", PICTURES)
def test_media_by_address(gateway: Gateway, engine: ScriptedEngine, name: str, address: str) -> None:
    path, fields = PICTURES[name]
    body = json.dumps(asking(path, model="balanced") | fields).replace("URL", address).encode()
    refused(gateway, engine, gateway.ask(path, body), 400, "media_url_not_allowed")
    hidden = body.replace(b"image_url", b"image_\\u0075rl").replace(b'"url"', b'"\\u0075rl"')
    engine.forget()
    assert gateway.ask(path, hidden).status == 400


@pytest.mark.fault(rows.FENCED_MEDIA)
def test_media_that_come_along(gateway: Gateway, engine: ScriptedEngine) -> None:
    path, fields = PICTURES["chat"]
    body = json.dumps(asking(path, model="balanced") | fields).replace("URL", "data:image/png;base64,AAAA").encode()
    assert gateway.ask(path, body).status == 200
    assert b"data:image/png;base64,AAAA" in engine.requests[0].body


COUNTS: tuple[tuple[str, str, Any, Any], ...] = (  # path, field, too many, just enough
    (CHAT, "n", 17, 16),
    (CHAT, "top_logprobs", 21, 20),
    (TEXT, "logprobs", 21, 20),
    (CHAT, "stop", list("abcde"), list("abcd")),
    (MESSAGES, "stop_sequences", list("abcde"), list("abcd")),
    (CHAT, "stop_token_ids", list(range(129)), list(range(128))),
    (CHAT, "logit_bias", {str(i): 1 for i in range(1025)}, {str(i): 1 for i in range(1024)}),
    (CHAT, "allowed_token_ids", list(range(1025)), list(range(1024))),
)


@pytest.mark.fault(rows.BOUNDS)
@pytest.mark.parametrize(("path", "field", "many", "enough"), COUNTS, ids=[count[1] for count in COUNTS])
def test_counts(gateway: Gateway, engine: ScriptedEngine, path: str, field: str, many: Any, enough: Any) -> None:
    answer = gateway.ask(path, model="balanced", temperature=0.5, **{field: many})
    refused(gateway, engine, answer, 400, "out_of_range")
    assert answer.error["param"] == field
    assert gateway.ask(path, model="balanced", temperature=0.5, **{field: enough}).status == 200
    assert json.loads(engine.requests[0].body)[field] == enough


@pytest.mark.fault(rows.BOUNDS)
def test_max_tokens_ends_at_what_the_engine_has(gateway: Gateway, engine: ScriptedEngine) -> None:
    answer = gateway.ask(model="balanced", max_tokens=1_000_000)
    assert answer.status == 200
    assert json.loads(engine.requests[0].body)["max_tokens"] <= 4096
    assert "max_tokens" in answer.headers["x-tempera-adjusted"]


@pytest.mark.fault(rows.UNTOUCHED)
@pytest.mark.parametrize("path", GENERATION)
def test_everything_else_passes(gateway: Gateway, engine: ScriptedEngine, path: str) -> None:
    """Byte for byte, vLLM's own extensions and numbers that no double holds included."""
    untouched = (
        b'"min_tokens": 3 ,"ignore_eos":true,"structured_outputs":{"regex":"a|b"},"bad_words":["x"],'
        b'"cache_salt":"s","unknown_field":{"pi":3.14159265358979323846264338327950288},"seed":9007199254740993'
    )
    body = json.dumps(asking(path, model="balanced"))[:-1].encode() + b"," + untouched + b"}"
    assert gateway.ask(path, body).status == 200
    sent = engine.requests[0].body
    for part in (b"3.14159265358979323846264338327950288", b"9007199254740993", b'"regex":"a|b"', b'"cache_salt":"s"'):
        assert part in sent


@pytest.mark.fault(rows.OPENED)
def test_what_the_operator_opens(start: Start, engine: ScriptedEngine) -> None:
    """Only the names in the file, and byte for byte."""
    opened = {"priority": -1, "vllm_xargs": {"a": 1}}
    with start({"open_fields": list(opened)}) as gateway:
        assert gateway.ask(model="balanced", **opened).status == 200
        sent = json.loads(engine.requests[0].body)
        assert {name: sent[name] for name in opened} == opened
        for field in FIELDS.keys() - opened.keys():
            assert gateway.ask(model="balanced", **opened, **{field: FIELDS[field]}).status == 400
    assert len(engine.requests) == 1


@pytest.mark.fault(rows.FENCED_HEADERS)
def test_headers_that_act_on_the_engine_stay_here(gateway: Gateway, engine: ScriptedEngine) -> None:
    names = ("x-data-parallel-rank", "x-vllm-priority", "x-session-id", "cookie", "x-forwarded-for", "x-real-ip")
    acting = dict.fromkeys(names, "7") | {
        "authorization": "Bearer mine",
        "x-api-key": "mine",
        "traceparent": "00-1-2-01",
    }
    assert gateway.ask(headers=acting, model="balanced").status == 200
    seen = engine.requests[0].headers
    assert not {*names, "authorization", "x-api-key"} & {name for name, value in seen.items() if value in ("7", "mine")}
    assert "mine" not in str(seen)


# --- who is asked


@pytest.mark.fault(rows.HOST)
@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example", "x/v1/models?", "x/healthz#", "a@b", ""])
def test_the_host_header_decides_nothing(strict: Gateway, engine: ScriptedEngine, host: str) -> None:
    for path in ("/v1/models", "/v1/presets", "/v1/exchanges"):
        reply = strict.get(path, {"host": host})
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert strict.ask(headers={"host": host}, model="balanced").status == 401
    assert engine.requests == []


@pytest.mark.fault(rows.HOST)
def test_starlette_is_one_that_does_not_trust_the_host() -> None:
    version = tuple(int(part) for part in importlib.metadata.version("starlette").split(".")[:3])
    assert version >= (1, 0, 1)


@pytest.mark.fault(rows.READ_ONLY)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/v1/presets", "/v1/presets/balanced", "/v1/experiments", "/v1/models", "/v1/keys", "/reload"]
)
def test_nothing_is_configured_over_http(gateway: Gateway, method: str, path: str) -> None:
    before = gateway.get("/v1/presets").json
    assert gateway.get(path, method=method).status in (404, 405)
    assert gateway.get("/v1/presets").json == before


@pytest.mark.fault(rows.READ_ONLY)
def test_what_there_is_to_write(gateway: Gateway) -> None:
    """Every route that is not read-only, by name: a new one has to be thought about here."""
    paths = gateway.get("/openapi.json").json["paths"]
    writing = {path for path, methods in paths.items() if set(methods) - {"get", "head"}}
    generation = {*RECORDED, "/v1/chat/completions/batch"}
    passed = {"/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize", "/v1/messages/count_tokens"}
    assert writing - generation - passed == {"/v1/responses/{id}/cancel", "/v1/feedback"}
    assert eventually(lambda: gateway.get("/readyz").status == 200)
