"""A canary key and a canary prompt, sent through everything that can happen to a request: neither is found anywhere.

The prompt is marked private (`log: parameters`), the log is at its most talkative, and what is searched is bytes: the
process's output, every error's body, every header, /metrics, /readyz, the exchanges as the operator reads them, the
traces as a collector gets them, and each file of the data directory, while a spool is in use and after the end. That
the search can find something is shown with a prompt that is not private.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.contract.targets import ROOT
from tests.faults import rows
from tests.faults.conftest import write_presets
from tests.faults.engine import (
    CLOSE,
    DONE,
    END_CHUNK,
    RESET,
    STREAM_HEAD,
    Hold,
    ScriptedEngine,
    Step,
    chunk,
    completion,
    event,
    whole,
)
from tests.faults.house import (
    CHAT,
    GENERATION,
    MESSAGES,
    RESPONSES,
    TEXT,
    Answer,
    Client,
    Gateway,
    Ledger,
    eventually,
    running,
)

PROMPT, REPLY, PUBLIC = "canary-prompt-5d1f", "canary-reply-9c3e", "public-prompt-77aa"
ENV_KEY, OPERATOR_KEY, ENGINE_KEY = "canary-env-key-b1c2", "canary-operator-key-d3e4", "canary-engine-key-f5a6"
WRONG_KEY = "canary-wrong-key-a7b8"
FAKE_KEY = "tk-" + "CanaryLooksLikeAKey" + "x" * 24  # of the form of ours, and nobody's


@dataclass
class Collector:
    """Takes traces as OTLP/HTTP and keeps their bytes."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Collector]:
        bodies = self.bodies

        class Take(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                packed = self.headers.get("content-encoding") == "gzip"
                bodies.append(str(self.headers).encode() + (gzip.decompress(body) if packed else body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


@dataclass
class Aviary:
    """A gateway with canaries. `heard` is all that clients were told, but for good replies' bodies and own echoes."""

    gateway: Gateway
    engine: ScriptedEngine
    collector: Collector
    key: str
    limited: str  # another key, good for one request a minute
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def canaries(self) -> list[str]:
        return [PROMPT, REPLY, ENV_KEY, OPERATOR_KEY, ENGINE_KEY, WRONG_KEY, FAKE_KEY, self.key, self.limited]

    def ask(
        self, what: str, path: str, body: Any, headers: dict[str, str] | None = None, method: str = "POST"
    ) -> Answer:
        with Client(self.gateway) as client:
            client.ask(path, body, self.bearer if headers is None else headers, method)
            answer = client.answer()
        self.note(what, answer)
        return answer

    def note(self, what: str, answer: Answer) -> None:
        self.heard.append((f"{what}: headers", str(answer.headers).encode()))
        if answer.status != 200:
            self.heard.append((f"{what}: body", answer.body))

    def search(self) -> list[str]:
        """Where a canary is."""
        places = [*self.heard, ("stdout and stderr", self.gateway.said.encode())]
        places += [(f"trace {n}", body) for n, body in enumerate(self.collector.bodies)]
        for path in sorted((self.gateway.home / "data").rglob("*")):
            if path.is_file():
                places.append((str(path.relative_to(self.gateway.home)), path.read_bytes()))
        return [f"{canary} in {place}" for place, text in places for canary in self.canaries if canary.encode() in text]


@pytest.fixture(params=["text", "json"])
def aviary(request: pytest.FixtureRequest, tmp_path: Path, engine: ScriptedEngine, ledger: Ledger) -> Iterator[Aviary]:
    presets = write_presets(tmp_path / "presets.yaml", engine)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")}
    data = tmp_path / "data"
    key, limited = (
        subprocess.run(
            [sys.executable, "-m", "gateway.cli", "keys", "new", *arguments, "--data-dir", str(data)],
            cwd=ROOT,
            env=kept,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()
        for arguments in (["canary"], ["limited", "--rpm", "1"])
    )
    collector = Collector()
    variables = {
        "TEMPERA_API_KEY": ENV_KEY,
        "TEMPERA_OPERATOR_KEY": OPERATOR_KEY,
        "TEMPERA_UPSTREAM_API_KEY": ENGINE_KEY,
        "TEMPERA_LOG_LEVEL": "debug",
        "TEMPERA_LOG_FORMAT": request.param,
        "TEMPERA_READ_TIMEOUT": "0.5",
        "TEMPERA_MAX_IN_FLIGHT": "4",
        "TEMPERA_MAX_QUEUED": "0",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with collector.listening():
        if importlib.util.find_spec("opentelemetry"):
            variables["TEMPERA_OTLP_ENDPOINT"] = collector.url
        with running(tmp_path, ledger, "--presets", str(presets), **variables) as gateway:
            yield Aviary(gateway, engine, collector, key, limited)


def private(path: str, text: str = PROMPT, **fields: Any) -> dict[str, Any]:
    """A request that is full of canaries: wherever a protocol has a place for words."""
    talk = [
        {"role": "system", "content": f"You are {text}."},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
    tool = {"type": "function", "function": {"name": "f", "description": text, "parameters": {"type": "object"}}}
    full: dict[str, Any] = {
        CHAT: {"messages": talk, "tools": [tool], "metadata": {"a": text}, "user": text},
        TEXT: {"prompt": [text, f"{text} again"], "suffix": text, "user": text},
        RESPONSES: {"input": [{"role": "user", "content": text}], "instructions": text, "user": text},
        MESSAGES: {"messages": talk[1:], "system": text, "max_tokens": 9, "metadata": {"user_id": text}},
        "/generate": {"prompt": text},
    }[path]
    return {**full, **({"preset": "private"} if path == "/generate" else {"model": "private"}), **fields}


QUOTED = whole({"error": {"message": "no", "type": "x", "param": None, "code": 400}}, status=400)
ENGINE_FAULTS: dict[str, tuple[Step, ...]] = {
    "reset before a byte": (RESET,),
    "reset mid-stream": (STREAM_HEAD, event(REPLY), RESET),
    "an error event": (
        STREAM_HEAD,
        event(REPLY),
        chunk(b'data: {"error":{"message":"gone","code":500}}\n\n'),
        DONE,
        END_CHUNK,
    ),
    "broken chunks": (STREAM_HEAD, event(REPLY), b"zz\r\n", CLOSE),
    "not HTTP": (REPLY.encode() + b"\r\n\r\n", CLOSE),
    "not JSON": (whole(f"<html>{REPLY}</html>".encode()),),
    "half JSON": (whole(f'{{"text": "{REPLY}'.encode()),),
    "no stream": (STREAM_HEAD, chunk(f"<html>{REPLY}</html>".encode()), END_CHUNK),
    "refused": (QUOTED,),
    "our key refused": (whole({"error": "Unauthorized"}, status=401),),
    "429": (whole({"error": {"message": "busy", "type": "x", "param": None, "code": 429}}, status=429),),
    "503": (whole(b"", status=503),),
    "500": (whole({"detail": "broken"}, status=500),),
}


def through_the_engine(birds: Aviary) -> None:
    """Good replies and every fault of an engine, in every protocol."""
    engine = birds.engine
    for path in (*GENERATION, "/generate"):
        for stream in (False, True) if path != "/generate" else (False,):
            more = {"stream": True} if stream else {}
            good = (STREAM_HEAD, event(REPLY, path), DONE, END_CHUNK) if stream else (whole(completion(path, REPLY)),)
            engine.plays(*good)
            assert birds.ask(f"{path} good", path, private(path, **more)).status == 200
            for name, steps in ENGINE_FAULTS.items():
                engine.plays(*steps)
                birds.ask(f"{path} {name}", path, private(path, **more))
        engine.plays(Hold())
        before = len(engine.requests)
        with Client(birds.gateway) as client:  # and one that leaves
            client.ask(path, private(path), birds.bearer)
            engine.seen(before)
    for steps in ((Hold(),), (STREAM_HEAD, event(REPLY), Hold())):
        engine.plays(*steps)
        birds.ask("silence", CHAT, private(CHAT, model="private-hasty", stream=True))
    with engine.down():
        birds.ask("nobody there", CHAT, private(CHAT))
    assert any(PROMPT.encode() in seen.body for seen in engine.requests), "the canary flew"


def refused_here(birds: Aviary) -> None:
    """Every reason of the gateway's own to refuse a request."""
    raw = json.dumps(private(CHAT)).encode()
    bodies: dict[str, bytes] = {
        "half of it": raw[:-20],
        "broken at the prompt": raw.replace(PROMPT.encode(), PROMPT.encode() + b'"'),
        "bad UTF-8": raw.replace(PROMPT.encode(), PROMPT.encode() + b"\xff"),
        "a lone surrogate": raw.replace(PROMPT.encode(), PROMPT.encode() + b"\\ud800"),
        "NaN": raw[:-1] + b',"top_p":NaN}',
        "a name twice": raw[:-1] + b',"messages":"' + PROMPT.encode() + b'"}',
        "too deep": raw[:-1] + b',"a":' + b"[" * 70 + b"]" * 70 + b"}",
        "a list": b"[" + raw + b"]",
        "17 MB": raw[:-1] + b',"a":"' + b"x" * 17_000_000 + b'"}',
    }
    for name, body in bodies.items():
        assert birds.ask(name, CHAT, body).status in (400, 413)
    for name, fields in {
        "a temperature": {"temperature": 5},
        "a fence": {"chat_template": PROMPT},
        "an ignored field": {"guided_regex": PROMPT},
        "a picture by address": {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": f"http://{PROMPT}/"}]}]
        },
        "a model": {"model": "nobody"},
        "a preset": {"preset": "nobody"},
    }.items():
        assert birds.ask(name, CHAT, private(CHAT) | fields).status in (400, 404)
    for name, body in {
        "a prompt in a list": {"prompt": [PROMPT]},
        "another field": {"prompt": PROMPT, "x": PROMPT},
    }.items():
        assert birds.ask(name, "/generate", body).status == 400
    birds.ask("gzip", CHAT, raw, birds.bearer | {"content-encoding": "gzip"})
    birds.ask("no such route", "/nowhere", private(CHAT))
    birds.ask("no such method", CHAT, private(CHAT), method="PUT")
    birds.ask("feedback", "/v1/feedback", {"exchange_id": "no", "name": "thumb", "value": 1, "comment": PROMPT})
    for name, comment in {"wrong type": [PROMPT], "too long": PROMPT * 10_000}.items():
        birds.ask(
            f"feedback, {name}", "/v1/feedback", {"exchange_id": "no", "name": "thumb", "value": 1, "comment": comment}
        )


def with_keys(birds: Aviary) -> None:
    """Keys that are wrong, in the wrong place, and in heads that are no heads."""
    for key in (WRONG_KEY, FAKE_KEY, OPERATOR_KEY, ENGINE_KEY, birds.key + "x", birds.key[:-1]):
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            for path in (CHAT, MESSAGES, "/v1/feedback"):
                assert (
                    birds.ask("a wrong key", path, private(path) if path != "/v1/feedback" else {}, headers).status
                    == 401
                )
            birds.ask("a wrong key", "/v1/models", None, headers, "GET")
    for key in (WRONG_KEY, birds.key, ENV_KEY):
        birds.ask("not the operator", "/v1/exchanges", None, {"authorization": f"Bearer {key}"}, "GET")
    assert birds.ask("the other key", CHAT, private(CHAT), {"authorization": f"Bearer {ENV_KEY}"}).status == 200
    for misplaced in (
        "x-unit-id",
        "x-conversation-id",
        "traceparent",
        "x-session-id",
        "user-agent",
        "cookie",
        "referer",
    ):
        assert birds.ask(misplaced, CHAT, private(CHAT), birds.bearer | {misplaced: birds.key}).status == 200
    with Client(birds.gateway) as client:  # as a request id: the client is told its own, and nobody else is
        identifier = client.ask(CHAT, private(CHAT), birds.bearer | {"x-request-id": birds.key})
        birds.gateway.offered.remove(identifier)
        answer = client.answer()
        birds.gateway.offered.append(answer.exchange)
        assert answer.status == 200
    birds.ask("a key for a user", CHAT, private(CHAT, user=birds.key))
    public = {"messages": [{"role": "user", "content": f"{PUBLIC} my key is {birds.key}, {FAKE_KEY} and {ENV_KEY}"}]}
    birds.engine.plays(whole(completion(text=f"Your key is {birds.key}, ours is {ENGINE_KEY}.")))
    assert birds.ask("keys in a prompt that is logged", CHAT, {"model": "balanced", **public}).status == 200
    for broken in (b"x y: z\r\n", b"a\nb: c\r\n", b"content-length: x\r\n"):
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {birds.key}\r\nx-prompt: {PROMPT}\r\n".encode()
        )
        with Client(birds.gateway) as client:
            client.raw(head + broken + b"\r\n" + PROMPT.encode())
            birds.heard.append(("a broken head", client.rest()))
    with Client(birds.gateway) as client:  # too slow
        client.raw(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {birds.key}\r\n".encode())
        birds.heard.append(("a slow head", client.rest()))


def beyond_limits(birds: Aviary) -> None:
    """More than a key may ask for, and more than there are places for."""
    limited = {"authorization": f"Bearer {birds.limited}"}
    said = [birds.ask("more than its key may", CHAT, private(CHAT), limited).status for _ in range(3)]
    assert said == [200, 429, 429]
    before = len(birds.engine.requests)
    birds.engine.plays(Hold(), times=4)
    with contextlib.ExitStack() as stack:
        for number in range(4):
            stack.enter_context(Client(birds.gateway)).ask(CHAT, private(CHAT), birds.bearer)
            birds.engine.seen(before + number)
        assert birds.ask("too many", CHAT, private(CHAT)).status == 429


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else can write to a SQLite database."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA busy_timeout = 20000")
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            database.execute("ROLLBACK")


def with_a_spool(birds: Aviary) -> None:
    """The database takes nothing for a while: rows lie in files, and those are searched too."""
    spool = birds.gateway.home / "data/spool"
    with locked(birds.gateway.home / "data/log.db"):
        for _ in range(3):
            birds.ask("while the database is away", CHAT, private(CHAT))
            birds.ask(
                "public, while the database is away",
                CHAT,
                {"model": "balanced", "messages": [{"role": "user", "content": PUBLIC}]},
            )
        found = eventually(lambda: any(PUBLIC.encode() in path.read_bytes() for path in spool.glob("*")))
        assert found, "what is not private is found there"
        assert birds.search() == []


@pytest.mark.fault(rows.KEYS)
def test_no_canary_is_found(aviary: Aviary) -> None:
    through_the_engine(aviary)
    refused_here(aviary)
    with_keys(aviary)
    beyond_limits(aviary)
    with_a_spool(aviary)
    operator = {"authorization": f"Bearer {OPERATOR_KEY}"}
    assert eventually(lambda: all(identifier in aviary.gateway.rows() for identifier in aviary.gateway.offered))
    for path in (
        "/metrics",
        "/readyz",
        "/v1/exchanges?limit=1000",
        "/v1/exchanges?format=jsonl",
        "/v1/experiments",
        "/v1/presets",
    ):
        reply = aviary.gateway.get(path, operator)
        aviary.heard.append((path, str(reply.headers).encode() + reply.body))
    (aviary.gateway.home / "data/keys.yaml").write_text(
        f"keys: [{aviary.key}, {PROMPT}\n"
    )  # not YAML, and quoted nowhere
    aviary.gateway.signal(signal.SIGHUP)
    assert eventually(lambda: aviary.gateway.get("/readyz").json["keys"] != "ok")
    aviary.heard.append(("/readyz", aviary.gateway.get("/readyz").body))
    assert "[redacted]" in str(aviary.gateway.rows()), "keys in a prompt were cut out"
    (aviary.gateway.home / "data/keys.yaml").unlink()
    assert aviary.gateway.stop() == 0
    assert aviary.search() == []
    assert PUBLIC.encode() in (aviary.gateway.home / "data/log.db").read_bytes(), "a search finds what is there"
    if importlib.util.find_spec("opentelemetry"):
        assert aviary.collector.bodies, "there were traces to search"
