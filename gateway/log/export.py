"""The sample log as a file: JSON lines, CSV or Parquet, streamed from the oldest row to the newest.

Columns are those of the table, and `feedback`, the value of the vote that counts. In CSV and Parquet the JSON columns
are JSON texts. Memory holds a page of rows, whatever the size of the log. Blocks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Engine, select

from gateway.log.feedback import counted
from gateway.log.queries import Filters, every, rows_of
from gateway.log.row import COLUMNS, JSON_COLUMNS
from gateway.log.schema import exchanges

Format = Literal["jsonl", "csv", "parquet"]

MEDIA_TYPES: Final = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
_PAGE: Final = 500
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


class NoParquet(Exception):
    """Parquet is asked for, and pyarrow is not there."""


def export(engine: Engine, form: Format, filters: Filters, metric: str = "thumb") -> Iterator[bytes]:
    """The file, piece by piece. Raises store.Away, and NoParquet before the first piece."""
    if form == "parquet" and find_spec("pyarrow") is None:
        raise NoParquet("Parquet needs the package pyarrow (pip install 'tempera-gateway[eval]')")
    pages = _pages(engine, filters, metric)
    if form == "jsonl":
        return (b"".join(msgspec.json.encode(row) + b"\n" for row in page) for page in pages)
    return _csv(pages) if form == "csv" else _parquet(pages)


def _pages(engine: Engine, filters: Filters, metric: str) -> Iterator[list[dict[str, Any]]]:
    page: list[dict[str, Any]] = []
    for row in every(engine, filters, _PAGE):
        page.append(row)
        if len(page) == _PAGE:
            yield _with_votes(engine, page, metric)
            page = []
    if page:
        yield _with_votes(engine, page, metric)


def _with_votes(engine: Engine, page: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    ids = select(exchanges.c.id).where(exchanges.c.id >= page[0]["id"], exchanges.c.id <= page[-1]["id"])
    votes = {vote["exchange_id"]: vote["value"] for vote in rows_of(engine, select(counted(metric, among=ids)))}
    return [row | {"feedback": votes.get(row["id"])} for row in page]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """JSON columns as texts."""
    texts = {name: msgspec.json.encode(row[name]).decode() for name in JSON_COLUMNS if row[name] is not None}
    return row | texts


def _csv(pages: Iterator[list[dict[str, Any]]]) -> Iterator[bytes]:
    """For spreadsheets: UTF-8 with a byte order mark, and a quote before what one would run as a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*COLUMNS, "feedback"])
    yield b"\xef\xbb\xbf"
    for page in pages:
        for row in page:
            writer.writerow([_inert(value) for value in _flat(row).values()])
        yield _emptied(buffer).encode()
    yield _emptied(buffer).encode()


def _inert(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value


def _emptied(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text


def _parquet(pages: Iterator[list[dict[str, Any]]]) -> Iterator[bytes]:
    import pyarrow as pa  # here: optional, and 60 MB
    import pyarrow.parquet as pq

    numbers = ("time", "ttft_ms", "duration_ms", "feedback")
    kinds = dict.fromkeys(numbers, pa.float64()) | {"truncated": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in (*COLUMNS, "feedback")])
    sink = _Sink()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for page in pages:
            writer.write_table(pa.Table.from_pylist([_flat(row) for row in page], schema=schema))
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A file that is read away while it is written: Parquet writers only ever append and ask where they are."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._size += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
