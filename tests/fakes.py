"""A fake engine: vLLM's HTTP dialect over real loopback sockets, every reply decided by the test.

    async with FakeEngine(text="你好") as engine: ...        # in the running event loop
    with FakeEngine.in_thread(pace=0.05) as engine: ...      # in a thread with a loop of its own, for synchronous tests

`engine.requests` holds all that reached it, byte for byte. `engine.fault` (each request) and `engine.script` (one
request each, in order) make it misbehave. Options are plain attributes: a test may change them between requests. With
`vocab` it samples for real, as vLLM does; `sampler` makes it lie about that. The replies' shapes are in vllm_shapes.py.
Knows nothing of the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import httptools

from tests import vllm_shapes as shapes
from tests.vllm_shapes import Body, Choice, Sampler, digest, dumps, pieces

Headers = tuple[tuple[str, str], ...]
Logits = Mapping[str, float]
EVENTS = (("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked"))
GETS = ("/v1/models", "/health", "/metrics", "/version")
POSTS = (*shapes.GENERATION, "/v1/embeddings", "/tokenize", "/detokenize", "/v1/messages/count_tokens")


@dataclass
class Seen:
    """One request as it reached the engine, and what became of it. Times are time.monotonic()."""

    method: str
    path: str
    query: str
    headers: Headers  # names in lower case, in the order they came
    body: bytes
    at: float
    connection: int  # requests with the same number came over one kept connection
    sent: int = 0  # bytes of the reply's body handed to the socket, framing aside
    complete: bool = False  # the whole reply was handed over before the client left
    closed_at: float | None = None  # when its connection ended, whoever ended it
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> Any:
        """The body parsed; None when it is not JSON."""
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name.lower()), None)

    async def left(self, timeout: float = 5.0) -> bool:
        """Whether its connection ended within `timeout` seconds. In a synchronous test: seen.closed.wait(timeout)."""
        return await asyncio.to_thread(self.closed.wait, timeout)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one request. A chunk is one event of a stream, or a quarter of a plain body."""

    path: str | None = None  # only requests whose path starts so; None: every POST
    delay: float = 0.0  # seconds before the status line
    die: bool = False  # the connection ends before the status line
    garbage: bytes | None = None  # these bytes in place of HTTP, then the end
    status: int | None = None  # this status and `body` in place of the reply
    body: Any = b""  # bytes, or anything JSON
    headers: Headers = ()  # more reply headers
    reset_after: int | None = None  # RST after so many chunks
    cut_after: int | None = None  # FIN after so many chunks, inside the body
    stall_after: int | None = None  # silence after so many chunks, until the client leaves
    bad_chunk_after: int | None = None  # broken chunk framing after so many events
    error_after: int | None = None  # an error event after so many events, then [DONE], as vLLM does
    comments: bool = False  # an SSE comment line before each event
    slices: int | None = None  # the stream cut into chunks of so many bytes, wherever that falls
    bomb: int = 0  # a body (or one endless event) of so many spaces

    def meets(self, seen: Seen) -> bool:
        return seen.method == "POST" if self.path is None else seen.path.startswith(self.path)


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any = b""  # bytes, or anything JSON
    events: list[bytes] | None = None  # when it is a stream
    tokens: int = 0  # how long it takes, in tokens


@dataclass
class FakeEngine:
    """The engine. Give options as keywords; see the module's docstring."""

    models: tuple[str, ...] = ("smollm2",)
    max_model_len: int = 4096
    api_key: str | None = None
    text: str | Callable[[Body, int], str] | None = (
        None  # the reply (to choice i); None: from prompt, seed, temperature
    )
    pace: float = 0.0  # seconds for each token, streamed or not
    vocab: Logits | Callable[[list[str]], Logits] | None = None  # token -> logit, always or after the tokens so far
    sampler: Sampler = "honest"
    fault: Fault | None = None
    script: deque[Fault] = field(default_factory=deque)
    requests: list[Seen] = field(default_factory=list)
    running: int = 0  # generations at work now
    connections: int = 0  # accepted so far
    port: int = 0

    def __post_init__(self) -> None:
        self._open: set[Connection] = set()
        self._arrived = threading.Condition()
        self._random = random.Random(20260101)
        self._stored: dict[str, Body] = {}
        self._server: asyncio.Server | None = None

    # --- life

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hang_up()

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, **options: Any) -> Iterator[Self]:
        engine, loop = cls(**options), asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="fake-engine", daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(engine._listen(), loop).result(5)
        try:
            yield engine
        finally:
            asyncio.run_coroutine_threadsafe(engine._hang_up(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(5)
            loop.close()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """In a thread only: nothing listens meanwhile, and open connections end; then it is back on the same port."""
        assert self._server is not None
        loop = self._server.get_loop()
        asyncio.run_coroutine_threadsafe(self._hang_up(), loop).result(5)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._listen(), loop).result(5)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _hang_up(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [connection.task for connection in self._open if connection.task]
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The base without /v1."""
        return f"http://127.0.0.1:{self.port}"

    # --- what a test asks

    @property
    def generations(self) -> list[Seen]:
        return [seen for seen in list(self.requests) if seen.path in shapes.GENERATION]

    def wait(self, n: int = 1, timeout: float = 5.0) -> list[Seen]:
        """The generation requests, once there are at least `n`; TimeoutError otherwise. For synchronous tests."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.generations) >= n, timeout):
                raise TimeoutError(f"{len(self.generations)} of {n} generation requests reached the fake engine")
        return self.generations

    async def arrival(self, n: int = 1, timeout: float = 5.0) -> list[Seen]:
        return await asyncio.to_thread(self.wait, n, timeout)

    def forget(self) -> None:
        """Back to a well-behaved engine that has seen nothing."""
        self.requests.clear()
        self.script.clear()
        self.fault, self.text, self.pace = None, None, 0.0

    # --- deciding a reply

    def note(self, seen: Seen) -> Fault:
        """Record a request and say what goes wrong with it."""
        with self._arrived:
            self.requests.append(seen)
            self._arrived.notify_all()
        if self.script and self.script[0].meets(seen):
            return self.script.popleft()
        return self.fault if self.fault and self.fault.meets(seen) else Fault()

    def answer(self, seen: Seen) -> Reply:
        path = seen.path
        if self.api_key and path.startswith("/v1") and seen.header("authorization") != f"Bearer {self.api_key}":
            return Reply(401, {"error": "Unauthorized"})
        if path.startswith("/v1/responses/"):
            return self._stored_response(seen.method, path)
        allowed = [method for method, known in (("GET", GETS), ("POST", POSTS)) if path in known]
        if seen.method not in allowed:
            return Reply(405, {"detail": "Method Not Allowed"}) if allowed else Reply(404, {"detail": "Not Found"})
        if seen.method == "GET":
            return Reply(200, self._get(path))
        if not isinstance(seen.json, dict):
            return Reply(400, {"detail": "There was an error parsing the body"})
        if path not in shapes.GENERATION:
            return Reply(200, shapes.without_sampling(path, seen.json, self.models[0], self.max_model_len))
        return self._generation(path, seen)

    def _generation(self, path: str, seen: Seen) -> Reply:
        body: Body = seen.json
        try:
            refused = shapes.refusal(path, body, self.models, self.max_model_len)
        except (TypeError, ValueError) as wrong:  # a list for a temperature, and the like
            refused = 400, shapes.error(400, f"[{{'type': 'float_parsing', 'msg': '{wrong}'}}]")
        if refused and path == "/v1/messages":
            said = {key: refused[1]["error"][key] for key in ("type", "message")}
            return Reply(refused[0], {"type": "error", "error": said})
        if refused:
            return Reply(*refused)
        body = {"model": self.models[0]} | body
        prompts = shapes.prompts_of(body)
        choices = [
            self._choice(path, body, prompt, i) for prompt in prompts for i in range(int(shapes.number(body, "n", 1)))
        ]
        rid, n_prompt = seen.header("x-request-id") or digest(path, *prompts), sum(len(pieces(p)) for p in prompts)
        plain, events, _ = shapes.GENERATION[path]
        whole = plain(body, rid, choices, n_prompt)
        if path == "/v1/responses":
            self._stored[whole["id"]] = whole
        stream = list(events(body, rid, choices, n_prompt)) if body.get("stream") else None
        return Reply(200, whole, stream, max(len(c.tokens) for c in choices))

    def _choice(self, path: str, body: Body, prompt: str, i: int) -> Choice:
        names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
        limit = next((body[name] for name in names if body.get(name)), 16 if path == "/v1/completions" else None)
        if body.get("tools") and body.get("tool_choice") != "none" and path in ("/v1/chat/completions", "/v1/messages"):
            return shapes.tool_call(body["tools"][0], prompt, i)
        if self.vocab is not None:
            vocab = self.vocab
            logits = vocab if callable(vocab) else lambda drawn: vocab
            source = self._random if body.get("seed") is None else random.Random(f"{body['seed']}/{i}")
            return shapes.sampled(logits, body, limit or 16, source.random, self.sampler)
        return shapes.told(self._said(body, prompt, i), body, limit)

    def _said(self, body: Body, prompt: str, i: int) -> str:
        if callable(self.text):
            return self.text(body, i)
        if self.text is not None:
            return self.text
        key = digest(prompt, body.get("seed"), shapes.number(body, "temperature", 1.0) * 1.0, i)
        return "I say " + " ".join(key[k : k + 4] for k in range(0, 32, 4)) + "."

    def _get(self, path: str) -> Any:
        if path == "/metrics":
            return f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running {float(self.running)}\n".encode()
        models = shapes.models(self.models, self.max_model_len)
        return {"/v1/models": models, "/version": {"version": "0.32.0"}}.get(path, b"")

    def _stored_response(self, method: str, path: str) -> Reply:
        rid, _, verb = path.removeprefix("/v1/responses/").partition("/")
        if verb not in ("", "cancel"):
            return Reply(404, {"detail": "Not Found"})
        if method != ("POST" if verb else "GET"):
            return Reply(405, {"detail": "Method Not Allowed"})
        if rid not in self._stored:
            return Reply(404, shapes.error(404, f"Response with id '{rid}' not found."))
        return Reply(200, self._stored[rid] | ({"status": "cancelled"} if verb else {}))


class Connection(asyncio.Protocol):
    """One client connection: parses requests, writes one reply at a time, notices at once when the client leaves."""

    transport: asyncio.Transport

    def __init__(self, engine: FakeEngine) -> None:
        engine.connections += 1
        self.engine, self.number = engine, engine.connections
        self.parser = httptools.HttpRequestParser(self)
        self.seen: list[Seen] = []
        self.waiting: deque[Seen] = deque()
        self.target, self.body, self.closing = b"", bytearray(), False
        self.headers: list[tuple[str, str]] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.engine._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine._open.discard(self)
        if self.task:
            self.task.add_done_callback(self.say_closed)  # when the work has really stopped
            self.task.cancel()
        else:
            self.say_closed()

    def say_closed(self, _: object = None) -> None:
        for seen in self.seen:
            seen.closed_at = time.monotonic()
            seen.closed.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\nInvalid HTTP request received.")
            self.transport.close()

    def on_message_begin(self) -> None:
        self.target, self.headers, self.body = b"", [], bytearray()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        path, _, query = self.target.decode("latin-1").partition("?")
        about = self.parser.get_method().decode(), path, query, tuple(self.headers), bytes(self.body)
        self.seen.append(Seen(*about, at=time.monotonic(), connection=self.number))
        self.waiting.append(self.seen[-1])
        self.closing = not self.parser.should_keep_alive()
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self.serve())

    async def serve(self) -> None:
        """Answer what has come in, in order."""
        while self.waiting and not self.transport.is_closing():
            seen = self.waiting.popleft()
            fault = self.engine.note(seen)
            generating = seen.path in shapes.GENERATION
            self.engine.running += generating
            try:
                await self.reply(seen, fault)
            except Exception:  # a test must see a mistake of the fake, not wait for it
                logging.getLogger(__name__).exception("the fake engine failed on %s %s", seen.method, seen.path)
                self.transport.abort()
            finally:
                self.engine.running -= generating
        self.task = None
        if self.closing:
            self.transport.close()

    async def reply(self, seen: Seen, fault: Fault) -> None:
        await asyncio.sleep(fault.delay)
        if fault.die or fault.garbage is not None:
            self.transport.write(fault.garbage or b"")
            self.transport.close()
            return
        reply = Reply(fault.status, fault.body) if fault.status else self.engine.answer(seen)
        streamed = reply.events is not None
        if not streamed:
            await asyncio.sleep(self.engine.pace * reply.tokens)
        raw = reply.body if isinstance(reply.body, bytes) else dumps(reply.body)
        raw = raw[:1] + b" " * fault.bomb + raw[1:]
        said = EVENTS if streamed else (("content-length", str(len(raw))), ("content-type", "application/json"))
        self.head(reply.status, dict(said) | dict(fault.headers))
        chunks = quarters(raw) if reply.events is None else self.stream(reply.events, fault)
        async for chunk in self.troubled(chunks, fault):
            for part in (chunk[at : at + 65536] for at in range(0, len(chunk), 65536)):
                await self.writable.wait()
                self.transport.write(b"%x\r\n%b\r\n" % (len(part), part) if streamed else part)
                seen.sent += len(part)
            if streamed:
                await asyncio.sleep(self.engine.pace)
        if not self.transport.is_closing():
            self.transport.write(b"0\r\n\r\n" if streamed else b"")
            seen.complete = True

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Fake", "server: uvicorn", *(f"{name}: {value}" for name, value in headers.items())]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def stream(self, events: list[bytes], fault: Fault) -> list[bytes]:
        """The chunks of an event stream, as the fault deforms them."""
        if fault.error_after is not None:
            gone = shapes.sse(shapes.error(500, "EngineCore encountered an issue."))
            events = [*events[: fault.error_after], gone, shapes.sse(b"[DONE]")]
        if fault.bomb:
            events = [events[0], b"data: " + b" " * fault.bomb, *events[1:]]
        if fault.comments:
            events = [b": keep-alive\n\n" + event for event in events]
        if fault.slices:
            raw = b"".join(events)
            events = [raw[i : i + fault.slices] for i in range(0, len(raw), fault.slices)]
        return events

    async def troubled(self, chunks: list[bytes], fault: Fault) -> AsyncIterator[bytes]:
        """The chunks, until the connection meets its fate."""
        for k, chunk in enumerate([*chunks, b""]):
            if k == fault.stall_after:
                await asyncio.Event().wait()
            if k == fault.reset_after:
                await asyncio.sleep(0.02)  # what went before arrives first
                sock: socket.socket = self.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.transport.abort()
                return
            if k == fault.bad_chunk_after:
                self.transport.write(b"this is not a chunk size\r\n")
            if k in (fault.cut_after, fault.bad_chunk_after):
                self.transport.close()
                return
            if chunk:
                yield chunk


def quarters(raw: bytes) -> list[bytes]:
    size = -(-len(raw) // 4) or 1
    return [raw[at : at + size] for at in range(0, len(raw), size)]
