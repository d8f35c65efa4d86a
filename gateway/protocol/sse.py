"""Server-sent events on bytes: splitting a stream, understanding a finished one, and taking one event out again.

Lines end in LF, CR LF or CR and in nothing else: U+2028 is text. Any cutting of a stream gives the same events.
`assemble` reads the four protocols' streams and bodies after the fact; nothing here runs per token except `Splitter`
and `DropUsage`, and those only when asked for. Knows nothing about sockets.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

DONE: Final = b"[DONE]"

# The first event that carries generated text, in any of the four protocols. The role-only first chunk has an empty
# content.
_CONTENT: Final = re.compile(
    rb'"(?:content|text|delta|reasoning|reasoning_content|thinking|arguments|partial_json)":\s*"[^"]'
)


def has_content(data: bytes) -> bool:
    """Whether these bytes of a stream carry generated text (or a tool call's arguments)."""
    return _CONTENT.search(data) is not None


def is_last(data: bytes) -> bool:
    """Whether these bytes end a stream for its client, in any of the four protocols; clients may hang up then."""
    return data.endswith(_LAST) or b'"message_stop"' in data[-64:] or b"event: response.completed" in data


_LAST: Final = (b"[DONE]\n\n", b"[DONE]\r\n\r\n")


class Event(msgspec.Struct, frozen=True):
    """One event: its name (empty for the default) and its data, lines joined by LF."""

    name: bytes
    data: bytes


class Splitter:
    """Bytes in, whole events out. Comments are skipped; an event that the stream's end cuts off is never given out."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False

    def feed(self, data: bytes) -> list[Event]:
        """The events completed by these bytes, in order."""
        if not data:
            return []
        # A CR ends its line at once; an LF right after it belongs to it, wherever the stream was cut.
        text = data[1:] if self._after_cr and data.startswith(b"\n") else data
        self._after_cr = data.endswith(b"\r")
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *blocks, self._rest = (self._rest + text).split(b"\n\n")
        return [event for block in blocks if (event := _event(block)) is not None]


def _event(block: bytes) -> Event | None:
    name, data = b"", []
    for line in block.split(b"\n"):
        field, _, content = line.partition(b":")
        content = content.removeprefix(b" ")
        if field == b"data":
            data.append(content)
        elif field == b"event":
            name = content
    return Event(name, b"\n".join(data)) if data else None


class Gate:
    """Lets whole events through and holds the last, unfinished one back, so that a stream that breaks off never
    leaves half an event with the client. Optionally takes out the usage event that the gateway itself asked for.

    A stream whose writes end at event borders is never delayed, and every byte that is let through is the engine's own.
    """

    def __init__(self, drop_usage: bool) -> None:
        self._drop = drop_usage
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What may go to the client now."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not data.endswith(_ENDS):
            cut = max(data.rfind(end) + len(end) for end in _ENDS if end in data) if _ends_in(data) else 0
            if len(data) - cut <= MAX_HELD:
                data, self._rest = data[:cut], data[cut:]
        if self._drop and b'"usage"' in data:
            return b"".join(event for event in _EVENT.findall(data) if not _only_usage(event))
        return data

    def rest(self) -> bytes:
        """What was held back when the stream has ended; complete or not is for the client to judge."""
        rest, self._rest = self._rest, b""
        return rest


MAX_HELD: Final = 1024 * 1024  # bytes; a longer "event" is let through unfinished
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EVENT: Final = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)|.+\Z", re.DOTALL)


def _ends_in(data: bytes) -> bool:
    return any(end in data for end in _ENDS)


def _only_usage(event: bytes) -> bool:
    """Whether an event carries the token counts and no choice."""
    if b'"usage"' not in event:
        return False
    for parsed in Splitter().feed(event):
        document = _loads(parsed.data)
        return document.get("choices") == [] and isinstance(document.get("usage"), dict)
    return False


def error_event(body: bytes, named: bool) -> bytes:
    """An error envelope as the last event of a stream.

    `named` for the protocols whose clients dispatch on the event's name.
    """
    return (b"event: error\n" if named else b"") + b"data: " + body + b"\n\n"


class Assembled(msgspec.Struct):
    """A reply.

    Understood: the text of every choice in order, how it ended, what it cost, the engine's id and its error if
    any.
    """

    texts: list[str]
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    response_id: str | None = None
    error: str | None = None
    done: bool = False

    @property
    def text(self) -> str:
        """The choices' texts, joined by a blank line."""
        return "\n\n".join(self.texts)


def assemble(body: bytes, stream: bool) -> Assembled:
    """A finished reply of any of the four protocols, from its bytes. Never raises: what cannot be read is left out."""
    try:
        return _chat_stream(body) if stream else _chat(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _anything(body, stream)


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Document(msgspec.Struct):
    """A chat or text completion, or a chunk of one: nearly all there is to read, and read at a quarter of the cost."""

    choices: list[_Choice]
    id: str | None = None
    usage: dict[str, Any] | None = None
    error: None = None  # a document with one is read thoroughly


_document = msgspec.json.Decoder(_Document)
_documents = msgspec.json.Decoder(list[_Document])


def _chat(body: bytes) -> Assembled:
    """A completion that was not streamed. Raises MsgspecError for anything else."""
    document = _document.decode(body)
    said = [choice.text if choice.message is None else choice.message.content for choice in document.choices]
    reasons = [choice.finish_reason for choice in document.choices if choice.finish_reason]
    return Assembled([text or "" for text in said], reasons[-1] if reasons else None, document.usage, document.id)


def _chat_stream(body: bytes) -> Assembled:
    """A streamed completion without anything but its chunks, decoded in one go. Raises MsgspecError for anything else:
    what separates two events cannot stand inside a JSON document, whose strings hold no line breaks.
    """
    whole = body.strip(b"\n")
    chunks = whole.removesuffix(b"\n\ndata: [DONE]")
    documents = _documents.decode(b"[%b]" % chunks.removeprefix(b"data: ").replace(b"\n\ndata: ", b","))
    result, texts = Assembled([], done=len(chunks) < len(whole)), dict[int, list[str]]()
    for document in documents:
        result.response_id = result.response_id or document.id
        if document.usage is not None:
            result.usage = {**(result.usage or {}), **document.usage}
        for choice in document.choices:
            said = choice.text if choice.delta is None else choice.delta.content
            result.finish_reason = choice.finish_reason or result.finish_reason
            texts.setdefault(choice.index, []).append(said or "")
    result.texts = ["".join(texts[index]) for index in sorted(texts)]
    return result


def _anything(body: bytes, stream: bool) -> Assembled:
    """Every protocol, and what is broken."""
    result = Assembled(texts=[])
    if not stream:
        _absorb(result, _loads(body))
        return result
    texts: dict[int, list[str]] = {}
    for event in Splitter().feed(body + b"\n\n"):
        if event.data == DONE:
            result.done = True
            continue
        document = _loads(event.data)
        if document:
            _absorb(result, document, texts)
    if texts:
        result.texts = ["".join(texts[index]) for index in sorted(texts)]
    return result


def _loads(data: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _absorb(result: Assembled, document: dict[str, Any], texts: dict[int, list[str]] | None = None) -> None:
    """One JSON document of a reply: a whole body, or the data of one event."""
    kind = _text(document.get("type")) or ""
    whole = document.get("response") or document.get("message") if kind else None
    head = whole if isinstance(whole, dict) else document
    if isinstance(error := document.get("error") or head.get("error"), dict):
        result.error = str(error.get("code") or error.get("type") or "error")
    result.response_id = result.response_id or _text(head.get("id"))
    if isinstance(usage := head.get("usage") or document.get("usage"), dict):
        result.usage = {**(result.usage or {}), **usage}
    if isinstance(choices := document.get("choices"), list):
        for choice in choices:
            _absorb_choice(result, choice, texts)
    elif kind.startswith("response.") or document.get("object") == "response":
        _absorb_response(result, kind, document, texts)
    elif kind:
        _absorb_message(result, kind, document, texts)


def _absorb_choice(result: Assembled, choice: Any, texts: dict[int, list[str]] | None) -> None:
    if not isinstance(choice, dict):
        return
    part = choice.get("delta") if texts is not None else choice.get("message")
    text = _text(part.get("content")) if isinstance(part, dict) else _text(choice.get("text"))
    result.finish_reason = _text(choice.get("finish_reason")) or result.finish_reason
    if texts is None:
        result.texts.append(text or "")
    else:
        index = choice.get("index")
        texts.setdefault(index if isinstance(index, int) else 0, []).append(text or "")


def _absorb_response(
    result: Assembled, kind: str, document: dict[str, Any], texts: dict[int, list[str]] | None
) -> None:
    if kind == "response.output_text.delta" and texts is not None:
        texts.setdefault(0, []).append(_text(document.get("delta")) or "")
    whole = document.get("response") if kind else document
    if not isinstance(whole, dict):
        return
    if kind in ("response.completed", "response.incomplete", "response.failed", ""):
        details = whole.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        result.finish_reason = _text(reason) or _text(whole.get("status"))
        result.done = result.done or bool(kind)
    if not kind or texts is None:
        parts = [part for item in _dicts(whole.get("output")) for part in _dicts(item.get("content"))]
        said = [part for part in parts if part.get("type") != "reasoning_text"]
        result.texts = ["".join(_text(part.get("text")) or "" for part in said)]


def _absorb_message(result: Assembled, kind: str, document: dict[str, Any], texts: dict[int, list[str]] | None) -> None:
    if kind == "message":
        parts = _dicts(document.get("content"))
        result.texts = ["".join(_text(part.get("text")) or "" for part in parts)]
        result.finish_reason = _text(document.get("stop_reason"))
    elif kind == "content_block_delta" and texts is not None and isinstance(delta := document.get("delta"), dict):
        texts.setdefault(0, []).append(_text(delta.get("text")) or "")
    elif kind == "message_delta" and isinstance(delta := document.get("delta"), dict):
        result.finish_reason = _text(delta.get("stop_reason")) or result.finish_reason
    elif kind == "message_stop":
        result.done = True


def _dicts(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
