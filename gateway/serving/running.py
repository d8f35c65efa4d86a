"""The gateway's life: settings and presets, the embedded engine if there is no other, one server or several workers,
and the end of all of them.

Knows what to tell the person at the terminal. The order matters: the port is ours before anything is started, the
engine is up before the gateway says so, and stops after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop

from gateway.policy.config import Config
from gateway.serving import chat
from gateway.serving.app import create_app
from gateway.serving.engine import EmbeddedEngine, EngineError
from gateway.serving.server import bind, hold_hangups, make_server
from gateway.serving.workers import Crew
from gateway.settings import Settings

Welcome = Callable[[], Awaitable[None]]
_log = logging.getLogger("tempera")


class Start(msgspec.Struct, frozen=True):
    """What is to run. `welcome` prints what runs where and what to try; `chat` starts the chat beside the gateway.

    `worker` is the command of one of several workers; a file descriptor is added to it.
    """

    settings: Settings
    config: Config
    model: Path | None = None
    welcome: bool = False
    chat: bool = False
    degenerate: Callable[[str], bool] | None = None
    worker: tuple[str, ...] = ()


def serve(start: Start) -> int:
    """Run until a signal; the exit code. 1 for what stops a start (said on stderr), 0 for an orderly end."""
    hold_hangups()
    try:
        sockets = bind(start.settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(start, sockets))
    except (EngineError, ValueError) as error:
        print(f"tempera: {error}", file=sys.stderr)
        return 1


async def _serve(start: Start, sockets: list[socket.socket]) -> int:
    async with _engine(start) as settings, contextlib.AsyncExitStack() as beside:
        port = sockets[0].getsockname()[1]

        async def welcome() -> None:
            await _welcome(start, settings, f"http://{settings.host}:{port}", beside)

        if settings.workers > 1:
            level = settings.log_level or ("warning" if start.welcome else "info")
            theirs = msgspec.structs.replace(settings, log_level=level)
            return await Crew(start.worker, theirs, start.config, sockets).run(welcome)
        return await _alone(start, settings, sockets, welcome)


async def _alone(start: Start, settings: Settings, sockets: list[socket.socket], welcome: Welcome) -> int:
    """This process is the gateway."""
    listening = asyncio.Event()
    server = make_server(create_app(settings, start.config, start.degenerate), listening.set)
    serving = asyncio.create_task(server.serve(sockets))
    waiting = asyncio.create_task(listening.wait())
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if listening.is_set():
        await welcome()
    await serving
    return 0 if server.started else 1


async def _welcome(start: Start, settings: Settings, address: str, beside: contextlib.AsyncExitStack) -> None:
    """Say what runs where; with the chat, once it answers."""
    if not start.welcome:
        _log.info("listening on %s, revision %s", address, start.config.revision)
        return
    where = "left out"
    if start.chat:
        print("Starting the chat ...", flush=True)
        try:
            where = await beside.enter_async_context(chat.beside(address, settings))
        except chat.ChatError as error:
            where = f"not running: {error}"
    print(_WELCOME.format(url=address, upstream=settings.upstream or "presets.yaml", chat=where), flush=True)


@contextlib.asynccontextmanager
async def _engine(start: Start) -> AsyncIterator[Settings]:
    """The settings with an upstream in them: the embedded engine's, unless one was given."""
    settings = start.settings
    if settings.upstream is not None or start.config.upstreams:
        yield settings
        return
    if start.welcome:
        print("Starting the embedded engine ...", flush=True)
    engine = EmbeddedEngine(start.model)
    url = await engine.start()
    watching = asyncio.create_task(_say_death(engine))
    try:
        yield msgspec.structs.replace(settings, upstream=url, dialect="llama.cpp")
    finally:
        watching.cancel()
        await engine.stop()


async def _say_death(engine: EmbeddedEngine) -> None:
    died = await engine.died
    _log.error("The embedded engine died; requests get a 503 until the gateway is started again: %s", died)


_WELCOME = """
  engine    {upstream}
  gateway   {url}/v1
  API docs  {url}/docs
  chat      {chat}

Try it:

  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "creative", "messages": [{{"role": "user", "content": "A haiku about rain."}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  print(client.chat.completions.create(model="creative",
        messages=[{{"role": "user", "content": "A haiku about rain."}}]).choices[0].message.content)

Ctrl-C ends everything.
"""
