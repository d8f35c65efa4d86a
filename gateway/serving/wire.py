"""uvicorn's HTTP/1.1 protocol with two changes: refusals of the parser in the shape of every other error, and a
leaner way out for replies.

uvicorn writes a reply's head at once and its body after it: two system calls, and two wake-ups of whoever reads. Here
the head waits for the first piece of the body and leaves with it. Header names must be lower-case, as Starlette and
the relay make them.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.protocol.errors import InvalidRequest
from gateway.serving.ids import exchange_id

_BODILESS = (204, 304)


class Cycle(RequestResponseCycle):
    """One request and its reply. Replaces `send`; everything else is uvicorn's."""

    held = b""  # the head, until there is a body to send it with

    async def send(self, message: Any) -> None:
        """ASGI's send. Raises RuntimeError for messages out of order, as uvicorn does."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self._start(message)
        elif not self.response_complete:
            self._body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError("The response is complete already.")

    def _start(self, message: Any) -> None:
        status, headers = message["status"], [*self.default_headers, *message.get("headers", ())]
        self.response_started, self.waiting_for_100_continue = True, False
        lines = [STATUS_LINE[status]]
        for name, value in headers:
            if name == b"content-length":
                self.expected_content_length, self.chunked_encoding = int(value), False
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
                continue
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _BODILESS:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self.held = head = b"".join(lines)
        # A header is four of these pieces, a line of our own is one: more line ends came from inside a header.
        own = 2 + (not self.keep_alive) + lines.count(b"transfer-encoding: chunked\r\n")
        if not head.count(b"\n") == head.count(b"\r") == (len(lines) - own) // 4 + own:
            raise RuntimeError("A reply header holds a line break.")

    def _body(self, body: bytes, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length, data = 0, b""
        elif self.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (not more and self.expected_content_length):
                raise RuntimeError("The body is not as long as its Content-Length.")
            data = body
        if self.held:
            data, self.held = self.held + data, b""
        if data:
            self.transport.write(data)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


class Protocol(HttpToolsProtocol):
    """One connection from a client."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.__class__ = Cycle  # uvicorn has no other hook for it, and the two have the same layout
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses: no request, so no exchange, but an id to ask about all the same."""
        body = InvalidRequest("This is not an HTTP/1.1 request the parser understands.", code="invalid_http").body()
        identifier = exchange_id().encode()
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"x-tempera-exchange: %b\r\nx-request-id: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (identifier, identifier, len(body), body)
        )
        self.transport.close()
