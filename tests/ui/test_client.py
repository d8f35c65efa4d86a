"""The gateway's client: what it sends, and what it makes of a gateway that is away."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.fakes import FakeEngine
from tests.ui.processes import chat, free_port, visiting
from ui.client import Gateway, Trouble


async def test_who_asks_and_for_what_is_sent_along(engine: FakeEngine) -> None:
    engine.text = "Three words here."
    client = Gateway(engine.url, "the-chats-key")
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.4, "min_p": 0.1}
    async with client.answer(body, unit="ada", request_id="run-1.0.4") as answer:
        pieces = [piece async for piece in answer.pieces]
    (seen,) = engine.generations
    assert "".join(piece.text for piece in pieces) == "Three words here."
    assert (pieces[-1].used or 0) > 0
    assert [piece.finish for piece in pieces if piece.finish] == ["stop"]
    sent = {name: seen.header(name) for name in ("x-unit-id", "x-request-id", "authorization")}
    assert sent == {"x-unit-id": "ada", "x-request-id": "run-1.0.4", "authorization": "Bearer the-chats-key"}
    assert seen.json == body | {"stream": True, "stream_options": {"include_usage": True}}


async def test_presets_are_asked_for_now_and_then_and_kept(gateway_url: str) -> None:
    client = Gateway(gateway_url)
    presets = await client.presets()
    assert presets[0]["name"] == "balanced"
    assert await client.presets() is presets
    client._asked_at, client._http = 0.0, httpx_nowhere()
    assert await client.presets() is presets  # the last ones seen, while the gateway is away
    assert (await client.preset("coding"))["name"] == "coding"
    assert (await client.preset(None))["name"] == "balanced"
    with pytest.raises(Trouble, match="gone"):
        await client.preset("no such")


def httpx_nowhere() -> httpx.AsyncClient:
    return type(Gateway("http://x")._http)(base_url=f"http://127.0.0.1:{free_port()}")


async def test_a_gateway_that_is_away_is_trouble() -> None:
    client = Gateway(f"http://127.0.0.1:{free_port()}")
    for call in (client.presets(), client.preset("balanced"), client.thumb(1, request_id="r")):
        with pytest.raises(Trouble) as caught:
            await call
        assert caught.value.key in ("away", "unsaved")


def test_every_preset_is_a_scenario(open_chat: str, gateway_url: str) -> None:
    presets = httpx.get(f"{gateway_url}/v1/presets", trust_env=False).json()
    for language, key in (("en-US", "en"), ("zh-CN", "zh")):
        settings = httpx.get(f"{open_chat}/project/settings?language={language}", trust_env=False).json()
        titles = {profile["name"]: profile["display_name"] for profile in settings["chatProfiles"]}
        assert titles == {preset["name"]: preset["title"][key] for preset in presets["data"]}
        assert settings["chatProfiles"][0]["name"] == presets["default"]


async def test_the_page_opens_without_a_gateway_and_says_what_to_do(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with chat(tmp_path, nowhere) as url:
        async with visiting(url, "", "zh-CN") as visitor:
            assert visitor.answers[-1]["output"].startswith(f"无法连接网关 {nowhere}。")
            assert (await visitor.ask("Hello?"))["output"].startswith("无法连接网关")
        assert "Traceback" not in (tmp_path / "chat.log").read_text()
