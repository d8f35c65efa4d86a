"""The chat beside the gateway: a process of its own, started once the gateway listens and ended before it.

Knows how to start `python -m ui`, when it answers and how to end it. Knows nothing about what it shows: the two speak
HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from gateway.settings import Settings, for_child

_WAIT: Final = 60.0  # seconds for its first start, which compiles a large library
_GRACE: Final = 5.0


class ChatError(Exception):
    """The chat cannot start; the message says why."""


@contextlib.asynccontextmanager
async def beside(gateway: str, settings: Settings) -> AsyncIterator[str]:
    """The chat's URL while it runs. Its output goes to chat.log in the data directory. Raises ChatError."""
    if importlib.util.find_spec("chainlit") is None:
        raise ChatError("the chat needs chainlit: pip install 'tempera-gateway[ui]'")
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    said, port = settings.data_dir / "chat.log", settings.ui_port
    environ = for_child(
        TEMPERA_GATEWAY_URL=gateway, TEMPERA_UI_PORT=str(port), TEMPERA_DATA_DIR=str(settings.data_dir.absolute())
    )
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ui",
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the gateway, which ends the chat first
        )
    try:
        await _answers(process, port, said)
        yield f"http://127.0.0.1:{port}"
    finally:
        await _end(process)


async def _answers(process: asyncio.subprocess.Process, port: int, said: Path) -> None:
    end = asyncio.get_running_loop().time() + _WAIT
    while asyncio.get_running_loop().time() < end:
        if process.returncode is not None:
            last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise ChatError(f"the chat ended with exit code {process.returncode}:\n" + "\n".join(last))
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)
        else:
            writer.close()
            return
    raise ChatError(f"the chat did not answer within {_WAIT:g} s; see {said}")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _GRACE)
    except TimeoutError:
        process.kill()
        await process.wait()
