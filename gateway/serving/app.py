"""create_app(settings): wiring only. The stack is assembled here, in one visible place; what the parts do is theirs.

request -> Front -> on the data path (routes.find)?  yes: Turn.run      no: FastAPI (api)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from gateway.log.allocation import Learner
from gateway.log.writer import Log
from gateway.policy.choice import Engine, Facts
from gateway.policy.config import Config, Upstream, load
from gateway.protocol.dialects import DIALECTS
from gateway.serving import keeping
from gateway.serving.access import Access, is_loopback
from gateway.serving.api import create_api
from gateway.serving.front import Front
from gateway.serving.ledger import Ledger
from gateway.serving.limits import Limiter
from gateway.serving.metrics import Metrics
from gateway.serving.models import Models
from gateway.serving.queueing import Gate
from gateway.serving.reload import Reload
from gateway.serving.state import State
from gateway.serving.timing import Timeouts
from gateway.serving.tracing import open_tracing
from gateway.serving.upstream import Pool
from gateway.settings import Settings, secret_of

SHIPPED = Path(__file__).resolve().parent.parent / "presets.yaml"


def read_config(path: Path, note: Callable[[str], object] = bool) -> Config:
    """The Config of a presets file; prompts are read from beside it. Raises OSError or BadConfig.

    `note` is called with the name of every prompt that is looked for.
    """
    folder = path.resolve().parent

    def read_prompt(name: str) -> str:
        note(name)
        target = (folder / name).resolve()
        if not target.is_relative_to(folder):
            raise ValueError("a prompt must lie beside the presets file or below it")
        return target.read_text(encoding="utf-8")

    return load(path.read_text(encoding="utf-8"), read_prompt)


def presets_path(settings: Settings) -> Path:
    """The presets file in force: the one named, else ./presets.yaml, else the one that ships."""
    if settings.presets is not None:
        return settings.presets
    own = Path("presets.yaml")
    if own.exists():
        return own
    return SHIPPED if SHIPPED.exists() else SHIPPED.parent.parent / "presets.yaml"


def upstreams(settings: Settings, config: Config) -> Mapping[str, Upstream]:
    """The engines in force: the one from the command line or environment replaces the file's first."""
    if settings.upstream is None:
        return config.upstreams
    named = Upstream(base_url=settings.upstream, dialect=settings.dialect)
    first = next(iter(config.upstreams), "default")
    return {first: named} | {name: other for name, other in config.upstreams.items() if name != first}


def _pool(settings: Settings, name: str, upstream: Upstream) -> Pool:
    key = secret_of(upstream.api_key_env) or settings.upstream_api_key
    limits = upstream.timeouts
    timeouts = Timeouts(connect=limits.connect, headers=limits.headers, idle=limits.idle)
    url = upstream.base_url.rstrip("/").removesuffix("/v1")
    pool = Pool(url, api_key=key, timeouts=timeouts)
    pool.name = name  # in messages to clients, who have no business with its address
    return pool


def open_access(settings: Settings, here: Ledger | None = None) -> Access:
    """Who may come in, and how many. Raises ValueError for an address beyond this machine without any key."""
    access = Access(keys_path(settings), settings.api_key, settings.operator_key)
    access.limiter = Limiter(settings.limits_url, settings.limits_lease, here=here)
    if settings.max_in_flight:
        access.gate = Gate(settings.max_in_flight, settings.max_queued, settings.max_queue_wait)
    if access.open and settings.keys is not None and not settings.keys.exists():
        raise ValueError(
            f"TEMPERA_KEYS names {settings.keys}, which is not there, so anybody on this machine could come in: "
            "make a key with `tempera keys new NAME`, or leave TEMPERA_KEYS out."
        )
    if access.open and not is_loopback(settings.host):
        raise ValueError(
            f"Without keys the gateway binds to this machine only, not to {settings.host}: "
            "make a key with `tempera keys new NAME`, or set TEMPERA_API_KEY."
        )
    return access


def keys_path(settings: Settings) -> Path:
    """The keys file: the one named, else keys.yaml in the data directory."""
    return settings.keys or settings.data_dir / "keys.yaml"


class Shared(msgspec.Struct, frozen=True):
    """What one of several workers has to do with the others: `page` is the metrics page of all, `adopted` is told of
    presets that came into force here, `ledger` counts for the limits of all.
    """

    page: Callable[[CollectorRegistry], Awaitable[bytes]]
    adopted: Callable[[Config], None]
    ledger: Ledger


async def _page(metrics: Metrics, shared: Shared | None) -> bytes:
    return metrics.page() if shared is None else await shared.page(metrics.registry)


def _adopt(log: Log, shared: Shared | None, config: Config) -> None:
    """What is to be done about presets that have just come into force."""
    keeping.snapshot(log, config)
    if shared is not None:
        shared.adopted(config)


def create_app(
    settings: Settings,
    config: Config,
    degenerate: Callable[[str], bool] | None = None,
    shared: Shared | None = None,
) -> Front:
    """The whole gateway as one ASGI application. `shared` is None for one that is alone.

    Raises ValueError when there is no upstream, its URL or that for traces cannot be used, or a package is missing.
    """
    engines = upstreams(settings, config)
    if not engines:
        raise ValueError("There is no upstream: give --upstream URL, or name one under upstreams: in the presets file.")
    metrics = Metrics()
    pools = {name: _pool(settings, name, upstream) for name, upstream in engines.items()}
    facts = Facts({name: Engine(DIALECTS[up.dialect]) for name, up in engines.items()}, keeping.pepper(settings))

    def publish(found: Mapping[str, Engine]) -> None:
        state.facts = msgspec.structs.replace(state.facts, engines=found)

    models = Models(pools, facts.engines, publish)
    access = open_access(settings, None if shared is None else shared.ledger)
    hidden = [key for up in engines.values() if (key := secret_of(up.api_key_env))]
    hidden += [key for key in (settings.operator_key, settings.upstream_api_key, settings.api_key) if key]
    tracing = open_tracing(settings.otlp_endpoint, engines)
    log = keeping.open_log(settings, hidden, keeping.make_reader(metrics, tracing))
    learner = Learner(log.engine)
    offer = keeping.make_offer(log, metrics, learner, lambda: state.config)
    state = State(settings, config, facts, pools, models, access, log, offer, degenerate)
    metrics.watch(state)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        reload = Reload(state, presets_path(settings), read_config, partial(_adopt, log, shared))
        tasks = (models.watch(), reload.watch(metrics), access.limiter.watch(), keeping.learn(state, learner))
        watching = [asyncio.create_task(task) for task in tasks]
        keeping.snapshot(log, config)
        try:
            yield
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(access.limiter.close(), *(pool.close() for pool in pools.values()))
            await asyncio.to_thread(keeping.close, log, tracing)

    return Front(state, metrics, create_api(state, partial(_page, metrics, shared), lifespan))
