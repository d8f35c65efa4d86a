"""Who may connect, and what a page of ours may load: against the running chat."""

from __future__ import annotations

import re

import httpx
import pytest
import socketio

from ui.guard import unit

PAGE = {"accept": "text/html"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "SELF"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),  # a name that was made to resolve to us
        ({"host": "localhost:1234"}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/", "/auth/config", "/ws/socket.io/?EIO=4&transport=polling"])
def test_foreign_pages_are_refused(open_chat: str, path: str, headers: dict[str, str], status: int) -> None:
    ours = {name: value.replace("SELF", open_chat) for name, value in headers.items()}
    assert httpx.get(open_chat + path, headers=ours, trust_env=False).status_code == status


async def test_a_foreign_page_gets_no_websocket(open_chat: str) -> None:
    client = socketio.AsyncClient(reconnection=False)
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.connect(
            open_chat,
            headers={"Origin": "https://evil.example"},
            socketio_path="/ws/socket.io",
            transports=["websocket"],
        )


def test_the_page_names_no_foreign_host_to_load_from(open_chat: str) -> None:
    page = httpx.get(open_chat, headers=PAGE, trust_env=False)
    assert re.findall(r"https?://[^\"' ]+", page.text) == []
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert all("http" not in allowed and "*" not in allowed for allowed in policy.values())


def test_a_browser_gets_one_lasting_id(open_chat: str) -> None:
    first = httpx.get(open_chat, headers=PAGE, trust_env=False)
    given = first.headers["set-cookie"]
    assert re.match(r"tempera-unit=[0-9a-f]{32}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax", given)
    again = httpx.get(open_chat, headers=PAGE | {"cookie": given.split(";")[0]}, trust_env=False)
    assert "set-cookie" not in again.headers
    assert unit(given.split(";")[0]) == given.split(";")[0].split("=")[1]
    assert unit("a=b") is None


@pytest.mark.parametrize("language", ["zh-CN", "zh", "zh-HK", "zh-SG", "zh-Hans"])
def test_chinese_readers_get_chinese(open_chat: str, language: str) -> None:
    reply = httpx.get(f"{open_chat}/project/translations?language={language}", trust_env=False)
    assert reply.json()["translation"]["chat"]["settings"]["title"] == "参数"


def test_uploads_and_mcp_are_off(open_chat: str) -> None:
    features = httpx.get(f"{open_chat}/project/settings", trust_env=False).json()["features"]
    assert features["spontaneous_file_upload"]["enabled"] is False
    assert features["mcp"]["enabled"] is False
