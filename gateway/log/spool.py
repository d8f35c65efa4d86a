"""Append-only files for what the database has not taken yet: one per process, locked while the process lives.

A record is its length (four bytes, big-endian) and a Row or Snapshot in MessagePack. A file whose lock is free belongs
to nobody any more, so another process may adopt it; since rows are written by id, reading a file twice does no harm.
What was appended survives the death of the process at once, and a power cut from the next `sync` on. Locks are
flock(2): the directory must lie on a file system of this machine. Knows nothing about databases.
"""

from __future__ import annotations

import fcntl
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.log.row import COLUMNS, Item, Row

SUFFIX: Final = ".spool"
_READ: Final = 512 * 1024
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Item)
_MESSAGES: Final = 1 + COLUMNS.index("messages")  # behind the tag


def _decode(record: bytes) -> Item:
    """Raises MsgspecError. Messages were texts in MessagePack once."""
    try:
        item: Item = _decoder.decode(record)
        return item
    except msgspec.ValidationError:
        values = msgspec.msgpack.decode(record, type=list[Any])
        if len(values) <= _MESSAGES or not isinstance(values[_MESSAGES], str):
            raise
        values[_MESSAGES] = values[_MESSAGES].encode()
        row: Row = msgspec.convert(values, Row)
        return row


class SpoolFull(OSError):
    """The spool holds as much as it may."""


class Spool:
    """The file of this process. `append` and `sync` belong to one thread, `read` and `drop` to another."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._lock = threading.Lock()  # between an append and the emptying of a file that has been read to its end
        self._file: File | None = None
        self._synced = True

    @property
    def waiting(self) -> int:
        """Bytes that have not been read and dropped."""
        file = self._file
        return file.size - file.offset if file else 0

    def append(self, items: Sequence[Item]) -> None:
        """Adds records, all or none. Raises OSError (SpoolFull over the limit); the file is then as before."""
        data = b"".join(len(body).to_bytes(4) + body for body in map(_encoder.encode, items))
        with self._lock:
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._file = File.create(self._directory)
            if self._file.size + len(data) > self._limit:
                raise SpoolFull(f"the spool holds {self._file.size} bytes; at most {self._limit} are allowed")
            self._file.append(data)
            self._synced = False

    @property
    def lost(self) -> int:
        """Records that the last `read` could not make sense of."""
        file = self._file
        return file.lost if file else 0

    @property
    def unsynced(self) -> bool:
        return not self._synced

    def sync(self) -> None:
        """Forces what was appended to the disk; free of charge when nothing was."""
        if not self._synced and self._file is not None:
            self._synced = True
            os.fdatasync(self._file.descriptor)

    def read(self, most: int) -> list[Item]:
        """The oldest records, at most `most`; the same again until they are dropped."""
        return self._file.read(most) if self._file else []

    def drop(self) -> None:
        """Forgets what `read` gave last; a file without anything left shrinks to nothing."""
        with self._lock:
            if self._file is not None:
                self._file.drop()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


class File:
    """An open, locked spool file, read up to `offset`; `lost` counts what the last read could not make sense of."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.offset = 0
        self.lost = 0
        self._next = 0

    @classmethod
    def create(cls, directory: Path) -> File:
        """A new file, locked. Between creation and locking an adopter may take and remove it: then once more."""
        while True:
            path = directory / f"{uuid.uuid4().hex}{SUFFIX}"
            file = cls.lock(path, os.O_CREAT | os.O_EXCL)
            if file is not None:
                return file

    @classmethod
    def lock(cls, path: Path, flags: int = 0) -> File | None:
        """The file, if nobody holds it and it is still there."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def append(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.write(self.descriptor, data[written:])
        except OSError:
            os.ftruncate(self.descriptor, self.size)  # half a record would hide all that follow it
            raise
        self.size += len(data)

    def read(self, most: int) -> list[Item]:
        """The records from `offset` on. What makes no sense is passed over; a record that is cut off ends the file."""
        items: list[Item] = []
        self.lost = 0
        data, at = os.pread(self.descriptor, _READ, self.offset), 0
        while len(items) < most and self.offset + at < self.size:
            if len(data) - at < 4 <= self.size - self.offset - at:
                break  # the length lies across the end of this reading: the next one begins there
            length = int.from_bytes(data[at : at + 4])
            end = at + 4 + length
            if end > len(data) and at == 0 and 4 + length <= self.size - self.offset:
                data = os.pread(self.descriptor, end, self.offset)  # one record longer than a reading
            if length == 0 or self.offset + end > self.size:
                self.lost += 1
                at = self.size - self.offset
                break
            if end > len(data):
                break
            try:
                items.append(_decode(data[at + 4 : end]))
            except msgspec.MsgspecError:
                self.lost += 1
            at = end
        self._next = self.offset + at
        return items

    def drop(self) -> None:
        self.offset = self._next
        if self.offset == self.size:
            os.ftruncate(self.descriptor, 0)
            self.offset = self._next = self.size = 0

    def close(self) -> None:
        """Lets go of the file; one that still holds records stays for the next process."""
        if self.size == self.offset:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def leftovers(directory: Path) -> bool:
    """Whether any spool file, of whatever process, holds records."""
    try:
        return any(entry.stat().st_size for entry in os.scandir(directory) if entry.name.endswith(SUFFIX))
    except FileNotFoundError:  # no spool yet, or a file that went between the two calls
        return False


def orphans(directory: Path) -> Iterator[File]:
    """Takes the files whose processes are gone, one after the other. They are the taker's to read and close."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        file = File.lock(path)
        if file is not None:
            yield file
