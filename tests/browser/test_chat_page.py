"""What people do on the page, on the real page: real gateway, real engine; a fake one where it has to be slow."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from playwright.async_api import expect

from tests.browser.conftest import OPERATOR, PASSWORD, Place
from tests.browser.pages import PATIENCE, Chat, Pages
from tests.fakes import FakeEngine

pytestmark = pytest.mark.asyncio(loop_scope="session")
LONG = "one two three four five six seven eight nine ten " * 40
expect.set_options(timeout=PATIENCE)


async def thumbs(place: Place, n: int) -> list[Any]:
    """The newest exchange that has feedback: its votes, once there are n."""
    async with httpx.AsyncClient(
        base_url=place.gateway, headers={"Authorization": f"Bearer {OPERATOR}"}, trust_env=False
    ) as client:
        for _ in range(200):
            for exchange in (await client.get("/v1/exchanges?limit=20")).json()["data"]:
                votes = (await client.get(f"/v1/exchanges/{exchange['id']}")).json()["feedback"]
                if len(votes) == n:
                    return [vote["value"] for vote in votes]
            await asyncio.sleep(0.1)
    raise AssertionError(f"no exchange with {n} votes")


async def test_scenario_slider_bounds_and_an_answer(real: Place, pages: Pages) -> None:
    chat = await pages.open(real.chat)
    await chat.pick("customer-service")
    slider = chat.slider("temperature")
    await expect(slider).to_have_attribute("aria-valuemin", "0.1")
    await expect(slider).to_have_attribute("aria-valuemax", "0.5")
    await expect(slider).to_have_attribute("aria-valuenow", "0.3")
    await slider.press("End")
    await slider.press("ArrowRight")
    await expect(slider).to_have_attribute("aria-valuenow", "0.5")
    assert not await chat.page.locator("#confirm-sidebar").is_visible()  # there is nothing to confirm
    await chat.page.click("#chat-settings-sidebar-title button")
    await chat.page.click("#chat-settings-header-button")
    await expect(slider).to_have_attribute("aria-valuenow", "0.5")  # closing the panel takes nothing back
    await chat.ask("Name a fruit.")
    assert re.search(r"temperature 0\.5 · top_p 0\.9 · .*\d+ tokens · [\d.]+ s", await chat.used.inner_text())
    assert len(await chat.answers.last.locator("[role=article]").first.inner_text()) > 2


async def test_compare_fills_columns_and_takes_a_thumb_for_each(real: Place, pages: Pages) -> None:
    chat = await pages.open(real.chat)
    await chat.pick("coding")
    await chat.page.fill("[id^='temps__']", "0.2 0.4 0.9")
    await chat.view("Compare temperatures")
    await chat.send("Say hello in one short sentence.")
    await chat.page.wait_for_selector(".tempera-columns[data-done=true]")
    columns = chat.page.locator(".tempera-column")
    await expect(columns).to_have_count(3)
    for at, temperature in enumerate(("0.2", "0.4", "0.9")):
        await expect(columns.nth(at).locator("header b")).to_have_text(f"T = {temperature}")
        assert len(await columns.nth(at).locator(".tempera-text").inner_text()) > 1
        assert re.search(r"\d+ tokens · [\d.]+ s", await columns.nth(at).locator("footer").inner_text())
    await expect(columns.nth(2).locator(".tempera-adjusted")).to_have_text("0.6")  # beyond the scenario's range
    await expect(columns.nth(1).locator(".tempera-alike")).to_have_text(re.compile(r"^\d+% like T = 0.2$"))
    up = columns.nth(1).get_by_label("Helpful", exact=True)
    await up.click()
    await expect(up).to_have_attribute("aria-pressed", "true")
    assert await thumbs(real, 1) == [1.0]
    await up.click()
    await expect(up).to_have_attribute("aria-pressed", "false")
    assert await thumbs(real, 2) == [1.0, None]


async def test_the_token_slider_reshapes_the_distribution_without_a_request(real: Place, pages: Pages) -> None:
    chat = await pages.open(real.chat, "zh-CN")
    await chat.pick("customer-service")
    await chat.view("词元概率")
    await chat.ask("Name a fruit.")
    card = chat.page.locator(".tempera-tokens")
    answer = "".join(await card.locator(".tempera-token").all_inner_texts())
    assert len(answer) > 2
    await expect(chat.answers.last.locator(".message-content > div").first).to_be_hidden()  # shown once, in colour
    await card.locator("[data-token='1']").click()
    await expect(card.locator("[data-token='1']")).to_have_attribute("aria-pressed", "true")
    asked: list[str] = []
    chat.page.on("request", lambda request: asked.append(request.url))
    shares, marks = {}, {}
    for temperature in ("0.1", "1", "2"):
        await card.locator(".tempera-slider").fill(temperature)
        await expect(card.locator(".tempera-t")).to_have_text(f"T = {float(temperature):.2f}")
        texts = await card.locator(".tempera-share").all_inner_texts()
        shares[temperature] = [float(text.rstrip("%")) for text in texts]
        marks[temperature] = await card.locator(".tempera-bar u").evaluate_all("all => all.map(one => one.style.left)")
    assert shares["0.1"][0] > shares["1"][0] > shares["2"][0]
    assert marks["0.1"] == marks["1"] == marks["2"]
    assert [float(re.search(r"[\d.]+", mark)[0]) for mark in marks["1"][:3]] == pytest.approx(shares["1"][:3], abs=0.1)  # type: ignore[index]
    assert all(share == sorted(share, reverse=True) for share in shares.values())
    assert [url for url in asked if "chat" in url or "completions" in url] == []
    await card.locator(".tempera-slider").fill("0.1")
    await expect(card.locator(".tempera-cut")).to_have_text("top_p = 0.9")
    await expect(card.locator(".tempera-coverage")).to_contain_text("原始概率的")
    style = await card.locator(".tempera-slider").get_attribute("style")
    assert style is not None
    assert style.replace(" ", "") == "--low:0.1;--high:0.5;"


async def test_a_thumb_arrives_and_is_taken_back(fake: Place, engine: FakeEngine, pages: Pages) -> None:
    chat = await pages.open(fake.chat, ready="#email")
    await chat.log_in("thumb", PASSWORD)
    await chat.ask("Hello.")
    await chat.page.click(".positive-feedback-off")
    await chat.page.click("#submit-feedback")
    await chat.page.wait_for_selector(".positive-feedback-on")
    assert await thumbs(fake, 1) == [1.0]
    await chat.page.click(".positive-feedback-on")
    await chat.page.wait_for_selector(".positive-feedback-off")
    assert await thumbs(fake, 2) == [1.0, None]


async def test_stop_reaches_the_engine_and_keeps_the_text(fake: Place, engine: FakeEngine, pages: Pages) -> None:
    engine.text, engine.pace = LONG, 0.05
    chat = await pages.open(fake.chat, "zh-CN", ready="#email")
    await chat.log_in("stop", PASSWORD)
    await chat.send("数数。")
    await expect(chat.answers.last).to_contain_text("one two three")
    await chat.page.click("#stop-button")
    (seen,) = engine.generations
    assert await seen.left(PATIENCE / 1000)
    assert not seen.complete
    await expect(chat.used).to_contain_text("已停止")
    await expect(chat.answers).to_have_count(1)
    await expect(chat.answers.last).to_contain_text("one two three")
    await expect(chat.page.get_by_text("Task manually stopped")).to_have_count(0)
    await chat.idle()


async def test_closing_the_page_reaches_the_engine(fake: Place, engine: FakeEngine, pages: Pages) -> None:
    engine.text, engine.pace = LONG, 0.1
    chat = await pages.open(fake.chat, ready="#email")
    await chat.log_in("close", PASSWORD)
    await chat.view("Compare temperatures")
    await chat.send("Count.")
    seen = await engine.arrival(3, PATIENCE / 1000)
    await chat.page.close()
    assert all([await one.left(PATIENCE / 1000) for one in seen])


async def test_a_message_is_edited_and_sent_again(fake: Place, engine: FakeEngine, pages: Pages) -> None:
    chat = await pages.open(fake.chat, ready="#email")
    await chat.log_in("edit", PASSWORD)
    await chat.ask("First try.")
    await chat.page.locator("[data-step-type=user_message]").hover()
    await chat.page.click(".edit-message")
    await chat.page.fill("#edit-chat-input", "Second try.")
    engine.text = "Another answer."
    await chat.page.click(".confirm-edit")
    await expect(chat.answers.last).to_contain_text("Another answer.")
    await expect(chat.answers).to_have_count(1)
    assert engine.generations[-1].json["messages"] == [{"role": "user", "content": "Second try."}]


async def test_a_chat_is_resumed_with_its_cards_and_thumbs(fake: Place, engine: FakeEngine, pages: Pages) -> None:
    engine.text = "An answer to keep."
    chat = await pages.open(fake.chat, ready="#email")
    await chat.log_in("resume", PASSWORD)
    await chat.pick("creative")
    await chat.slider("temperature").press("End")
    await chat.ask("Remember this.")
    await chat.page.click(".negative-feedback-off")
    await chat.page.click("#submit-feedback")
    await chat.page.wait_for_selector(".negative-feedback-on")
    await chat.view("Token probabilities")
    await chat.ask("And this.")
    await chat.view("Compare temperatures")
    await chat.send("And these.")
    await chat.page.wait_for_selector(".tempera-columns[data-done=true]")
    await chat.page.locator(".tempera-column").nth(2).get_by_label("Not helpful").click()
    await chat.page.wait_for_selector(".tempera-column [aria-pressed=true]")
    await chat.page.goto(f"{fake.chat}/")
    await chat.page.locator("[id^=thread-]").first.click()
    await expect(chat.page.locator("#chat-profiles")).to_contain_text("Creative writing")
    await expect(chat.answers.first).to_contain_text("An answer to keep.")
    await expect(chat.page.locator(".tempera-tokens")).to_have_count(1)
    await expect(chat.page.locator(".tempera-column")).to_have_count(3)
    pressed = chat.page.locator(".tempera-column").nth(2).get_by_label("Not helpful")
    await expect(pressed).to_have_attribute("aria-pressed", "true")
    await expect(chat.page.locator(".negative-feedback-on")).to_have_count(1)
    await expect(chat.slider("temperature")).to_have_attribute("aria-valuenow", "1.2")
    await expect(chat.page.locator("#mode-picker-trigger-view")).to_contain_text("Compare temperatures")


async def test_the_language_is_switched(real: Place, pages: Pages) -> None:
    chat = await pages.open(real.chat, "en-GB")
    await expect(chat.page.locator("#chat-profiles")).to_contain_text("General chat")
    await chat.page.click("a[href='#language']")
    await expect(chat.page.locator("#chat-profiles")).to_contain_text("通用对话")
    await expect(chat.page.locator("#chat-settings-sidebar-title")).to_contain_text("参数")
    await expect(chat.page.locator("#mode-picker-trigger-view")).to_contain_text("对话")
    await chat.page.click("a[href='#language']")
    await expect(chat.page.locator("#chat-profiles")).to_contain_text("General chat")


async def on_a_phone(pages: Pages, place: Place) -> Chat:
    chat = await pages.open(place.chat, "zh-CN", scheme="dark", size="phone")
    assert not await chat.parameters_open()  # the panel would cover the screen
    return chat


async def test_a_phone_shows_it_all(real: Place, pages: Pages) -> None:
    chat = await on_a_phone(pages, real)
    await expect(chat.page.locator("html")).to_have_class(re.compile("dark"))
    assert await chat.overflow() <= 0
    await chat.pick("creative")
    await chat.page.click("#chat-settings-header-button")
    await chat.slider("temperature").press("Home")
    for _ in range(3):
        await chat.slider("max_tokens").press("ArrowRight")
    await chat.page.click("[role=dialog] > button")
    await expect(chat.page.locator("[role=dialog]")).to_have_count(0)
    await chat.view("温度对比")
    await chat.send("Hi.")
    await chat.page.wait_for_selector(".tempera-columns[data-done=true]")
    assert await chat.overflow() <= 0
    await chat.page.click("#chat-settings-header-button")
    await expect(chat.slider("temperature")).to_have_attribute("aria-valuenow", "0.7")
