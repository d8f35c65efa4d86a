"""plan(request, config, facts) -> Plan: everything about one generation request, decided before any I/O.

Which preset, which engine and model, which arm of an experiment, which parameters, and the very bytes the engine will
read. A pure function: what the process knows from outside (the engines' models, a secret, learnt allocations) comes
in as Facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from msgspec import Raw

from gateway.policy import fences, prompts
from gateway.policy.affinity import session
from gateway.policy.choice import Facts, Request, choose
from gateway.policy.config import Config
from gateway.policy.decided import Chosen, Header, Plan, Settled
from gateway.policy.experiments import Assignment, assign, choose_unit
from gateway.policy.params import CHOICES, PARAMS, UNJUDGED, Adjustment, Effective, Guard, Param, Value, resolve
from gateway.policy.presets import Arm, Preset
from gateway.protocol import envelope, structured
from gateway.protocol.dialects import ASKED, DIALECTS, Dialect, Protocol
from gateway.protocol.errors import Forbidden, GatewayError, InvalidRequest, OutOfRange


def plan(request: Request, config: Config, facts: Facts) -> Plan:
    """Everything about one request, decided.

    Raises NotFound (preset, model), InvalidRequest and OutOfRange (a field), Forbidden (the key) and
    UpstreamUnavailable (models never seen); once the preset is known the error tells the client which it was.
    """
    fields = request.fields
    judged = tuple([(name, bytes(raw)) for name, raw in fields.items() if name in _JUDGED])
    case = (judged, request.protocol, request.preset, request.key_preset, request.key_presets)
    small = sum([len(raw) for _, raw in judged]) <= _MEMORABLE
    chosen = (_choose if small else _choose.__wrapped__)(case, config, facts)
    try:
        fences.check_media(fields, config.open_fields)
        assignment, arm = _assign(request, config, facts, chosen.preset)
        settled = chosen.settled.get(arm)
        if settled is None:
            settled = chosen.settled[arm] = _settle(case, config, chosen, arm)
    except GatewayError as error:
        error.told = chosen.told
        raise
    out: dict[str, Any] = dict(fields)
    for name in settled.replaced:
        del out[name]
    out |= settled.fields
    if arm.system_prompt is not None:
        out |= prompts.merge(request.protocol, fields, arm.system_prompt)
    return Plan(
        protocol=request.protocol,
        path=request.path,
        upstream=chosen.upstream,
        model=chosen.model.id,
        body=envelope.encode(out),
        stream=settled.stream,
        drop_usage=settled.drop_usage,
        preset=chosen.preset.name,
        revision=config.revision,
        effective=settled.effective,
        assignment=assignment,
        log=chosen.preset.file.log,
        headers=settled.headers if assignment is None else (*settled.headers, _variant(assignment)),
        session=session(facts.pepper, request.key, request.units.get("conversation")),
    )


# Of a request's fields a plan depends on these, the unit's identifiers and nothing else; the others are the engine's.
# The same few combinations come all day long, so what was decided about one is remembered (and nobody writes to it),
# up to so many bytes: texts of any length are not worth remembering.
_JUDGED: Final = frozenset({"model", "preset", "n", "stream", "stream_options"}).union(
    fences.WATCHED,
    *(dialect.fenced for dialect in DIALECTS.values()),
    *(spellings for names in ASKED.values() for spellings in names.values()),
)
_MEMORABLE: Final = 512
_Case = tuple[tuple[tuple[str, bytes], ...], Protocol, str | None, str | None, frozenset[str] | None]


@lru_cache(maxsize=512)
def _choose(case: _Case, config: Config, facts: Facts) -> Chosen:
    judged, protocol, preset_name, key_preset, _ = case
    fields = {name: Raw(raw) for name, raw in judged}
    asked = Request(protocol=protocol, path="", fields=fields, preset=preset_name, key_preset=key_preset)
    preset, upstream, model = choose(asked, config, facts)
    told = ((b"x-tempera-preset", preset.name.encode()), (b"x-tempera-revision", config.revision.encode()))
    return Chosen(preset, upstream, model, facts.engines[upstream].dialect, told, {})


def _settle(case: _Case, config: Config, chosen: Chosen, arm: Arm) -> Settled:
    judged, protocol, _, _, key_presets = case
    fields = {name: Raw(raw) for name, raw in judged}
    preset, dialect, context = chosen.preset, chosen.dialect, chosen.model.context
    if key_presets is not None and preset.name not in key_presets:
        raise Forbidden(f"This key may not use the preset {preset.name!r}.", code="preset_not_allowed", param="preset")
    fences.check(fields, config.open_fields, dialect.fenced)
    stream = _stream(fields)
    effective = _route(dialect, protocol, resolve(arm.guard, ask(protocol, fields, arm.guard), context))
    values = effective.values
    # A seed or stop of the client's own keeps its bytes.
    own = {name for name in UNJUDGED if name in effective.asked and effective.asked[name] == values.get(name)}
    ours = dialect.spell(protocol, {name: value for name, value in values.items() if name not in own}, context)
    ours["model"] = chosen.model.id
    usage = _ask_usage(protocol, fields, stream)
    if usage is not None:
        ours["stream_options"] = usage
    replaced = [name for name in fields if name in _OWNED]
    if ("n", b"null") in judged:
        replaced.append("n")  # vLLM refuses it on one route
    return Settled(effective, ours, tuple(replaced), stream, usage is not None, (*chosen.told, *_told(effective)))


def _told(effective: Effective) -> Iterator[Header]:
    """What the reply headers say of the parameters."""
    shown = structured.dictionary({name: value for name, value in effective.values.items() if name in PARAMS})
    yield b"x-tempera-params", shown.encode()
    changed = [(a.name, a.asked, a.used, a.by) for a in effective.adjustments if a.name in PARAMS]
    if changed:
        yield b"x-tempera-adjusted", structured.adjustments(changed).encode()


def ask(protocol: Protocol, fields: envelope.Fields, guard: Guard) -> dict[str, Value]:
    """What the client asks of the parameters, under our names; null means not asked.

    Raises OutOfRange outside a domain.

    Seed and stop are read only where the preset has a rule for them.
    """
    asked: dict[str, Value] = {}
    spelled = _SPELLED[protocol]
    # Sorted, so that of two spellings of one parameter the one that counts comes first (see ASKED).
    for field in sorted(spelled.keys() & fields.keys()):
        name, param = spelled[field]
        if param is None and name not in guard.rules:
            continue
        value = _value(protocol, fields, field)
        if value is not None:
            asked.setdefault(name, _frozen(value) if param is None else param.check(value, field))
    choices = _value(protocol, fields, "n") if "n" in fields else None
    if choices is not None:
        CHOICES.check(choices, "n")
    return asked


_SPELLED: Final[Mapping[Protocol, Mapping[str, tuple[str, Param | None]]]] = {
    protocol: {field: (name, PARAMS.get(name)) for name, spellings in names.items() for field in spellings}
    for protocol, names in ASKED.items()
}


def _value(protocol: Protocol, fields: envelope.Fields, field: str) -> Any:
    try:
        return envelope.value(fields, field)
    except OutOfRange as error:
        raise with_range(protocol, error) from None


def with_range(protocol: Protocol, error: InvalidRequest) -> InvalidRequest:
    """A refusal of the whole body because of one number in it, with the range of the parameter that this is."""
    if error.code == "out_of_range":
        known = {field: PARAMS[name] for name, fields in ASKED[protocol].items() if name in PARAMS for field in fields}
        param = (known | {"n": CHOICES}).get(error.param or "")
        if param is not None:
            return OutOfRange(f"{error.message} It must be {param.domain}.", param=error.param)
    return error


# Every spelling of what the gateway decides: taken out of the client's fields before our own are put in. A name of the
# limit that belongs to another protocol would be read by an engine that knows them all.
_OWNED: Final = frozenset({"preset"}.union(*(names[name] for names in ASKED.values() for name in PARAMS)))


def _frozen(value: Any) -> Value:
    """A list of stop strings as a tuple; anything else that is no plain value is the engine's to refuse."""
    return (
        tuple(map(str, value)) if isinstance(value, list) else value if isinstance(value, int | float) else str(value)
    )


def _stream(fields: envelope.Fields) -> bool:
    raw = fields.get("stream")
    text = b"null" if raw is None else bytes(raw)
    if text in (b"false", b"null"):
        return False
    if text == b"true":
        return True
    shown = envelope.show(envelope.value(fields, "stream"))
    raise InvalidRequest(f"stream must be true or false; got {shown}.", code="invalid_type", param="stream")


def _assign(request: Request, config: Config, facts: Facts, preset: Preset) -> tuple[Assignment | None, Arm]:
    """The experiment's arm for this unit, or the preset itself."""
    trial = config.running.get(preset.name)
    if trial is None:
        return None, preset.arm
    user = _identifier(request.fields, "user") or _identifier(request.fields, "safety_identifier")
    unit = choose_unit({"user": user, **request.units}, trial.experiment.unit, facts.pepper)
    assignment = assign(trial.name, trial.experiment, unit, facts.allocations.get(trial.name))
    return assignment, trial.arms[assignment.variant if assignment else trial.experiment.control]


def _identifier(fields: envelope.Fields, name: str) -> str | None:
    value = envelope.value(fields, name) if name in fields else None
    return value[:512] if isinstance(value, str) else None


def _route(dialect: Dialect, protocol: Protocol, effective: Effective) -> Effective:
    """Parameters this engine's route has no field for are not sent.

    Told where somebody wanted something other than neutral.
    """
    lacking = [name for name in effective.values if dialect.lacks(protocol, name)]
    if not lacking:
        return effective
    told = [
        Adjustment(name, effective.asked.get(name, effective.values[name]), None, "route")
        for name in lacking
        if name not in PARAMS or effective.values[name] != PARAMS[name].neutral
    ]
    kept = {name: value for name, value in effective.values.items() if name not in lacking}
    others = tuple(a for a in effective.adjustments if a.name not in lacking)
    return Effective(kept, (*others, *told), effective.asked)


def _ask_usage(protocol: Protocol, fields: envelope.Fields, stream: bool) -> dict[str, Any] | None:
    """Stream options that ask for the token counts, or None when they come anyway or cannot be had."""
    if not stream or protocol not in ("chat", "completions"):
        return None
    options = envelope.value(fields, "stream_options") if "stream_options" in fields else None
    if options is not None and (not isinstance(options, dict) or options.get("include_usage")):
        return None
    # Alone it does nothing; together with ours it would put the counts into every chunk.
    rest = {name: value for name, value in (options or {}).items() if name != "continuous_usage_stats"}
    return rest | {"include_usage": True}


def _variant(assignment: Assignment) -> Header:
    return b"x-tempera-variant", f"{assignment.experiment}={assignment.variant}".encode()
