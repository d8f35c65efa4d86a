"""The management routes and the docs page: what the gateway offers about itself. FastAPI; not on the data path.

Knows the public shape of models and presets. Reads the State, changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from gateway.policy.params import PARAMS, Rule, starting
from gateway.policy.presets import Preset
from gateway.protocol.errors import GatewayError, Internal, InvalidRequest, MethodNotAllowed, NotFound
from gateway.serving import openapi
from gateway.serving.access import key_of
from gateway.serving.metrics import CONTENT_TYPE
from gateway.serving.records import create_records
from gateway.serving.state import State

VERSION = "0.1.0"
Page = Callable[[], Awaitable[bytes]]


def create_api(state: State, page: Page, lifespan: Any) -> FastAPI:
    """The FastAPI application behind the data path. `page` gives the metrics."""
    api = FastAPI(title="Tempera", version=VERSION, lifespan=lifespan, redoc_url=None)
    key_needed = [Depends(_needs_key(state))]
    api.include_router(_models(state), dependencies=key_needed)
    api.include_router(_presets(state), dependencies=key_needed)
    api.include_router(create_records(state))
    api.include_router(_health(state, page))
    api.add_exception_handler(GatewayError, _gateway_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(RequestValidationError, _bad_request)
    api.add_exception_handler(Exception, _fault)
    openapi.install(api)
    return api


def _needs_key(state: State) -> Callable[[Request], None]:
    def admit(request: Request) -> None:
        state.access.admit(key_of(request.headers))

    return admit


def _models(state: State) -> APIRouter:
    router = APIRouter(tags=["models"])

    def entries() -> list[dict[str, Any]]:
        engines = [
            {"id": model.id, "object": "model", "created": 0, "owned_by": upstream, "max_model_len": model.context}
            | ({} if model.parameters is None else {"meta": {"n_params": model.parameters}})
            for upstream, engine in state.facts.engines.items()
            for model in engine.models
        ]
        names = [
            {"id": name, "object": "model", "created": 0, "owned_by": "tempera", "preset": True}
            for name in state.config.presets
        ]
        return engines + names

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The engine's models, and one entry per preset."""
        if not any(engine.models for engine in state.facts.engines.values()):
            await state.models.refresh()
        return {"object": "list", "data": entries()}

    @router.get("/v1/models/{model:path}")
    async def show_model(model: str) -> dict[str, Any]:
        """One model or preset by its name."""
        for attempt in range(2):
            known = {entry["id"]: entry for entry in entries()}
            base, _, preset = model.rpartition(":")  # what a request may ask for can be looked up
            engine = known.get(base, {"preset": True})
            if model not in known and preset in state.config.presets and "preset" not in engine:
                return engine | {"id": model}
            if model in known:
                found: dict[str, Any] = known[model]
                return found
            if attempt == 0:
                await state.models.refresh()
        raise NotFound(f"There is no model {model[:80]!r}.", code="model_not_found", param="model")

    return router


def _presets(state: State) -> APIRouter:
    router = APIRouter(tags=["presets"])

    @router.get("/v1/presets")
    async def list_presets() -> dict[str, Any]:
        """Every preset: words in English and Chinese, and each parameter's default, bounds or pin."""
        data = [_describe(state, preset) for preset in state.config.presets.values()]
        return {"object": "list", "revision": state.config.revision, "default": state.config.default, "data": data}

    @router.get("/v1/presets/{name}")
    async def show_preset(name: str) -> dict[str, Any]:
        """One preset."""
        preset = state.config.presets.get(name)
        if preset is None:
            known = ", ".join(state.config.presets)
            raise NotFound(
                f"There is no preset {name[:80]!r}; there are: {known}.", code="preset_not_found", param="preset"
            )
        return _describe(state, preset)

    return router


def _describe(state: State, preset: Preset) -> dict[str, Any]:
    file, guard = preset.file, preset.arm.guard
    trial = state.config.running.get(preset.name)
    return {
        "name": preset.name,
        "title": {"en": file.title.en, "zh": file.title.zh},
        "hint": {"en": file.hint.en, "zh": file.hint.zh},
        "icon": file.icon,
        "starters": {"en": file.starters.en, "zh": file.starters.zh},
        "parameters": describe_rules(guard.rules),
        "when_hot": None if guard.hot is None else {"above": guard.hot.above, **guard.hot.values},
        "on_violation": file.on_violation,
        "system_prompt": preset.arm.system_prompt is not None,
        "revision": state.config.revision,
        "experiment": None if trial is None else trial.name,
        "log": file.log,
    }


def describe_rules(rules: Mapping[str, Rule]) -> dict[str, dict[str, Any]]:
    """`{default.

    Min, max, pin}` of every parameter; the default is what is sent when nobody asks (None: nothing is sent).
    """
    result: dict[str, dict[str, Any]] = {}
    for name, param in PARAMS.items():
        rule = rules.get(name, Rule())
        default = starting(param, rule) if rule.pin is None else rule.pin
        result[name] = {"default": default, "min": rule.min, "max": rule.max, "pin": rule.pin}
    for name in ("seed", "stop"):
        if name in rules:
            default, pin = rules[name].default, rules[name].pin
            result[name] = {"default": default if pin is None else pin, "min": None, "max": None, "pin": pin}
    return result


def _health(state: State, page: Page) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/healthz")
    @router.get("/health", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether requests can be served: 200, or 503 with what is in the way."""
        if not all(state.models.reached.values()):
            await state.models.refresh()
        reached = state.models.reached
        ready = any(reached.values()) and not state.draining
        body = {
            "status": "draining" if state.draining else "ready" if ready else "not ready",
            "engines": {
                name: "ok" if ok else state.models.trouble.get(name, "not asked yet") for name, ok in reached.items()
            },
            "revision": state.config.revision,
            "presets": state.trouble or "ok",
            "keys": state.access.trouble or "ok",
            "limits": state.access.limiter.trouble or "ok",
            "log": _log_state(state.log.stats()) if state.log.opened else "opening",
        }
        return JSONResponse(body, 200 if ready else 503)

    @router.get("/metrics")
    async def show_metrics() -> Response:
        """Prometheus metrics."""
        return Response(await page(), media_type=CONTENT_TYPE)

    return router


def _log_state(found: dict[str, Any]) -> str | dict[str, Any]:
    """`ok`, or what is not: a log in trouble does not stop the serving."""
    wrong = {name: found[name] for name in ("database_error", "spool_error", "dropped") if found[name]}
    return wrong or "ok"


def _answer(error: GatewayError) -> Response:
    headers = {name.decode(): value.decode() for name, value in (*error.headers, *error.told)}
    return Response(error.body(), error.status, headers, media_type="application/json")


async def _gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return _answer(error)


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours. Starlette raises it again after the answer, so that it is in the process's log."""
    return _answer(Internal("The gateway failed on this request; its log says why."))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(NotFound(f"There is no route {request.url.path[:120]}."))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow", "GET")
        return _answer(MethodNotAllowed(f"{request.url.path[:120]} does not take {request.method}.", allowed))
    mended = InvalidRequest(str(error.detail))
    mended.status = error.status_code
    return _answer(mended)


async def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return _answer(InvalidRequest(f"{field}: {first['msg']}; got {first.get('input')!r:.60}.", param=field or None))
