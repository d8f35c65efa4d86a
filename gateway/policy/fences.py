"""What never reaches an engine from a client: fields that act on the engine itself, and sizes that would hurt it.

Judges names, counts and addresses; everything it does not name passes untouched. Knows nothing about sampling
parameters.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.protocol.envelope import Fields, decode
from gateway.protocol.errors import InvalidRequest, OutOfRange

FENCED: Final = frozenset(
    {
        "chat_template",
        "chat_template_kwargs",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "prompt_embeds",
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        "priority",
        "request_id",
        "session_id",
        "api_base",
        "base_url",
        "api_key",
    }
)
# vLLM takes these and does nothing with them: the reply would look constrained and not be.
IGNORED: Final = {
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
    "best_of": "n",
}
MOST: Final = {"stop": 4, "stop_sequences": 4, "stop_token_ids": 128, "logit_bias": 1024, "allowed_token_ids": 1024}
MOST_LOGPROBS: Final = 20
MEDIA: Final = ("messages", "input", "system")
WATCHED: Final = FENCED.union(IGNORED, MOST, {"top_logprobs", "logprobs"})


def check(
    fields: Fields,
    opened: frozenset[str],
    fenced: frozenset[str] = frozenset(),
) -> None:
    """Raises InvalidRequest (or OutOfRange) for the first field that may not pass.

    `opened` are the fields the operator let through, `fenced` those that only this engine understands.
    """
    for name in fields.keys() & (WATCHED | fenced if fenced else WATCHED):
        if name not in opened and bytes(fields[name]) != b"null":
            _check_field(fields, name, name in fenced)


def check_media(fields: Fields, opened: frozenset[str], media: tuple[str, ...] = MEDIA) -> None:
    """Raises InvalidRequest for a picture by address. `media` are the fields that may hold pictures."""
    if "media_urls" not in opened:
        for name in media:
            raw = fields.get(name)
            if raw is not None and _may_hold_media(name, bytes(raw)) and _remote(decode(raw, name)):
                raise InvalidRequest(
                    f"{name}: media must be sent inline (data:...), not by address.",
                    code="media_url_not_allowed",
                    param=name,
                )


def _may_hold_media(name: str, raw: bytes) -> bool:
    """A media part stands under a name with `url` in it; one of a message, in a list inside the list of messages.
    Decoding every conversation to look for pictures would cost more than everything else here.
    """
    parts = raw.find(b"[", 1) > 0 if name == "messages" else not raw.startswith(b'"')
    return parts and (b"url" in raw or b"\\u" in raw)


def _check_field(fields: Fields, name: str, fenced: bool) -> None:
    value = decode(fields[name], name)
    if name == "chat_template_kwargs" and isinstance(value, dict) and value.keys() <= {"enable_thinking"}:
        return
    if fenced or name in FENCED:
        raise InvalidRequest(f"{name} may not be set through this gateway.", code="field_not_allowed", param=name)
    if name == "best_of" and value == 1:
        return
    if name in IGNORED:
        raise InvalidRequest(
            f"{name} would be ignored by the engine; use {IGNORED[name]}.", code="field_ignored", param=name
        )
    if name in ("top_logprobs", "logprobs"):
        if isinstance(value, int) and not isinstance(value, bool) and value > MOST_LOGPROBS:
            raise OutOfRange(f"{name} must be at most {MOST_LOGPROBS}; got {value}.", param=name)
    elif isinstance(value, list | dict) and len(value) > MOST[name]:
        raise OutOfRange(f"{name} may hold at most {MOST[name]} entries; got {len(value)}.", param=name)


def _remote(value: Any) -> bool:
    """Whether a media part anywhere below points to another host. The arguments of a tool are no media."""
    if isinstance(value, list):
        return any(_remote(item) for item in value)
    if not isinstance(value, dict) or value.get("type") == "tool_use":
        return False
    if value.get("type") == "url" and "url" in value:
        return True
    for key, item in value.items():
        if key.endswith("_url"):
            address = item.get("url") if isinstance(item, dict) else item
            if isinstance(address, str) and not address.lstrip().lower().startswith("data:"):
                return True
        if _remote(item):
            return True
    return False
