"""An exchange as the data path leaves it behind: raw bytes and timings, nothing parsed.

The relay fills one RawExchange per generation request and offers it once, in a `finally`; whoever takes it (log,
metrics) parses it on another thread. Knows nothing about databases, queues or clocks.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.policy.decided import Plan

Outcome = Literal[
    "ok",
    "rejected",  # the gateway refused the request
    "client_disconnect",
    "upstream_error",  # the engine answered with an error status, or an error event in its stream
    "upstream_unavailable",
    "upstream_timeout",
    "upstream_reset",
    "upstream_invalid_response",
    "internal_error",
]


class RawExchange:
    """One request and its reply.

    Times are seconds; `time` is Unix time, the rest are durations since the request was complete. What most exchanges
    never have is a default of the class.
    """

    plan: Plan | None = None  # none when the request was refused before a plan was made
    key: str | None = None  # the name of the key, never the key
    request = b""  # the body as the client sent it (what is kept of a long one is the log's decision)
    messages: msgspec.Raw | None = None  # of a chat: the array that is part of `request`
    status = 0
    stream = False  # the reply was an event stream
    outcome: Outcome = "ok"
    error: str | None = None  # the code of the error, ours or the engine's
    cut = False  # the tee's bound was reached: the middle of the reply is missing
    first_byte: float | None = None  # to the first byte of the reply's body
    ttft: float | None = None  # to the first event with content; None for a reply that is not streamed
    duration = 0.0
    overhead = 0.0  # spent in the gateway before the request left for the engine
    pieces = 0  # of a stream's body, as the engine sent them: about one per token
    trace: str | None = None  # the client's traceparent header (W3C Trace Context), as it came

    def __init__(self, id: str, request_id: str, time: float, protocol: str) -> None:
        self.id, self.request_id, self.time, self.protocol = id, request_id, time, protocol
        # The first and the last bytes of the reply's body, in order, as far as the tee's bound allows.
        self.reply: list[bytes] = []
