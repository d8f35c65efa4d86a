"""Whole chats in a database and back, on SQLite and PostgreSQL, and through the login of the running chat."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from chainlit.context import context_var
from chainlit.types import Feedback, Pagination, ThreadFilter
from chainlit.user import User

from tests.fakes import FakeEngine
from tests.log import postgres
from tests.ui.conftest import PASSWORD
from tests.ui.processes import visiting
from ui.history import History


class Gateway:
    """Takes thumbs."""

    def __init__(self) -> None:
        self.thumbs: list[Any] = []

    async def thumb(self, value: int | None, comment: str | None = None, **exchange: str) -> None:
        self.thumbs.append((value, comment, exchange))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    if request.param == "sqlite":
        return History(Gateway(), f"sqlite:///{tmp_path / 'history.db'}")  # type: ignore[arg-type]
    return History(Gateway(), request.getfixturevalue("postgres_server").url())  # type: ignore[arg-type]


def step(key: str, at: int, **more: Any) -> Any:
    return {"id": key, "threadId": "t", "createdAt": f"2026-01-01T00:00:0{at}Z", "output": f"said {key}"} | more


def card(key: str, **props: Any) -> Any:
    body = {"id": key, "type": "custom", "forId": "s2", "threadId": "t", "props": props}
    return SimpleNamespace(id=key, thread_id="t", for_id="s2", to_dict=lambda: dict(body))


def outside_a_session() -> None:
    """Else Chainlit holds writes back until the first message."""
    context_var.set(SimpleNamespace(session=None))  # type: ignore[arg-type]


async def test_what_goes_in_comes_out(history: History) -> None:
    outside_a_session()
    created = await history.create_user(User(identifier="ada", metadata={"a": [1]}))
    assert created is not None
    again = await history.create_user(User(identifier="ada"))
    assert again is not None
    assert again.id == created.id
    # without waiting for one another, as Chainlit does it: the last one counts
    modes = {"view": "compare"}
    await asyncio.gather(
        history.create_step(step("s2", 2, metadata={"deep": {"x": None}}, tags=["a", "b"])),
        history.create_step(step("s1", 1, modes=modes)),
        history.update_thread("t", name="Hello", user_id=created.id, tags=["balanced"]),
        history.update_thread("t", metadata={"chat_profile": "coding", "chat_settings": {"temperature__coding": 0.4}}),
        history.update_thread("t", metadata={"view": "tokens"}),
        history.update_step(step("s2", 2, output="new")),
        history.create_element(card("e", columns=[{"text": "春"}], done=False)),
        history.create_element(card("e", columns=[{"text": "春天"}], done=True)),
    )
    await history.upsert_feedback(Feedback(forId="s2", value=0, comment="no"))
    thread: Any = await history.get_thread("t")
    assert (thread["name"], thread["userIdentifier"], thread["tags"]) == ("Hello", "ada", ["balanced"])
    assert thread["metadata"] == {
        "chat_profile": "coding",
        "chat_settings": {"temperature__coding": 0.4},
        "view": "tokens",
    }
    assert [(one["id"], one["output"]) for one in thread["steps"]] == [("s1", "said s1"), ("s2", "new")]
    assert thread["steps"][0]["modes"] == modes
    assert thread["steps"][1]["feedback"] == {"forId": "s2", "id": "s2", "value": 0, "comment": "no"}
    assert [one["props"] for one in thread["elements"]] == [{"columns": [{"text": "春天"}], "done": True}]
    assert await history.get_thread_author("t") == "ada"
    assert await history.get_element("t", "e") == thread["elements"][0]
    await history.delete_feedback("s2")
    await history.delete_step("s2")
    thread = await history.get_thread("t")
    assert ([one["id"] for one in thread["steps"]], thread["elements"]) == (["s1"], [])
    await history.delete_thread("t")
    assert await history.get_thread("t") is None
    assert await history.get_thread_author("t") == ""
    assert history.gateway.thumbs == [(-1, "no", {"request_id": "s2"}), (None, None, {"request_id": "s2"})]  # type: ignore[attr-defined]
    await history.close()


async def test_threads_are_listed_newest_first_by_page_and_by_word(history: History) -> None:
    outside_a_session()
    owner = await history.create_user(User(identifier="bob"))
    assert owner is not None
    for number in range(5):
        await history.update_thread(f"t{number}", name=f"Chat {number}", user_id=owner.id)
        await history.create_step(step(f"s{number}", number, threadId=f"t{number}", output=f"Word{number} 词{number}"))
    mine = ThreadFilter(userId=owner.id)
    first = await history.list_threads(Pagination(first=2), mine)
    second = await history.list_threads(Pagination(first=9, cursor=first.pageInfo.endCursor), mine)
    assert [[one["id"] for one in page.data] for page in (first, second)] == [["t4", "t3"], ["t2", "t1", "t0"]]
    assert (first.pageInfo.hasNextPage, second.pageInfo.hasNextPage) == (True, False)
    for word in ("word3", "词3", "chat 3"):
        found = await history.list_threads(Pagination(first=9), ThreadFilter(userId=owner.id, search=word))
        assert [one["id"] for one in found.data] == ["t3"]
    assert (await history.list_threads(Pagination(first=9), ThreadFilter(userId="nobody"))).data == []
    await history.close()


def log_in(url: str, name: str, password: str = PASSWORD) -> httpx.Client:
    client = httpx.Client(base_url=url, trust_env=False)
    reply = client.post("/login", data={"username": name, "password": password})
    assert reply.status_code == (200 if password == PASSWORD else 401)
    return client


async def test_a_chat_is_resumed_as_it_was(login_chat: str, engine: FakeEngine) -> None:
    client = log_in(login_chat, "阿达")
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    async with visiting(login_chat, "coding", cookies=cookies) as visitor:
        await visitor.socket.emit("chat_settings_edit", {"temperature__coding": 0.55})
        answer = await visitor.ask("Write.")
        await visitor.ask("Compare.", "compare")
        thread_id = visitor.all("first_interaction")[0]["thread_id"]
        run = visitor.runs()[0]
        client.put("/feedback", json={"feedback": {"forId": run, "value": 1}, "sessionId": visitor.session})
    listed = client.post("/project/threads", json={"pagination": {"first": 9}, "filter": {}}).json()["data"]
    assert [one["id"] for one in listed] == [thread_id]
    async with visiting(login_chat, "balanced", cookies=cookies, thread=thread_id) as visitor:
        (thread,) = await visitor.until(lambda: visitor.all("resume_thread"), "the thread")
        basic = visitor.all("chat_settings")[-1][0]
        assert (basic["inputs"][0]["id"], basic["inputs"][0]["initial"]) == ("temperature__coding", 0.55)
        assert [one["id"] for one in visitor.all("set_modes")[-1][0]["options"] if one["default"]] == ["compare"]
        assert [one["value"] for one in (each["feedback"] for each in thread["steps"]) if one] == [1]
        cards = {one["name"]: one["props"] for one in thread["elements"]}
        assert cards["Used"]["params"]["temperature"] == "0.55"
        assert cards["Compare"]["done"]
        engine.requests.clear()
        await visitor.ask("Go on.")
        said = engine.generations[-1].json
    assert [one["content"] for one in said["messages"]] == ["Write.", answer["output"], "Go on."]
    assert said["temperature"] == 0.55


async def test_strangers_see_nothing(login_chat: str, engine: FakeEngine) -> None:
    log_in(login_chat, "ada", "wrong")
    async with visiting(
        login_chat, cookies="; ".join(f"{k}={v}" for k, v in log_in(login_chat, "eve").cookies.items())
    ) as visitor:
        await visitor.ask("A secret.")
        thread = visitor.all("first_interaction")[0]["thread_id"]
    with httpx.Client(base_url=login_chat, trust_env=False) as nobody:
        assert nobody.get(f"/project/thread/{thread}").status_code == 401
    assert log_in(login_chat, "mallory").get(f"/project/thread/{thread}").status_code == 401
    assert log_in(login_chat, "eve").get(f"/project/thread/{thread}").status_code == 200


def test_the_secret_is_made_once_for_its_owner_only(login_chat: str, login_home: Path) -> None:
    secret = login_home / "chat" / "secret"
    assert secret.stat().st_mode & 0o077 == 0
    assert len(secret.read_text()) >= 48
