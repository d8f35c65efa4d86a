"""The keys file: which keys there are, as hashes, and what each may do. Read and written here and nowhere else.

Knows YAML and files; nothing about requests. A key has 256 random bits, so its plain SHA-256 is enough: there is
nothing to guess from a stolen file.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import msgspec
import yaml
from msgspec import Meta, Struct, ValidationError, convert, to_builtins

from gateway.log.digest import Redact

KEY_MARK: Final = "tk-"
# A key of ours in a text: only its hash is known here, so its form has to do.
KEY_PATTERN: Final = r"tk-[A-Za-z0-9_-]{43}"
_redact: Final = Redact((), KEY_PATTERN, KEY_MARK)
_Most = Annotated[int, Meta(ge=1, le=10**12)]


class Limits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a key may ask for, in [1, 10**12] each; None is unlimited."""

    rpm: _Most | None = None  # requests per minute
    tpm: _Most | None = None  # tokens per minute, of prompts and replies together
    concurrency: _Most | None = None  # requests (and so streams) in flight


class Key(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One entry of the keys file. Entries of one name share its limits, so that a key can be changed without a gap."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    preset: str | None = None
    presets: list[str] | None = None
    rpm: _Most | None = None
    tpm: _Most | None = None
    concurrency: _Most | None = None

    @property
    def limits(self) -> Limits | None:
        """None for a key without any."""
        found = Limits(rpm=self.rpm, tpm=self.tpm, concurrency=self.concurrency)
        return None if found == Limits() else found


class _File(Struct, forbid_unknown_fields=True):
    keys: list[Key] | None = None


class BadKeys(ValueError):
    """A keys file that cannot be used, or a change it does not allow; the message never shows a key."""


def digest(key: bytes) -> str:
    """What is kept of a key."""
    return sha256(key).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """The entries of a keys file; none when there is no file. Raises BadKeys."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return convert({} if document is None else document, _File).keys or []
    except FileNotFoundError:
        return []
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, which may hold a key
        mark = error.problem_mark
        raise BadKeys(f"{path}{f':{mark.line + 1}' if mark else ''}: {_redact(error.problem or 'no YAML')}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise BadKeys(f"{path}: {_redact(' '.join(str(error).split()))}") from None


def add_key(
    path: Path, name: str, preset: str | None = None, presets: list[str] | None = None, limits: Limits | None = None
) -> str:
    """Make a key, keep its hash, and return it: this is the only time it can be seen.

    Raises BadKeys, also for a name taken.
    """
    key = KEY_MARK + secrets.token_urlsafe(32)
    about = {"name": name, "hash": digest(key.encode()), "preset": preset, "presets": presets or None}
    try:
        entry = convert(about | msgspec.structs.asdict(limits or Limits()), Key)
    except ValidationError as error:
        raise BadKeys(f"{error}") from None
    with _alone(path):
        keys = read_keys(path)
        if any(other.name == name for other in keys):
            raise BadKeys(f"{path}: there is a key named {name!r} already")
        _write(path, (*keys, entry))
    return key


def revoke_key(path: Path, name: str) -> None:
    """Take every entry of a name out. Raises BadKeys, also when there is none."""
    with _alone(path):
        keys = read_keys(path)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise BadKeys(f"{path}: there is no key named {name!r}; there are: {known}")
        _write(path, left)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two changes at once would each write what the other has not seen. The lock is on the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: Iterable[Key]) -> None:
    text = yaml.safe_dump({"keys": [to_builtins(key) for key in keys]}, sort_keys=False)
    # Written beside and moved over, so that a running gateway never reads half of it.
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write("# Hashes of API keys; see `tempera keys --help`. A running gateway reads changes by itself.\n")
        file.write(text)
    fresh.replace(path)
