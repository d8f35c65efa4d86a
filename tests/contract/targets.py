"""A running gateway, started as its users start it, and raw requests to it.

Knows the contract's reply headers and error shape; nothing of the gateway's own code.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI error, its shape checked."""
        assert set(self.json) == {"error"}, self.body[:500]
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", self.exchange)
        assert self.headers["x-request-id"]
        return error

    @property
    def exchange(self) -> str:
        return self.headers["x-tempera-exchange"]

    @property
    def params(self) -> dict[str, float | str]:
        """X-Tempera-Params, an RFC 9651 dictionary of numbers (and strings)."""
        pairs = (item.split("=", 1) for item in self.headers["x-tempera-params"].split(", "))
        return {name: json.loads(value) for name, value in pairs}


@dataclass(frozen=True)
class Target:
    url: str  # without /v1
    model: str  # a name the engine knows
    presets: tuple[str, ...]

    def send(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Reply:
        """One request on a connection of its own; `body` is bytes, or anything JSON."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body, ensure_ascii=False).encode()
        return send(self.url, method, path, raw, headers or {})

    def get(self, path: str) -> Reply:
        return self.send(path, method="GET")

    def chat(self, headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
        """A chat request; `model` is not sent unless given."""
        return self.send("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]} | fields, headers)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="anything", max_retries=0, timeout=60)


def send(url: str, method: str, path: str, raw: bytes | None, headers: Mapping[str, str]) -> Reply:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, raw, {"content-type": "application/json", **headers})
        reply = connection.getresponse()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def gateway(home: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """The URL of `tempera serve` on a free port, ready. It must stop cleanly, having logged no traceback."""
    port, said = free_port(), home / "output.txt"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")}
    command = [sys.executable, "-m", "gateway.cli", "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**kept, "TEMPERA_DATA_DIR": str(home / "data"), **environment},
            stdout=output,
            stderr=output,
        )
    try:
        await_ready(process, port, said)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    assert (code, "Traceback" in said.read_text(errors="replace")) == (0, False), said.read_text(errors="replace")[
        -4000:
    ]


def await_ready(process: subprocess.Popen[bytes], port: int, said: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            if send(f"http://127.0.0.1:{port}", "GET", "/readyz", None, {}).status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail(
        f"the gateway did not become ready (exit code {process.poll()}):\n{said.read_text(errors='replace')[-4000:]}"
    )
