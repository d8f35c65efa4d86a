"""How long the gateway waits for others, in seconds. Knows no clock: whoever waits looks at it."""

from __future__ import annotations

from msgspec import Struct


class Deadlines(Struct, frozen=True):
    """For a client."""

    keep_alive: float = 75.0  # between two requests; longer than a client's own pool keeps a connection
    read: float = 30.0  # from a request's first byte to its last, and one second more for every 16 KiB
    write: float = 60.0  # without the client taking a byte of what waits for it


class Timeouts(Struct, frozen=True):
    """For an engine; all positive. `headers` covers the whole generation of a reply that is not streamed."""

    connect: float = 2.0  # name lookup, every address and TLS together
    headers: float = 600.0  # from the request to the last response header
    idle: float = 120.0  # between two pieces of the body, while somebody waits for one
    keepalive: float = 4.0  # at rest in the pool; engines drop a connection after 5 s
    write: float = 30.0  # without the engine taking a byte of the request
