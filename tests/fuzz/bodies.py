"""Request bodies: what parse and plan make of any bytes, held against the standard library's own reading of JSON.

An input is two bytes that choose (protocol, then dialect and presets file), and the body.
"""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec

from gateway.policy.choice import Engine, Facts, Model, Request
from gateway.policy.config import Config, load
from gateway.policy.decided import Plan
from gateway.policy.fences import FENCED, IGNORED
from gateway.policy.params import PARAMS, Rule
from gateway.policy.plan import plan
from gateway.protocol import envelope
from gateway.protocol.dialects import ASKED, DIALECTS, PATHS, Dialect, Protocol
from gateway.protocol.errors import GatewayError, InvalidRequest
from gateway.protocol.structured import dictionary

_WORDS = "title: {en: T, zh: 题}, hint: {en: H, zh: 示}"
PRESETS = (
    f"""
default: p
presets:
  p: {{{_WORDS}, parameters: {{temperature: {{default: 0.3, min: 0.1, max: 1.4}}, top_k: {{max: 40}}, max_tokens: 64}},
       when_hot: {{above: 1.0, repetition_penalty: 1.1}}, system_prompt: house.txt}}
  strict: {{{_WORDS}, parameters: {{temperature: {{min: 0.1, max: 0.5}}, top_p: {{pin: 0.8}}}}, on_violation: reject}}
  fixed: {{{_WORDS}, parameters: {{seed: {{pin: 7}}, stop: [END], temperature: {{pin: 0}}}}, log: parameters}}
experiments:
  e: {{preset: p, state: running, unit: user, variants: {{a: {{}}, b: {{parameters: {{temperature: 1.1}}}}}}}}
""",
    f"default: p\nopen_fields: [priority, media_urls]\npresets:\n  p: {{{_WORDS}}}\n  strict: {{{_WORDS}}}\n",
)
CONFIGS: tuple[Config, ...] = tuple(load(text, {"house.txt": "温度 first.\n"}.__getitem__) for text in PRESETS)
_PROTOCOLS: tuple[tuple[Protocol, str], ...] = tuple((spoken, path) for path, spoken in PATHS.items())
_DIALECTS = tuple(DIALECTS.values())
_FACTS = [Facts({"default": Engine(d, (Model("m", 4096), Model("o/n:7b")))}, pepper="x") for d in _DIALECTS]

# What the gateway decides itself; every other field must reach the engine as the client wrote it.
_DECIDED = {"model", "preset", "stream_options", "n"}
_DECIDED |= {field for names in ASKED.values() for fields in names.values() for field in fields}
_DECIDED |= {name for d in _DIALECTS for names in d.fields.values() for name in names.values()}
_DECIDED |= {name for d in _DIALECTS for constants in d.constants.values() for name in constants}
_PROMPTED = {"messages", "instructions", "system"}  # rewritten where the preset has a system prompt


def check(data: bytes) -> None:
    """Raises AssertionError (or anything but GatewayError) for a fault of the gateway's."""
    (protocol, path), kind, body = _PROTOCOLS[data[0] % 5], data[1], data[2:]
    truth = read(body)
    fields = _parsed(body)
    if fields is None:
        sound = truth is not None and len(truth) == len(dict(truth)) and nested(truth) <= envelope.MAX_DEPTH
        assert not sound or _too_large(truth), "refused without a reason"
        return
    assert truth is not None, "the standard library says that this is not a JSON object"
    assert list(fields) == [name for name, _ in truth], "a field is missing, double or elsewhere"
    assert nested(truth) <= envelope.MAX_DEPTH
    for name, value in truth:
        assert _same(bytes(fields[name]), value), f"{name} was not read as it stands"
    again = envelope.parse(envelope.encode(fields))
    assert {name: bytes(raw) for name, raw in again.items()} == {name: bytes(raw) for name, raw in fields.items()}
    config, engine = CONFIGS[kind % 2], (kind >> 1) % 2
    facts = _FACTS[engine]
    request = Request(protocol=protocol, path=path, fields=fields, preset="strict" if kind & 4 else None)
    try:
        made = plan(request, config, facts)
    except GatewayError as error:
        _told(error)
        return
    _check_plan(made, fields, config, _DIALECTS[engine])
    assert plan(request, config, facts) == made, "the same request, another plan"


def _parsed(body: bytes) -> envelope.Fields | None:
    try:
        return envelope.parse(body)
    except GatewayError as error:
        _told(error)
        return None


def _check_plan(made: Plan, fields: envelope.Fields, config: Config, dialect: Dialect) -> None:
    preset = config.presets[made.preset]
    sent = envelope.parse(made.body)
    decided = _DECIDED | (_PROMPTED if preset.arm.system_prompt else set())
    for name in fields.keys() - decided:
        assert bytes(sent[name]) == bytes(fields[name]), f"{name} was touched"
    assert sent.keys() - fields.keys() <= decided, "fields that nobody asked for"
    assert not (sent.keys() & FENCED) - config.open_fields - _null(sent) - {"chat_template_kwargs"}, "past the fence"
    assert not (sent.keys() & IGNORED.keys()) - _null(sent) - {"best_of"}
    assert "preset" not in sent
    assert msgspec.json.decode(sent["model"]) in ("m", "o/n:7b")
    for name, value in made.effective.values.items():
        if name in PARAMS:
            rule = preset.arm.guard.rules.get(name, Rule())
            assert PARAMS[name].holds(value), f"{name} = {value!r} is outside its domain"
            if made.assignment is None or name != "temperature":
                order, kept = PARAMS[name].order, [v for v in (rule.min, rule.max) if v is not None]
                assert rule.pin in (None, value)
                assert not kept or rule.min is None or order(value) >= order(rule.min), f"{name} below the bound"
                assert not kept or rule.max is None or order(value) <= order(rule.max), f"{name} above the bound"
    spelled = dialect.fields[made.protocol]
    for name in made.effective.values.keys() & PARAMS.keys():
        assert msgspec.json.decode(sent[spelled[name]]) == made.effective.values[name], f"{name} is told otherwise"
    assert made.stream == (bytes(sent.get("stream", msgspec.Raw(b"null"))) == b"true")
    shown = dictionary({name: value for name, value in made.effective.values.items() if name in PARAMS})
    assert dict(made.headers)[b"x-tempera-params"] == shown.encode()
    for name, value in made.headers:
        assert value.isascii() and value.decode().isprintable(), f"{name!r} cannot be a header: {value!r}"


def _null(sent: envelope.Fields) -> set[str]:
    return {name for name, raw in sent.items() if bytes(raw) == b"null"}


def _told(error: GatewayError) -> None:
    """An error answer is well-formed, of a decent size, and the client's fault."""
    assert 400 <= error.status < 500, f"{error.status} for a fault of the client's"
    body = json.loads(error.body())
    assert len(error.body()) < 4096, "an error as large as what it complains about"
    assert body["error"]["message"]
    assert isinstance(error, InvalidRequest)


# --- the standard library's reading, made as strict as the RFC


class _Number(str):
    """A number as it was written."""


class _Pairs(list[tuple[str, Any]]):
    """An object with its names in order, doubles included."""


def _refuse(name: str) -> Any:
    raise ValueError(name)


_decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=_Number, parse_float=_Number, parse_constant=_refuse)


def read(body: bytes) -> _Pairs | None:
    """The members of one strict JSON object in UTF-8; None for anything else."""
    try:
        found = _decoder.decode(body.decode())
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair has no UTF-8
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, _Pairs) else None


def nested(value: Any) -> int:
    """Levels of brackets."""
    if isinstance(value, _Pairs):
        return 1 + max((nested(held) for _, held in value), default=0)
    return 1 + max(map(nested, value), default=0) if isinstance(value, list) else 0


def _same(raw: bytes, value: Any) -> bool:
    found = _decoder.decode(raw.decode())
    return bool(found == value and type(found) is type(value) and raw == raw.strip())


def _too_large(truth: Any) -> bool:
    """Whether it holds a number beyond a double, which may be refused already while reading."""
    if isinstance(truth, _Number):
        return float(truth) in (float("inf"), float("-inf"))
    if isinstance(truth, _Pairs):
        return any(_too_large(held) for _, held in truth)
    return isinstance(truth, list) and any(map(_too_large, truth))


# --- where the search begins

_LEAST: tuple[str, ...] = (
    '"messages":[{"role":"user","content":"Hi"}]',
    '"messages":[[{"role":"user","content":"Hi"}],[{"role":"system","content":"Ho"}]]',
    '"prompt":"Hi"',
    '"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:,"}]}]',
    '"system":[{"type":"text","text":"S"}],"messages":[{"role":"user","content":"\\ud83d\\ude00温"}],"max_tokens":100',
)
_MORE: tuple[str, ...] = (
    "",
    ',"model":"p","temperature":1.9,"top_p":0.5,"top_k":-1,"min_p":0.1,"n":2,"user":"u1"',
    ',"model":"o/n:7b:strict","temperature":0.2,"stream":true,"stream_options":{"continuous_usage_stats":true}',
    ',"preset":"fixed","seed":123456789012345678901234567890,"stop":["a","b"],"logit_bias":{"1":-100}',
    ',"max_completion_tokens":9999,"max_tokens":1,"max_output_tokens":5,"repetition_penalty":1.1e0,"n":null',
    ',"temperature":null,"safety_identifier":"s","chat_template_kwargs":{"enable_thinking":false},"best_of":1',
    ',"presence_penalty":-2,"frequency_penalty":2.0,"x":1e400,"y":[-0.0,1E+2],"z":{"a":{"a":[[]]}}',
    ' , "top_logprobs" : 20 , "logprobs":true, "stop_token_ids":[1], "stop_sequences":["x"], "guided_json":null ',
    ',"temperature":NaN',
    ',"\\u006dodel":"m","temperature":"0.5"',
    ',"a":1,"a":2',
    ',"api_base":"http://h/","priority":1,"mm_processor_kwargs":{}',
)


def seeds() -> list[bytes]:
    """Bodies of every protocol, with what clients send and what they should not."""
    return [
        bytes((i, (i + j) % 8)) + f"{{{least}{more}}}".encode()
        for i, least in enumerate(_LEAST)
        for j, more in enumerate(_MORE)
    ] + [b"\0\0" + b'{"a":' + b"[" * depth + b"]" * depth + b"}" for depth in (62, 63, 64, 2000)]


WORDS = sorted(
    {f'"{name}":' for name in _DECIDED | _PROMPTED | FENCED | IGNORED.keys()}
    | {f'"{name}"' for name in ("user", "system", "role", "content", "p", "strict", "fixed", "m:p", "type", "url")}
    | {"null", "true", "false", "NaN", "-Infinity", "1e999", "-0.0", "1E-7", "9007199254740993", "[[", "]]", "{}"}
    | {"\\ud83d", "\\ude00", "\\u0000", '\\"', "\\\\", ":", ",", "image_url", "http://h/", "温", "\r\n\t "}
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1.9, -0.0, 16, 17, 2**31, 2**63, 2**64, 10**30, 1e300, 5e-324, "", "p", "m:p",
    "0.5", "a" * 200, "\0", "温😀", "\x7f\u2028", [], {}, [1], ["x"] * 5, [[[]]], {"include_usage": True}, {"a": {}},
    [{"role": "system", "content": "S"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h"}}]}],
)  # fmt: skip
_NAMES = sorted(_DECIDED | _PROMPTED | FENCED | IGNORED.keys() | {"input", "prompt", "user", "stream", "é", "x" * 200})


def mutate(data: bytes, seed: int) -> bytes | None:
    """A body with one field set, taken out or doubled; None where it is no JSON object to begin with."""
    chance = random.Random(seed)
    try:
        fields = json.loads(data[2:])
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    name = chance.choice(_NAMES)
    if fields and chance.random() < 0.2:
        del fields[chance.choice(list(fields))]
    else:
        fields[name] = chance.choice(_VALUES)
    try:
        body = json.dumps(fields, ensure_ascii=chance.random() < 0.3, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return None
    if chance.random() < 0.1:
        body = body[:-1] + f',"{name}":1}}'.encode()
    return bytes((chance.randrange(5), chance.randrange(8))) + body
