"""The parts of an installation as processes of their own, each of which can be killed and started again.

Knows commands, ports and environments. What is asked of them, and what must hold, is in the tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.targets import ROOT, free_port, send
from tests.log import postgres
from tests.scale import environment

WORKERS = 2
ENGINE_KEY = "the-key-of-the-engines"
OPERATOR_KEY = "the-key-of-the-operator"
SECRET = "the same in every gateway"
LIMIT = 40  # requests a minute of the limited key
EXPERIMENT = "warmer"
PRESETS = f"""
default: plain
presets:
  plain:
    title: {{en: Plain, zh: 普通}}
    hint: {{en: Anything., zh: 随意。}}
    parameters: {{temperature: {{default: 0.7, min: 0, max: 2}}}}
  tried:
    title: {{en: Tried out, zh: 试验}}
    hint: {{en: With an experiment., zh: 带实验。}}
    parameters: {{temperature: {{default: 0.7, min: 0, max: 2}}}}
experiments:
  {EXPERIMENT}:
    preset: tried
    state: running
    variants:
      control: {{}}
      warm: {{parameters: {{temperature: 1.1}}}}
"""
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]


@dataclass
class Part:
    """A process, and the processes it starts."""

    name: str
    command: list[str]
    output: Path
    port: int = 0
    environ: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, ready: Callable[[], bool]) -> None:
        """Started, and `ready`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**kept, **self.environ},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not ready():
            if self.process.poll() is not None or time.monotonic() > end:
                said = self.output.read_text(errors="replace")[-3000:]
                pytest.fail(f"{self.name} did not become ready (exit code {self.process.poll()}):\n{said}")
            time.sleep(0.05)

    def answers(self, path: str) -> Callable[[], bool]:
        """Whether a GET of `path` is answered with 200."""

        def ready() -> bool:
            try:
                return send(self.url, "GET", path, None, {}).status == 200
            except OSError:
                return False

        return ready

    def family(self) -> list[int]:
        """The pids of the process and of all that came from it."""
        found = [self.process.pid] if self.process is not None else []
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def stop(self) -> None:
        """As an operator does it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def kill(self) -> None:
        """SIGKILL to all of it, as when its machine dies; returns when processes and connections are gone."""
        if self.process is None:
            return
        pids = self.family()  # itself first: who starts workers anew must not see one die
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(60)
        while any(_alive(pid) for pid in pids):
            time.sleep(0.001)
        self.process = None


def _alive(pid: int) -> bool:
    """Whether any thread of a process is left: the last one to go closes its sockets."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return len(threads) > 1 or state not in "ZX"


@dataclass
class Installation:
    """Two gateways over one router over two engines, one database, one Redis."""

    home: Path
    database: str
    engines: list[Part]
    router: Part
    gateways: list[Part]
    keys: dict[str, str]

    def journal(self, engine: Part) -> Path:
        return self.home / f"{engine.name}.journal"

    def start(self, part: Part) -> None:
        path = "/health" if part in self.engines else "/readyz" if part in self.gateways else "/v1/models"
        part.start(part.answers(path) if part is not self.router else _with_key(part))


def _with_key(router: Part) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            found = send(router.url, "GET", "/v1/models", None, {"authorization": f"Bearer {ENGINE_KEY}"})
        except OSError:
            return False
        return found.status == 200

    return ready


@contextmanager
def running(home: Path) -> Iterator[Installation]:
    """All of it, ready; ended in the order in which requests pass."""
    redis = shutil.which("redis-server") or shutil.which("valkey-server")
    if redis is None:
        pytest.skip("no Redis or Valkey here (Debian: apt-get install redis-server)")
    with ExitStack() as stack:
        database = stack.enter_context(postgres.running()).url()
        limits = Part("redis", [redis, *SERVICES["valkey"]["command"][1:]], home / "redis.txt", free_port())
        limits.command += ["--dir", str(home), "--port", str(limits.port), "--bind", "127.0.0.1"]
        stack.callback(limits.kill)
        limits.start(lambda: "Ready to accept connections" in limits.output.read_text(errors="replace"))
        made = _installation(home, database, f"redis://127.0.0.1:{limits.port}/0")
        for part in (*made.engines, made.router, *made.gateways):
            stack.callback(part.kill)
            made.start(part)
        yield made
        for part in made.gateways:
            part.stop()


def _installation(home: Path, database: str, limits: str) -> Installation:
    (home / "presets.yaml").write_text(PRESETS)
    keys = {"load": _key(home, "load"), "limited": _key(home, "limited", "--rpm", str(LIMIT))}
    engines = []
    for name in ("east", "west"):
        port = free_port()
        command = [sys.executable, "-m", "tests.scale.engine", str(port), name, str(home / f"{name}.journal")]
        engines.append(Part(name, [*command, ENGINE_KEY], home / f"{name}.txt", port))
    try:
        program = environment.router()
    except environment.NotSetUp as missing:
        pytest.fail(str(missing), pytrace=False)
    # The command of docker-compose.yml; of a flag that is there twice the last one counts.
    router = Part("router", [str(program), *SERVICES["router"]["command"][1:]], home / "router.txt", free_port())
    router.command += ["--host", "127.0.0.1", "--port", str(router.port), "--prometheus-port", str(free_port())]
    router.command += ["--worker-urls", *(engine.url for engine in engines), "--worker-startup-check-interval", "1"]
    told = {
        "TEMPERA_UPSTREAM": router.url,
        "TEMPERA_UPSTREAM_API_KEY": ENGINE_KEY,
        "TEMPERA_DATABASE_URL": database,
        "TEMPERA_LIMITS_URL": limits,
        "TEMPERA_KEYS": str(home / "keys.yaml"),
        "TEMPERA_OPERATOR_KEY": OPERATOR_KEY,
        "TEMPERA_PRESETS": str(home / "presets.yaml"),
        "TEMPERA_SECRET": SECRET,
    }
    gateways = []
    for name in ("one", "two"):
        port = free_port()
        command = [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port)]
        command += ["--workers", str(WORKERS)]
        own = {"TEMPERA_DATA_DIR": str(home / name)}
        gateways.append(Part(f"gateway {name}", command, home / f"gateway-{name}.txt", port, told | own))
    return Installation(home, database, engines, router, gateways, keys)


def _key(home: Path, name: str, *options: str) -> str:
    """A key as an operator makes it."""
    command = [sys.executable, "-m", "gateway.cli", "keys", "new", name, "--data-dir", str(home), *options]
    environ = {"PATH": os.environ["PATH"], "TEMPERA_PRESETS": str(home / "presets.yaml")}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
