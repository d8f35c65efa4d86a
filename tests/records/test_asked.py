"""Questions that the log cannot answer get the same clear error on both databases, and times mean UTC everywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.contract.targets import Target, gateway
from tests.fakes import FakeEngine
from tests.records.house import eventually, exported, tempera

ALWAYS_SUMMER = "EST5EDT4,0/0,J365/25"  # a POSIX time zone that is on daylight saving time all year
NUL = "\0"


@contextmanager
def serving(home: Path, text: str | None, **database: str) -> Iterator[str]:
    with (
        FakeEngine.in_thread(text=text) as engine,
        gateway(home, "--upstream", engine.url, "--dialect", "vllm", **database) as url,
    ):
        yield url


def test_bad_questions_are_told_what_is_wrong_with_them(tmp_path: Path, database: dict[str, str]) -> None:
    with serving(tmp_path, None, **database) as url:
        target = Target(url, "smollm2", ())
        exchange = target.chat(model="creative").exchange
        eventually(lambda: exported(url))
        for query, param in (
            ("exchanges?since=nan", "since"),
            ("exchanges?until=-inf", "until"),
            ("exchanges?min_temperature=nan", "min_temperature"),
            ("exchanges?format=csv&since=nan", "since"),
            ("exchanges?preset=%00", "preset"),
            ("exchanges?before=%00", "before"),
            ("exchanges/%00", "id"),
            ("revisions/%00", "revision"),
        ):
            reply = target.get(f"/v1/{query}")
            assert (reply.status, reply.error["param"]) == (400, param), query
        for field in ("comment", "name", "source", "request_id"):
            vote = {"exchange_id": exchange, "value": 1} if field != "request_id" else {"value": 1}
            reply = target.send("/v1/feedback", vote | {field: f"a{NUL}b"})
            assert (reply.status, reply.error["param"]) == (400, field)
        assert exported(url)[0]["feedback"] is None


def test_hostile_texts_are_kept(tmp_path: Path, database: dict[str, str]) -> None:
    """What PostgreSQL could refuse is neither lost nor in the way of other rows."""
    hostile = ({"stop": [NUL]}, {"user": NUL}, {"metadata": {"a": NUL}}, {"seed": 10**30}, {"model": f"x{NUL}"})
    with serving(tmp_path, f"a{NUL}b \U0001f600 end", **database) as url:
        target = Target(url, "smollm2", ())
        replies = [target.chat(None, **({"model": "creative", "stream": True} | fields)) for fields in hostile]
        replies.append(target.chat(messages=[{"role": "user", "content": f"{NUL} \U0001f600"}]))
        asked = {reply.exchange for reply in replies}
        rows = eventually(lambda: len(rows := exported(url)) == len(asked) and rows)
    found = {row["id"]: row for row in rows}
    assert set(found) == asked
    assert {row["outcome"] for row in found.values()} == {"ok", "rejected"}
    assert found[replies[-1].exchange]["messages"][0]["content"] == "\ufffd \U0001f600"


def test_times_on_the_command_line_are_utc(tmp_path: Path) -> None:
    with serving(tmp_path, None) as url:
        Target(url, "smollm2", ()).chat(model="creative")
        (row,) = eventually(lambda: exported(url))

    def lines(since: float, until: float) -> list[str]:
        stamps = [time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(row["time"] + at)) for at in (since, until)]
        flags = ("--since", stamps[0], "--until", stamps[1])
        return [json.loads(line)["id"] for line in tempera(tmp_path, "export", *flags, TZ=ALWAYS_SUMMER).splitlines()]

    assert lines(-60, 60) == [row["id"]]
    assert lines(60, 7200) == lines(-7200, -60) == []
