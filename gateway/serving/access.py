"""Who may come in. Keys are kept as hashes in a file that is read again when it changes; without keys only this machine
may come in.

Knows keys and hosts; nothing about presets' content or engines. A key has 256 random bits, so its plain SHA-256 is
enough: there is nothing to guess from a stolen file.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import secrets
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import yaml
from msgspec import Meta, Struct, ValidationError, convert, to_builtins

from gateway.protocol.errors import Unauthorized

_WRONG: Final = "A valid API key is needed: Authorization: Bearer <key>."
KEY_MARK: Final = "tk-"
# A key of ours in a text: only its hash is known here, so its form has to do.
KEY_PATTERN: Final = r"tk-[A-Za-z0-9_-]{43}"
_log = logging.getLogger("tempera.access")


class Caller(Struct, frozen=True):
    """Whoever holds a key: its name, the preset it gets when it names none, and the presets it may use (None: all)."""

    name: str | None = None
    preset: str | None = None
    presets: frozenset[str] | None = None


class Key(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One entry of the keys file."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    preset: str | None = None
    presets: list[str] | None = None

    def caller(self) -> Caller:
        return Caller(self.name, self.preset, None if self.presets is None else frozenset(self.presets))


class BadKeys(Exception):
    """A keys file that cannot be used; the message names the file and what is wrong, never a key."""


ANYBODY: Final = Caller()


class Access:
    """Lets a request in by its key. Without any key at all everybody is let in: only a loopback address may do that."""

    def __init__(self, path: Path, api_key: str | None = None, operator_key: str | None = None) -> None:
        self._path = path
        self._fixed = {_digest(api_key.encode()): Caller("env")} if api_key else {}
        self._operator = _digest(operator_key.encode()) if operator_key else None
        self._seen: tuple[int, int] | None = None
        self._callers: dict[str, Caller] = dict(self._fixed)
        self.trouble: str | None = None
        self.refresh()

    @property
    def open(self) -> bool:
        """Whether anybody may come in."""
        return not self._callers

    def admit(self, key: bytes | None) -> Caller:
        """The caller behind a key. Raises Unauthorized, with one message for a wrong key and a missing one."""
        if not self._callers:
            return ANYBODY
        # The lookup compares hashes of what was sent: its timing says nothing about how much of a key was right.
        caller = self._callers.get(_digest(key or b""))
        if caller is None:
            raise Unauthorized(_WRONG)
        return caller

    def check_operator(self, key: bytes | None) -> None:
        """Raises Unauthorized unless this is the operator's key. Without one, only an open gateway shows its log."""
        if self._operator is None:
            if not self.open:
                raise Unauthorized("This route needs an operator key: set TEMPERA_OPERATOR_KEY.")
        elif not hmac.compare_digest(_digest(key or b""), self._operator):
            raise Unauthorized("This route needs the operator's key.")

    def refresh(self) -> None:
        """Read the file if it changed. A broken one changes nothing and is said in the log and in /readyz."""
        try:
            found = self._path.stat()
        except OSError:
            # A file that is gone leaves its keys in force: deleting it by accident must not open the gateway.
            return
        seen = (found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            keys = read_keys(self._path)
        except BadKeys as error:
            self.trouble = f"the last good keys stay in force: {error}"
            _log.error("%s", self.trouble)
            if not self._callers:
                raise
        else:
            self._callers = self._fixed | {key.hash: key.caller() for key in keys}
            self.trouble = None


def read_keys(path: Path) -> list[Key]:
    """The entries of a keys file; none when there is no file. Raises BadKeys."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return convert((document or {}).get("keys") or [], list[Key])
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, AttributeError) as error:
        raise BadKeys(f"{path}: {error}") from None


def add_key(path: Path, name: str, preset: str | None = None, presets: list[str] | None = None) -> str:
    """Make a key, keep its hash, and return it: this is the only time it can be seen.

    Raises BadKeys, also for a name taken.
    """
    keys = read_keys(path)
    if any(key.name == name for key in keys):
        raise BadKeys(f"{path}: there is a key named {name!r} already")
    key = KEY_MARK + secrets.token_urlsafe(32)
    try:
        entry = convert(
            {"name": name, "hash": _digest(key.encode()), "preset": preset, "presets": presets or None}, Key
        )
    except ValidationError as error:
        raise BadKeys(f"{error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"keys": [to_builtins(each) for each in (*keys, entry)]}, sort_keys=False)
    # Written beside and moved over, so that a running gateway never reads half of it.
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(
            "# Hashes of API keys; `tempera keys new NAME` adds one. A running gateway reads changes by itself.\n"
        )
        file.write(text)
    fresh.replace(path)
    return key


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
    bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
    return (bearer or headers.get("x-api-key", "")).encode() or None


def _digest(key: bytes) -> str:
    return sha256(key).hexdigest()
