"""Which requests belong together, as an engine's balancer may know it: a hash in place of the conversation.

A balancer that sends equal sessions to one engine lets it reuse what it computed for the conversation so far. It needs
to tell conversations apart and nothing more, so it gets no identifier of a client. Knows nothing about requests,
balancers or engines.
"""

from __future__ import annotations

from hashlib import sha256
from hmac import digest


def session(secret: str, key: str | None, conversation: str | None) -> bytes | None:
    """The value of `x-session-id`: 32 hex digits of HMAC-SHA256(secret, key NUL conversation); None without one.

    `key` is the name of the caller's key, None where the gateway is open. It is hashed too, so that two callers who
    number their conversations alike share none. All gateways with one secret give the same answer.
    """
    if not conversation:
        return None
    # No key has an empty name, and none holds a NUL: two different pairs never read the same.
    text = f"{key or ''}\0{conversation}".encode("utf-8", "surrogatepass")
    return digest(secret.encode(), text, sha256).hex()[:32].encode()
