"""What an engine's finished reply said, in any of the four protocols, streamed or whole.

Read after the fact, from the bytes that went to the client; nothing here runs per token. Chat and text completions,
which nearly all are, are read into types in one pass; everything else, and everything broken, thoroughly.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.protocol.sse import DONE, Splitter, loads


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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _anything(body, stream)


def read_usage(body: bytes, stream: bool) -> dict[str, Any]:
    """Only what a finished reply has cost; empty where the engine said nothing of it. Never raises."""
    if not stream:
        try:
            if (found := _bill.decode(body).usage) is not None:
                return found
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
    return assemble(body, stream).usage or {}


class _Bill(msgspec.Struct):
    usage: dict[str, Any] | None = None


_bill = msgspec.json.Decoder(_Bill)


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
        _absorb(result, loads(body))
        return result
    texts: dict[int, list[str]] = {}
    for event in Splitter().feed(body + b"\n\n"):
        if event.data == DONE:
            result.done = True
            continue
        document = loads(event.data)
        if document:
            _absorb(result, document, texts)
    if texts:
        result.texts = ["".join(texts[index]) for index in sorted(texts)]
    return result


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
