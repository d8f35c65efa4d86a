"""An engine that does what a script says, on plain sockets: one thread per connection, no HTTP library.

    with ScriptedEngine() as engine:
        engine.plays(STREAM_HEAD, event("Hel"), RESET)     # what the next generation request meets
        ...
        engine.seen(0).left(5)                             # its connection ended

A script is a sequence of steps: bytes to send, or one of Pause, Until, Hold, Drip, Flood, RESET, HALF_CLOSE, CLOSE.
Without one a request gets a good reply. `/v1/models` is always answered well, so that the gateway knows the model.
`down()`: nothing listens. `deaf()`: it listens and accepts nobody. `rude`: every new connection is reset at once.
Knows nothing of the gateway.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

MODEL = "scripted"
PATIENCE = 30.0  # seconds after which a thread gives up, so that a broken test ends


class End(Enum):
    """How a connection ends."""

    RESET = "reset"  # RST, and what the other side has not read is gone
    HALF_CLOSE = "half close"  # FIN; whatever comes is still read, until the other side ends too
    CLOSE = "close"


RESET, HALF_CLOSE, CLOSE = End.RESET, End.HALF_CLOSE, End.CLOSE


@dataclass(frozen=True)
class Pause:
    """Silence for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Hold:
    """Silence until the other side ends the connection."""


@dataclass(frozen=True)
class Until:
    """Silence until the test says go."""

    go: threading.Event


@dataclass(frozen=True)
class Drip:
    """A few bytes at a time."""

    data: bytes
    gap: float = 0.01
    size: int = 1


@dataclass(frozen=True)
class Flood:
    """The same bytes over and over, as fast as they are taken."""

    data: bytes
    times: int


Step = bytes | Pause | Hold | Until | Drip | Flood | End


def head(*headers: str, status: int = 200) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Scripted", *headers, "", ""]).encode("latin-1")


def whole(body: Any, *headers: str, status: int = 200) -> bytes:
    """A reply that is not streamed; `body` is bytes or anything JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("content-type: application/json", f"content-length: {len(raw)}", *headers, status=status) + raw


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = head("content-type: text/event-stream; charset=utf-8", "transfer-encoding: chunked")
END_CHUNK = b"0\r\n\r\n"
DONE = chunk(b"data: [DONE]\n\n")


def words(path: str, text: str) -> bytes:
    """The event of one protocol that carries a text, as the engine writes it, without a chunk around it."""
    if path == "/v1/responses":
        said: Any = {"type": "response.output_text.delta", "delta": text}
    elif path == "/v1/messages":
        said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    elif path == "/v1/completions":
        said = {"id": "c-1", "object": "text_completion", "choices": [{"index": 0, "text": text}]}
    else:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        said = {"id": "c-1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]}
    named = f"event: {said['type']}\n" if "type" in said else ""
    return f"{named}data: {json.dumps(said)}\n\n".encode()


def event(text: str, path: str = "/v1/chat/completions") -> bytes:
    return chunk(words(path, text))


def completion(path: str = "/v1/chat/completions", text: str = "Hello.") -> Any:
    """A good reply's body."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    if path == "/v1/responses":
        content = [{"type": "output_text", "text": text}]
        return {"id": "resp_1", "object": "response", "output": [{"type": "message", "content": content}]}
    if path == "/v1/messages":
        return {
            "id": "msg_1",
            "type": "message",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
        }
    said = {"text": text} if path == "/v1/completions" else {"message": {"role": "assistant", "content": text}}
    return {"id": "c-1", "model": MODEL, "choices": [{"index": 0, "finish_reason": "stop", **said}], "usage": usage}


@dataclass
class Seen:
    """One generation request as it arrived. `sent` counts the reply's bytes that the socket took."""

    path: str
    headers: dict[str, str]
    body: bytes
    sent: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    def left(self, timeout: float = 10.0) -> bool:
        """Whether its connection ended within so many seconds."""
        return self.closed.wait(timeout)


class ScriptedEngine:
    """See the module. `requests` are the generation requests, `others` the paths of all else but /v1/models."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.others: list[str] = []
        self.rude = False
        self.port = 0
        self._scripts: deque[tuple[Step, ...]] = deque()
        self._arrived = threading.Condition()
        self._open: set[socket.socket] = set()
        self._plugs: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # --- what a test says and asks

    def plays(self, *steps: Step, times: int = 1) -> None:
        """What the next `times` generation requests meet."""
        self._scripts.extend([steps] * times)

    def forget(self) -> None:
        self._scripts.clear()
        self.requests.clear()
        self.others.clear()
        self.rude = False

    def seen(self, index: int = 0, timeout: float = 10.0) -> Seen:
        """A generation request, once it is there."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) > index, timeout), "nothing reached the engine"
        return self.requests[index]

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Nothing listens, and open connections are reset."""
        self._hang_up()
        try:
            yield
        finally:
            self._listen()

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """It listens, but its queue is full and nobody accepts: a connection stays half open for ever."""
        self._hang_up()
        listener = _bound(self.port)
        listener.listen(0)
        for _ in range(4):
            plug = socket.socket()
            plug.setblocking(False)
            plug.connect_ex(("127.0.0.1", self.port))
            self._plugs.append(plug)
        time.sleep(0.05)
        try:
            yield
        finally:
            for each in (*self._plugs, listener):
                each.close()
            self._plugs.clear()
            self._listen()

    # --- connections

    def _listen(self) -> None:
        self._listener = _bound(self.port)
        self._listener.listen(256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _hang_up(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # close() alone leaves the accepting thread in its call
            listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                if self.rude:
                    _reset(sock)
                    continue
                self._open.add(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        seen: Seen | None = None
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while (request := _read(sock)) is not None:
                path, headers, body = request
                if path == "/v1/models":
                    sock.sendall(whole({"object": "list", "data": [{"id": MODEL, "max_model_len": 4096}]}))
                    continue
                if headers["method"] == "GET" or not path.startswith("/v1/"):
                    self.others.append(path)
                    sock.sendall(whole({"ok": True}))
                    continue
                seen = Seen(path, headers, body)
                with self._arrived:
                    steps = self._scripts.popleft() if self._scripts else good(path, body)
                    self.requests.append(seen)
                    self._arrived.notify_all()
                if not self._play(sock, seen, steps):
                    return
        except OSError:  # the other side left, which is what many a test wants
            pass
        finally:
            self._open.discard(sock)
            sock.close()
            if seen is not None:
                seen.closed.set()

    def _play(self, sock: socket.socket, seen: Seen, steps: tuple[Step, ...]) -> bool:
        """Whether the connection goes on."""
        for step in steps:
            match step:
                case bytes():
                    _send(sock, step, seen)
                case Drip(data, gap, size):
                    for at in range(0, len(data), size):
                        _send(sock, data[at : at + size], seen)
                        if not _quiet(sock, gap):
                            return False
                case Flood(data, times):
                    for _ in range(times):
                        _send(sock, data, seen)
                case Pause(seconds):
                    if not _quiet(sock, seconds):
                        return False
                case Until(go):
                    go.wait(PATIENCE)
                case Hold():
                    _quiet(sock, PATIENCE)
                    return False
                case End.RESET:
                    time.sleep(0.05)  # a reset overtakes what the other side has not read yet
                    _reset(sock)
                    return False
                case End.HALF_CLOSE:
                    sock.shutdown(socket.SHUT_WR)
                    _quiet(sock, PATIENCE)
                    return False
                case End.CLOSE:
                    return False
        return True


def good(path: str, body: bytes) -> tuple[Step, ...]:
    """The reply of an engine that is well, streamed if that was asked for."""
    if b'"stream":true' not in body.replace(b" ", b""):
        return (whole(completion(path)),)
    end = {"/v1/responses": chunk(b'event: response.completed\ndata: {"type":"response.completed"}\n\n')}
    end["/v1/messages"] = chunk(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    return (STREAM_HEAD, event("Hel", path), event("lo.", path), end.get(path, DONE), END_CHUNK)


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _send(sock: socket.socket, data: bytes, seen: Seen) -> None:
    view = memoryview(data)
    while view:
        taken = sock.send(view)
        seen.sent += taken
        view = view[taken:]


def _quiet(sock: socket.socket, seconds: float) -> bool:
    """Whether the other side is still there after so long; False as soon as it is not."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sock], [], [], left)[0]:
            if not sock.recv(1, socket.MSG_PEEK):
                return False
            time.sleep(min(left, 0.01))  # the next request waits there
    return True


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _read(sock: socket.socket) -> tuple[str, dict[str, str], bytes] | None:
    """Path, headers (and the method among them) and body of the next request; None when there is none."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        if not (more := sock.recv(65536)):
            return None
        raw += more
    top, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    headers["method"], path = first.split(" ")[:2]
    while len(body) < int(headers.get("content-length", 0)):
        if not (more := sock.recv(65536)):
            return None
        body += more
    return path, headers, body
