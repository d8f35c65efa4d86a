"""What a Turn asks of an engine: plain calls, so that it does not matter who answers.

`Way` is the seam, as client.Client is on the other side; upstream.Pool is one. Knows nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Headers = tuple[tuple[bytes, bytes], ...]
Sink = Callable[[bytes, bool], bool]


class Answer(Protocol):
    """A reply whose head has arrived. `complete`: the last byte of the body has, read or not."""

    status: int
    headers: list[tuple[bytes, bytes]]
    complete: bool

    def take(self) -> bytes:
        """What has arrived since the last look, without waiting; b"" if nothing has."""

    async def read(self) -> bytes:
        """The next bytes of the body, at once if any are there; b"" at the end. Raises GatewayError."""

    async def pour(self, sink: Sink) -> None:
        """Hands every piece of the body to `sink(data, last)`, until it returns False and again from `resume` on.

        Raises GatewayError.
        """

    def resume(self) -> None:
        """The sink takes more."""

    def close(self) -> None:
        """Nothing more of it is wanted. Idempotent."""


class Way(Protocol):
    """The way to one engine; `name` is what clients may know of it."""

    name: str

    async def send(self, method: bytes, path: bytes, headers: Headers, body: bytes, own: bytes = b"") -> Answer:
        """The answer to one request, once its head has arrived; the caller closes it. Raises GatewayError."""

    async def close(self) -> None:
        """Drop every connection, those in use included."""
