"""What the chat remembers. Without a login only thumbs, which go to the gateway; with one, whole chats as well.

Threads, steps and cards are kept as the JSON documents that Chainlit hands out, in SQLite or PostgreSQL: nothing of
them is lost on the way back. Writes run on one thread, in the order in which they were asked for: Chainlit does not
wait for them.
"""
# mypy: allow-untyped-calls, allow-untyped-decorators, disable-error-code="override"
# Chainlit's own functions carry no annotations, and `update_thread` takes the same arguments by name.

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar, cast

from chainlit.data.base import BaseDataLayer
from chainlit.data.utils import queue_until_user_message
from chainlit.element import Element, ElementDict
from chainlit.step import StepDict
from chainlit.types import Feedback, PageInfo, PaginatedResponse, Pagination, ThreadDict, ThreadFilter
from chainlit.user import PersistedUser, User
from chainlit.utils import utc_now
from sqlalchemy import JSON, Column, Connection, MetaData, String, Table, create_engine, delete, insert, select

from ui.client import Gateway

Result = TypeVar("Result")
_SCHEMA: Final = MetaData()


def _table(name: str, **indexed: bool) -> Table:
    """Documents by id, found by the columns that are indexed."""
    columns = [Column(column, String, index=True) for column in indexed]
    return Table(f"chat_{name}", _SCHEMA, Column("id", String, primary_key=True), *columns, Column("body", JSON))


USERS = _table("users", identifier=True)
THREADS = _table("threads", user_id=True, changed_at=True)
STEPS = _table("steps", thread_id=True, created_at=True)
ELEMENTS = _table("elements", thread_id=True, for_id=True)
THUMBS = _table("thumbs")


def _replace(connection: Connection, table: Table, **row: Any) -> None:
    connection.execute(delete(table).where(table.c.id == row["id"]))
    connection.execute(insert(table).values(row))


class Thumbs(BaseDataLayer):
    """No history. A thumb's id is the id of the run it is for, which is the request id that the gateway knows."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def upsert_feedback(self, feedback: Feedback) -> str:
        thumb = 1 if feedback.value else -1
        await self.gateway.thumb(thumb, feedback.comment, request_id=feedback.forId)
        return str(feedback.forId)

    async def delete_feedback(self, feedback_id: str) -> bool:
        await self.gateway.thumb(None, request_id=feedback_id)
        return True

    async def get_user(self, identifier: str) -> PersistedUser | None:
        return None

    async def create_user(self, user: User) -> PersistedUser | None:
        return None

    async def create_element(self, element: Element) -> None: ...
    async def get_element(self, thread_id: str, element_id: str) -> ElementDict | None: ...
    async def delete_element(self, element_id: str, thread_id: str | None = None) -> None: ...
    async def create_step(self, step_dict: StepDict) -> None: ...
    async def update_step(self, step_dict: StepDict) -> None: ...
    async def delete_step(self, step_id: str) -> None: ...
    async def get_thread(self, thread_id: str) -> ThreadDict | None: ...
    async def delete_thread(self, thread_id: str) -> None: ...
    async def update_thread(self, thread_id: str, **changes: Any) -> None: ...
    async def close(self) -> None: ...

    async def get_thread_author(self, thread_id: str) -> str:
        return ""

    async def list_threads(self, pagination: Pagination, filters: ThreadFilter) -> PaginatedResponse[ThreadDict]:
        return PaginatedResponse(PageInfo(False, None, None), [])

    async def get_favorite_steps(self, user_id: str) -> list[StepDict]:
        return []

    async def build_debug_url(self) -> str:
        return ""


class History(Thumbs):
    """Users, threads, steps, cards and thumbs in a database. `url` is SQLAlchemy's."""

    def __init__(self, gateway: Gateway, url: str) -> None:
        super().__init__(gateway)
        self._engine = create_engine(url, pool_pre_ping=True)
        self._thread = ThreadPoolExecutor(1, "chat-history")
        _SCHEMA.create_all(self._engine)

    async def _do(self, work: Callable[[Connection], Result]) -> Result:
        def transact() -> Result:
            with self._engine.begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, transact)

    async def _put(self, table: Table, **row: Any) -> None:
        await self._do(lambda connection: _replace(connection, table, **row))

    async def _find(self, table: Table, **key: str) -> list[Any]:
        """The bodies of the rows that match, in the order of the table's time column if it has one."""
        query = select(table.c.body).where(*(table.c[name] == value for name, value in key.items()))
        if "created_at" in table.c:
            query = query.order_by(table.c.created_at)
        return await self._do(lambda connection: list(connection.scalars(query)))

    async def _drop(self, table: Table, **key: str) -> None:
        query = delete(table).where(*(table.c[name] == value for name, value in key.items()))
        await self._do(lambda connection: connection.execute(query).close())

    async def upsert_feedback(self, feedback: Feedback) -> str:
        await super().upsert_feedback(feedback)
        body = {"forId": feedback.forId, "id": feedback.forId, "value": feedback.value, "comment": feedback.comment}
        await self._put(THUMBS, id=feedback.forId, body=body)
        return str(feedback.forId)

    async def delete_feedback(self, feedback_id: str) -> bool:
        await super().delete_feedback(feedback_id)
        await self._drop(THUMBS, id=feedback_id)
        return True

    async def get_user(self, identifier: str) -> PersistedUser | None:
        found = await self._find(USERS, identifier=identifier)
        return PersistedUser(**found[0]) if found else None

    async def create_user(self, user: User) -> PersistedUser | None:
        known = await self.get_user(user.identifier)
        body = {"id": known.id if known else str(uuid.uuid4()), "createdAt": known.createdAt if known else utc_now()}
        body |= {"identifier": user.identifier, "metadata": user.metadata}
        await self._put(USERS, id=body["id"], identifier=user.identifier, body=body)
        return await self.get_user(user.identifier)

    @queue_until_user_message()
    async def create_element(self, element: Element) -> None:
        body = element.to_dict()
        await self._put(ELEMENTS, id=element.id, thread_id=element.thread_id, for_id=element.for_id, body=body)

    async def get_element(self, thread_id: str, element_id: str) -> ElementDict | None:
        found = await self._find(ELEMENTS, id=element_id, thread_id=thread_id)
        return found[0] if found else None

    @queue_until_user_message()
    async def delete_element(self, element_id: str, thread_id: str | None = None) -> None:
        await self._drop(ELEMENTS, id=element_id)

    @queue_until_user_message()
    async def create_step(self, step_dict: StepDict) -> None:
        body = dict(step_dict)
        when = body.get("createdAt") or utc_now()
        await self._put(STEPS, id=body["id"], thread_id=body["threadId"], created_at=when, body=body)

    async def update_step(self, step_dict: StepDict) -> None:
        await self.create_step(step_dict)

    @queue_until_user_message()
    async def delete_step(self, step_id: str) -> None:
        await self._drop(ELEMENTS, for_id=step_id)
        await self._drop(STEPS, id=step_id)

    async def update_thread(self, thread_id: str, **changes: Any) -> None:
        """Changes what is given and not None, among name, user_id, metadata and tags; metadata is merged."""
        given = {name: value for name, value in changes.items() if value is not None}
        owner = given.pop("user_id", None)

        def change(connection: Connection) -> None:
            old = connection.scalar(select(THREADS.c.body).where(THREADS.c.id == thread_id))
            body = old or {"id": thread_id, "createdAt": utc_now(), "name": None, "tags": None, "metadata": {}}
            if owner:
                user = connection.scalar(select(USERS.c.body).where(USERS.c.id == owner)) or {}
                body |= {"userId": owner, "userIdentifier": user.get("identifier")}
            body |= given | {"metadata": body["metadata"] | given.get("metadata", {})}
            _replace(connection, THREADS, id=thread_id, user_id=body.get("userId"), changed_at=utc_now(), body=body)

        await self._do(change)

    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        found = await self._find(THREADS, id=thread_id)
        if not found:
            return None
        steps = await self._find(STEPS, thread_id=thread_id)
        for step in steps:
            step["feedback"] = next(iter(await self._find(THUMBS, id=step["id"])), None)
        elements = await self._find(ELEMENTS, thread_id=thread_id)
        body: Any = {"userId": None, "userIdentifier": None, **found[0], "steps": steps, "elements": elements}
        return cast(ThreadDict, body)

    async def get_thread_author(self, thread_id: str) -> str:
        found = await self._find(THREADS, id=thread_id)
        return str(found[0].get("userIdentifier") or "") if found else ""

    async def delete_thread(self, thread_id: str) -> None:
        for step in await self._find(STEPS, thread_id=thread_id):
            await self._drop(THUMBS, id=step["id"])
        await self._drop(STEPS, thread_id=thread_id)
        await self._drop(ELEMENTS, thread_id=thread_id)
        await self._drop(THREADS, id=thread_id)

    async def list_threads(self, pagination: Pagination, filters: ThreadFilter) -> PaginatedResponse[ThreadDict]:
        newest = select(THREADS.c.body).where(THREADS.c.user_id == filters.userId).order_by(THREADS.c.changed_at.desc())
        threads = await self._do(lambda connection: list(connection.scalars(newest)))
        if filters.search:
            threads = [thread for thread in threads if await self._mentions(thread, filters.search.lower())]
        ids = [thread["id"] for thread in threads]
        start = ids.index(pagination.cursor) + 1 if pagination.cursor in ids else 0
        page: list[Any] = [
            {**thread, "steps": [], "elements": []} for thread in threads[start : start + pagination.first]
        ]
        more = start + pagination.first < len(threads)
        return PaginatedResponse(
            PageInfo(more, page[0]["id"], page[-1]["id"]) if page else PageInfo(False, None, None), page
        )

    async def _mentions(self, thread: Any, word: str) -> bool:
        said = [thread["name"], *(step.get("output") for step in await self._find(STEPS, thread_id=thread["id"]))]
        return any(word in text.lower() for text in said if text)

    async def close(self) -> None:
        self._engine.dispose()
