"""One turn of a conversation in each of the three views: chat, token probabilities, compared temperatures.

Knows how an answer reaches the page while it is written, and what is left when it is stopped half-way. All that is
asked of the gateway comes in a Turn.
"""
# mypy: allow-untyped-calls

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import chainlit as cl

from ui import controls
from ui.client import Answer, Gateway, Piece, Preset, Token, Trouble
from ui.words import Language, say

_REPAINT: Final = 0.12  # seconds between two pictures of the compared columns
_CANDIDATES: Final = 20  # what engines give at most for each token
_SHOWN: Final = 600  # tokens of a card; more would make a slow page
_WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")


@dataclass(frozen=True)
class Turn:
    """A question with its conversation, and under which parameters it is asked."""

    preset: Preset
    messages: list[dict[str, str]]
    asked: dict[str, Any]
    unit: str
    request_id: str
    language: Language

    def body(self, **more: Any) -> dict[str, Any]:
        return {"model": self.preset["name"], "messages": self.messages, **self.asked, **more}

    def sentence(self, trouble: Trouble, gateway: Gateway) -> str:
        return say(trouble.key, self.language, url=gateway.url, said=trouble.said)


class Writing:
    """An answer on its way: its text, its tokens, and what the small print under it says."""

    def __init__(self) -> None:
        self.began, self.text, self.count, self.used = time.perf_counter(), "", 0, None
        self.tokens: list[Token] = []
        self.print: dict[str, Any] = {"params": {}, "adjusted": [], "exchange": ""}

    used: int | None

    def open(self, answer: Answer) -> None:
        self.print |= {"params": answer.params, "adjusted": answer.adjusted, "exchange": answer.exchange}

    def take(self, piece: Piece) -> None:
        self.text += piece.text
        self.count += len(piece.tokens) or bool(piece.text)
        self.tokens += piece.tokens[: _SHOWN - len(self.tokens)]
        self.used = piece.used or self.used
        if piece.finish:
            self.print["finish"] = piece.finish

    def so_far(self) -> dict[str, Any]:
        seconds = round(time.perf_counter() - self.began, 1)
        return self.print | {"tokens": self.used or self.count, "seconds": seconds}


async def chat(turn: Turn, gateway: Gateway, *, tokens: bool = False) -> None:
    """Stream one answer. Whatever was written is kept when it is stopped or breaks off."""
    out, writing, more = cl.Message(content=""), Writing(), {}
    if tokens:
        more = {"logprobs": True, "top_logprobs": _CANDIDATES}
    try:
        async with gateway.answer(turn.body(**more), unit=turn.unit, request_id=turn.request_id) as answer:
            writing.open(answer)
            async for piece in answer.pieces:
                writing.take(piece)
                await out.stream_token(piece.text)
    except asyncio.CancelledError:
        writing.print["finish"] = "stopped"
        await asyncio.shield(_finish(out, writing, turn))
        raise
    except Trouble as trouble:
        writing.print["finish"] = "broken"
        if writing.text:
            await _finish(out, writing, turn)
        await complain(turn.sentence(trouble, gateway))
    else:
        await _finish(out, writing, turn)


async def _finish(out: cl.Message, writing: Writing, turn: Turn) -> None:
    cards: list[Any] = [cl.CustomElement(name="Used", props=writing.so_far())]
    if writing.tokens:
        low, high = controls.bounds(turn.preset, "temperature")
        props = {"tokens": spell(writing.tokens), "params": writing.print["params"], "low": low, "high": high}
        cards.insert(0, cl.CustomElement(name="Tokens", props=props))
    out.elements = cards
    await out.send()


async def complain(sentence: str) -> None:
    """A plain sentence in place of an answer; the metadata keeps it out of later prompts."""
    message = cl.Message(content=sentence, metadata={"error": True})
    message.is_error = True
    await message.send()


async def compare(turn: Turn, gateway: Gateway, temperatures: Sequence[float]) -> None:
    """The same question at several temperatures at once, in one card. One stop stops all."""
    columns: list[dict[str, Any]] = [{"asked": temperature, "text": ""} for temperature in temperatures]
    card = cl.CustomElement(name="Compare", props={"columns": columns, "done": False})
    await cl.Message(content="", elements=[card]).send()
    stopped = True
    try:
        async with asyncio.TaskGroup() as group:
            painting = group.create_task(_repaint(card))
            writing = [group.create_task(_column(turn, gateway, column)) for column in columns]
            await asyncio.wait(writing)
            painting.cancel()
        stopped = False
    finally:
        card.props["done"] = True
        for column in columns:
            column["alike"] = similarity(columns[0]["text"], column["text"])
            if stopped:
                column.setdefault("finish", "stopped")
        await asyncio.shield(card.update())


async def _column(turn: Turn, gateway: Gateway, column: dict[str, Any]) -> None:
    writing, body = Writing(), turn.body(temperature=column["asked"])
    try:
        request_id = f"{turn.request_id}.{column['asked']:g}"
        async with gateway.answer(body, unit=turn.unit, request_id=request_id) as answer:
            writing.open(answer)
            async for piece in answer.pieces:
                writing.take(piece)
                column |= writing.so_far() | {"text": writing.text}
        column |= writing.so_far()
    except Trouble as trouble:
        column |= {"finish": "broken", "error": turn.sentence(trouble, gateway)}


async def _repaint(card: cl.CustomElement) -> None:
    """`update()` would write a file each time; the page needs the picture only."""
    while True:
        await cl.context.emitter.send_element(card.to_dict())
        await asyncio.sleep(_REPAINT)


def spell(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens as text. A character that several tokens make up together stands at the last of them."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return [
        {
            "text": decode(token.raw),
            "piece": _name(token.raw),
            "logprob": round(token.logprob, 4),
            "candidates": [[_name(raw), round(logprob, 4)] for raw, logprob in token.candidates],
        }
        for token in tokens
    ]


def _name(raw: bytes) -> str:
    """A token by itself: its text, or its bytes in hexadecimal where they are no text."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "‹" + raw.hex(" ") + "›"


def similarity(one: str, other: str) -> float:
    """How alike two texts are, 0 to 1: Dice's coefficient of their words and word pairs; of Chinese, its characters."""
    a, b = _shingles(one), _shingles(other)
    return 2 * (a & b).total() / total if (total := a.total() + b.total()) else float(one == other)


def _shingles(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return Counter([*((word,) for word in words), *pairwise(words)])


def prompt(messages: Sequence[cl.Message], current: cl.Message) -> list[dict[str, str]]:
    """What the model reads: the conversation up to the current question, without errors and compared answers."""
    said = []
    for message in messages:
        modes: Mapping[str, str] = message.modes or {}
        aside = message is not current and message.type == "user_message" and modes.get("view") == "compare"
        if not message.content or aside or (message.metadata or {}).get("error"):
            continue
        role = "user" if message.type == "user_message" else "assistant"
        said.append({"role": role, "content": message.content})
    return said
