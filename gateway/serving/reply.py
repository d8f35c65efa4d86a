"""An engine's reply while it is read: piece by piece, or poured into a sink.

Knows what a reader may ask; the bytes, their framing and their deadlines are the connection's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.protocol.errors import GatewayError, UpstreamReset
from gateway.serving.way import Sink

if TYPE_CHECKING:
    from gateway.serving.connection import Connection


class Reply:
    """A response whose head has arrived. Header names are lower-cased; values are as sent."""

    __slots__ = ("_connection", "complete", "error", "headers", "status")

    def __init__(self, connection: Connection, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = 0
        self.headers = headers
        self.complete = False  # the last byte of the body has arrived, read or not
        self.error: GatewayError | None = None
        self._connection: Connection | None = connection

    def take(self) -> bytes:
        """What has arrived since the last look, without waiting; b"" if nothing has."""
        connection = self._connection
        return b"" if connection is None or not connection.parts else connection.drain()

    async def read(self) -> bytes:
        """The next bytes of the body as they came, at once if any are there; b"" at the end.

        Raises UpstreamReset, UpstreamTimeout or UpstreamInvalidResponse, after all that arrived before was read.
        """
        connection = self._connection
        if connection is not None and not connection.parts and not self.complete and self.error is None:
            waiter = connection.waiter = connection.loop.create_future()
            try:
                await waiter
            except asyncio.CancelledError:
                self.close()
                raise
        data = self.take()
        if data or self.complete:
            return data
        raise self.error or UpstreamReset("the reply was closed before it was complete")

    async def pour(self, sink: Sink) -> None:
        """Hands every piece of the body to `sink(data, last)` as it arrives, and returns after the last.

        No task wakes up for a piece. A sink that returns False is given nothing more until `resume`. Raises what
        `read` raises, and the GatewayError that the sink raises; the connection is then gone.
        """
        connection = self._connection
        if connection is None:
            raise UpstreamReset("the reply was closed before it was complete")
        connection.sink = sink
        waiter = connection.waiter = connection.loop.create_future()
        if self.complete or connection.parts:
            connection.pour(self)
        if self.error is not None:
            connection.wake()
        try:
            await waiter
        except asyncio.CancelledError:
            self.close()
            raise
        if not self.complete:
            raise self.error or UpstreamReset("the reply was closed before it was complete")

    def resume(self) -> None:
        """The sink takes more."""
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """Give the connection back if the reply is complete, else abort it: a waiting `read` raises. Idempotent."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            connection.release(self.complete)
