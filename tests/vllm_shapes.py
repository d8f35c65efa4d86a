"""What vLLM 0.32 says: reply bodies, event streams, errors, and how it samples. Pure: values in, values out.

A token here is a word or a single character. Every reply is the same bytes for the same request.
Knows nothing of sockets or of what goes wrong: that is fakes.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

CREATED = 1795000000  # the time on every reply
EOS = "<eos>"  # in a vocabulary: the token that ends the text
Body = dict[str, Any]
Sampler = Literal["honest", "ignores_temperature", "halves_temperature", "top_k_5", "biased"]


@dataclass(frozen=True)
class Token:
    text: str
    logprob: float  # raw: before penalties and temperature
    top: list[tuple[str, float]]  # the likeliest 20, best first


@dataclass(frozen=True)
class Choice:
    tokens: list[Token]
    finish: str
    stop: str | None = None  # the stop string that was met
    call: Body | None = None  # a tool call in place of text

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


def dumps(value: Any) -> bytes:
    """JSON as vLLM writes it: compact, not escaped (U+2028 and Chinese stand as they are)."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def sse(data: Any, event: str | None = None) -> bytes:
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + (data if isinstance(data, bytes) else dumps(data)) + b"\n\n"


def error(status: int, text: str, param: str | None = None) -> Body:
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
    return {"error": {"message": text, "type": kind, "param": param, "code": status}}


def pieces(text: str) -> list[str]:
    return re.findall(r"\s*[A-Za-z0-9_']+|\s*.", text, re.DOTALL)


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def number(body: Body, name: str, default: float) -> Any:
    """As pydantic reads it: null is the default; "0.5" and true are numbers too."""
    value = body.get(name)
    if value is None:
        return default
    return float(value) if isinstance(value, (str, bool)) else value


def prompts_of(body: Body) -> list[str]:
    """The prompts as text: one, but for lists of prompts (completions, embeddings) and of conversations (batch)."""
    said = next((body[name] for name in ("prompt", "messages", "input") if body.get(name)), "")
    if isinstance(said, str):
        said = [said]
    if said and isinstance(said[0], str):
        return [_with_system(body, text) for text in said]
    if said and isinstance(said[0], list):
        return [prompt for talk in said for prompt in prompts_of({"messages": talk})]
    turns = said if said and isinstance(said[0], dict) else []  # else: token ids
    return [_with_system(body, "\n".join(f"{t.get('role')}: {_plain(t.get('content'))}" for t in turns) or str(said))]


def _with_system(body: Body, text: str) -> str:
    system = body.get("system") or body.get("instructions")
    return f"system: {_plain(system)}\n{text}" if system else text


def _plain(content: Any) -> str:
    return content if isinstance(content, str) else dumps(content).decode("utf-8", "surrogatepass")


# --- sampling


def log_softmax(logits: Mapping[str, float]) -> dict[str, float]:
    top = max(logits.values())
    total = top + math.log(sum(math.exp(v - top) for v in logits.values()))
    return {token: v - total for token, v in logits.items()}


def distribution(
    logits: Mapping[str, float], body: Body, drawn: list[str], sampler: Sampler = "honest"
) -> list[tuple[str, float]]:
    """Tokens and probabilities, likeliest first, after penalties, temperature, min_p, top_k, top_p in vLLM's order.

    Penalties look at the drawn tokens only (vLLM's repetition penalty sees the prompt too).
    """
    temperature = number(body, "temperature", 1.0)
    temperature = {"ignores_temperature": 1.0, "halves_temperature": temperature / 2}.get(sampler, temperature)
    repetition, presence, frequency = (
        number(body, f"{n}_penalty", d) for n, d in (("repetition", 1.0), ("presence", 0.0), ("frequency", 0.0))
    )
    out = dict(logits)
    for token in set(drawn) & set(out):
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
        out[token] -= presence + frequency * drawn.count(token)
    if temperature < 1e-5:
        return [(max(out, key=out.__getitem__), 1.0)]
    scaled = log_softmax({t: v / max(temperature, 0.01) for t, v in out.items()})
    ranked = sorted(((t, math.exp(v)) for t, v in scaled.items()), key=lambda item: -item[1])
    ranked = [item for item in ranked if item[1] >= number(body, "min_p", 0.0) * ranked[0][1]]
    top_k = 5 if sampler == "top_k_5" else int(number(body, "top_k", 0))
    ranked = ranked[:top_k] if top_k > 0 else ranked
    total, mass, kept = sum(p for _, p in ranked), 0.0, []
    for token, p in ranked:
        if mass >= number(body, "top_p", 1.0) * total:
            break
        kept.append((token, p))
        mass += p
    return [(token, p / mass) for token, p in kept]


def draw(ranked: list[tuple[str, float]], u: float) -> str:
    """The token at `u` in [0,1) of the cumulated probabilities."""
    for token, p in ranked:
        u -= p
        if u < 0:
            return token
    return ranked[-1][0]


# --- what is said


def told(text: str, body: Body, limit: int | None) -> Choice:
    """A text as a choice, ended by the first stop string or the token limit, with made-up log-probabilities."""
    stops = body.get("stop") or body.get("stop_sequences") or []
    stops = [stops] if isinstance(stops, str) else stops
    end, stop = min(((text.index(s), s) for s in stops if s in text), default=(len(text), None))
    words = pieces(text[:end])
    tokens = [Token(w, -0.25 * (k % 4), [(w, -0.25 * (k % 4)), *_OTHERS]) for k, w in enumerate(words[:limit])]
    return Choice(tokens or [Token("", 0.0, [])], "stop" if len(tokens) == len(words) else "length", stop)


_OTHERS = [(f" alt{k}", -2.0 - k) for k in range(19)]


def tool_call(tool: Body, prompt: str, i: int) -> Choice:
    """A call of the first tool offered, its argument the prompt."""
    function = {"name": tool.get("function", tool)["name"], "arguments": dumps({"echo": prompt}).decode()}
    call = {"id": f"chatcmpl-tool-{digest(prompt, i)}", "type": "function", "function": function}
    return Choice([], "tool_calls", call=call)


def sampled(
    vocab: Callable[[list[str]], Mapping[str, float]],
    body: Body,
    limit: int,
    uniform: Callable[[], float],
    sampler: Sampler = "honest",
) -> Choice:
    """Tokens drawn from `vocab`, which gives the logits after the tokens so far."""
    tokens: list[Token] = []
    while len(tokens) < limit:
        drawn = [t.text for t in tokens]
        logits, u = vocab(drawn), uniform()
        raw = log_softmax(logits)
        word = draw(distribution(logits, body, drawn, sampler), u * u if sampler == "biased" else u)
        if word == EOS:
            return Choice(tokens or [Token("", 0.0, [])], "stop")
        tokens.append(Token(word, raw[word], sorted(raw.items(), key=lambda item: -item[1])[:20]))
    return Choice(tokens, "length")


# --- replies


def usage(choices: list[Choice], n_prompt: int) -> Body:
    n = sum(len(c.tokens) for c in choices)
    return {"prompt_tokens": n_prompt, "total_tokens": n_prompt + n, "completion_tokens": n}


def chat_logprobs(body: Body, tokens: list[Token]) -> Body | None:
    def entry(text: str, logprob: float) -> Body:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}

    if not body.get("logprobs") or not tokens:
        return None
    k = body.get("top_logprobs") or 0
    return {"content": [entry(t.text, t.logprob) | {"top_logprobs": [entry(*o) for o in t.top[:k]]} for t in tokens]}


def text_logprobs(body: Body, tokens: list[Token], offset: int = 0) -> Body | None:
    if body.get("logprobs") is None:
        return None
    out: Body = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for t in tokens:
        out["text_offset"].append(offset)
        out["token_logprobs"].append(t.logprob)
        out["tokens"].append(t.text)
        out["top_logprobs"].append({t.text: t.logprob} | dict(t.top[: int(body["logprobs"])]))
        offset += len(t.text)
    return out


def chat(body: Body, rid: str, choices: list[Choice], n_prompt: int) -> Body:
    def choice(i: int, c: Choice) -> Body:
        said = {"role": "assistant", "content": None if c.call else c.text, "refusal": None, "annotations": None}
        said |= (
            {"audio": None, "function_call": None} | ({"tool_calls": [c.call]} if c.call else {}) | {"reasoning": None}
        )
        out = {"index": i, "message": said, "logprobs": chat_logprobs(body, c.tokens)}
        return out | {"finish_reason": c.finish, "stop_reason": c.stop, "token_ids": None}

    head: Body = {"id": f"chatcmpl-{rid}", "object": "chat.completion", "created": CREATED, "model": body["model"]}
    head |= {"choices": [choice(i, c) for i, c in enumerate(choices)], "service_tier": None, "system_fingerprint": None}
    head |= {"usage": usage(choices, n_prompt) | {"prompt_tokens_details": None}}
    return head | {"prompt_logprobs": None, "prompt_token_ids": None, "kv_transfer_params": None}


def chat_events(body: Body, rid: str, choices: list[Choice], n_prompt: int) -> Iterator[bytes]:
    head = {"id": f"chatcmpl-{rid}", "object": "chat.completion.chunk", "created": CREATED, "model": body["model"]}

    def chunk(i: int, delta: Body, tokens: list[Token], **more: Any) -> bytes:
        choice = {"index": i, "delta": delta, "logprobs": chat_logprobs(body, tokens), "finish_reason": None}
        return sse(head | {"choices": [choice | more]})

    for i in range(len(choices)):
        yield chunk(i, {"role": "assistant", "content": ""}, [])
    for step in range(max(len(c.tokens) for c in choices)):
        for i, c in enumerate(choices):
            if step < len(c.tokens) and not c.call:
                yield chunk(i, {"content": c.tokens[step].text}, [c.tokens[step]], token_ids=None)
    for i, c in enumerate(choices):
        if c.call:
            name, arguments = c.call["function"]["name"], c.call["function"]["arguments"]
            first = c.call | {"index": 0, "function": {"name": name, "arguments": ""}}
            later = [{"index": 0, "function": {"arguments": piece}} for piece in pieces(arguments)]
            yield from (chunk(i, {"tool_calls": [call]}, [], token_ids=None) for call in [first, *later])
        yield chunk(i, {"content": ""}, [], finish_reason=c.finish, stop_reason=c.stop, token_ids=None)
    if (body.get("stream_options") or {}).get("include_usage"):
        yield sse(head | {"choices": [], "usage": usage(choices, n_prompt)})
    yield sse(b"[DONE]")


def completion(body: Body, rid: str, choices: list[Choice], n_prompt: int) -> Body:
    def choice(i: int, c: Choice) -> Body:
        out = {"index": i, "text": c.text, "logprobs": text_logprobs(body, c.tokens), "finish_reason": c.finish}
        return out | {"stop_reason": c.stop, "token_ids": None, "prompt_logprobs": None, "prompt_token_ids": None}

    head = {"id": f"cmpl-{rid}", "object": "text_completion", "created": CREATED, "model": body["model"]}
    head |= {"choices": [choice(i, c) for i, c in enumerate(choices)], "service_tier": None, "system_fingerprint": None}
    return head | {"usage": usage(choices, n_prompt) | {"prompt_tokens_details": None}, "kv_transfer_params": None}


def completion_events(body: Body, rid: str, choices: list[Choice], n_prompt: int) -> Iterator[bytes]:
    head = {"id": f"cmpl-{rid}", "object": "text_completion", "created": CREATED, "model": body["model"]}
    for i, c in enumerate(choices):
        offset = 0
        for k, token in enumerate(c.tokens):
            end = {"finish_reason": c.finish, "stop_reason": c.stop} if k == len(c.tokens) - 1 else {}
            choice = {
                "index": i,
                "text": token.text,
                "logprobs": text_logprobs(body, [token], offset),
                "finish_reason": None,
                "stop_reason": None,
            }
            yield sse(head | {"choices": [choice | end | {"prompt_token_ids": None, "token_ids": None}], "usage": None})
            offset += len(token.text)
    if (body.get("stream_options") or {}).get("include_usage"):
        yield sse(head | {"choices": [], "usage": usage(choices, n_prompt)})
    yield sse(b"[DONE]")


def response(body: Body, rid: str, choices: list[Choice], n_prompt: int, status: str = "completed") -> Body:
    """The first choice as a Responses object; one that ran into its token limit is `incomplete`."""
    c, ended = choices[0], status == "completed"
    status = "incomplete" if ended and c.finish == "length" else status
    part: Body = {"annotations": [], "text": c.text, "type": "output_text", "logprobs": None}
    item = {"id": f"msg_{rid}", "content": [part], "role": "assistant", "status": "completed", "type": "message"}
    spent = {"input_tokens": n_prompt, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": len(c.tokens)}
    spent |= {"output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": n_prompt + len(c.tokens)}
    out = {"id": f"resp_{rid}", "created_at": CREATED, "object": "response", "model": body["model"], "status": status}
    out |= {"incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None}
    out |= {"output": [item] if ended else [], "usage": spent if ended else None, "background": False, "user": None}
    out |= {
        "temperature": float(number(body, "temperature", 1)),
        "top_p": float(number(body, "top_p", 1)),
        "tools": body.get("tools") or [],
    }
    out |= {name: body.get(name) for name in ("instructions", "max_output_tokens", "metadata", "previous_response_id")}
    return out | {"parallel_tool_calls": True, "tool_choice": "auto", "service_tier": "auto", "truncation": "disabled"}


def response_events(body: Body, rid: str, choices: list[Choice], n_prompt: int) -> Iterator[bytes]:
    whole = response(body, rid, choices, n_prompt)
    begun, item = response(body, rid, choices, n_prompt, "in_progress"), whole["output"][0]
    part, at = item["content"][0] | {"logprobs": []}, {"item_id": item["id"], "output_index": 0, "content_index": 0}
    steps: list[tuple[str, Body]] = [("created", {"response": begun}), ("in_progress", {"response": begun})]
    steps.append(("output_item.added", {"output_index": 0, "item": item | {"content": [], "status": "in_progress"}}))
    steps.append(("content_part.added", at | {"part": part | {"text": ""}}))
    steps.extend(("output_text.delta", at | {"delta": token.text, "logprobs": []}) for token in choices[0].tokens)
    steps.append(("output_text.done", at | {"text": part["text"], "logprobs": []}))
    steps.extend([("content_part.done", at | {"part": part}), ("output_item.done", {"output_index": 0, "item": item})])
    for i, (name, data) in enumerate([*steps, ("completed", {"response": whole})]):
        yield sse({"type": f"response.{name}", "sequence_number": i, **data}, f"response.{name}")


def message(body: Body, rid: str, choices: list[Choice], n_prompt: int) -> Body:
    c, block = choices[0], {"type": "text", "text": choices[0].text}
    if c.call:
        function = c.call["function"]
        block = {
            "type": "tool_use",
            "id": c.call["id"],
            "name": function["name"],
            "input": json.loads(function["arguments"]),
        }
    reason = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[c.finish]
    out = {"id": f"chatcmpl-{rid}", "type": "message", "role": "assistant", "content": [block], "model": body["model"]}
    return out | {"stop_reason": reason, "usage": {"input_tokens": n_prompt, "output_tokens": len(c.tokens)}}


def message_events(body: Body, rid: str, choices: list[Choice], n_prompt: int) -> Iterator[bytes]:
    whole, c = message(body, rid, choices, n_prompt), choices[0]
    begun = whole | {"content": [], "stop_reason": None, "usage": {"input_tokens": n_prompt, "output_tokens": 0}}
    block, deltas = {"type": "text", "text": ""}, [{"type": "text_delta", "text": token.text} for token in c.tokens]
    if c.call:
        block = whole["content"][0] | {"input": {}}
        deltas = [
            {"type": "input_json_delta", "partial_json": piece} for piece in pieces(c.call["function"]["arguments"])
        ]
    steps: list[Body] = [{"type": "message_start", "message": begun}]
    steps.append({"type": "content_block_start", "index": 0, "content_block": block})
    steps.extend({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas)
    steps.append({"type": "content_block_stop", "index": 0})
    steps.append({"type": "message_delta", "delta": {"stop_reason": whole["stop_reason"]}, "usage": whole["usage"]})
    yield from (sse(data, data["type"]) for data in [*steps, {"type": "message_stop"}])


Route = tuple[Callable[..., Body], Callable[..., Iterator[bytes]], tuple[str, ...]]
GENERATION: dict[str, Route] = {  # the plain reply, the stream, the fields that must be there
    "/v1/chat/completions": (chat, chat_events, ("messages",)),
    "/v1/chat/completions/batch": (chat, chat_events, ("messages",)),
    "/v1/completions": (completion, completion_events, ("prompt",)),
    "/v1/responses": (response, response_events, ("input",)),
    "/v1/messages": (message, message_events, ("model", "messages", "max_tokens")),
}


# --- replies without sampling


def models(names: tuple[str, ...], max_model_len: int) -> Body:
    card = {"object": "model", "created": CREATED, "owned_by": "vllm", "parent": None, "max_model_len": max_model_len}
    return {"object": "list", "data": [{"id": name, "root": name} | card for name in names]}


def without_sampling(path: str, body: Body, model: str, max_model_len: int) -> Body:
    """Embeddings and token counts. /tokenize and /detokenize speak code points: they undo each other."""
    if path == "/detokenize":
        return {"prompt": "".join(map(chr, body.get("tokens") or []))}
    prompts = prompts_of(body)
    if path == "/tokenize":
        tokens = [ord(c) for c in prompts[0]]
        return {"count": len(tokens), "max_model_len": max_model_len, "tokens": tokens, "token_strs": None}
    n = sum(len(pieces(p)) for p in prompts)
    if path == "/v1/messages/count_tokens":
        return {"input_tokens": n}
    data: list[Body] = []
    for i, prompt in enumerate(prompts):
        raw = struct.pack("<4f", *(byte / 255 for byte in bytes.fromhex(digest(prompt))[:4]))
        vector = (
            base64.b64encode(raw).decode() if body.get("encoding_format") == "base64" else struct.unpack("<4f", raw)
        )
        data.append({"index": i, "object": "embedding", "embedding": vector})
    out = {"id": f"embd-{digest(*prompts)}", "object": "list", "created": CREATED, "model": body.get("model", model)}
    return out | {"data": data, "usage": {"prompt_tokens": n, "total_tokens": n, "completion_tokens": 0}}


# --- what vLLM refuses

LIMITS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("temperature", math.isfinite, "temperature must be a finite number, got {}."),
    ("temperature", lambda v: v >= 0, "temperature must be non-negative, got {}."),
    ("temperature", lambda v: v <= 2, "temperature must be in [0, 2], got {}."),
    ("top_p", lambda v: 0 < v <= 1, "top_p must be in (0, 1], got {}."),
    ("top_k", lambda v: v >= -1, "top_k must be 0 (disable), or at least 1, got {}."),
    ("min_p", lambda v: 0 <= v <= 1, "min_p must be in [0, 1], got {}."),
    ("repetition_penalty", lambda v: v > 0, "repetition_penalty must be greater than zero, got {}."),
    ("presence_penalty", lambda v: -2 <= v <= 2, "presence_penalty must be in [-2, 2], got {}."),
    ("frequency_penalty", lambda v: -2 <= v <= 2, "frequency_penalty must be in [-2, 2], got {}."),
    ("max_tokens", lambda v: v >= 1, "max_tokens must be at least 1, got {}."),
    ("max_completion_tokens", lambda v: v >= 1, "max_tokens must be at least 1, got {}."),
)


def refusal(path: str, body: Body, models: tuple[str, ...], max_model_len: int) -> tuple[int, Body] | None:
    """Status and body of vLLM's refusal of a generation request; None when it takes it."""
    missing = [name for name in GENERATION[path][2] if name not in body]
    if missing:
        return 400, error(400, f"[{{'type': 'missing', 'loc': ('body', '{missing[0]}'), 'msg': 'Field required'}}]")
    if body.get("model", models[0]) not in models:
        return 404, error(404, f"The model `{body['model']}` does not exist.", "model")
    for name, fits, text in LIMITS:
        if not fits(value := number(body, name, 1)):
            return 400, error(400, f"{text.format(value)} (parameter={name}, value={value})", name)
    n = number(body, "n", 1)
    if n > 1 and number(body, "temperature", 1.0) < 1e-5:
        return 400, error(400, f"n must be 1 when using greedy sampling, got {n}.")
    asked = max(number(body, name, 1) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
    if asked > max_model_len:
        return 400, error(
            400,
            f"'max_tokens' or 'max_completion_tokens' is too large: {asked}. "
            f"This model's maximum context length is {max_model_len} tokens.",
            "max_tokens",
        )
    return None
