"""Rows of the log: made of any request and any reply, without raising, and never larger than the log keeps.

An input is a byte of options, two bytes of length, the request and the reply.
"""

from __future__ import annotations

import json

import msgspec

from gateway.log.digest import REDACTED, Redact, digest
from gateway.log.row import JSON_COLUMNS
from tests.fuzz import bodies, streams
from tests.log.made import exchange, plan

SECRET = "sk-1"
_LIMIT = 512
_redact = Redact([SECRET], r"key-\w{4,}")
_SHARED = 5  # parts of a row's messages each keep the limit


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    options, length = data[0], int.from_bytes(data[1:3])
    rest = data[3:]
    request, reply = rest[:length], rest[length:]
    half = len(reply) // 2
    raw = exchange(
        at=1e9,
        request=request,
        reply=[reply[:half], reply[half:]],
        stream=bool(options & 1),
        cut=bool(options & 2),
        plan=plan(log=("full", "parameters", "off", "full")[(options >> 2) & 3]),
    )
    row = digest(raw, _redact, _LIMIT)
    text = msgspec.json.encode(row).decode()
    assert SECRET not in text.replace(REDACTED, "|"), "a secret is on record"
    for name in JSON_COLUMNS:
        value = getattr(row, name)
        if value is not None:
            json.dumps(json.loads(value), ensure_ascii=False).encode()  # no half of a surrogate pair
            assert len(value) <= 64 * _LIMIT * _SHARED, f"{name} has {len(value)} characters"
    for name in row.__struct_fields__:
        value = getattr(row, name)
        assert not isinstance(value, str) or "\0" not in value, f"NUL in {name}"
    assert row.text is None or len(row.text.encode()) <= _LIMIT + len(REDACTED) * _LIMIT
    if raw.plan is not None and raw.plan.log != "full":
        assert row.messages is None
        assert row.text is None


def seeds() -> list[bytes]:
    """Requests of every protocol with replies of every kind."""
    found = []
    replies = [seed[5:] for seed in streams.seeds()[:24]] + [
        b'{"id":"c","choices":[{"message":{"content":"sk-1 x"},"finish_reason":"stop"}],"usage":{"a":{"b":1}}}',
        b'{"id":"c","type":"message","content":[{"text":"\\u0000a"}],"stop_reason":"x"}',
        b'{"object":"response","output":[{"content":[{"text":"key-abcd"}]}],"status":"completed"}',
        b'{"id":"c","choices":[{"text":"' + b"a" * 600,
    ]
    for i, body in enumerate(seed[2:] for seed in bodies.seeds()[:-1]):
        reply = replies[i % len(replies)]
        found.append(bytes((i % 16,)) + len(body).to_bytes(2) + body + reply)
    long = b'{"messages":[' + b",".join(b'{"role":"user","content":"%b"}' % (b"a" * 90) for _ in range(12)) + b"]}"
    emoji = b'{"messages":[{"role":"user","content":"%b"}]}' % (b"\\ud83d\\ude00" * 99)
    found.append(b"\0" + len(emoji).to_bytes(2) + emoji + replies[-1])
    return [*found, b"\0" + len(long).to_bytes(2) + long + replies[-1]]


_NAMES = ('"messages":', '"content":', '"input":', '"instructions":')
WORDS = sorted({*streams.WORDS, *_NAMES, "\\u0000", "\\ud83d\\ude00", "\\\\", SECRET})
