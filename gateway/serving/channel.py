"""What the supervisor and a worker say to each other, over a pair of sockets that only the two of them hold.

A message is its length (four bytes, big-endian) and a tagged struct in MessagePack. The end of the connection is a
message too: whoever was at the other side is gone. Knows no processes and no metrics beyond their form.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from gateway.serving.gathering import Page
from gateway.settings import Settings

_LENGTH: Final = 4


class Begin(msgspec.Struct, tag=True):
    """To a worker, first: what it is. `listeners`, `limits` and `counts` are file descriptors that it has inherited."""

    number: int
    settings: dict[str, Any]
    text: str  # the presets in force, and the prompts they name
    prompts: dict[str, str]
    listeners: list[int]
    limits: int
    counts: int
    closed: bool  # there was a key: without one nobody comes in, even if the keys file is gone


class Ready(msgspec.Struct, tag=True):
    """From a worker: it takes connections."""


class Adopted(msgspec.Struct, tag=True):
    """From a worker: these presets are in force now."""

    text: str
    prompts: Mapping[str, str]


class Tell(msgspec.Struct, tag=True):
    """To a worker: say your numbers."""


class Numbers(msgspec.Struct, tag=True):
    """From a worker. `closed`: nobody comes in without a key."""

    page: Page
    closed: bool


class Ask(msgspec.Struct, tag=True):
    """From a worker: its numbers, and the question what all have together. Answered by a Whole, in the order asked."""

    page: Page


class Whole(msgspec.Struct, tag=True):
    """To a worker: the metrics page of all."""

    text: bytes


Message = Begin | Ready | Adopted | Tell | Numbers | Ask | Whole
_decoder = msgspec.msgpack.Decoder(Message)


class Channel(asyncio.Protocol):
    """One side. `heard` is called with every message, `ended` once when the other side is gone."""

    def __init__(self, heard: Callable[[Message], None], ended: Callable[[], None]) -> None:
        self._heard, self._ended = heard, ended
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, sock: socket.socket) -> None:
        """Speak over this socket, which is the channel's from now on."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)

    def send(self, message: Message) -> None:
        """Never waits; what is said to nobody is lost."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed(message))

    async def close(self) -> None:
        """Returns when everything has been said."""
        if self._transport is not None:
            self._transport.close()
            await self._closed

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= _LENGTH and len(received) >= (end := _LENGTH + int.from_bytes(received[:_LENGTH])):
            body = bytes(received[_LENGTH:end])
            del received[:end]
            self._heard(_decoder.decode(body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closed.set_result(None)
        self._ended()


def packed(message: Message) -> bytes:
    """A message as it goes over the wire."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(_LENGTH) + body


def receive(sock: socket.socket) -> Message:
    """The next message, before there is an event loop. Raises EOFError when the other side is gone."""

    def exactly(length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = sock.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    message: Message = _decoder.decode(exactly(int.from_bytes(exactly(_LENGTH))))
    return message


def settings_out(settings: Settings) -> dict[str, Any]:
    """Settings in plain values."""
    found = msgspec.structs.asdict(settings)
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}


def settings_in(values: Mapping[str, Any]) -> Settings:
    """What `settings_out` was given."""
    return msgspec.convert(values, Settings, dec_hook=lambda _, value: Path(value))
