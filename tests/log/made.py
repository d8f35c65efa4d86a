"""Exchanges to test with."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import msgspec

from gateway.log.exchange import RawExchange
from gateway.log.row import first_id
from gateway.policy.decided import Plan
from gateway.policy.experiments import Assignment, hash_unit
from gateway.policy.params import Adjustment, Effective

_numbers = count(1)
CHAT = {"model": "creative", "messages": [{"role": "user", "content": "Tell me a story."}], "temperature": 1.4}
REPLY = {
    "id": "chatcmpl-7",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Once."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def new_id(at: float) -> str:
    """A UUIDv7 of this time, larger than the ones before it in the same millisecond."""
    return first_id(at)[:-12] + f"{next(_numbers):012x}"


def assigned(experiment: str, variant: str, user: str) -> Assignment:
    return Assignment(experiment, variant, hash_unit("user", user).id, "user")


def plan(**changes: Any) -> Plan:
    effective = Effective(
        {"temperature": 1.2, "top_p": 0.9}, (Adjustment("temperature", 1.4, 1.2, "bound"),), {"temperature": 1.4}
    )
    return Plan(
        **{
            "protocol": "chat",
            "path": "/v1/chat/completions",
            "upstream": "default",
            "model": "m",
            "body": b"{}",
            "stream": False,
            "drop_usage": False,
            "preset": "creative",
            "revision": "0123456789ab",
            "effective": effective,
            "assignment": None,
            "log": "full",
            "headers": (),
        }
        | changes
    )


def exchange(*, at: float | None = None, request: Any = CHAT, reply: Any = REPLY, **changes: Any) -> RawExchange:
    """An exchange offered at Unix time `at`; bytes and lists of bytes are taken as they are, all else becomes JSON."""
    at = time.time() if at is None else at
    chunks = reply if isinstance(reply, list) else [msgspec.json.encode(reply)]
    name = new_id(at)
    made = RawExchange(name, name, at, "chat")
    about = {
        "plan": plan(),
        "key": "alice",
        "request": request if isinstance(request, bytes) else msgspec.json.encode(request),
        "status": 200,
        "reply": chunks,
        "first_byte": 0.05,
        "duration": 0.1,
    }
    for field, value in (about | changes).items():
        setattr(made, field, value)
    return made
