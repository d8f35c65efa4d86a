"""The gateway as the chat sees it: presets, answers, thumbs, over HTTP. The one border where its errors are translated.

Knows the gateway's contract and the `openai` client. Knows nothing of Chainlit.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import openai

Preset = dict[str, Any]  # as GET /v1/presets writes it

_CODES: Final = {
    "upstream_unavailable": "engine",
    "upstream_timeout": "slow",
    "upstream_reset": "cut",
    "rate_limit_exceeded": "limited",
    "context_length_exceeded": "long",
    "exceed_context_size_error": "long",
    "preset_not_found": "gone",
    "model_not_found": "gone",
}
_STATUSES: Final = {401: "key", 403: "key", 429: "limited", 502: "engine", 503: "engine", 504: "slow"}
_FRESH: Final = 2.0  # seconds for which the presets are not asked for again
_ITEM: Final = re.compile(r'([a-z_]+)=(\([^)]*\)|"(?:[^"\\]|\\.)*"|[^,;]+)(?:;by=([a-z]+))?')


class Trouble(Exception):
    """What went wrong, as a key of words.py, and what the gateway said about it."""

    def __init__(self, key: str, said: str = "") -> None:
        super().__init__(key, said)
        self.key, self.said = key, said


@dataclass(frozen=True)
class Token:
    """One sampled token with its candidates, likeliest first: (bytes, natural logarithm of the probability at T=1)."""

    raw: bytes
    logprob: float
    candidates: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Piece:
    """A part of an answer. `used` is the engine's count of completion tokens, on the last piece."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: str | None = None
    used: int | None = None


@dataclass
class Answer:
    """An answer that is arriving: what the reply's headers say, then its pieces."""

    exchange: str
    params: dict[str, str]
    adjusted: list[dict[str, str]]
    pieces: AsyncIterator[Piece]


@dataclass
class Gateway:
    url: str
    api_key: str | None = None
    _presets: list[Preset] = field(default_factory=list)
    _asked_at: float = float("-inf")

    def __post_init__(self) -> None:
        timeout = httpx2.Timeout(600.0, connect=3.0)
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        self._http = httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=5.0, trust_env=False)
        self._openai = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key=self.api_key or "none",
            max_retries=0,
            http_client=httpx2.AsyncClient(timeout=timeout, trust_env=False),
        )

    async def presets(self) -> list[Preset]:
        """The presets, the default one first; while the gateway is away, the last ones seen. Raises Trouble if none."""
        if time.monotonic() - self._asked_at < _FRESH and self._presets:
            return self._presets
        try:
            reply = (await self._http.get("/v1/presets")).raise_for_status().json()
            self._presets = sorted(reply["data"], key=lambda preset: preset["name"] != reply["default"])
            self._asked_at = time.monotonic()
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            if not self._presets:
                raise _trouble(error) from error
        return self._presets

    async def preset(self, name: str | None) -> Preset:
        """One preset by its name, the default one without a name. Raises Trouble."""
        presets = await self.presets()
        for preset in presets:
            if not name or preset["name"] == name:
                return preset
        raise Trouble("gone", f"There is no preset {name!r}.")

    @asynccontextmanager
    async def answer(self, body: Mapping[str, Any], *, unit: str, request_id: str) -> AsyncIterator[Answer]:
        """Ask for a streamed completion. Leaving the block ends the engine's work. Raises Trouble, also in between."""
        known = {key: body[key] for key in ("model", "messages")}
        more = {"stream_options": {"include_usage": True}} | {key: body[key] for key in body.keys() - known.keys()}
        ids = {"X-Unit-Id": unit, "X-Request-Id": request_id}
        create = self._openai.chat.completions.with_streaming_response.create
        try:
            async with create(**known, stream=True, extra_body=more, extra_headers=ids) as reply:
                said = reply.headers
                params = {name: value for name, value, _ in dictionary(said.get("x-tempera-params", ""))}
                adjusted = [_adjustment(*item) for item in dictionary(said.get("x-tempera-adjusted", ""))]
                stream = await reply.parse()
                yield Answer(said.get("x-tempera-exchange", ""), params, adjusted, _pieces(stream))
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise _trouble(error) from error

    async def thumb(self, value: int | None, comment: str | None = None, **exchange: str) -> None:
        """A thumb, 1 or -1, for the exchange of a request_id or exchange_id; None takes it back. Raises Trouble."""
        body = {"name": "thumb", "value": value, "source": "chat", "comment": comment or None, **exchange}
        try:
            (await self._http.post("/v1/feedback", json=body)).raise_for_status()
        except httpx2.HTTPError as error:
            raise Trouble("unsaved", str(error)) from error


def dictionary(header: str) -> list[tuple[str, str, str]]:
    """(name, value, by) of an RFC 9651 dictionary as the gateway writes it; strings come without their quotes."""
    return [(name, value.strip().strip('"'), by) for name, value, by in _ITEM.findall(header)]


def _adjustment(name: str, pair: str, by: str) -> dict[str, str]:
    asked, used = pair.strip("()").split()
    return {"name": name, "asked": asked.strip('"'), "used": used.strip('"'), "by": by}


async def _pieces(stream: AsyncIterator[Any]) -> AsyncIterator[Piece]:
    async for chunk in stream:
        used = chunk.usage.completion_tokens if chunk.usage else None
        for choice in chunk.choices or [None]:
            if choice is None:
                yield Piece(used=used)
                continue
            logprobs = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
            yield Piece(choice.delta.content or "", _tokens(logprobs), choice.finish_reason, used)


def _tokens(logprobs: Sequence[Any]) -> tuple[Token, ...]:
    """Engines order candidates differently, and may leave the sampled token out of them or repeat it."""
    tokens = []
    for entry in logprobs:
        found = {_raw(one): one.logprob for one in (*entry.top_logprobs, entry)}
        ranked = sorted(found.items(), key=lambda pair: -pair[1])
        tokens.append(Token(_raw(entry), entry.logprob, tuple(ranked)))
    return tuple(tokens)


def _raw(entry: Any) -> bytes:
    return bytes(entry.bytes) if entry.bytes else entry.token.encode()


def _trouble(error: Exception) -> Trouble:
    if isinstance(error, openai.APIConnectionError | httpx2.ConnectError | httpx2.TimeoutException):
        return Trouble("away", str(error))
    if isinstance(error, httpx2.HTTPStatusError):
        return Trouble(_STATUSES.get(error.response.status_code, "away"), str(error))
    if not isinstance(error, openai.APIError):
        return Trouble("cut", str(error))
    body = error.body if isinstance(error.body, dict) else {}
    said = str(body.get("message") or error.message)
    for name in (body.get("code"), body.get("type")):
        if name in _CODES:
            return Trouble(_CODES[name], said)
    if body.get("param") == "input_tokens":  # how vLLM says that the context is too long
        return Trouble("long", said)
    status = getattr(error, "status_code", None)
    return Trouble(_STATUSES.get(status, "refused") if status else "cut", said)
