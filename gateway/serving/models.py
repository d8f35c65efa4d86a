"""Which models the engines have: asked at the start, again now and then, and at once when a client names one that is
not known.

Keeps the engines' model lists up to date; a miss asks at most once a second however many clients miss, and all of
them wait for the same answer. Knows the shape of both engines' /v1/models; decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from gateway.policy.choice import Engine, Model
from gateway.protocol.errors import UpstreamError, UpstreamInvalidResponse
from gateway.serving.upstream import Pool

MISS_INTERVAL: Final = 1.0
STEADY_INTERVAL: Final = 30.0
ASK_TIMEOUT: Final = 5.0
MAX_LIST: Final = 4 * 1024 * 1024


class Models:
    """`publish` is called with the engines whenever an answer differs from what is known."""

    def __init__(
        self, pools: Mapping[str, Pool], engines: Mapping[str, Engine], publish: Callable[[Mapping[str, Engine]], None]
    ) -> None:
        self._pools = pools
        self._publish = publish
        self._asked = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._engines = engines
        self.reached: dict[str, bool] = dict.fromkeys(pools, False)
        self.trouble: dict[str, str] = {}

    async def refresh(self) -> None:
        """Ask every engine, unless that was done within the last second; then what is known has to do."""
        loop = asyncio.get_running_loop()
        if self._asking is None:
            if self._asked and loop.time() - self._asked < MISS_INTERVAL:
                return
            self._asking = loop.create_task(self._ask_all())
        await asyncio.shield(self._asking)

    async def watch(self) -> None:
        """Keep asking: every second until all engines were reached, every 30 s after that."""
        while True:
            await self.refresh()
            await asyncio.sleep(STEADY_INTERVAL if all(self.reached.values()) else MISS_INTERVAL)

    async def _ask_all(self) -> None:
        try:
            found = await asyncio.gather(*(self._ask(name, pool) for name, pool in self._pools.items()))
        finally:
            self._asked, self._asking = asyncio.get_running_loop().time(), None
        engines = dict(self._engines)
        for name, models in zip(self._pools, found, strict=True):
            if models:
                engines[name] = Engine(engines[name].dialect, models)
        if engines != self._engines:
            self._engines = engines
            self._publish(engines)

    async def _ask(self, name: str, pool: Pool) -> tuple[Model, ...]:
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                reply = await pool.send(b"GET", b"/v1/models", (), b"")
                try:
                    body = b""
                    while piece := await reply.read():
                        body += piece
                        if len(body) > MAX_LIST:
                            raise UpstreamInvalidResponse(f"/v1/models answered with more than {MAX_LIST} bytes")
                finally:
                    reply.close()
        except UpstreamError as error:
            self.reached[name], self.trouble[name] = False, error.message
            return ()
        except TimeoutError:
            self.reached[name], self.trouble[name] = False, f"no answer within {ASK_TIMEOUT:g} s"
            return ()
        models = read_models(body)
        self.reached[name] = bool(models)
        self.trouble[name] = "" if models else f"/v1/models answered {reply.status} without models"
        return models


def read_models(body: bytes) -> tuple[Model, ...]:
    """The models in a /v1/models reply; the context is vLLM's max_model_len or llama.cpp's meta.n_ctx."""
    try:
        document: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    entries = document.get("data") if isinstance(document, dict) else None
    models = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            meta = entry.get("meta")
            known = meta if isinstance(meta, dict) else {}
            context, size = entry.get("max_model_len") or known.get("n_ctx"), known.get("n_params")
            models.append(Model(entry["id"], *(n if isinstance(n, int) and n > 0 else None for n in (context, size))))
    return tuple(models)
