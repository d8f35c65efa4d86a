"""`python -m tests.browser.screenshots [DIRECTORY]`: pictures of the chat, from the real gateway and the real engine.

All go to DIRECTORY (default data/screenshots); the four that the READMEs show go to docs/images as well.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Browser, async_playwright

from tests.browser.pages import CHROMIUM, FLAGS, Chat, Pages
from tests.contract.targets import gateway
from tests.ui.processes import ROOT, chat

BEST = {
    "profiles-zh-dark": "chat-scenarios",
    "chat-en-light": "chat-answer",
    "compare-en-light": "chat-compare",
    "tokens-zh-light": "chat-tokens",
}
VIEWS = {"compare": ("Compare temperatures", "温度对比"), "tokens": ("Token probabilities", "词元概率")}


async def profiles(page: Chat, at: Scene) -> None:
    await page.page.click("#chat-profiles")
    await page.page.hover('[data-test="select-item:creative"]')


async def answer(page: Chat, at: Scene) -> None:
    await page.pick("coding")
    await prepare(page, "2", steps=0)
    await page.ask("Write a Python function that reverses a string.")


async def compare(page: Chat, at: Scene) -> None:
    await page.pick("creative")
    await prepare(page, "5", steps=6)
    await page.view(VIEWS["compare"][at.locale == "zh-CN"])
    await page.send("Write one sentence about the sea.")
    await page.page.wait_for_selector(".tempera-columns[data-done=true]")


async def tokens(page: Chat, at: Scene) -> None:
    await page.pick("customer-service")
    await prepare(page, "3", steps=0)
    await page.view(VIEWS["tokens"][at.locale == "zh-CN"])
    await page.ask("Name a fruit.")
    await page.page.locator(".tempera-slider").fill("0.7")
    for token in await page.page.locator(".tempera-token").all():  # one with a few candidates above top_p's cut
        await token.click()
        if 3 <= await page.page.locator(".tempera-row[data-kept=true]").count() <= 5:
            break


async def prepare(page: Chat, seed: str, steps: int) -> None:
    """The same text each time, and not too much of it: `steps` of the slider, 0 leaves it."""
    opened = await page.parameters_open()
    if not opened:
        await page.page.click("#chat-settings-header-button")
    await page.page.fill("[id^='seed__']", seed)
    for _ in range(steps):
        await page.slider("max_tokens").press("ArrowRight")
    if not opened:
        await page.page.click("[role=dialog] > button")


@dataclass(frozen=True)
class Scene:
    name: str
    do: Callable[[Chat, Scene], Awaitable[None]]
    locale: str
    scheme: str
    size: str = "desktop"


SCENES = [
    Scene("profiles-zh-dark", profiles, "zh-CN", "dark"),
    Scene("profiles-en-light", profiles, "en-US", "light"),
    Scene("profiles-zh-phone", profiles, "zh-CN", "light", "phone"),
    Scene("chat-en-light", answer, "en-US", "light"),
    Scene("chat-zh-dark", answer, "zh-CN", "dark"),
    Scene("chat-en-phone", answer, "en-US", "dark", "phone"),
    Scene("compare-en-light", compare, "en-US", "light"),
    Scene("compare-zh-dark", compare, "zh-CN", "dark"),
    Scene("compare-zh-phone", compare, "zh-CN", "light", "phone"),
    Scene("tokens-zh-light", tokens, "zh-CN", "light"),
    Scene("tokens-en-dark", tokens, "en-US", "dark"),
    Scene("tokens-en-phone", tokens, "en-US", "light", "phone"),
]


async def take(browser: Browser, url: str, out: Path, wanted: str) -> None:
    for scene in SCENES:
        if wanted not in scene.name:
            continue
        pages, began = Pages(browser), time.monotonic()
        page = await pages.open(url, scene.locale, scheme=scene.scheme, size=scene.size)
        usable = time.monotonic() - began
        await scene.do(page, scene)
        await page.page.mouse.move(5, 500) if scene.do is not profiles else None
        await page.page.wait_for_timeout(700)  # fades
        await page.page.screenshot(path=out / f"{scene.name}.png")
        print(f"{scene.name}.png, usable after {usable:.1f} s, foreign requests: {len(pages.foreign)}")
        await pages.close()


async def main(out: Path, wanted: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = shutil.which(CHROMIUM)
    if path is None:
        sys.exit(f"there is no {CHROMIUM} on this machine")
    with tempfile.TemporaryDirectory() as home, gateway(Path(home)) as engine, chat(Path(home), engine) as url:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
            await take(browser, url, out, wanted)
            await browser.close()
    for name, shown in BEST.items():
        if (out / f"{name}.png").exists():
            shutil.copy(out / f"{name}.png", ROOT / "docs" / "images" / f"{shown}.png")


if __name__ == "__main__":
    arguments = [*sys.argv[1:], str(ROOT / "data" / "screenshots"), ""]
    asyncio.run(main(Path(arguments[0]), arguments[1] if len(sys.argv) > 2 else ""))
