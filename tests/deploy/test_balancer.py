"""deploy/balancer/haproxy.cfg, run by a real HAProxy between clients and servers that only say who they are."""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.contract.targets import Reply, free_port, send
from tests.deploy.script import ROOT

CONFIG = ROOT / "deploy" / "balancer" / "haproxy.cfg"
SERVERS = {"gateway-1": 8001, "gateway-2": 8001, "chat-1": 8002, "chat-2": 8002}


class Server(ThreadingHTTPServer):
    """Says its name; streams one event, and the next when `go_on` is set; knows when a client that waits has `left`."""

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.ready, self.go_on, self.left = name, True, threading.Event(), threading.Event()
        self.daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A health check hangs up as soon as it knows."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        health = self.path == "/readyz"
        if self.path == "/wait":
            with contextlib.suppress(ConnectionResetError):
                assert self.connection.recv(1) == b""
            self.server.left.set()
            return
        if self.path != "/stream":
            said = self.server.name.encode()
            self.send_response(200 if self.server.ready or not health else 503)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            return
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        self.server.go_on.wait(10)
        self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


class Balanced:
    """A running balancer: its two addresses, and the servers behind it by name."""

    def __init__(self, servers: dict[str, Server]) -> None:
        self.servers = servers
        self.gateway, self.chat, self.alive = (f"http://127.0.0.1:{free_port()}" for _ in range(3))

    def config(self) -> str:
        text = CONFIG.read_text(encoding="utf-8")
        for name, port in SERVERS.items():
            text, found = re.subn(rf"\b{name}:{port}\b", f"127.0.0.1:{self.servers[name].server_port}", text)
            assert found == 1
        for port, url in (("8001", self.gateway), ("8002", self.chat)):
            text = text.replace(f"bind :{port}\n", f"bind {url.removeprefix('http://')}\n")
        return text.replace("127.0.0.1:8404", self.alive.removeprefix("http://"))

    def kill(self, name: str) -> None:
        self.servers[name].shutdown()
        self.servers[name].server_close()


@contextmanager
def running(home: Path) -> Iterator[Balanced]:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("no HAProxy here (Debian: apt-get install haproxy)")
    with ExitStack() as stack:
        servers = {name: stack.enter_context(Server(name)) for name in SERVERS}
        for server in servers.values():
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(server.shutdown)
            stack.callback(server.go_on.set)
        balanced = Balanced(servers)
        (home / "haproxy.cfg").write_text(balanced.config())
        with (home / "haproxy.txt").open("wb") as said:
            process = subprocess.Popen([program, "-db", "-f", str(home / "haproxy.cfg")], stdout=said, stderr=said)
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait(lambda: process.poll() is not None or get(balanced.alive, "/healthz").status == 200)
        assert process.poll() is None, (home / "haproxy.txt").read_text()
        yield balanced


@pytest.fixture
def balanced(tmp_path: Path) -> Iterator[Balanced]:
    with running(tmp_path) as made:
        yield made


def get(url: str, path: str = "/", **headers: str) -> Reply:
    return send(url, "GET", path, None, headers)


def wait(look: Callable[[], bool]) -> None:
    """Until it is so; a refusal of the connection counts as not yet."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if look():
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)
    pytest.fail("it did not come to that within 20 s")


def test_both_gateways_are_used_and_their_figures_kept_in(balanced: Balanced) -> None:
    assert {get(balanced.gateway).body for _ in range(8)} == {b"gateway-1", b"gateway-2"}
    assert get(balanced.gateway, "/metrics").status == 404
    assert get(balanced.gateway, "/v1/presets").status == 200


def test_a_gateway_that_dies_is_passed_over_from_the_first_request(balanced: Balanced) -> None:
    balanced.kill("gateway-1")
    replies = [get(balanced.gateway) for _ in range(10)]
    assert {(reply.status, reply.body) for reply in replies} == {(200, b"gateway-2")}


def test_a_gateway_that_shuts_down_gets_nothing_new(balanced: Balanced) -> None:
    balanced.servers["gateway-2"].ready = False
    wait(lambda: {get(balanced.gateway).body for _ in range(6)} == {b"gateway-1"})
    balanced.servers["gateway-2"].ready = True
    wait(lambda: {get(balanced.gateway).body for _ in range(6)} == {b"gateway-1", b"gateway-2"})


def test_events_pass_one_by_one(balanced: Balanced) -> None:
    connection = http.client.HTTPConnection(balanced.gateway.removeprefix("http://"), timeout=20)
    connection.request("GET", "/stream")
    reply = connection.getresponse()
    assert reply.read1() == b"first"  # while the last one has not been written
    for server in balanced.servers.values():
        server.go_on.set()
    assert reply.read() == b"last"
    connection.close()


def test_a_client_that_leaves_while_it_waits_is_told_to_the_gateway(balanced: Balanced) -> None:
    connection = http.client.HTTPConnection(balanced.gateway.removeprefix("http://"), timeout=20)
    connection.request("GET", "/wait")
    time.sleep(0.2)  # it has reached a gateway, or will be told all the same
    connection.close()
    wait(lambda: any(server.left.is_set() for server in balanced.servers.values()))


def test_a_visitor_stays_with_a_chat_until_it_dies(balanced: Balanced) -> None:
    first = get(balanced.chat)
    cookie = first.headers["set-cookie"].split(";")[0]
    assert "httponly" in first.headers["set-cookie"].lower()
    assert {get(balanced.chat, cookie=cookie).body for _ in range(6)} == {first.body}
    assert {get(balanced.chat).body for _ in range(6)} == {b"chat-1", b"chat-2"}
    balanced.kill(first.body.decode())
    replies = [get(balanced.chat, cookie=cookie) for _ in range(3)]
    assert {reply.status for reply in replies} == {200}
    assert first.body not in {reply.body for reply in replies}
