"""Who may come in. Without keys: anybody on this machine, and nobody else.

Knows keys and hosts; nothing about presets' content or engines.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256

from msgspec import Struct

from gateway.protocol.errors import Unauthorized


class Caller(Struct, frozen=True):
    """Whoever holds a key: its name, the preset it gets when it names none, and the presets it may use (None: all)."""

    name: str | None = None
    preset: str | None = None
    presets: frozenset[str] | None = None


ANYBODY = Caller()


class Access:
    """Lets a request in by its Authorization (or x-api-key) header.

    Without an operator key the operator routes are open too.
    """

    def __init__(self, operator_key: str | None = None) -> None:
        self._operator = _digest(operator_key.encode()) if operator_key else None

    def admit(self, key: bytes | None) -> Caller:
        """The caller behind a key. Raises Unauthorized, with one message for a wrong key and a missing one."""
        return ANYBODY

    def check_operator(self, key: bytes | None) -> None:
        """Raises Unauthorized unless this is the operator's key."""
        if self._operator is not None and not hmac.compare_digest(_digest(key or b""), self._operator):
            raise Unauthorized("This route needs the operator's key.")


def key_of(headers: Mapping[str, str]) -> bytes | None:
    """The key in a request's headers: a bearer token, or x-api-key as Anthropic's clients send it."""
    bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
    return (bearer or headers.get("x-api-key", "")).encode() or None


def _digest(key: bytes) -> bytes:
    # Equal lengths, so that a comparison says nothing about how much of a key was right.
    return sha256(key).digest()
