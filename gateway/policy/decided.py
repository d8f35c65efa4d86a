"""What was decided about a request, as values: the Plan, and the two halves of it that do not depend on the texts.

Made by plan.py; immutable.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from gateway.policy.choice import Model
from gateway.policy.experiments import Assignment
from gateway.policy.params import Effective
from gateway.policy.presets import Arm, Preset
from gateway.protocol.dialects import Dialect, Protocol

Header = tuple[bytes, bytes]


class Plan(Struct, frozen=True, kw_only=True):
    """What will be sent, why, and what the client is told.

    `headers` are the reply headers that do not depend on the exchange.
    """

    protocol: Protocol
    path: str
    upstream: str
    model: str
    body: bytes
    stream: bool
    drop_usage: bool  # the usage event was asked for by us and must not reach the client
    preset: str
    revision: str
    effective: Effective
    assignment: Assignment | None
    log: Literal["full", "parameters", "off"]
    headers: tuple[Header, ...]
    session: bytes | None = None  # tells the engines' balancer which requests belong together


class Chosen(Struct, frozen=True, eq=False):
    """Whom a request is for, the reply headers that say so, and what was settled for each arm it came to."""

    preset: Preset
    upstream: str
    model: Model
    dialect: Dialect
    told: tuple[Header, ...]
    settled: dict[Arm, Settled]


class Settled(Struct, frozen=True):
    """What was decided for a request: the parameters, the engine's fields for them in the place of which others, and
    what the client is told.
    """

    effective: Effective
    fields: dict[str, Any]
    replaced: tuple[str, ...]
    stream: bool
    drop_usage: bool
    headers: tuple[Header, ...]
