"""The door: what is on the data path becomes a Turn, everything else goes to the management routes.

Knows which is which (routes.find) and that every reply carries the same two ids; nothing about either side.
"""

from __future__ import annotations

from typing import Any

from gateway.serving.client import Message, Receive, Scope, Send, client_of
from gateway.serving.ids import exchange_id, request_id
from gateway.serving.metrics import Metrics
from gateway.serving.relay import Turn
from gateway.serving.routes import find
from gateway.serving.state import State


class Front:
    """The ASGI application.

    The data path first, everything else to the management routes, with the same two ids on every reply.
    """

    def __init__(self, state: State, metrics: Metrics, api: Any) -> None:
        self.state, self.metrics, self._api = state, metrics, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            prepare = find(scope["method"], scope["path"])
            if prepare is not None:
                self.metrics.in_flight += 1
                try:
                    return await Turn(self.state, scope, client_of(scope, receive, send)).run(prepare)
                finally:
                    self.metrics.in_flight -= 1
            send = _with_ids(scope, send)
        await self._api(scope, receive, send)
        return None


def _with_ids(scope: Scope, send: Send) -> Send:
    exchange = exchange_id()
    own = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
    ids = [(b"x-tempera-exchange", exchange.encode()), (b"x-request-id", request_id(own, exchange).encode())]

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *ids]
        await send(message)

    return tell
