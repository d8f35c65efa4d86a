"""A page of the chat and what people do on it. Knows Chainlit's stable selectors and the cards' classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Route

CHROMIUM = "chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000  # milliseconds; a bound, not an expectation
THEIRS = (  # what Chainlit's own page says in the console
    "Unauthorized",  # whoever logs in was not logged in before
    "`DialogContent` requires",
)
SIZES = {"desktop": (1400, 860), "phone": (390, 844)}


class Pages:
    """Opens pages, each like a browser of its own, with every host but loopback out of reach."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.contexts: list[BrowserContext] = []
        self.foreign: list[str] = []
        self.complaints: list[str] = []

    async def open(
        self,
        url: str,
        locale: str = "en-US",
        *,
        scheme: Any = "light",
        size: str = "desktop",
        ready: str = "#chat-submit",
    ) -> Chat:
        width, height = SIZES[size]
        context = await self.browser.new_context(
            locale=locale, color_scheme=scheme, viewport={"width": width, "height": height}, has_touch=size == "phone"
        )
        context.set_default_timeout(PATIENCE)
        await context.route(lambda asked: urlsplit(asked).hostname not in ("127.0.0.1", None), self._refuse)
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.contexts.append(context)
        page = await context.new_page()
        await page.goto(url, wait_until="commit")
        await page.wait_for_selector(ready)
        return Chat(page)

    async def _refuse(self, route: Route) -> None:
        self.foreign.append(route.request.url)
        await route.abort()

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(known in message.text for known in THEIRS):
            self.complaints.append(message.text)

    async def close(self) -> None:
        for context in self.contexts:
            await context.close()


class Chat:
    def __init__(self, page: Page) -> None:
        self.page = page

    async def log_in(self, name: str, password: str) -> None:
        await self.page.fill("#email", name)
        await self.page.fill("#password", password)
        await self.page.click("button[type=submit]")
        await self.page.wait_for_selector("#chat-submit")

    async def pick(self, scenario: str) -> None:
        """Chainlit takes the page down and builds it anew when it has the scenario's settings."""
        panel = await self.parameters_open()
        await self.page.click("#chat-profiles")
        async with self.page.expect_response(lambda reply: f"chat_profile={scenario}" in reply.url):
            await self.page.click(f'[data-test="select-item:{scenario}"]')
        await self.page.wait_for_timeout(500)
        await self.page.wait_for_selector(f"[id^='temperature__{scenario}']" if panel else "#starters")

    async def parameters_open(self) -> bool:
        return await self.page.locator("#confirm-sidebar").count() > 0

    async def view(self, name: str) -> None:
        await self.page.click("#mode-picker-trigger-view")
        await self.page.locator("#mode-picker-popover-view").get_by_text(name, exact=True).click()

    async def send(self, text: str) -> None:
        await self.page.click("#chat-input")
        await self.page.keyboard.insert_text(text)
        await self.page.click("#chat-submit")

    async def idle(self) -> None:
        """Until the answer is complete: the stop button has given way to the send button."""
        await self.page.wait_for_selector("#chat-submit")

    async def ask(self, text: str) -> None:
        before = await self.answers.count()
        await self.send(text)
        await self.answers.nth(before).wait_for()
        await self.idle()

    @property
    def answers(self) -> Locator:
        return self.page.locator("[data-step-type=assistant_message]")

    @property
    def used(self) -> Locator:
        """The small print of the last answer."""
        return self.page.locator(".tempera-used").last

    def slider(self, parameter: str) -> Locator:
        """A slider of the parameters panel."""
        return self.page.locator(f"[id^='{parameter}__'] [role=slider]")

    async def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        found = await self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return int(found)
