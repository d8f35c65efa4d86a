"""The chat as its users start it, in a process of its own, and a visitor who speaks its protocol without a browser."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import socketio

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds; a bound, not an expectation


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def chat(home: Path, gateway_url: str, **environ: str) -> Iterator[str]:
    """`python -m ui` until the block ends; gives its URL."""
    port = free_port()
    settings = {"TEMPERA_GATEWAY_URL": gateway_url, "TEMPERA_DATA_DIR": str(home), "TEMPERA_UI_PORT": str(port)}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TEMPERA_", "CHAINLIT_"))}
    with open(home / "chat.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ui"], cwd=ROOT, env=clean | settings | environ, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or answers(url), "the chat to start")
        assert process.poll() is None, (home / "chat.log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(what: Callable[[], Any], name: str) -> Any:
    """What `what` returns, once that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited in vain for {name}"
        time.sleep(0.05)
    return found


class Visitor:
    """One open page. `events` are all that the server sent, in order: (name, data)."""

    def __init__(self, url: str, session: str) -> None:
        self.url, self.session = url, session
        self.events: list[tuple[str, Any]] = []
        self.socket = socketio.AsyncClient(reconnection=False)
        self.socket.on("*", lambda name, data=None: self.events.append((name, data)))

    async def until(self, what: Callable[[], Any], name: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := what()):
            assert time.monotonic() < deadline, f"waited in vain for {name}; saw {self.events[-12:]}"
            await asyncio.sleep(0.02)
        return found

    def all(self, name: str) -> list[Any]:
        return [data for seen, data in self.events if seen == name]

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The assistant's messages as they stand: complete ones, without those that were removed."""
        gone = {data["id"] for data in self.all("delete_message")}
        shown = {}
        for name, data in self.events:
            if name in ("new_message", "update_message") and data["type"] == "assistant_message":
                shown[data["id"]] = data
        return [data for key, data in shown.items() if key not in gone]

    @property
    def streamed(self) -> str:
        return "".join(data["output"] for data in self.all("stream_start")) + "".join(
            data["token"] for data in self.all("stream_token")
        )

    def card(self, name: str) -> dict[str, Any] | None:
        """The latest picture of the latest card of a name."""
        return next((data for data in reversed(self.all("element")) if data["name"] == name), None)

    async def say(self, text: str, view: str = "chat") -> str:
        """Send a message without waiting for the answer; gives its id."""
        message = {
            "id": str(uuid.uuid4()),
            "threadId": "",
            "name": "User",
            "type": "user_message",
            "output": text,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "modes": {"view": view},
            "metadata": {},
        }
        await self.socket.emit("client_message", {"message": message, "fileReferences": []})
        return str(message["id"])

    async def edit(self, message: str, text: str) -> None:
        await self.socket.emit("edit_message", {"message": {"id": message, "output": text}})

    async def idle(self, turns: int = 1) -> None:
        """Until so many turns have ended since the page was opened (opening itself is one)."""
        await self.until(lambda: len(self.runs()) >= turns, f"{turns} turns to end")

    def runs(self) -> list[str]:
        """The runs that have ended."""
        ended = [data for data in self.all("update_message") if data["type"] == "run" and data.get("end")]
        return [data["id"] for data in ended if data["name"] == "on_message"]

    async def ask(self, text: str, view: str = "chat") -> dict[str, Any]:
        """Send a message, wait until it has been dealt with, give the newest answer."""
        turns = len(self.runs())
        await self.say(text, view)
        await self.idle(turns + 1)
        return self.answers[-1]


@asynccontextmanager
async def visiting(
    url: str, profile: str = "balanced", language: str = "en-US", cookies: str = "", thread: str = ""
) -> AsyncIterator[Visitor]:
    visitor = Visitor(url, str(uuid.uuid4()))
    auth = {"clientType": "webapp", "sessionId": visitor.session, "threadId": thread, "userEnv": "{}"}
    headers = {"Accept-Language": language, "Origin": url, "Cookie": cookies}
    await visitor.socket.connect(
        url,
        headers=headers,
        auth=auth | {"chatProfile": profile},
        socketio_path="/ws/socket.io",
        transports=["websocket"],
    )
    await visitor.socket.emit("connection_successful")
    try:
        await visitor.until(lambda: visitor.all("chat_settings") or visitor.answers, "the page to be ready")
        yield visitor
    finally:
        await visitor.socket.disconnect()
