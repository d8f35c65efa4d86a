"""Who may come in, and what holds them to their limits. Keys are read again when their file changes; without keys only
this machine may come in.

Knows keys and hosts; nothing about presets' content or engines. Counting is for limits.py and queueing.py.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from gateway.protocol.errors import Unauthorized
from gateway.serving.keyfile import BadKeys, Key, Limits, digest, read_keys
from gateway.serving.limits import Limiter
from gateway.serving.queueing import Gate

Stamp = tuple[int, int, int]
_WRONG: Final = "A valid API key is needed: Authorization: Bearer <key>."
_log = logging.getLogger("tempera.access")


class Caller(Struct, frozen=True):
    """Whoever holds a key: its name, the preset it gets when it names none, the presets it may use (None: all) and its
    limits (None: none).
    """

    name: str | None = None
    preset: str | None = None
    presets: frozenset[str] | None = None
    limits: Limits | None = None


ANYBODY: Final = Caller()


class Access:
    """Lets a request in by its key. Without any key at all everybody is let in: only a loopback address may do that.

    `limiter` counts for the keys with limits; `gate` bounds the whole gateway (None: unbounded). Raises BadKeys for a
    file that cannot be read, if that would leave the gateway open.
    """

    def __init__(self, path: Path, api_key: str | None = None, operator_key: str | None = None) -> None:
        self._path = path
        self._fixed = {digest(api_key.encode()): Caller("env")} if api_key else {}
        self._operator = digest(operator_key.encode()) if operator_key else None
        self._seen: Stamp | None = None  # of the file as it was read
        self._last: Stamp | None = None  # at the last look
        self._callers: dict[str, Caller] = dict(self._fixed)
        self._open = not self._callers
        self.trouble: str | None = None
        self.limiter = Limiter()
        self.gate: Gate | None = None
        self.refresh(at_once=True)
        if self.trouble and self._open:
            raise BadKeys(self.trouble)

    @property
    def open(self) -> bool:
        """Whether anybody may come in. Once there was a key, revoking the last one opens nothing."""
        return self._open

    def close(self) -> None:
        """Let nobody in without a key from now on, as where there was one before."""
        self._open = False

    def admit(self, key: bytes | None) -> Caller:
        """The caller behind a key. Raises Unauthorized, with one message for a wrong key and a missing one."""
        if self._open:
            return ANYBODY
        # The lookup compares hashes of what was sent: its timing says nothing about how much of a key was right.
        caller = self._callers.get(digest(key or b""))
        if caller is None:
            raise Unauthorized(_WRONG)
        return caller

    def check_operator(self, key: bytes | None) -> None:
        """Raises Unauthorized unless this is the operator's key. Without one, only an open gateway shows its log."""
        if self._operator is None:
            if not self.open:
                raise Unauthorized("This route needs an operator key: set TEMPERA_OPERATOR_KEY.")
        elif not hmac.compare_digest(digest(key or b""), self._operator):
            raise Unauthorized("This route needs the operator's key.")

    def refresh(self, at_once: bool = False) -> None:
        """Read the file if it changed and has kept still since the last look, so that one half written is left alone.

        A broken one changes nothing and is said in the log and in /readyz.
        """
        try:
            found = self._path.stat()
        except OSError:
            # A file that is gone leaves its keys in force: deleting it by accident must not open the gateway.
            return
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        still, self._last = seen == self._last, seen
        if seen == self._seen or not (still or at_once):
            return
        self._seen = seen
        try:
            keys = read_keys(self._path)
        except BadKeys as error:
            self.trouble = f"{error}; keys that were read before stay in force"
            _log.error("%s", self.trouble)
        else:
            self._callers = self._fixed | {key.hash: _caller(key) for key in keys}
            self._open = self._open and not self._callers
            self.trouble = None


def _caller(key: Key) -> Caller:
    return Caller(key.name, key.preset, None if key.presets is None else frozenset(key.presets), key.limits)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def key_of(headers: Mapping[str, str]) -> bytes | None:
    """The key in a request's headers: a bearer token, or x-api-key as Anthropic's clients send it."""
    sent = headers.get("authorization", "").encode("latin-1")
    return bearer(sent) or headers.get("x-api-key", "").encode("latin-1") or None


def bearer(authorization: bytes) -> bytes:
    """The key in an Authorization header; the scheme's name is in any case (RFC 9110), or left out."""
    return authorization[7:].strip() if authorization[:7].lower() == b"bearer " else authorization
