"""What the chat was told from outside: environment variables as one frozen value. The only reader of os.environ in ui/.

Knows names, types and defaults. Knows nothing about what they do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any


class BadSettings(ValueError):
    """A setting has an impossible value, or two do not go together; the message says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """TEMPERA_UI_<NAME> each, but for TEMPERA_GATEWAY_URL and TEMPERA_DATA_DIR."""

    gateway_url: str = "http://127.0.0.1:8001"
    api_key: str | None = None  # our key to the gateway
    host: str = "127.0.0.1"
    port: int = 8002
    password: str | None = None  # turns the login on: any name, this password
    database_url: str | None = None  # of the history, as SQLAlchemy writes it; default SQLite in the data directory
    data_dir: Path = Path("data")
    oauth: bool = False  # an OAuth provider is configured, as Chainlit wants it: OAUTH_<PROVIDER>_CLIENT_ID ...

    @property
    def login(self) -> bool:
        return bool(self.password) or self.oauth

    @property
    def home(self) -> Path:
        """Where the chat keeps its own files."""
        return self.data_dir.absolute() / "chat"

    @property
    def history_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'history.db'}"


def variable(name: str) -> str:
    return f"TEMPERA_{name.upper()}" if name in ("gateway_url", "data_dir") else f"TEMPERA_UI_{name.upper()}"


def read(environ: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """Settings from the environment, overridden by the flags that are not None. Raises BadSettings."""
    source = os.environ if environ is None else environ
    names = ("gateway_url", "api_key", "host", "port", "password", "database_url", "data_dir")
    values: dict[str, Any] = {name: source[variable(name)] for name in names if source.get(variable(name))}
    values |= {name: value for name, value in flags.items() if value is not None}
    if not str(values.get("port", "0")).isdecimal() or int(values.get("port", 0)) > 65535:
        raise BadSettings(f"{variable('port')} must be a port, 0 to 65535; got {values['port']!r}.")
    values |= {name: kind(values[name]) for name, kind in (("port", int), ("data_dir", Path)) if name in values}
    if "gateway_url" in values:
        values["gateway_url"] = values["gateway_url"].rstrip("/").removesuffix("/v1")
        if not values["gateway_url"].startswith(("http://", "https://")):
            raise BadSettings(f"{variable('gateway_url')} must be an http(s) URL; got {values['gateway_url']!r}.")
    oauth = any(name.startswith("OAUTH_") and name.endswith("_CLIENT_ID") and text for name, text in source.items())
    settings = Settings(**values, oauth=oauth)
    if not settings.login and not is_loopback(settings.host):
        raise BadSettings(
            f"The chat will not listen on {settings.host} without a login: anyone who reaches it could use the model. "
            f"Set {variable('password')} (or an OAuth provider), or listen on 127.0.0.1."
        )
    return settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host name or address. `host` carries no port and no brackets."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
