"""The chat: Chainlit's callbacks, wired to the gateway. Chainlit loads this file by its path; run.py starts it.

Knows when what happens on the page. What a turn does is in turns.py, what is picked and moved in controls.py.
"""
# mypy: allow-untyped-calls, allow-untyped-decorators, disable-error-code="union-attr"
# Chainlit's own functions carry no annotations, and its sessions here are always those of a websocket.

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakKeyDictionary

import chainlit as cl
from chainlit import server
from chainlit.chat_settings import ChatSettings
from chainlit.data import get_data_layer
from chainlit.session import BaseSession
from chainlit.types import ThreadDict

from ui import controls, turns
from ui.client import Gateway, Preset, Trouble
from ui.guard import Guard, cookie, unit
from ui.history import History, Thumbs
from ui.settings import read
from ui.words import Language, known, say

SETTINGS: Final = read()
GATEWAY: Final = Gateway(SETTINGS.gateway_url, SETTINGS.api_key)
GRACE: Final = 3.0  # seconds in which a lost connection may come back before its answer is given up
_running: Final[WeakKeyDictionary[BaseSession, asyncio.Task[Any]]] = WeakKeyDictionary()
_reapers: Final[set[asyncio.Task[None]]] = set()

logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line for every request
server.app.add_middleware(Guard, login=SETTINGS.login)
_page: Final = server.get_html_template
server.get_html_template = lambda root: re.sub(r"<link[^>]*https?://[^>]*>", "", _page(root))  # fonts and a CDN's KaTeX


@cl.data_layer
def remember() -> Thumbs:
    return History(GATEWAY, SETTINGS.history_url) if SETTINGS.login else Thumbs(GATEWAY)


if SETTINGS.password:

    @cl.password_auth_callback
    async def log_in(name: str, password: str) -> cl.User | None:
        right = hmac.compare_digest(password.encode(), (SETTINGS.password or "").encode())
        return cl.User(identifier=name.strip()) if right and name.strip() else None


if SETTINGS.oauth:

    @cl.oauth_callback
    async def trust(
        provider: str, token: str, raw: dict[str, str], user: cl.User, id_token: str | None = None
    ) -> cl.User | None:
        return user


def language() -> Language:
    """The page's language, which its script leaves in a cookie; else the browser's first one."""
    session = cl.context.session
    return known(cookie(session.environ.get("HTTP_COOKIE"), "tempera-lang") or session.language)


def who() -> str:
    """What experiments assign a variant to: the login, else this browser, else this visit. ASCII, as headers are."""
    session = cl.context.session
    name = session.user.identifier if session.user else unit(session.environ.get("HTTP_COOKIE"))
    return quote(name or session.id)


@cl.set_chat_profiles
async def scenarios(user: cl.User | None, tag: str | None) -> list[cl.ChatProfile]:
    try:
        return controls.profiles(await GATEWAY.presets(), known(tag))
    except Trouble:
        return []  # the page opens without scenarios; on_chat_start says why


@cl.on_chat_start
async def begin() -> None:
    await show_controls()


@cl.on_chat_resume
async def resume(thread: ThreadDict) -> None:
    await show_controls()


async def show_controls() -> None:
    session = cl.context.session
    try:
        preset = await GATEWAY.preset(session.chat_profile)
    except Trouble as trouble:
        await turns.complain(say(trouble.key, language(), url=GATEWAY.url, said=trouble.said))
        return
    chosen = cl.user_session.get("view") or "chat"
    await cl.context.emitter.set_modes(controls.views(chosen, language()))
    await ChatSettings(controls.widgets(preset, session.chat_settings, language())).send()


@cl.on_settings_edit
async def moved(settings: dict[str, Any]) -> None:
    """Applied at once: there is no button to confirm. The page learns it with the next turn (`settle`)."""
    cl.context.session.chat_settings.update(settings)
    cl.user_session.set("moved", True)


async def settle(preset: Preset) -> None:
    if cl.user_session.get("moved"):
        cl.user_session.set("moved", False)
        await ChatSettings(controls.widgets(preset, cl.context.session.chat_settings, language())).refresh()


@cl.on_message
async def asked(message: cl.Message) -> None:
    session, task = cl.context.session, asyncio.current_task()
    assert task is not None
    if (previous := _running.get(session)) and previous is not task and not previous.done():
        previous.cancel()  # a message was edited while its answer was being written
        await asyncio.wait([previous])
        messages = cl.chat_context.get()
        for late in messages[messages.index(message) + 1 :]:
            await late.remove()
    session.current_task = _running[session] = task  # after an edit, Chainlit leaves it unset and could not stop it
    view = (message.modes or {}).get("view", "chat")
    cl.user_session.set("view", view)
    try:
        await answer(message, view)
    except Trouble as trouble:
        await turns.complain(say(trouble.key, language(), url=GATEWAY.url, said=trouble.said))
    finally:
        await asyncio.shield(save_settings(session))


async def answer(message: cl.Message, view: str) -> None:
    preset = await GATEWAY.preset(cl.context.session.chat_profile)
    await settle(preset)
    settings, tongue = cl.context.session.chat_settings, language()
    chosen = controls.asked(preset, settings)
    try:
        seed = controls.seed(preset, settings)
        chosen |= {} if seed is None else {"seed": seed}
    except ValueError:
        await cl.context.emitter.send_toast(say("seed.bad", tongue), "warning")
    turn = turns.Turn(
        preset, turns.prompt(cl.chat_context.get(), message), chosen, who(), cl.context.current_run.id, tongue
    )
    if view != "compare":
        return await turns.chat(turn, GATEWAY, tokens=view == "tokens")
    try:
        temperatures = controls.temperatures(preset, settings)
    except ValueError:
        example = controls.temperatures_text(controls.default_temperatures(preset))
        return await turns.complain(say("temps.bad", tongue, example=example))
    await turns.compare(turn, GATEWAY, temperatures)


async def save_settings(session: BaseSession) -> None:
    """Chainlit saves scenario and parameters when the page closes; a server that stops first would lose them."""
    if SETTINGS.login and (memory := get_data_layer()):
        await memory.update_thread(session.thread_id, metadata=session.to_persistable())


@cl.on_stop
async def stopped() -> None:
    """Chainlit has just said so itself, in English and into the conversation: replaced by a passing note."""
    for message in cl.chat_context.get()[-2:]:
        if message.content == "Task manually stopped.":
            await message.remove()
    await cl.context.emitter.send_toast(say("stopped", language()), "info")


@cl.on_chat_end
async def left() -> None:
    """A closed page cancels nothing by itself; a lost connection may be back in a moment."""
    session = cl.context.session
    reaper = asyncio.create_task(_reap(session, session.socket_id))
    _reapers.add(reaper)
    reaper.add_done_callback(_reapers.discard)


async def _reap(session: Any, socket_id: str) -> None:
    await asyncio.sleep(0 if session.to_clear else GRACE)
    task = _running.get(session)
    if session.socket_id == socket_id and task and not task.done():
        task.cancel()


@cl.action_callback("column_feedback")
async def column_thumb(action: cl.Action) -> bool:
    """A thumb for one compared column. Returns whether the gateway has it."""
    try:
        await GATEWAY.thumb(action.payload["value"], exchange_id=action.payload["exchange"])
    except Trouble as trouble:
        await cl.context.emitter.send_toast(say(trouble.key, language(), said=trouble.said), "error")
        return False
    return True
