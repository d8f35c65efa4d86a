"""What all requests of one process share: the config in force, the engines, and where finished exchanges go.

Reload swaps `config` and nothing else, so a request that has read it keeps the revision it began with. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.log.exchange import RawExchange
from gateway.log.writer import Log
from gateway.policy.choice import Facts
from gateway.policy.config import Config
from gateway.serving.access import Access
from gateway.serving.models import Models
from gateway.serving.way import Way
from gateway.settings import Settings


@dataclass(slots=True)
class State:
    """Owned by the event loop; nothing here is touched from another thread."""

    settings: Settings
    config: Config
    facts: Facts
    pools: Mapping[str, Way]
    models: Models
    access: Access
    log: Log
    offer: Callable[[RawExchange], None]
    degenerate: Callable[[str], bool] | None = None  # judges a text, for the view by temperature
    draining: bool = False
    trouble: str | None = None  # why the last reload was refused
