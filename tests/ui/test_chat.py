"""Conversations over the real socket protocol: the chat's process, the real gateway, a fake engine. No browser."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.fakes import FakeEngine, Fault
from tests.ui.conftest import OPERATOR
from tests.ui.processes import PATIENCE, Visitor, visiting

LONG = "one two three four five six seven eight nine ten " * 40


def thumbs(gateway_url: str, exchange: str) -> list[Any]:
    """The feedback that the gateway's log holds for an exchange."""
    reply = httpx.get(
        f"{gateway_url}/v1/exchanges/{exchange}", headers={"Authorization": f"Bearer {OPERATOR}"}, trust_env=False
    )
    assert reply.status_code == 200, reply.text
    return [(vote["value"], vote["comment"]) for vote in reply.json()["feedback"]]


async def set_parameters(visitor: Visitor, **values: Any) -> None:
    await visitor.socket.emit("chat_settings_edit", values)


async def test_a_scenario_shows_its_parameters_in_its_bounds(open_chat: str, engine: FakeEngine) -> None:
    async with visiting(open_chat, "customer-service") as visitor:
        basic, advanced = visitor.all("chat_settings")[0]
        temperature = basic["inputs"][0]
        assert (temperature["id"], temperature["min"], temperature["max"], temperature["initial"]) == (
            "temperature__customer-service",
            0.1,
            0.5,
            0.3,
        )
        assert [one["id"].split("__")[0] for one in basic["inputs"]] == ["temperature", "max_tokens", "seed", "temps"]
        assert {one["id"].split("__")[0] for one in advanced["inputs"]} == {
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        }
        (view,) = visitor.all("set_modes")[0]
        assert [option["id"] for option in view["options"]] == ["chat", "compare", "tokens"]


async def test_an_answer_streams_and_says_what_was_used(open_chat: str, engine: FakeEngine) -> None:
    engine.text = "Bananas are berries."
    async with visiting(open_chat, "customer-service", cookies="tempera-unit=browser-7") as visitor:
        answer = await visitor.ask("Name a fruit.")
        (seen,) = engine.generations
        used = visitor.card("Used")
    assert answer["output"] == visitor.streamed == "Bananas are berries."
    assert used is not None
    assert used["forId"] == answer["id"]
    assert used["props"]["params"]["temperature"] == "0.3"
    assert used["props"]["adjusted"] == []
    assert seen.json["messages"][-1] == {"role": "user", "content": "Name a fruit."}
    assert seen.json["temperature"] == 0.3


async def test_parameters_apply_as_they_are_moved_and_only_those_are_sent(open_chat: str, engine: FakeEngine) -> None:
    async with visiting(open_chat, "creative") as visitor:
        await set_parameters(
            visitor, temperature__creative=1.15, top_p__creative=0.9, seed__creative="42", temperature__coding=0.2
        )
        await visitor.ask("Go.")
        body = engine.generations[0].json
        assert (body["temperature"], body["seed"]) == (1.15, 42)
        assert body["repetition_penalty"] == 1.1  # when_hot stays in force, for nobody asked for that parameter
        settings = visitor.all("chat_settings")
        assert len(settings) == 2
        assert settings[-1][0]["inputs"][0]["initial"] == 1.15  # the page has been told, so closing the panel keeps it


async def test_a_seed_that_is_no_number_is_left_out_and_said(open_chat: str, engine: FakeEngine) -> None:
    async with visiting(open_chat) as visitor:
        await set_parameters(visitor, seed__balanced="abc")
        await visitor.ask("Go.")
        assert engine.generations[0].json.get("seed") is None
        assert [toast["type"] for toast in visitor.all("toast")] == ["warning"]


async def test_the_conversation_goes_on(open_chat: str, engine: FakeEngine) -> None:
    engine.text = "Noted."
    async with visiting(open_chat) as visitor:
        await visitor.ask("I am Ada.")
        await visitor.ask("Try three.", "compare")
        await visitor.ask("Who am I?")
        messages = engine.generations[-1].json["messages"]
    assert [(one["role"], one["content"]) for one in messages] == [
        ("user", "I am Ada."),
        ("assistant", "Noted."),
        ("user", "Who am I?"),  # what was compared is no part of the conversation
    ]


async def test_stop_cancels_the_engine_and_keeps_what_was_written(open_chat: str, engine: FakeEngine) -> None:
    engine.text, engine.pace = LONG, 0.05
    async with visiting(open_chat) as visitor:
        await visitor.say("Count.")
        await visitor.until(lambda: len(visitor.all("stream_token")) > 3, "tokens")
        await visitor.socket.emit("stop")
        await visitor.idle()
        (seen,) = engine.generations
        assert await seen.left(PATIENCE)
        assert not seen.complete
        (answer,) = visitor.answers  # and not Chainlit's own remark
        assert answer["output"].startswith("one two three")
        assert visitor.card("Used")["props"]["finish"] == "stopped"
        assert [toast["message"] for toast in visitor.all("toast")] == ["Stopped. What was written is kept."]
        engine.pace, engine.text = 0.0, "Eleven."
        await visitor.ask("Go on.")
        said = [one["content"] for one in engine.generations[-1].json["messages"]]
    assert said == ["Count.", answer["output"], "Go on."]


async def test_closing_the_page_cancels_the_engine(open_chat: str, engine: FakeEngine) -> None:
    engine.text, engine.pace = LONG, 0.1
    async with visiting(open_chat) as visitor:
        await visitor.say("Count.")
        await visitor.until(lambda: visitor.all("stream_start"), "tokens")
    (seen,) = engine.generations
    assert await seen.left(PATIENCE)
    assert not seen.complete


async def test_editing_cancels_the_answer_under_way_and_can_be_stopped_itself(
    open_chat: str, engine: FakeEngine
) -> None:
    engine.text, engine.pace = LONG, 0.05
    async with visiting(open_chat) as visitor:
        message = await visitor.say("First.")
        await visitor.until(lambda: visitor.all("stream_start"), "tokens")
        await visitor.edit(message, "Second.")
        first, second = await asyncio.to_thread(engine.wait, 2, PATIENCE)
        assert await first.left(PATIENCE)
        assert second.json["messages"] == [{"role": "user", "content": "Second."}]
        await visitor.until(lambda: len(visitor.all("stream_start")) > 1, "tokens")
        await visitor.socket.emit("stop")
        assert await second.left(PATIENCE)
        assert not second.complete


async def test_temperatures_are_compared_side_by_side(open_chat: str, engine: FakeEngine, gateway_url: str) -> None:
    engine.text = lambda body, i: "The same words." if body["temperature"] < 0.4 else "Quite another thing."
    async with visiting(open_chat, "customer-service") as visitor:
        await set_parameters(visitor, **{"temps__customer-service": "0.5 0.1，0.3, 0.9"})
        await visitor.ask("Tell.", "compare")
        card = visitor.card("Compare")
        assert card is not None
        assert card["props"]["done"]
        columns = card["props"]["columns"]
        assert [column["asked"] for column in columns] == [0.1, 0.3, 0.5, 0.9]
        assert [column["alike"] for column in columns] == [1.0, 1.0, 0.0, 0.0]
        assert columns[3]["adjusted"] == [{"name": "temperature", "asked": "0.9", "used": "0.5", "by": "bound"}]
        assert sorted(seen.json["temperature"] for seen in engine.generations) == [0.1, 0.3, 0.5, 0.5]
        assert all(column["tokens"] > 0 and column["finish"] == "stop" for column in columns)
        for value in (1, None):
            payload = {"exchange": columns[2]["exchange"], "value": value}
            reply = httpx.post(
                f"{open_chat}/project/action",
                json={"sessionId": visitor.session, "action": {"name": "column_feedback", "payload": payload}},
                trust_env=False,
            )
            assert reply.json()["response"] is True
        assert thumbs(gateway_url, columns[2]["exchange"]) == [(1.0, None), (None, None)]


@pytest.mark.parametrize("typed", ["0.3", "1 2 3 4 5 6", "cold warm hot", "0.1 0.2 7"])
async def test_what_cannot_be_compared_is_said(open_chat: str, engine: FakeEngine, typed: str) -> None:
    async with visiting(open_chat) as visitor:
        await set_parameters(visitor, temps__balanced=typed)
        answer = await visitor.ask("Tell.", "compare")
        assert answer["output"] == "Give three to five temperatures, such as 0, 0.7, 2."
        assert engine.generations == []


async def test_one_stop_ends_all_columns(open_chat: str, engine: FakeEngine) -> None:
    engine.text, engine.pace = LONG, 0.1
    async with visiting(open_chat) as visitor:
        await visitor.say("Count.", "compare")
        seen = await asyncio.to_thread(engine.wait, 3, PATIENCE)
        await visitor.until(lambda: all(one["text"] for one in visitor.card("Compare")["props"]["columns"]), "text")
        await visitor.socket.emit("stop")
        assert all([await one.left(PATIENCE) for one in seen])
        await visitor.idle()
        card = visitor.card("Compare")
        assert [column["finish"] for column in card["props"]["columns"]] == ["stopped"] * 3
        assert all(column["text"].startswith("one") for column in card["props"]["columns"])


async def test_tokens_come_with_their_candidates(open_chat: str, engine: FakeEngine) -> None:
    engine.vocab = {"yes": 2.0, "no": 1.0, "perhaps": 0.0}
    try:
        async with visiting(open_chat) as visitor:
            await set_parameters(visitor, max_tokens__balanced=16)
            answer = await visitor.ask("Well?", "tokens")
            card = visitor.card("Tokens")
    finally:
        engine.vocab = None
    assert card is not None
    tokens = card["props"]["tokens"]
    assert "".join(token["text"] for token in tokens) == answer["output"]
    assert (card["props"]["low"], card["props"]["high"]) == (0, 2)
    for token in tokens:
        logprobs = [logprob for _, logprob in token["candidates"]]
        assert logprobs == sorted(logprobs, reverse=True)
        assert token["piece"] in [piece for piece, _ in token["candidates"]]


async def test_a_thumb_reaches_the_gateway_and_can_be_taken_back(
    open_chat: str, engine: FakeEngine, gateway_url: str
) -> None:
    async with visiting(open_chat) as visitor:
        await visitor.ask("Hello.")
        run, exchange = visitor.runs()[-1], visitor.card("Used")["props"]["exchange"]
        vote = {"forId": run, "value": 0, "comment": "too dry"}
        async with httpx.AsyncClient(base_url=open_chat, trust_env=False) as client:
            given = await client.put("/feedback", json={"feedback": vote, "sessionId": visitor.session})
            taken = await client.request("DELETE", "/feedback", json={"feedbackId": given.json()["feedbackId"]})
            unknown = await client.put("/feedback", json={"feedback": vote | {"forId": "nobody"}, "sessionId": "x"})
    assert (given.status_code, taken.status_code, unknown.status_code) == (200, 200, 500)
    assert thumbs(gateway_url, exchange) == [(-1.0, "too dry"), (None, None)]


def openai_error(status: int, **error: Any) -> Fault:
    return Fault(status=status, body={"error": {"message": "m", "type": None, "param": None, "code": None, **error}})


@pytest.mark.parametrize(
    ("fault", "english", "chinese"),
    [
        (Fault(die=True), "The connection to the model broke off", "与模型的连接中断"),
        (openai_error(400, type="BadRequestError", param="input_tokens"), "This conversation is longer", "对话已超出"),
        (openai_error(400, type="exceed_context_size_error"), "This conversation is longer", "对话已超出"),
        (openai_error(429, code="rate_limit_exceeded"), "Too many requests", "请求过于频繁"),
        (openai_error(503), "The model is not reachable", "模型暂时无法访问"),
        (openai_error(400, message="No such tool."), "The request was refused: No such tool.", "请求被拒绝：No such"),
        (Fault(error_after=3), "The connection to the model broke off", "与模型的连接中断"),
        (Fault(reset_after=3), "The connection to the model broke off", "与模型的连接中断"),
    ],
)
async def test_what_goes_wrong_is_said_plainly(
    open_chat: str, engine: FakeEngine, fault: Fault, english: str, chinese: str
) -> None:
    engine.fault = fault
    for language, sentence in (("en-GB", english), ("zh-HK", chinese)):
        async with visiting(open_chat, language=language) as visitor:
            answer = await visitor.ask("Hello.")
            assert answer["isError"]
            assert answer["output"].startswith(sentence)
            engine.fault = None
            await visitor.ask("Again.")
            assert sentence not in str(engine.generations[-1].json)  # no part of the conversation
            engine.fault = fault


async def test_an_engine_that_is_away_is_said_and_the_next_try_works(open_chat: str, engine: FakeEngine) -> None:
    async with visiting(open_chat, cookies="tempera-lang=zh-CN") as visitor:
        with engine.down():
            assert (await visitor.ask("Hello."))["output"] == "模型暂时无法访问，请稍后再试。"
        engine.text = "Back."
        assert (await visitor.ask("Hello?"))["output"] == "Back."


async def test_a_scenario_that_is_gone_is_said(open_chat: str, engine: FakeEngine) -> None:
    async with visiting(open_chat, "no-such-scenario") as visitor:
        assert (await visitor.ask("Hello."))["output"] == "This scenario is no longer there. Please pick another one."
        assert engine.generations == []
