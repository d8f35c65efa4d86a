"""Whom a request is for: the preset it names, and the engine and model that will serve it.

Body, header, model name, key and default are asked in that order. Knows names and what the process knows of its
engines (Facts); nothing about parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from gateway.policy.config import Config
from gateway.policy.experiments import Allocation, UnitKind
from gateway.policy.presets import Preset
from gateway.protocol import envelope
from gateway.protocol.dialects import Dialect, Protocol
from gateway.protocol.errors import InvalidRequest, NotFound, UpstreamUnavailable


class Request(Struct, frozen=True, kw_only=True):
    """What a client sent, as far as a plan depends on it.

    `units` are its identifiers; the key's rules come from access.
    """

    protocol: Protocol
    path: str
    fields: envelope.Fields
    preset: str | None = None  # the X-Preset header
    units: Mapping[UnitKind, str | None] = {}  # X-Unit-Id and the conversation header; body fields are read here
    key: str | None = None  # the name of the key
    key_preset: str | None = None
    key_presets: frozenset[str] | None = None  # None: all


class Model(Struct, frozen=True):
    """One entry of an engine's model list, with what the engine says of it: max_model_len in tokens, its parameters."""

    id: str
    context: int | None = None
    parameters: int | None = None


class Engine(Struct, frozen=True):
    """An upstream as far as a plan depends on it. `models` is empty until the engine has been reached."""

    dialect: Dialect
    models: tuple[Model, ...] = ()


class Facts(Struct, frozen=True, eq=False):
    """What the process knows. The first engine is the default one. Equal only to itself, so that it can key a cache."""

    engines: Mapping[str, Engine]
    pepper: str = ""
    allocations: Mapping[str, Allocation] = {}


def choose(request: Request, config: Config, facts: Facts) -> tuple[Preset, str, Model]:
    """Preset, upstream and engine model.

    Body, header, model name, key, default: the first one that names a preset wins.
    """
    name = _string(request.fields, "model")
    default_upstream = next(iter(facts.engines))
    found: tuple[str, Model] | None = None
    by_model: str | None = None
    if name is not None:
        if name in config.presets:
            by_model = name
        else:
            found = _find(name, facts)
            if found is None:
                base, colon, suffix = name.rpartition(":")
                found = _find(base, facts) if colon else None
                if found is None:
                    raise _unknown_model(name, config, facts)
                by_model = suffix
    chosen = _string(request.fields, "preset") or request.preset or by_model or request.key_preset or config.default
    preset = config.presets.get(chosen)
    if preset is None:
        raise NotFound(
            f"There is no preset {chosen[:80]!r}; there are: {', '.join(config.presets)}.",
            code="preset_not_found",
            param="preset",
        )
    if found is not None:
        return preset, *found
    upstream = preset.file.upstream or default_upstream
    models = facts.engines[upstream].models
    if not models:
        raise _never_reached()
    wanted = preset.file.model
    model = next((m for m in models if m.id == wanted), None) if wanted else models[0]
    if model is None:
        raise NotFound(
            f"The preset {preset.name!r} wants the model {wanted!r}, which the engine does not have.",
            code="model_not_found",
            param="model",
        )
    return preset, upstream, model


def _find(name: str, facts: Facts) -> tuple[str, Model] | None:
    for upstream, engine in facts.engines.items():
        for model in engine.models:
            if model.id == name:
                return upstream, model
    return None


def _unknown_model(name: str, config: Config, facts: Facts) -> NotFound | UpstreamUnavailable:
    if not any(engine.models for engine in facts.engines.values()):
        return _never_reached()
    known = [model.id for engine in facts.engines.values() for model in engine.models] + list(config.presets)
    return NotFound(
        f"There is no model {name[:80]!r}; there are: {', '.join(known)}.", code="model_not_found", param="model"
    )


def _never_reached() -> UpstreamUnavailable:
    return UpstreamUnavailable("The engine has not been reached yet, so its models are not known.", retry_after=1)


def _string(fields: envelope.Fields, name: str) -> str | None:
    if name not in fields:
        return None
    value = envelope.value(fields, name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string; got {envelope.show(value)}.", code="invalid_type", param=name)
    return value or None
