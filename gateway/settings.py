"""TEMPERA_* environment variables as one frozen value. The only reader of os.environ; command-line flags win over it.

Knows names, types and defaults; the table in docs/operations.md is tested against `DESCRIPTIONS`. Knows nothing about
what they do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Size = Annotated[int, Meta(ge=1, le=2**40)]
Seconds = Annotated[float, Meta(ge=0, le=86400)]
Places = Annotated[int, Meta(ge=0, le=1_000_000)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this process was told from outside. Sizes in bytes, times in seconds."""

    upstream: str | None = None
    upstream_api_key: str | None = None
    dialect: Literal["vllm", "llama.cpp"] = "vllm"
    presets: Path | None = None
    data_dir: Path = Path("data")
    database_url: str | None = None
    api_key: str | None = None
    keys: Path | None = None
    operator_key: str | None = None
    host: str = "127.0.0.1"
    port: Port = 8001
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    max_body: Size = 16 * 1024 * 1024
    max_reply: Size = 64 * 1024 * 1024
    shutdown_timeout: Seconds = 30.0
    read_timeout: Annotated[float, Meta(ge=0.1, le=86400)] = 30.0
    write_timeout: Annotated[float, Meta(ge=0.1, le=86400)] = 60.0
    log_message_bytes: Size = 16 * 1024
    log_retention_days: Annotated[float, Meta(ge=0, le=36500)] = 0.0
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    otlp_endpoint: str | None = None
    secret: str | None = None
    ui_port: Port = 8002
    limits_url: str | None = None
    limits_lease: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    max_in_flight: Places = 1000
    max_queued: Places = 1000
    max_queue_wait: Seconds = 10.0


DESCRIPTIONS: Final[Mapping[str, str]] = {
    "upstream": "URL of the engine, with or without /v1; without it the embedded engine is started",
    "upstream_api_key": "our key to the engine",
    "dialect": "how the engine spells the sampling fields: vllm or llama.cpp",
    "presets": "the presets file; default ./presets.yaml, else the one that ships",
    "data_dir": "where the log, its spool and the keys live",
    "database_url": "the log's database, as SQLAlchemy writes it; default SQLite in the data directory",
    "api_key": "one key that clients must send, for a set-up without a keys file",
    "keys": "the keys file; default keys.yaml in the data directory",
    "operator_key": "the key for /v1/exchanges and other operator routes",
    "host": "address the gateway binds to",
    "port": "port of the gateway",
    "workers": "processes that share the port, the limits and the metrics page",
    "max_body": "largest request body, in bytes",
    "max_reply": "largest reply that is not streamed, in bytes",
    "shutdown_timeout": "seconds that open requests get after SIGTERM",
    "read_timeout": "seconds that a request may take to arrive, and one more for every 16 KiB of it",
    "write_timeout": "seconds that a client may take no byte of a reply that waits for it",
    "log_message_bytes": "how much of a long message the log keeps, in bytes",
    "log_retention_days": "days after which exchanges are deleted from the log; 0 keeps them",
    "log_format": "how the process writes its own log to stderr: text or json, one line each",
    "log_level": "debug, info, warning or error; default info, under `tempera up` warning; debug: a line per exchange",
    "otlp_endpoint": "where traces go, an OTLP/HTTP collector; default OTEL_EXPORTER_OTLP_ENDPOINT; unset: no traces",
    "ui_port": "port of the chat that `tempera up` starts",
    "limits_url": "Redis or Valkey that counts the keys' limits for all replicas: redis://host:6379/0, rediss://, valkey://",
    "limits_lease": "seconds after which the requests in flight of a replica that was killed no longer count there",
    "max_in_flight": "requests in flight per process, whoever sends them; 0: any number",
    "max_queued": "requests that wait for one of those places; more get a 429",
    "max_queue_wait": "seconds that a request waits there before it gets a 429",
    "secret": "secret for hashing users and conversations; default: made once, in the data directory",
}
PREFIX: Final = "TEMPERA_"
# Names that are everybody's, read where ours is not set.
_COMMON: Final[Mapping[str, str]] = {"otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT"}
SHORTEST_KEY: Final = 12  # shorter ones can be guessed, and cannot be cut out of a text without hurting it


class BadSettings(ValueError):
    """A TEMPERA_* variable with an impossible value; the message names it and its range, and never shows a key."""


def read(environ: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """Settings from the environment, overridden by the flags that are not None. Raises BadSettings."""
    source = os.environ if environ is None else environ
    fields = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    for name, kind in fields.items():
        text = source.get(PREFIX + name.upper()) or source.get(_COMMON.get(name, ""))
        if text:
            try:
                values[name] = Path(text) if "Path" in str(kind) else msgspec.convert(text, kind, strict=False)
            except msgspec.ValidationError:
                raise BadSettings(f"{PREFIX}{name.upper()} must be {_kind(kind)}; got {text!r}") from None
    values |= {name: value for name, value in flags.items() if value is not None}
    for name in ("api_key", "operator_key"):
        if 0 < len(values.get(name) or "") < SHORTEST_KEY:
            raise BadSettings(f"{PREFIX}{name.upper()} must have at least {SHORTEST_KEY} characters")
    return Settings(**values)


def secret_of(variable: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The value of a variable that an upstream names as its key; None when unset or empty."""
    return (os.environ if environ is None else environ).get(variable) or None


def for_child(**extra: str) -> dict[str, str]:
    """The environment for a process of ours: this one's, and what it has to know besides."""
    return {**os.environ, **extra}


def _kind(kind: Any) -> str:
    """`a whole number in [0, 65535]`, `vllm or llama.cpp`."""
    if NoneType in get_args(kind):  # which no variable can say
        kind = get_args(kind)[0]
    base, *about = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join((base, *about))
    return f"{'a whole number' if base is int else 'a number'} in [{about[0].ge}, {about[0].le}]"
