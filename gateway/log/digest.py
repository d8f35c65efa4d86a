"""RawExchange -> Row: what the sample log keeps of one exchange.

Leaves out what the preset's log mode leaves out and takes secrets out. Pure and total. Knows nothing about databases,
threads or files, and nothing about protocols (reading does).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from gateway.log.cutting import cut
from gateway.log.exchange import RawExchange
from gateway.log.reading import MESSAGE_LIMIT, read_messages, read_reply
from gateway.log.row import COLUMNS, JSON_COLUMNS, Row
from gateway.policy.experiments import bucket
from gateway.policy.params import Effective

REDACTED: Final = "[redacted]"
_REMEMBERED: Final = 512
_NAME: Final = 128  # characters kept of what an engine or a client calls something: such columns are indexed
_encoder = msgspec.json.Encoder()


def kept(exchange: RawExchange, share: float) -> bool:
    """Whether a preset that logs this share of its exchanges logs this one, by a hash of its id.

    Exchanges of an experiment are always kept: its analysis needs every unit.
    """
    if share >= 1 or (exchange.plan is not None and exchange.plan.assignment is not None):
        return True
    return bucket("log", "share", exchange.id) < share


def digest(exchange: RawExchange, redact: Redact | None = None, limit: int = MESSAGE_LIMIT) -> Row:
    """The row of an exchange; `limit` is how many bytes of a message are kept.

    A request refused before it had a plan keeps no content: nobody knows what its preset's log mode would have been.
    """
    plan = exchange.plan
    reply = read_reply(exchange)
    messages, text, truncated = None, None, False
    if plan is not None and plan.log == "full":
        messages, truncated = read_messages(exchange.request, limit, exchange.messages)
        text, short = cut(reply.text, limit) if reply.texts else (None, False)
        truncated = truncated or short or exchange.cut
    assignment = plan.assignment if plan else None
    asked, effective, adjustments = _parameters(plan.effective) if plan else (None, None, None)
    row = Row(
        id=exchange.id,
        response_id=_name(reply.response_id),
        time=exchange.time,
        protocol=exchange.protocol,
        preset=plan.preset if plan else None,
        revision=plan.revision if plan else None,
        experiment=assignment.experiment if assignment else None,
        variant=assignment.variant if assignment else None,
        unit=assignment.unit if assignment else None,
        unit_kind=assignment.unit_kind if assignment else None,
        asked=asked,
        effective=effective,
        adjustments=adjustments,
        messages=messages,
        text=text,
        finish_reason=_name(reply.finish_reason),
        usage=_json(reply.usage) if reply.usage else None,
        ttft_ms=None if exchange.ttft is None else _milliseconds(exchange.ttft),
        duration_ms=_milliseconds(exchange.duration),
        outcome=exchange.outcome,
        key=_name(exchange.key),
        truncated=truncated,
        request_id=exchange.request_id,
    )
    return _clean(row, redact)


_NUL: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def _clean(row: Row, redact: Redact | None) -> Row:
    """No NUL (PostgreSQL holds none), neither plain nor written in JSON, and nothing that `redact` takes out."""
    messages, plain = row.messages or b"", (row.text, row.response_id, row.request_id, row.finish_reason, row.key)
    short = "\n".join(filter(None, (*plain, row.preset, row.asked, row.effective, row.adjustments, row.usage)))
    # Nearly always there is nothing to do, and one look tells; one letter is found in a tenth of the time of several.
    # JSON has a NUL only as an escape: no parser here takes it as it is.
    nul = "\0" in short or ("\\" in short and "\\u0000" in short) or (b"\\" in messages and b"\\u0000" in messages)
    if not nul and (redact is None or not (redact.finds(messages) or redact(short) != short)):
        return row
    cleaned: dict[str, Any] = {}
    for name in COLUMNS:
        value = getattr(row, name)
        if isinstance(value, bytes):
            cleaned[name] = _cleaned(value.decode(), True, redact).encode()
        elif isinstance(value, str):
            cleaned[name] = _cleaned(value, name in JSON_COLUMNS, redact)
    return msgspec.structs.replace(row, **cleaned)


def _cleaned(text: str, json: bool, redact: Redact | None) -> str:
    clean = _NUL.sub(r"\1\\ufffd", text) if json else text.replace("\0", "\ufffd")
    return clean if redact is None else redact(clean)


class Redact:
    """Writes `[redacted]` over each of `secrets` and over every match of the regular expression, which is about ASCII;
    `begins` is what every match of it begins with.
    """

    def __init__(self, secrets: Iterable[str], pattern: str = "", begins: str = "") -> None:
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._encoded = [secret.encode() for secret in self._secrets]
        self._pattern = re.compile(pattern, re.ASCII) if pattern else None
        self._in_bytes = re.compile(pattern.encode()) if pattern else None
        self._begins, self._begins_in_bytes = begins, begins.encode()

    def finds(self, text: bytes) -> bool:
        """Whether there is anything to take out of a text in UTF-8. Looking for a few letters is cheap."""
        for secret in self._encoded:
            if secret in text:
                return True
        pattern = self._in_bytes
        return pattern is not None and self._begins_in_bytes in text and pattern.search(text) is not None

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REDACTED)
        pattern = self._pattern
        return text if pattern is None or self._begins not in text else pattern.sub(REDACTED, text)


def _milliseconds(seconds: float) -> float:
    """To three digits, which round() takes six times as long for."""
    return int(seconds * 1e6 + 0.5) / 1000


def _name(text: str | None) -> str | None:
    return text[:_NAME] if text else text


_written: dict[int, tuple[Effective, tuple[str, str, str]]] = {}


def _parameters(effective: Effective) -> tuple[str, str, str]:
    """What was asked, used and changed, as JSON. Plans share their parameters, so that most were written before; held
    with the texts, an object keeps its identity.
    """
    found = _written.get(id(effective))
    if found is None:
        if len(_written) >= _REMEMBERED:
            _written.clear()
        texts = (_json(effective.asked), _json(effective.values), _json(effective.adjustments))
        found = _written[id(effective)] = (effective, texts)
    return found[1]


def _json(value: Any) -> str:
    return _encoder.encode(value).decode()
