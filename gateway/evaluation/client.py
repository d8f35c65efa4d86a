"""The one HTTP client of this room: chats, models and presets of the gateway or of any OpenAI-compatible server.

Knows HTTP: connections, retries, and which failure is which `ClientError` (drawn in wire.py). Does NOT know what the
texts are for, which parameters make sense, or how many requests to make: callers bound their own concurrency.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec

from gateway.evaluation.wire import (
    Malformed,
    Model,
    Refused,
    Reply,
    StatusError,
    Unavailable,
    Unreachable,
    decode,
    read_models,
    read_reply,
)

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
BUSY = frozenset({429, 503})
ATTEMPTS = 6
LONGEST_WAIT = 30.0  # seconds; a longer Retry-After is a refusal to serve

Message = Mapping[str, Any]


class Client:
    """`base_url` with or without `/v1`. Use as an async context manager.

    `model` is sent with every request that names none; None sends none, which the gateway understands as its first
    model.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: expected http://host[:port][/v1], got {base_url!r}")
        self.root = base_url.rstrip("/").removesuffix("/v1")
        self.model = model
        self._pause = pause
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=5.0),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=4.0),  # vLLM drops idle connections after 5 s
            trust_env=parts.hostname
            not in LOOPBACK,  # a proxy of the environment cannot reach this machine's own ports
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def chat(self, messages: Sequence[Message], *, unit: str | None = None, **fields: Any) -> Reply:
        """One `POST /v1/chat/completions`; of `fields`, None is not sent. `unit` is who asks, for experiments."""
        body = {"model": self.model, "messages": list(messages), **fields}
        headers = {"x-unit-id": unit} if unit else {}
        response, seconds = await self._request(
            "POST", "/v1/chat/completions", {k: v for k, v in body.items() if v is not None}, headers
        )
        return read_reply(response.content, response.headers, seconds)

    async def models(self) -> list[Model]:
        """What `GET /v1/models` lists."""
        return read_models((await self._request("GET", "/v1/models"))[0].content)

    async def presets(self) -> list[dict[str, Any]]:
        """The presets as `GET /v1/presets` shows them, an object each; Refused (404) by a server that has none."""
        response, _ = await self._request("GET", "/v1/presets")
        answer: Any = decode(response.content, Any)
        entries = answer.get("data", answer.get("presets")) if isinstance(answer, dict) else answer
        if not isinstance(entries, list):
            raise Malformed(f"{response.request.url}: expected a list of presets, got {response.text[:200]!r}")
        return entries

    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[httpx.Response, float]:
        """The first answer that is not "too busy", and the seconds it took.

        429 and 503 are asked again, up to ATTEMPTS times, after Retry-After or 0.5, 1, 2, ... s, unless the server says
        `x-should-retry: false`."""
        content = None if body is None else msgspec.json.encode(body)
        sent = {"content-type": "application/json", **(headers or {})}
        for attempt in range(ATTEMPTS):
            start = time.perf_counter()
            try:
                response = await self._http.request(method, self.root + path, content=content, headers=sent)
            except httpx.TimeoutException as error:
                raise Unreachable(f"{self.root}{path}: no answer in time ({type(error).__name__})") from error
            except httpx.TransportError as error:
                raise Unreachable(f"{self.root}{path}: {error or type(error).__name__}") from error
            if response.is_success:
                return response, time.perf_counter() - start
            wait = _retry_after(response, attempt)
            if wait is None or attempt == ATTEMPTS - 1:
                break
            await self._pause(wait)
        raise _status_error(response)


def _retry_after(response: httpx.Response, attempt: int) -> float | None:
    """Seconds to wait before asking again; None when asking again would not help."""
    if response.status_code not in BUSY or response.headers.get("x-should-retry") == "false":
        return None
    try:
        wait = float(response.headers.get("retry-after", ""))
    except ValueError:  # absent, or a date: our own pace
        wait = 0.5 * 2.0**attempt
    return wait if 0 <= wait <= LONGEST_WAIT else None


def _status_error(response: httpx.Response) -> StatusError:
    try:
        error = response.json().get("error", {})
    except (ValueError, AttributeError):
        error = {}
    error = error if isinstance(error, dict) else {"message": str(error)}
    message = f"{response.request.url}: {response.status_code} {error.get('message') or response.text[:200]}"
    code, param = (None if error.get(key) is None else str(error[key]) for key in ("code", "param"))
    kind = Unavailable if response.status_code in BUSY or response.status_code >= 500 else Refused
    return kind(message, status=response.status_code, code=code, param=param)
