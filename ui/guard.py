"""The chat's front door: who may connect, and what a page of ours may load. Pure ASGI.

Knows headers only. Without a login any website could drive the chat through its visitor's browser, so a foreign Origin
is refused everywhere, and names that merely resolve to this machine are refused too.
"""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.settings import is_loopback

UNIT: Final = "tempera-unit"
_CSP: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)  # 'unsafe-eval': Chainlit compiles the cards of public/elements in the browser
_SAFE: Final = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


class Guard:
    """ASGI middleware. `login`: whether the chat asks who you are."""

    def __init__(self, app: ASGIApp, login: bool) -> None:
        self.app, self.login = app, login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if why := self.refusal(scope["path"], headers):
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008, "reason": why})
            return await PlainTextResponse(why, status_code=403)(scope, receive, send)
        new = not unit(headers.get("cookie")) and "text/html" in headers.get("accept", "")

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply = MutableHeaders(scope=message)
                reply.update(_SAFE)
                if new:
                    cookie = f"{UNIT}={secrets.token_hex(16)}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax"
                    reply.append("set-cookie", cookie)
            await send(message)

        await self.app(scope, receive, sending)

    def refusal(self, path: str, headers: Headers) -> str | None:
        """Why a request is refused; None when it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        returning = path.startswith("/auth/oauth/")  # from the provider's page, with a state cookie of ours
        if origin is not None and urlsplit(origin).netloc != host and not returning:
            return f"Requests from {origin} are not allowed."
        name = urlsplit(f"//{host}").hostname or ""
        if not self.login and not is_loopback(name):
            return f"Without a login the chat answers on this machine only, not as {name!r}."
        return None


def cookie(header: str | None, name: str) -> str | None:
    """One cookie of a Cookie header."""
    try:
        found = SimpleCookie(header or "").get(name)
    except CookieError:
        return None
    return found.value if found else None


def unit(header: str | None) -> str | None:
    """The stable random id of a browser: what experiments assign a variant to when nobody logs in."""
    return cookie(header, UNIT)
