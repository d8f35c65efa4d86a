"""What one process keeps of its exchanges: the log's options, the secret behind unit hashes, and what adaptive
experiments learn.

Wiring between the log and the State; knows files in the data directory, nothing about requests.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec
import yaml

from gateway.log.allocation import Learner
from gateway.log.digest import Redact
from gateway.log.exchange import RawExchange
from gateway.log.options import Options
from gateway.log.row import Row
from gateway.log.store import Away
from gateway.log.writer import Log, OnRow
from gateway.policy.config import Config
from gateway.serving.keyfile import KEY_MARK, KEY_PATTERN
from gateway.serving.metrics import Metrics
from gateway.serving.state import State
from gateway.serving.tracing import Tracing
from gateway.settings import Settings

LEARN_EVERY: Final = 30.0  # seconds
_log = logging.getLogger("tempera.log")
_exchanges = logging.getLogger("tempera.exchange")


def open_log(settings: Settings, hidden: list[str], read: OnRow | None = None) -> Log:
    """The log of this process. `hidden` are secrets that must never be in a row; `read` is called with every row."""
    options = Options(
        data_dir=settings.data_dir,
        database_url=settings.database_url,
        message_limit=settings.log_message_bytes,
        retention_days=settings.log_retention_days,
    )
    return Log(options, Redact(hidden, KEY_PATTERN, KEY_MARK), read)


def pepper(settings: Settings) -> str:
    """The secret that unit hashes are made with: TEMPERA_SECRET, else one made once in the data directory."""
    if settings.secret:
        return settings.secret
    path = settings.data_dir / "secret"
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    with os.fdopen(made, "w", encoding="ascii") as file:
        file.write(text := secrets.token_hex(32))
    return text


def snapshot(log: Log, config: Config) -> None:
    """Keep the presets and prompts of a revision, as a YAML text (the prompts as a second document)."""
    text = config.text
    if config.prompts:
        text += "\n---\n" + yaml.safe_dump({"prompts": dict(config.prompts)}, allow_unicode=True, sort_keys=True)
    log.snapshot(config.revision, text)


def make_offer(
    log: Log, metrics: Metrics, learner: Learner, config: Callable[[], Config]
) -> Callable[[RawExchange], None]:
    """What the relay calls at the end of every exchange; it waits for nothing."""
    told = _exchanges.isEnabledFor(logging.DEBUG)

    def offer(exchange: RawExchange) -> None:
        metrics.observe(exchange)
        if told:
            _tell(exchange)
        plan = exchange.plan
        share = 1.0
        if plan is not None:
            preset = config().presets.get(plan.preset)
            share = 1.0 if preset is None else preset.file.log_share
            if plan.assignment is not None:
                learner.note(plan.assignment)
        log.offer(exchange, share)

    return offer


def make_reader(metrics: Metrics, tracing: Tracing | None) -> OnRow:
    """What the log's writer thread calls with every row it has made."""
    if tracing is None:
        return metrics.count_tokens

    def read(row: Row, exchange: RawExchange) -> None:
        metrics.count_tokens(row, exchange)
        tracing(row, exchange)

    return read


def close(log: Log, tracing: Tracing | None) -> None:
    """Write what was offered, then send the spans that came of it."""
    log.close()
    if tracing is not None:
        tracing.close()


def _tell(exchange: RawExchange) -> None:
    """One line of the process's log, with nothing in it that a client wrote."""
    _exchanges.debug(
        "exchange %(exchange)s: preset %(preset)s, %(status)d, %(outcome)s, %(ms).1f ms",
        {
            "exchange": exchange.id,
            "preset": exchange.plan.preset if exchange.plan else None,
            "status": exchange.status,
            "outcome": exchange.outcome,
            "ms": round(exchange.duration * 1000, 1),
        },
    )


async def learn(state: State, learner: Learner) -> None:
    """Bring the allocations of adaptive experiments up to date, for as long as the gateway runs."""
    while True:
        experiments = {trial.name: trial.experiment for trial in state.config.running.values()}
        if any(experiment.allocation == "adaptive" for experiment in experiments.values()):
            try:
                allocations = await asyncio.to_thread(learner.refresh, experiments, time.time())
            except Away as error:
                _log.warning("adaptive allocation keeps its last weights: %s", error)
            else:
                state.facts = msgspec.structs.replace(state.facts, allocations=allocations)
        await asyncio.sleep(LEARN_EVERY)
