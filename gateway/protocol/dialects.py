"""How clients and engines spell the sampling parameters: one table per protocol, one per engine.

A parameter has one name of ours (vLLM's, which most OpenAI extensions follow). A client's protocol may spell it
otherwise (`ASKED`), an engine may spell it otherwise or lack it on a route (`Dialect`). A Dialect also carries the
constants that make an engine sample the way vLLM does. Knows names only: ranges and meaning are policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

Protocol = Literal["chat", "batch", "completions", "responses", "messages"]

PATHS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/chat/completions/batch": "batch",
        "/v1/completions": "completions",
        "/v1/responses": "responses",
        "/v1/messages": "messages",
    }
)

SAMPLERS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_SAME: Final = {name: name for name in SAMPLERS}
_LIMIT: Final[Mapping[Protocol, str]] = {
    "chat": "max_tokens",
    "batch": "max_tokens",
    "completions": "max_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
}

# Where two spellings of one parameter are sent, the first one here counts (it is OpenAI's newer name).
ASKED: Final[Mapping[Protocol, Mapping[str, tuple[str, ...]]]] = MappingProxyType(
    {
        protocol: MappingProxyType(
            {name: (name,) for name in SAMPLERS}
            | {
                "max_tokens": ("max_completion_tokens", limit) if limit == "max_tokens" else (limit,),
                "seed": ("seed",),
                "stop": ("stop_sequences",) if protocol == "messages" else ("stop",),
            }
        )
        for protocol, limit in _LIMIT.items()
    }
)


class Dialect(msgspec.Struct, frozen=True, eq=False):
    """One engine's spelling; equal only to itself.

    `fields[protocol]` maps our names to the engine's; a name that is missing there is not taken on that route.
    """

    name: str
    fields: Mapping[Protocol, Mapping[str, str]]
    constants: Mapping[Protocol, Mapping[str, Any]] = MappingProxyType({})
    fenced: frozenset[str] = frozenset()  # client fields that would reach past what the gateway decided

    def spell(self, protocol: Protocol, values: Mapping[str, Any], context: int | None = None) -> dict[str, Any]:
        """The engine's fields for these values on this route; what the route lacks is left out (see `lacks`)."""
        names = self.fields[protocol]
        spelled = {names[name]: value for name, value in values.items() if name in names}
        spelled.update(self.constants.get(protocol, {}))
        if context is not None and "repeat_last_n" in spelled:
            spelled["repeat_last_n"] = context
        return spelled

    def lacks(self, protocol: Protocol, name: str) -> bool:
        """Whether the engine has no field for this parameter on this route."""
        return name not in self.fields[protocol]


def _fields(protocol: Protocol, **rename: str) -> dict[str, str]:
    stop = "stop_sequences" if protocol == "messages" else "stop"
    return _SAME | {"max_tokens": _LIMIT[protocol], "seed": "seed", "stop": stop} | rename


def _only(fields: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: spelling for name, spelling in fields.items() if name in names}


_ANTHROPIC: Final = ("temperature", "top_p", "top_k", "max_tokens", "stop")

# Both engines drop every field of /v1/messages but Anthropic's own, without a word.
VLLM: Final = Dialect(
    name="vllm",
    fields={protocol: _fields(protocol) for protocol in _LIMIT} | {"messages": _only(_fields("messages"), *_ANTHROPIC)},
)

# llama.cpp applies temperature last unless told otherwise, and its own defaults for the rest would leak in as well.
# Its repeat_last_n has no "all" (-1 is refused) and is allocated per request, so it is the context's length.
_LIKE_VLLM: Final = {
    "repeat_last_n": 2048,
    "typical_p": 1,
    "samplers": ["penalties", "temperature", "min_p", "top_k", "top_p"],
}
LLAMA_CPP: Final = Dialect(
    name="llama.cpp",
    fields={protocol: _fields(protocol, repetition_penalty="repeat_penalty") for protocol in _LIMIT}
    | {"messages": _only(_fields("messages"), *_ANTHROPIC)},
    constants={protocol: {} if protocol == "messages" else _LIKE_VLLM for protocol in _LIMIT},
    fenced=frozenset(
        {
            "n_predict",
            "n_cmpl",
            "min_keep",
            "dynatemp_range",
            "dynatemp_exponent",
            "mirostat",
            "mirostat_tau",
            "mirostat_eta",
            "adaptive_target",
            "adaptive_decay",
        }
    ),
)

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType({dialect.name: dialect for dialect in (VLLM, LLAMA_CPP)})
