"""A fast engine of canned bytes, as one process: python engine.py PORT.

Streams `max_tokens` chunks, one every `seed` milliseconds.

Costs as little as Python can, so that what is measured is the gateway. Understands just enough HTTP/1.1 for its own
clients.
"""

from __future__ import annotations

import asyncio
import re
import sys

import uvloop

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
_TEXT = b"The quick brown fox jumps over it. " * 16
_BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"bench","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%b"},"finish_reason":"stop"}],"usage":{"prompt_tokens":180,"total_tokens":308,'
    b'"completion_tokens":128}}' % _TEXT
)
_WHOLE = _HEAD % b"application/json" + b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","max_model_len":4096}]}'
_LIST = _HEAD % b"application/json" + b"content-length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS)
_STREAM = _HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"


def _event(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


_CHUNK = _event(
    b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench","choices":[{"index":0,"delta":'
    b'{"content":" word"},"logprobs":null,"finish_reason":null}]}'
)
_END = _event(b"[DONE]") + b"0\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or len(body) < (size := int(length[1]) if length else 0):
            return
        self._buffer = body[size:]
        if b'"stream":true' in body:
            count = re.search(rb'"max_tokens":(\d+)', body)
            pace = re.search(rb'"seed":(\d+)', body)
            self._transport.write(_STREAM)
            self._step(int(count[1]) if count else 64, int(pace[1]) / 1000 if pace else 0.0)
        else:
            self._transport.write(_LIST if head.startswith(b"GET") else _WHOLE)

    def _step(self, left: int, pace: float) -> None:
        if left == 0:
            self._transport.write(_END)
        else:
            self._transport.write(_CHUNK)
            self._timer = asyncio.get_running_loop().call_later(pace, self._step, left - 1, pace)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
