"""Merging a preset's system prompt with the client's own.

The rule: the preset speaks first, the client after it, joined by a blank line in one system message at the start,
because most chat templates allow only one and only there. A raw completion prompt has no system message and is left
alone. Knows the four protocols' places for it; nothing about presets.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.protocol.dialects import Protocol
from gateway.protocol.envelope import Fields, decode, value

_Messages = list[msgspec.Raw]


def merge(protocol: Protocol, fields: Fields, prompt: str) -> dict[str, Any]:
    """The fields that change when `prompt` is put before the client's own system message.

    Messages after the first keep their bytes.
    """
    if protocol == "completions":
        return {}
    if protocol == "responses":
        return {"instructions": _join(prompt, value(fields, "instructions"))}
    if protocol == "messages":
        return {"system": _join(prompt, value(fields, "system"))}
    raw = fields.get("messages")
    if raw is None:
        return {}
    if protocol == "batch":
        conversations = _split(raw)
        return {"messages": [_conversation(each, prompt) for each in conversations]} if conversations else {}
    return {"messages": _conversation(raw, prompt)}


def _split(raw: msgspec.Raw) -> _Messages:
    try:
        return msgspec.json.decode(raw, type=_Messages)
    except msgspec.DecodeError:
        return []  # not a list: left as it is, and the engine will say so


def _conversation(raw: msgspec.Raw, prompt: str) -> Any:
    messages = _split(raw)
    if not messages:
        return raw
    first = decode(messages[0], "messages")
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        return [first | {"content": _join(prompt, first.get("content"))}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


def _join(prompt: str, own: Any) -> Any:
    if isinstance(own, list):
        return [{"type": "text", "text": prompt}, *own]
    return f"{prompt}\n\n{own}" if isinstance(own, str) and own else prompt
