"""Spool files: what goes in comes out, in order, whatever was cut off, mixed up or locked."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import msgspec
import pytest

from gateway.log.digest import digest
from gateway.log.row import COLUMNS, Item, Row, Snapshot
from gateway.log.spool import SUFFIX, Spool, SpoolFull, leftovers, orphans
from tests.log.made import exchange

MB = 1024 * 1024
BASE = digest(exchange())


def rows(number: int, size: int = 10) -> list[Item]:
    return [msgspec.structs.replace(BASE, id=f"{n:08d}", text="温" * size) for n in range(number)]


def drained(source: Spool, most: int = 500) -> list[Item]:
    found: list[Item] = []
    while items := source.read(most):
        assert items == source.read(most)
        found += items
        source.drop()
    return found


@pytest.mark.parametrize("size", [0, 1000, 60_000, 400_000])
def test_what_goes_in_comes_out(tmp_path: Path, size: int) -> None:
    """Rows far smaller and far larger than one reading."""
    spool, items = Spool(tmp_path, 1 << 40), [*rows(7, size), Snapshot("r", "a: 1"), *rows(3, 5)]
    assert spool.waiting == 0
    spool.append(items[:4])
    first = spool.read(2)
    assert first == items[: len(first)]
    assert first
    spool.append(items[4:])
    assert drained(spool, 2) == items
    assert (spool.waiting, leftovers(tmp_path)) == (0, False)
    spool.append(items[:1])
    assert drained(spool) == items[:1]
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_belongs_to_its_process_while_that_lives(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB)
    spool.append(rows(5))
    spool.sync()
    assert list(orphans(tmp_path)) == []
    assert leftovers(tmp_path)
    spool.close()
    (heir,) = orphans(tmp_path)
    assert list(orphans(tmp_path)) == []
    assert heir.read(3) == rows(5)[:3]
    heir.drop()
    heir.close()
    (again,) = orphans(tmp_path)
    assert again.read(9) == rows(5)  # an unfinished reading starts again: ids make that harmless
    again.drop()
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_in_bytes_and_all_or_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10_000)
    spool.append(rows(5))
    before = spool.waiting
    with pytest.raises(SpoolFull):
        spool.append(rows(100))
    assert spool.waiting == before
    assert drained(spool) == rows(5)


@pytest.mark.parametrize(
    ("tail", "lost"),
    [
        (b"", 0),
        (b"\x00\x00", 1),  # half a length
        (b"\x00\x00\x10\x00half a record", 1),
        (b"\x00" * 4096, 1),  # what a power cut leaves
        (b"\x00\x00\x00\x03abc", 1),  # whole, but no row
    ],
)
def test_a_broken_end_costs_itself_only(tmp_path: Path, tail: bytes, lost: int) -> None:
    spool = Spool(tmp_path, MB)
    spool.append(rows(5))
    spool.close()
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    path.write_bytes(path.read_bytes() + tail)
    (file,) = orphans(tmp_path)
    found, missing = [], 0
    while (items := file.read(2)) or file.lost:
        found += items
        missing += file.lost
        file.drop()
    file.close()
    assert (found, missing) == (rows(5), lost)
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_an_unknown_kind_is_passed_over(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB)
    spool.append(rows(2))
    spool.close()
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    path.write_bytes(b"\x00\x00\x00\x03abc" + path.read_bytes())
    (file,) = orphans(tmp_path)
    assert file.read(9) == rows(2)
    assert file.lost == 1
    file.close()


def test_a_row_of_an_older_release_is_read() -> None:
    """New columns go to the end with a default; then rows without them decode."""

    class Newer(Row, tag="x"):
        added: str | None = None

    old = msgspec.msgpack.encode(BASE)
    assert msgspec.msgpack.decode(old, type=Newer).added is None


def test_rows_whose_messages_were_texts_are_read(tmp_path: Path) -> None:
    row = msgspec.structs.replace(BASE, messages='[{"role":"user","content":"温"}]'.encode())
    values = list(msgspec.structs.astuple(row))
    values[COLUMNS.index("messages")] = '[{"role":"user","content":"温"}]'
    path = tmp_path / f"old{SUFFIX}"
    for record, found in (["x", *values], [row]), (["x", *values[:3], 7], []), (["x", *values, "more"], [row]), (7, []):
        body = msgspec.msgpack.encode(record)
        path.write_bytes(len(body).to_bytes(4) + body)
        [file] = orphans(tmp_path)
        assert (file.read(9), file.lost) == (found, int(not found))
        file.close()


def test_a_real_full_disk(tmp_path: Path) -> None:
    """A file size limit of the kernel stops the write in the middle; the file is then as before."""
    spool = Spool(tmp_path, MB)
    spool.append(rows(5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.waiting + 100, hard))
    try:
        with pytest.raises(OSError) as failure:
            spool.append(rows(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert failure.value.errno == errno.EFBIG
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    assert os.path.getsize(path) == spool.waiting
    spool.append(rows(50))
    assert drained(spool) == rows(5) + rows(50)
