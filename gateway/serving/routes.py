"""Which requests take the data path, and what each becomes: the allow-list towards the engine.

A path that is not named here never reaches an engine, and the engine's path is never made from client text: it comes
from this table, or has exactly one part that matches an id. Knows paths and the tutorial's /generate; the decisions
are policy's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.log.exchange import RawExchange
from gateway.policy import fences
from gateway.policy.choice import Request, choose
from gateway.policy.decided import Plan
from gateway.policy.params import PARAMS, Rule, clamp
from gateway.policy.plan import plan, with_range
from gateway.protocol import envelope
from gateway.protocol.dialects import PATHS, Protocol
from gateway.protocol.errors import (
    Draining,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    UpstreamInvalidResponse,
    UpstreamUnavailable,
)
from gateway.serving.access import bearer
from gateway.serving.passage import Passage
from gateway.serving.relay import Prepare, Turn
from gateway.serving.stay import Stay

# Routes of the engine that generate nothing and change nothing. A body's model name is translated as everywhere.
PASSED: Final = frozenset(
    {"/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize", "/v1/messages/count_tokens"}
)
_MEDIA: Final = (*fences.MEDIA, "documents", "query", "queries", "data_1", "data_2")  # where these routes take pictures
_RESPONSE: Final = re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}").fullmatch
_CANCEL: Final = re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}/cancel").fullmatch
Leave = Callable[[RawExchange], None]
DEFAULT_MAX_TOKENS: Final = 512  # of /generate, as the tutorial has it


def find(method: str, path: str) -> Prepare | None:
    """How a request on the data path is prepared; None for every other path."""
    if path in PATHS:
        return generation if method == "POST" else _wrong_method
    if path == "/generate":
        return generate if method == "POST" else _wrong_method
    if path in PASSED or _CANCEL(path):
        return passage if method == "POST" else _wrong_method
    if _RESPONSE(path):
        return passage if method == "GET" else _wrong_method
    return None


async def generation(turn: Turn, body: bytes) -> Plan:
    """The Plan of a generation request."""
    await _admit(turn, len(body))
    path = turn.scope["path"]
    protocol = PATHS[path]
    fields = _read(turn, protocol, body)
    if protocol == "chat":
        turn.exchange.messages = fields.get("messages")
    return await _plan(turn, protocol, path, fields)


async def generate(turn: Turn, body: bytes) -> Plan:
    """The tutorial's endpoint: a prompt in, a text out, through the chat template.

    What is not sent is the preset's business.
    """
    await _admit(turn, len(body))
    fields = _read(turn, "chat", body)
    turn.rewrite = _only_text
    unknown = sorted(fields.keys() - {"prompt", "temperature", "max_tokens", "preset"})
    if unknown:
        raise InvalidRequest(
            f"{unknown[0]}: unknown field; known are prompt, temperature, max_tokens and preset.", param=unknown[0]
        )
    prompt = envelope.value(fields, "prompt")
    if not isinstance(prompt, str) or not prompt:
        # Not quoted, unlike other values: what people write does not belong into errors.
        raise InvalidRequest("prompt must be a non-empty string.", param="prompt")
    messages = [{"role": "user", "content": prompt}]
    chat: dict[str, Any] = {name: raw for name, raw in fields.items() if name != "prompt"}
    chat["messages"] = envelope.raw(messages)
    plan_ = await _plan(turn, "chat", "/v1/chat/completions", chat)
    if "max_tokens" in plan_.effective.values:
        return plan_
    rule = turn.state.config.presets[plan_.preset].arm.guard.rules.get("max_tokens", Rule())
    chat["max_tokens"] = envelope.raw(clamp(PARAMS["max_tokens"], rule, DEFAULT_MAX_TOKENS))
    return await _plan(turn, "chat", "/v1/chat/completions", chat)


async def passage(turn: Turn, body: bytes) -> Passage:
    """A request that passes as it came, but for the model's name."""
    await _admit(turn, len(body))
    path = turn.scope["path"]
    default = next(iter(turn.state.facts.engines))
    if turn.scope["method"] == "GET" or not body:
        return Passage(default, path, b"", query=_query(turn.scope["query_string"]))
    fields = envelope.parse(body, turn.state.settings.max_body)
    request = _request(turn, "chat", path, fields)
    config = turn.state.config
    fences.check(fields, config.open_fields)
    fences.check_media(fields, config.open_fields, _MEDIA)

    try:
        _, upstream, model = choose(request, config, turn.state.facts)
    except (NotFound, UpstreamUnavailable) as error:
        await _look_again(turn, error)
        _, upstream, model = choose(request, config, turn.state.facts)
    out = {name: raw for name, raw in fields.items() if name != "preset"}
    if "model" in fields:
        out["model"] = envelope.raw(model.id)
    return Passage(upstream, path, envelope.encode(out))


async def _wrong_method(turn: Turn, body: bytes) -> Passage:
    allowed = "GET" if _RESPONSE(turn.scope["path"]) else "POST"
    raise MethodNotAllowed(f"{turn.scope['path']} takes {allowed}, not {turn.scope['method']}.", allowed)


def _read(turn: Turn, protocol: Protocol, body: bytes) -> envelope.Fields:
    try:
        return envelope.parse(body, turn.state.settings.max_body)
    except InvalidRequest as error:
        raise with_range(protocol, error) from None


async def _plan(turn: Turn, protocol: Protocol, path: str, fields: envelope.Fields) -> Plan:
    request, state = _request(turn, protocol, path, fields), turn.state
    try:
        return plan(request, state.config, state.facts)
    except (NotFound, UpstreamUnavailable) as error:
        await _look_again(turn, error)
    return plan(request, state.config, state.facts)


async def _look_again(turn: Turn, error: NotFound | UpstreamUnavailable) -> None:
    """What fails for want of a model is tried once more after asking the engines; anything else is raised."""
    if error.code == "preset_not_found":
        raise error
    await turn.state.models.refresh()


async def _admit(turn: Turn, size: int) -> None:
    """Who is it, and may it come in now? `size` is the body's, in bytes. Waits only where a limit is in the way."""
    if turn.state.draining:
        raise Draining("The gateway is shutting down; try again.")
    access = turn.state.access
    key = bearer(turn.headers.get(b"authorization", b"")) or turn.headers.get(b"x-api-key")
    turn.caller = caller = access.admit(key)
    turn.exchange.key = caller.name
    if caller.limits is not None:
        stay = Stay(access.limiter, turn.id, caller.name or "", caller.limits, size)
        turn.leave = stay.leave  # before the first wait: the client may go while a store is asked
        try:
            await stay.enter()
        finally:
            turn.told = stay.told
    gate = access.gate
    if gate is not None:
        await gate.enter()
        turn.leave = gate.leave if turn.leave is None else _both(turn.leave, gate.leave)


def _both(first: Leave, second: Leave) -> Leave:
    def leave(exchange: RawExchange) -> None:
        try:
            first(exchange)
        finally:
            second(exchange)

    return leave


def _request(turn: Turn, protocol: Protocol, path: str, fields: envelope.Fields) -> Request:
    headers = turn.headers
    return Request(
        protocol=protocol,
        path=path,
        fields=fields,
        preset=_text(headers.get(b"x-preset")),
        units={"unit": _text(headers.get(b"x-unit-id")), "conversation": _text(headers.get(b"x-conversation-id"))},
        key=turn.caller.name,
        key_preset=turn.caller.preset,
        key_presets=turn.caller.presets,
    )


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value else None


def _query(query: bytes) -> bytes:
    """Only what a stored response's stream takes."""
    pairs = [pair for pair in query.split(b"&") if re.fullmatch(rb"(?:stream|starting_after)=[a-z0-9]{1,20}", pair)]
    return b"&".join(pairs)


def _only_text(body: bytes) -> bytes:
    """`{"response": text}` from a chat completion."""
    try:
        text = msgspec.json.decode(body)["choices"][0]["message"]["content"] or ""
    except (msgspec.DecodeError, LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UpstreamInvalidResponse("The engine's reply holds no text.")
    return envelope.encode({"response": text})
