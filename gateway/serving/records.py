"""The routes of the sample log: feedback, exchanges, experiments. FastAPI; the database is asked on other threads.

Knows HTTP and what is for operators only; the questions and the answers are the log's.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, get_args

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from sqlalchemy import Engine

from gateway.log import feedback, page, queries, results
from gateway.log.bins import by_temperature
from gateway.log.export import MEDIA_TYPES, Format, NoParquet, export
from gateway.log.feedback import LogUnavailable
from gateway.log.queries import MOST, PAGE, Filters
from gateway.log.store import Away
from gateway.log.words import choose_language
from gateway.policy.config import Trial
from gateway.protocol.errors import InvalidRequest, NotFound, OutOfRange
from gateway.serving.access import key_of
from gateway.serving.state import State

_Answer = TypeVar("_Answer")
_FORMATS: Final = get_args(Format)
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_LATEST: Final = 2**48 // 1000  # the last second that a UUIDv7 can name


def create_records(state: State) -> APIRouter:
    """Everything about recorded exchanges."""
    router = APIRouter(tags=["records"])
    _feedback(router, state)
    _exchanges(router, state)
    _experiments(router, state)
    return router


async def _ask(question: Callable[[], _Answer]) -> _Answer:
    """A question to the database. Raises LogUnavailable when it does not answer."""
    try:
        return await asyncio.to_thread(question)
    except Away as error:
        raise LogUnavailable(f"The log's database does not answer: {error}.", retry_after=2) from error


def _feedback(router: APIRouter, state: State) -> None:
    @router.post("/v1/feedback", status_code=201)
    async def give_feedback(request: Request) -> Response:
        """A vote on an exchange: exchange_id, response_id or request_id, name, value in [-1, 1] or null, comment."""
        state.access.admit(key_of(request.headers))
        vote = feedback.parse(await _read(request, 64 * 1024))
        _check_texts(msgspec.structs.asdict(vote))
        row = await asyncio.to_thread(feedback.give, state.log, vote)
        return Response(msgspec.json.encode(row), 201, media_type="application/json")


def _exchanges(router: APIRouter, state: State) -> None:
    @router.get("/v1/exchanges")
    async def list_exchanges(request: Request) -> Response:
        """The sample log, newest first: filters, `limit`, `before`; `by=temperature` or `format=jsonl|csv|parquet`."""
        state.access.check_operator(key_of(request.headers))
        asked = dict(request.query_params)
        _check_texts(asked)
        _check_together(asked)
        before, form, by = asked.pop("before", None), asked.pop("format", None), asked.pop("by", None)
        limit = _whole("limit", asked.pop("limit", str(PAGE)), MOST)
        filters, engine = _filters(asked), state.log.engine
        if by is not None:
            if by != "temperature":
                raise InvalidRequest(f"by must be temperature; got {by[:40]!r}.", param="by")
            bins = await _ask(lambda: by_temperature(engine, filters, degenerate=state.degenerate))
            return _json({"object": "list", "data": bins})
        if form is not None:
            if form not in _FORMATS:
                raise InvalidRequest(f"format must be one of {', '.join(_FORMATS)}; got {form[:40]!r}.", param="format")
            return await _file(state, form, filters)
        rows, more = await _ask(lambda: queries.page(engine, filters, before, limit))
        return _json({"object": "list", "data": rows, "next": more})

    @router.get("/v1/exchanges/{name}")
    async def show_exchange(request: Request, name: str) -> Response:
        """One exchange with its feedback."""
        state.access.check_operator(key_of(request.headers))
        _check_texts({"id": name})
        found = await _ask(lambda: queries.one(state.log.engine, name))
        if found is None:
            raise NotFound(f"There is no exchange {name[:80]!r}.", code="exchange_not_found", param="id")
        return _json(found)

    @router.get("/v1/revisions/{revision}")
    async def show_revision(request: Request, revision: str) -> Response:
        """The presets and prompts behind a revision."""
        state.access.check_operator(key_of(request.headers))
        _check_texts({"revision": revision})
        text = await _ask(lambda: queries.snapshot(state.log.engine, revision))
        if text is None:
            raise NotFound(f"There is no revision {revision[:80]!r}.", code="revision_not_found", param="revision")
        return Response(text, media_type="application/yaml")


async def _file(state: State, form: Any, filters: Filters) -> Response:
    try:
        pieces = await _ask(lambda: _begin(state.log.engine, form, filters))
    except NoParquet as error:
        raise InvalidRequest(f"{error}.", param="format") from None
    headers = {"content-disposition": f'attachment; filename="exchanges.{form}"'}
    return StreamingResponse(_pieces(pieces), headers=headers, media_type=MEDIA_TYPES[form])


def _begin(engine: Engine, form: Any, filters: Filters) -> Iterator[bytes]:
    queries.page(engine, filters, limit=1)  # a database that is away can still be told before the first byte
    return export(engine, form, filters)


def _pieces(pieces: Iterator[bytes]) -> Iterator[bytes]:
    # A database that goes away in the middle ends the file early: the missing end of the chunked body says so.
    yield from pieces


def _experiments(router: APIRouter, state: State) -> None:
    @router.get("/v1/experiments")
    async def list_experiments(request: Request) -> Response:
        """Every experiment in the presets file: its preset, variants and state."""
        state.access.admit(key_of(request.headers))
        data = [_declared(trial) for trial in state.config.trials.values()]
        return _json({"object": "list", "revision": state.config.revision, "data": data})

    @router.get("/v1/experiments/{name}")
    async def show_experiment(request: Request, name: str) -> Response:
        """The result so far; HTML with the interval over time when a browser asks."""
        state.access.admit(key_of(request.headers))
        trial = state.config.trials.get(name)
        if trial is None:
            known = ", ".join(state.config.trials) or "none"
            raise NotFound(
                f"There is no experiment {name[:80]!r}; there are: {known}.", code="experiment_not_found", param="name"
            )
        found = await _ask(lambda: results.examine(state.log.engine, name, trial.experiment, time.time()))
        if "text/html" not in request.headers.get("accept", ""):
            return _json(found)
        language = choose_language(request.headers.get("accept-language", ""))
        return HTMLResponse(page.render(found, trial.experiment.equivalence, language))


def _declared(trial: Trial) -> dict[str, Any]:
    experiment = trial.experiment
    return {
        "name": trial.name,
        "preset": experiment.preset,
        "state": experiment.state,
        "exposure": experiment.exposure,
        "unit": experiment.unit,
        "allocation": experiment.allocation,
        "variants": {name: msgspec.to_builtins(variant) for name, variant in experiment.variants.items()},
    }


def _filters(asked: Mapping[str, str]) -> Filters:
    try:
        filters = msgspec.convert(asked, Filters, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The filters cannot be read: {error}.") from None
    for name, value in msgspec.structs.asdict(filters).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise OutOfRange(f"{name} must be a finite number; got {value}.", param=name)
        if name in ("since", "until") and value is not None and not 0 <= value <= _LATEST:
            raise OutOfRange(f"{name} must be a Unix time in seconds, in [0, {_LATEST}]; got {value:g}.", param=name)
    return filters


def _check_texts(asked: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for U+0000, which PostgreSQL takes nowhere, not even in a comparison."""
    for name, value in asked.items():
        if isinstance(value, str) and "\0" in value:
            raise InvalidRequest(f"{name} must not contain the character U+0000.", param=name)


def _check_together(asked: Mapping[str, str]) -> None:
    """Raises InvalidRequest for what a summary or a file would not look at, and for a `before` that is no id."""
    before = asked.get("before")
    if before is not None and not _ID(before):
        raise InvalidRequest(f"before must be the id of an exchange; got {before[:40]!r}.", param="before")
    whole = next((name for name in ("by", "format") if name in asked), None)
    for other in ("format", "limit", "before"):
        if whole is not None and other != whole and other in asked:
            raise InvalidRequest(f"{other} cannot be used with {whole}, which reads every exchange.", param=other)


def _whole(name: str, text: str, most: int) -> int:
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise OutOfRange(f"{name} must be a whole number in [1, {most}]; got {text[:40]!r}.", param=name)
    return int(text)


async def _read(request: Request, most: int) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise InvalidRequest(f"The body has more than the {most} bytes allowed.", code="body_too_large")
    return body


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
