"""What the three images run, run here: the Dockerfile's commands in fresh virtual environments, then its CMD.

The cheap half is always run. Building takes two minutes and downloads what is not cached, so it waits for
`TEMPERA_TEST_IMAGES=1`, which CI sets. Not shown: the base image, the users and the network of a real container.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.dockerfile import ROOT, Image, in_context
from tests.fakes import FakeEngine

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
SECRETS = {
    "TEMPERA_API_KEY": "the-client-key",
    "TEMPERA_OPERATOR_KEY": "the-operator-key",
    "TEMPERA_UI_PASSWORD": "pass-word",
}
building = pytest.mark.skipif(
    os.environ.get("TEMPERA_TEST_IMAGES") != "1", reason="takes minutes: set TEMPERA_TEST_IMAGES=1"
)


@pytest.mark.parametrize(
    "path", [".env", ".git/config", "data/log.db", ".venv/bin/python", "deploy/vllm/vllm.sh", "gateway/_compiled/x"]
)
def test_secrets_and_data_never_enter_the_build_context(path: str) -> None:
    assert not in_context(path)


@pytest.mark.parametrize(
    "path", ["pyproject.toml", "hatch_build.py", "gateway/settings.py", "ui/app.py", "deploy/locks/model.txt"]
)
def test_sources_enter_the_build_context(path: str) -> None:
    assert in_context(path)


def test_the_images_install_by_hash_and_run_as_nobody_special() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    for line in re.findall(r"^RUN .* -m pip .*$", text, re.MULTILINE):
        from_a_lock = "--require-hashes" in line and "-r deploy/locks/" in line
        of_our_own = "--no-build-isolation --no-deps" in line or "--no-index --no-deps" in line
        assert from_a_lock or of_our_own, line
    final = re.split(r"^FROM ", text, flags=re.MULTILINE)[-3:]
    for stage in final:
        assert "\nUSER 10001:10001\n" in stage
        assert "\nRUN " not in stage  # nothing is made in what remains: it is copied


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def environment_of(service: str, port: int) -> dict[str, str]:
    """A service's environment with its secrets filled in, on a free port of this machine alone."""
    told = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: SECRETS[found[1]], value)
        for name, value in SERVICES[service]["environment"].items()
    }
    prefix = "TEMPERA_UI_" if service == "chat" else "TEMPERA_"
    return told | {f"{prefix}HOST": "127.0.0.1", f"{prefix}PORT": str(port)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def healthy(service: str, port: int) -> bool:
    """What the service's health check says."""
    check = SERVICES[service]["healthcheck"]["test"][2:]
    arguments = [re.sub(r":\d+/", f":{port}/", argument) for argument in check]
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def gateway(root: Path) -> Iterator[int]:
    """The port of the gateway's image as the profile `cpu` runs it."""
    image = Image(DOCKERFILE, "gateway", root)
    presets = root / "etc" / "tempera"
    presets.mkdir(parents=True)
    for volume in SERVICES["gateway-cpu"]["volumes"][:2]:
        source, target, _ = volume.split(":")
        (root / target.lstrip("/")).symlink_to(ROOT / source)
    yield from _running(image, "gateway-cpu", root / "gateway.log")


def _running(image: Image, service: str, log: Path) -> Iterator[int]:
    port = free_port()
    assert not healthy(service, port)
    process = image.start(log, environment_of(service, port))
    try:
        deadline = time.monotonic() + 120
        while not healthy(service, port):
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, log.read_text(errors="replace")[-4000:]
            time.sleep(0.3)
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM), log.read_text(errors="replace")[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@building
def test_the_gateways_image_answers_whoever_has_the_key(gateway: int) -> None:
    url = f"http://127.0.0.1:{gateway}"
    body = {"model": "customer-service", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        key = {"authorization": f"Bearer {SECRETS['TEMPERA_API_KEY']}"}
        reply = client.post("/v1/chat/completions", json=body, headers=key)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"]


@building
def test_the_gateways_image_holds_no_tool_to_build_or_install_with(gateway: int, root: Path) -> None:
    packages = next((root / "opt" / "gateway" / "lib").glob("python3*/site-packages"))
    assert (packages / "gateway").is_dir()
    found = {path.name for path in packages.iterdir()}
    assert not found & {"pip", "setuptools", "wheel", "hatchling", "pytest", "chainlit", "mypy"}
    if shutil.which("cc"):
        assert list(packages.glob("gateway/_compiled/*/sources.sha256")), "it is compiled"
    assert (root / "data" / "log.db").exists() or list((root / "data").iterdir())


@building
def test_the_chats_image_asks_who_is_there(root: Path) -> None:
    pytest.importorskip("chainlit")
    image = Image(DOCKERFILE, "chat", root)
    for port in _running(image, "chat", root / "chat.log"):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            assert client.get("/").status_code == 200
            assert client.get("/auth/config").json()["requireLogin"] is True
    packages = next((root / "opt" / "chat" / "lib").glob("python3*/site-packages"))
    assert not {path.name for path in packages.iterdir()} & {"pip", "setuptools", "hatchling", "xllamacpp"}


@building
def test_the_routers_image_takes_what_compose_tells_it(root: Path) -> None:
    image, port, log = Image(DOCKERFILE, "router", root), free_port(), root / "router.log"
    places = {"host": "127.0.0.1", "port": port}
    with FakeEngine.in_thread() as engine:
        told = [word for word in SERVICES["router"]["command"] if not word.startswith("http://")]
        told.insert(told.index("--worker-urls") + 1, engine.url)
        told = [re.sub(r"^--(host|port)=.*", lambda found: f"--{found[1]}={places[found[1]]}", word) for word in told]
        image.stage.command = [*told, f"--prometheus-port={free_port()}"]
        process = image.start(log, {})
        try:
            deadline = time.monotonic() + 60
            while not healthy("router", port):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
                time.sleep(0.2)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
                assert client.post("/v1/chat/completions", json=body).status_code == 200
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
