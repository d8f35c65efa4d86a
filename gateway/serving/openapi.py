"""The data path's routes in the OpenAPI document: FastAPI does not serve them, so they are described here.

Descriptions only; the engine's own fields are the engine's to document.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.policy.params import PARAMS, Param
from gateway.protocol.dialects import ASKED, PATHS, Protocol
from gateway.serving import shapes
from gateway.serving.routes import PASSED

_SUMMARY: Final[dict[Protocol, str]] = {
    "chat": "A chat completion, with the preset applied",
    "batch": "Several conversations in one request (vLLM), with the preset applied",
    "completions": "A text completion of a raw prompt, with the preset applied",
    "responses": "A response in OpenAI's newer protocol, with the preset applied",
    "messages": "A message in Anthropic's protocol, with the preset applied",
}
_ERROR: Final = {
    "description": "An error, in the OpenAI shape",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_TOLD: Final = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in {
        "X-Tempera-Exchange": "the id of this exchange, a UUIDv7",
        "X-Request-Id": "the client's own id if it sent a sane one, else the exchange id",
        "X-Tempera-Preset": "the preset that was applied",
        "X-Tempera-Revision": "the revision of the presets file, 12 hex digits",
        "X-Tempera-Params": "the parameters really used (an RFC 9651 dictionary)",
        "X-Tempera-Adjusted": "what was changed and why: name=(asked used);by=bound|pin|cap|route",
        "X-Tempera-Variant": "experiment=variant, where one applies",
    }.items()
}
_RESPONSE_ID: Final = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"}


def install(api: FastAPI) -> None:
    """Make `api.openapi()` describe every route of the gateway."""

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = get_openapi(title=api.title, version=api.version, routes=api.routes)
            for path, item in schema["paths"].items():
                for operation in item.values():
                    _complete(operation, path)
            schema["paths"] |= _paths()
            key = {"type": "http", "scheme": "bearer"}
            schema["components"] = {
                "schemas": shapes.components() | {"Error": _error_schema()},
                "securitySchemes": {"key": key},
            }
            schema["security"] = [{"key": []}, {}]  # without any keys the gateway asks for none
            api.openapi_schema = schema
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]


def _complete(operation: dict[str, Any], path: str) -> None:
    """What FastAPI cannot know of a management route: what it answers, and what it reads by itself."""
    good = "201" if "201" in operation["responses"] else "200"
    content = shapes.ANSWERS[path]
    operation["responses"] = {good: {"description": "As asked", "content": content}, "4XX": _ERROR, "5XX": _ERROR}
    if path == "/readyz":
        operation["responses"]["503"] = {"description": "Not ready", "content": content}
    elif path == "/v1/feedback":
        operation["requestBody"] = _body({"$ref": "#/components/schemas/Vote"})
    elif path == "/v1/exchanges":
        operation["parameters"] = shapes.parameters()


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _paths() -> dict[str, Any]:
    paths = {path: {"post": _generation(protocol)} for path, protocol in PATHS.items()}
    paths |= {path: {"post": _operation("Passed on to the engine", {"type": "object"})} for path in sorted(PASSED)}
    told = _operation("A prompt in, a text out", _generate_schema())
    content = told["responses"]["200"]["content"]["application/json"]
    content["schema"] = shapes.object_of({"response": {"type": "string"}})
    paths["/generate"] = {"post": told}
    for path, method in (("/v1/responses/{id}", "get"), ("/v1/responses/{id}/cancel", "post")):
        operation = _operation("Passed on to the engine", {"type": "object"})
        del operation["requestBody"]
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": _RESPONSE_ID}]
        paths[path] = {method: operation}
    return paths


def _generation(protocol: Protocol) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "model": {"type": "string", "description": "a preset, an engine model, or engine:preset"},
        "preset": {"type": ["string", "null"], "description": "wins over the model's name; not sent to the engine"},
        "stream": {"type": ["boolean", "null"]},
    }
    for name, spellings in ASKED[protocol].items():
        if name in PARAMS:
            properties |= {field: _number(PARAMS[name]) for field in spellings}
    result = _operation(_SUMMARY[protocol], {"type": "object", "properties": properties})
    result["responses"]["200"]["headers"] = _TOLD
    result["responses"]["200"]["content"]["text/event-stream"] = {}
    return result


def _operation(summary: str, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "tags": ["generation"],
        "requestBody": _body(body),
        "responses": {
            "200": {
                "description": "The engine's reply",
                "content": {"application/json": {"schema": {"type": ["object", "array"]}}},
            },
            "4XX": _ERROR,
            "5XX": _ERROR,
        },
    }


def _number(param: Param) -> dict[str, Any]:
    kind = "integer" if param.integer else "number"
    return {"type": [kind, "null"], "description": param.domain}


def _generate_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {
            "prompt": {"type": "string", "minLength": 1},
            "temperature": _number(PARAMS["temperature"]),
            "max_tokens": _number(PARAMS["max_tokens"]),
            "preset": {"type": ["string", "null"]},
        },
    }


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    code = {"type": ["string", "integer", "null"], "description": "a number where the words are the engine's own"}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": code}
    return {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": ["message", "type"], "properties": fields}},
    }
