"""The file a sweep writes: a header with the settings it was made with, then one row per sample, as JSONL or Parquet.

Knows the shape, appending, and what an interruption may leave behind. Does NOT know how samples are made or scored.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import msgspec

from gateway.evaluation.cases import Case
from gateway.evaluation.degeneration import Lang
from gateway.evaluation.wire import Value

FORMAT = 1


class SweepError(Exception):
    """A sweep or its file that cannot be used; the message is fit to be shown."""


class Hot(msgspec.Struct, frozen=True):
    """Parameters that a preset adds above a temperature."""

    above: float
    values: dict[str, float]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A preset as a sweep needs it: what it sends beside the temperature, and the range it allows. Neutral without
    one."""

    preset: str | None = None
    title: dict[str, str] = {}
    fields: dict[str, float] = {}  # sampler fields under the gateway's names, temperature and max_tokens left out
    hot: Hot | None = None
    default: float | None = None
    low: float | None = None
    high: float | None = None
    system_prompt: bool = False  # the preset has one; a sweep cannot see it and does not send it

    def at(self, temperature: float) -> dict[str, float]:
        """The sampler fields for one temperature."""
        extra = self.hot.values if self.hot is not None and temperature > self.hot.above else {}
        return {**self.fields, **extra, "temperature": temperature}


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides what a sample is: two sweeps with the same one may share a file."""

    model: str
    temperatures: list[float]
    samples: int
    max_tokens: int | None  # upper limit over the cases' own
    seed: int
    settings: dict[str, Setting]  # by scenario
    cases: list[Case]


class Header(msgspec.Struct, frozen=True, kw_only=True, tag="sweep", tag_field="row"):
    setup: Setup
    profile: str
    created: str  # UTC, ISO 8601
    parameters: int | None  # of the model, as far as known
    toy: bool  # under a billion parameters: no number in the file says anything about quality
    revision: str | None = None  # of the gateway's presets
    format: int = FORMAT


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag="sample", tag_field="row"):
    """One reply. Rates are shares of its tokens in [0, 1]; surprisal and entropy are nats per token; None without
    logprobs."""

    case: str
    scenario: str
    lang: Lang
    asked: float
    temperature: float  # the one in effect: X-Tempera-Params, or what was asked where no gateway says
    sample: int  # 0..samples-1
    text: str
    finish: str | None
    tokens: int | None
    tail_rate: float | None
    surprisal: float | None  # mean -ln p of the sampled tokens, p the model's own (untempered)
    entropy: float | None  # mean -ln q_T of the sampled tokens, re-tempered over the top 20: TURN's H(T), approximate
    params: dict[str, Value]
    exchange: str | None  # shared by the samples of one request
    seconds: float  # of the request

    @property
    def key(self) -> tuple[str, float, int]:
        return self.case, self.asked, self.sample


Row = Header | Sample


def read_rows(path: Path) -> tuple[Header, list[Sample]]:
    """The header and the samples, each (case, temperature asked, sample) once. Raises SweepError when it is no such
    file."""
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        return _decode(path, path.read_bytes())
    except OSError as error:
        raise SweepError(f"{path}: {error.strerror or error}") from error


def _decode(path: Path, content: bytes) -> tuple[Header, list[Sample]]:
    decoder = msgspec.json.Decoder(Row)
    header: Header | None = None
    samples: dict[tuple[str, float, int], Sample] = {}
    lines = content.split(b"\n")[:-1]  # the last piece is empty, or a row that an interruption cut off
    for number, line in enumerate(lines, 1):
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise SweepError(f"{path}:{number}: {error}") from error
        if isinstance(row, Sample):
            samples.setdefault(row.key, row)
        elif header is not None:
            raise SweepError(f"{path}:{number}: a second header; a file holds one sweep")
        else:
            header = row
    if header is None:
        raise SweepError(f"{path}: no header of a sweep in it")
    return header, list(samples.values())


class Journal:
    """A JSONL file being appended to, by one process at a time. Every `write` is on disk before it returns."""

    def __init__(self, path: Path, header: Header) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise SweepError(f"{path}: another sweep is writing to it") from error
        self._file.seek(0)
        content = self._file.read()
        self.samples: list[Sample] = []
        if content[: content.rfind(b"\n") + 1]:
            self._file.truncate(content.rfind(b"\n") + 1)
            found, self.samples = _decode(path, content)
            _same(path, found.setup, header.setup)
        else:
            self._file.truncate(0)
            self.write([header])

    def write(self, rows: Iterable[Row]) -> None:
        self._file.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _same(path: Path, found: Setup, wanted: Setup) -> None:
    """Refuse to mix two sweeps, naming the first setting that differs."""
    for field in Setup.__struct_fields__:
        here, there = getattr(wanted, field), getattr(found, field)
        if here != there:
            shown = f"{there!r} in the file, {here!r} now" if field != "cases" else "not the same cases"
            raise SweepError(f"{path}: holds another sweep, {field} differs: {shown:.400}; choose another --out")


def write_parquet(path: Path, header: Header, samples: list[Sample]) -> None:
    """The same rows as a Parquet table; the header is in the file's metadata under `sweep`, `params` is JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {
        name: [getattr(sample, name) for sample in samples] for name in Sample.__struct_fields__
    }
    columns["params"] = [msgspec.json.encode(params).decode() for params in columns["params"]]
    table = pa.table(columns).replace_schema_metadata({"sweep": msgspec.json.encode(header)})
    pq.write_table(table, path, compression="zstd")


def _read_parquet(path: Path) -> tuple[Header, list[Sample]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        header = msgspec.json.decode((table.schema.metadata or {})[b"sweep"], type=Header)
        rows = [{**row, "row": "sample", "params": msgspec.json.decode(row["params"])} for row in table.to_pylist()]
        return header, msgspec.convert(rows, list[Sample])
    except (pa.ArrowException, KeyError, msgspec.DecodeError) as error:
        raise SweepError(f"{path}: not the Parquet file of a sweep ({error})") from error
