"""What the management routes take and answer, as the OpenAPI document says it.

JSON Schemas, from the structs themselves where there are some. Descriptions only: nothing is checked with them at run
time; the tests hold the replies against them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.log.bins import Bin
from gateway.log.export import MEDIA_TYPES
from gateway.log.feedback import LONGEST, Vote
from gateway.log.finding import Result
from gateway.log.queries import MOST, PAGE, Filters
from gateway.log.row import COLUMNS, JSON_COLUMNS, Row
from gateway.policy.experiments import Variant
from gateway.policy.params import PARAMS, UNJUDGED

Schema = dict[str, Any]
_TEXT: Final[Schema] = {"type": "string"}
_TEXT_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
_NUMBER: Final[Schema] = {"type": "number"}
_NUMBER_OR_NULL: Final[Schema] = {"type": ["number", "null"]}
_WHOLE: Final[Schema] = {"type": "integer"}
_FLAG: Final[Schema] = {"type": "boolean"}
_REF: Final = "#/components/schemas/{name}"
_IDS: Final = ("exchange_id", "response_id", "request_id")


def object_of(required: Schema, **optional: Schema) -> Schema:
    """An object with these members and no others."""
    members = {**required, **optional}
    return {"type": "object", "required": list(required), "properties": members, "additionalProperties": False}


def _list_of(entry: Schema) -> Schema:
    return {"type": "array", "items": entry}


def _map_of(entry: Schema) -> Schema:
    return {"type": "object", "additionalProperties": entry}


def _named(name: str) -> Schema:
    return {"$ref": _REF.format(name=name)}


def _page_of(name: str, **more: Schema) -> Schema:
    return object_of({"object": {"const": "list"}, "data": _list_of(_named(name)), **more})


def components() -> Schema:
    """One schema for each thing that a management route takes or answers, by its name."""
    found: Schema = msgspec.json.schema_components((Bin, Result, Row, Variant), ref_template=_REF)[1]
    kinds = zip(COLUMNS, found.pop("Row")["prefixItems"][1:], strict=True)
    decoded: Schema = {"type": ["array", "object", "null"]}
    columns = {name: decoded if name in JSON_COLUMNS else kind for name, kind in kinds}
    found |= {
        "Vote": _vote(),
        "Feedback": object_of({"id": _TEXT, "exchange_id": _TEXT, "time": _NUMBER, **_VOTED}),
        "Exchange": object_of(columns, feedback=_list_of(_named("Feedback"))),
        "Model": _MODEL,
        "Preset": _PRESET,
        "Trial": _TRIAL,
        "Ready": _READY,
    }
    return found


_VOTED: Final = {
    "name": {"type": "string", "minLength": 1, "maxLength": LONGEST["name"]},
    "value": {"type": ["number", "null"], "minimum": -1, "maximum": 1},
    "comment": _TEXT_OR_NULL | {"maxLength": LONGEST["comment"]},
    "source": _TEXT_OR_NULL | {"maxLength": LONGEST["source"]},
}


def _vote() -> Schema:
    vote = object_of({"value": _VOTED["value"]}, **dict.fromkeys(_IDS, _TEXT_OR_NULL), **_VOTED)
    one = [object_of({name: _TEXT}) | {"additionalProperties": True} for name in _IDS]
    return vote | {"description": Vote.__doc__, "oneOf": one}


_BOTH: Final = object_of({"en": _TEXT, "zh": _TEXT})
_STARTERS: Final = object_of({"en": _list_of(_TEXT), "zh": _list_of(_TEXT)})
_RULE: Final = object_of({"default": {}, "min": _NUMBER_OR_NULL, "max": _NUMBER_OR_NULL, "pin": {}})
_MODEL: Final = object_of(
    {"id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT},
    max_model_len={"type": ["integer", "null"]},
    meta=object_of({"n_params": _WHOLE}),
    preset={"const": True, "description": "this is a preset, not a model of the engine's"},
)
_PRESET: Final = object_of(
    {
        "name": _TEXT,
        "title": _BOTH,
        "hint": _BOTH,
        "icon": _TEXT,
        "starters": _STARTERS,
        "parameters": object_of(dict.fromkeys(PARAMS, _RULE), **dict.fromkeys(UNJUDGED, _RULE)),
        "when_hot": {"anyOf": [_map_of(_NUMBER), {"type": "null"}]},
        "on_violation": {"enum": ["clamp", "reject"]},
        "system_prompt": {**_FLAG, "description": "whether there is one"},
        "revision": _TEXT,
        "experiment": {**_TEXT_OR_NULL, "description": "the one that is running"},
        "log": {"enum": ["full", "parameters", "off"]},
    }
)
_TRIAL: Final = object_of(
    {
        "name": _TEXT,
        "preset": _TEXT,
        "state": _TEXT,
        "exposure": _NUMBER,
        "unit": _TEXT,
        "allocation": _TEXT,
        "variants": _map_of(_named("Variant")),
    }
)
_READY: Final = object_of(
    {
        "status": {"enum": ["ready", "not ready", "draining"]},
        "engines": _map_of(_TEXT),
        "revision": _TEXT,
        "presets": {**_TEXT, "description": "ok, or why the file on the disk is not in force"},
        "keys": _TEXT,
        "log": {"type": ["string", "object"]},
    },
    limits=_TEXT,
)


def parameters() -> list[Schema]:
    """The query parameters of the sample log."""
    filters = {
        field.name: _NUMBER if field.type == float | None else _TEXT for field in msgspec.structs.fields(Filters)
    }
    more = {
        "limit": {"type": "integer", "minimum": 1, "maximum": MOST, "default": PAGE},
        "before": _TEXT | {"description": "the `next` of the page before"},
        "by": {"enum": ["temperature"]},
        "format": {"enum": list(MEDIA_TYPES)},
    }
    return [{"name": name, "in": "query", "schema": schema} for name, schema in (filters | more).items()]


def _json(schema: Schema, **other: Schema) -> Schema:
    return {"application/json": {"schema": schema}, **other}


# What a route answers when all is well, by its path: media types and their schemas.
ANSWERS: Final[Schema] = {
    "/v1/models": _json(_page_of("Model")),
    "/v1/models/{model}": _json(_named("Model")),
    "/v1/presets": _json(_page_of("Preset", revision=_TEXT, default=_TEXT)),
    "/v1/presets/{name}": _json(_named("Preset")),
    "/v1/feedback": _json(_named("Feedback")),
    "/v1/exchanges": _json(
        {"oneOf": [_page_of("Exchange", next=_TEXT_OR_NULL), _page_of("Bin")]},
        **{kind.partition(";")[0]: {} for kind in MEDIA_TYPES.values()},
    ),
    "/v1/exchanges/{name}": _json(_named("Exchange")),
    "/v1/revisions/{revision}": {"application/yaml": {"schema": _TEXT}},
    "/v1/experiments": _json(_page_of("Trial", revision=_TEXT)),
    "/v1/experiments/{name}": _json(_named("Result"), **{"text/html": {"schema": _TEXT}}),
    "/healthz": _json(object_of({"status": {"const": "ok"}})),
    "/readyz": _json(_named("Ready")),
    "/metrics": {"text/plain": {"schema": _TEXT}},
}
