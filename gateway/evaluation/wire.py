"""The wire as values: what an OpenAI-compatible server answers, and what the gateway's `X-Tempera-*` headers say.

    ClientError                 what a command shows instead of a traceback
    |-- Unreachable             nothing answers at that address, or not in time
    |-- Malformed               an answer, but not one of this protocol
    `-- StatusError             an HTTP error status, with its status, code and param
        |-- Refused             the server understood and says no (4xx)
        `-- Unavailable         429 or 5xx, still so after the retries

Knows the shape of replies and RFC 9651 dictionaries as the gateway writes them. Does NOT know HTTP clients or what the
texts are for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

Value = float | bool | str
T = TypeVar("T")


class ClientError(Exception):
    """The server could not be asked, or its answer could not be used. The message is fit to be shown."""


class Unreachable(ClientError):
    pass


class Malformed(ClientError):
    pass


class StatusError(ClientError):
    """An HTTP error status with what the OpenAI envelope said about it."""

    def __init__(self, message: str, *, status: int, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class Refused(StatusError):
    pass


class Unavailable(StatusError):
    pass


class Candidate(msgspec.Struct, frozen=True):
    """One candidate token of a position; `logprob` is natural, and the engine's raw one unless asked otherwise.

    `key` tells tokens apart where several print alike (the pieces of a Chinese character)."""

    key: int | str
    token: str
    logprob: float


class Position(msgspec.Struct, frozen=True):
    """One generated token and its most likely rivals, by falling log-probability."""

    sampled: Candidate
    top: tuple[Candidate, ...]
    after_sampling: bool = False  # llama.cpp was asked for its probabilities at the end of its sampler chain


class Choice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: str | None
    positions: tuple[Position, ...] = ()  # empty unless logprobs were asked for


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Adjustment(msgspec.Struct, frozen=True):
    asked: Value
    used: Value | None  # None: the value was dropped
    by: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request. `params` and `adjusted` are empty unless a gateway is in between."""

    choices: tuple[Choice, ...]
    model: str = ""
    usage: Usage = Usage()
    exchange: str | None = None
    request_id: str | None = None
    preset: str | None = None
    revision: str | None = None
    params: dict[str, Value] = {}
    adjusted: dict[str, Adjustment] = {}
    seconds: float = 0.0  # of the attempt that succeeded

    @property
    def texts(self) -> list[str]:
        return [choice.text for choice in self.choices]


class Model(msgspec.Struct, frozen=True):
    id: str
    owned_by: str = ""
    parameters: int | None = None  # how many the model has, where the server says (llama.cpp does)


class _Entry(msgspec.Struct):
    token: str
    logprob: float | None = None
    prob: float | None = None  # llama.cpp says `prob` and `top_probs` under post_sampling_probs
    id: int | None = None
    bytes: list[int] | None = None
    top_logprobs: list[_Entry] = []
    top_probs: list[_Entry] = []

    def candidate(self) -> Candidate:
        key = self.id if self.id is not None else bytes(self.bytes).hex() if self.bytes else self.token
        logprob = self.logprob
        if logprob is None:
            logprob = math.log(self.prob) if self.prob else -math.inf
        return Candidate(key, self.token, logprob)


class _Logprobs(msgspec.Struct):
    content: list[_Entry] | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    index: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str = ""
    usage: Usage | None = None


class _ModelEntry(msgspec.Struct):
    id: str
    owned_by: str = ""
    meta: dict[str, Any] | None = None


class _Listing(msgspec.Struct):
    data: list[_ModelEntry]


def read_models(content: bytes) -> list[Model]:
    """The body of `GET /v1/models`."""
    return [
        Model(entry.id, entry.owned_by, (entry.meta or {}).get("n_params")) for entry in decode(content, _Listing).data
    ]


def decode(content: bytes, shape: type[T]) -> T:
    """The body as `shape`; Malformed with its beginning when it is something else."""
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.DecodeError as error:
        raise Malformed(f"{error}; the reply begins {content[:200].decode(errors='replace')!r}") from error


def _position(entry: _Entry) -> Position:
    top = sorted((rival.candidate() for rival in entry.top_logprobs or entry.top_probs), key=lambda c: -c.logprob)
    return Position(entry.candidate(), tuple(top), entry.prob is not None)


def read_reply(content: bytes, headers: Mapping[str, str], seconds: float) -> Reply:
    """A chat completion's body and headers (a case-insensitive mapping) as a Reply."""
    completion = decode(content, _Completion)
    header = headers.get
    return Reply(
        choices=tuple(
            Choice(
                choice.message.content or "",
                choice.finish_reason,
                tuple(map(_position, (choice.logprobs and choice.logprobs.content) or ())),
            )
            for choice in sorted(completion.choices, key=lambda choice: choice.index)
        ),
        model=completion.model,
        usage=completion.usage or Usage(),
        exchange=header("x-tempera-exchange"),
        request_id=header("x-request-id"),
        preset=header("x-tempera-preset"),
        revision=header("x-tempera-revision"),
        params=parse_params(header("x-tempera-params") or ""),
        adjusted=parse_adjusted(header("x-tempera-adjusted") or ""),
        seconds=seconds,
    )


_ITEM = r'"(?:[^"\\]|\\.)*"|[^\s,;()"]+'
_MEMBER = re.compile(rf"([a-z*][a-z0-9_.*-]*)(?:=(?:\(([^)]*)\)|({_ITEM})))?((?:;[^,;]+)*)\s*(?:,\s*|$)")


def parse_params(header: str) -> dict[str, Value]:
    """`temperature=0.5, top_p="0.12345"` as a mapping; a string that holds a number is one, for lack of decimals."""
    return {key: _value(item) if item else True for key, _, item, _ in _members(header)}


def parse_adjusted(header: str) -> dict[str, Adjustment]:
    """`temperature=(1.4 0.5);by=bound` as what was asked, what was used, and why."""
    found = {}
    for key, inner, _, notes in _members(header):
        values = [_value(item) for item in re.findall(_ITEM, inner)]
        if len(values) not in (1, 2):
            raise Malformed(f"X-Tempera-Adjusted: {key} needs (asked used) or (asked), got {header!r}")
        by = dict(note.partition("=")[::2] for note in notes.split(";") if note).get("by", "")
        found[key] = Adjustment(values[0], values[1] if len(values) == 2 else None, by.strip('"'))
    return found


def _members(header: str) -> list[tuple[str, str, str, str]]:
    """(key, inner list, item, parameters) of each member of an RFC 9651 dictionary as the gateway writes it."""
    members, at = [], 0
    while at < len(header):
        match = _MEMBER.match(header, at)
        if match is None or match.end() == at:
            raise Malformed(f"not an RFC 9651 dictionary at position {at}: {header!r}")
        members.append((match[1], match[2] or "", match[3] or "", match[4] or ""))
        at = match.end()
    return members


def _value(item: str) -> Value:
    if item in ("?0", "?1"):
        return item == "?1"
    text = re.sub(r"\\(.)", r"\1", item[1:-1]) if item.startswith('"') else item
    try:
        return float(text)
    except ValueError:
        return text
