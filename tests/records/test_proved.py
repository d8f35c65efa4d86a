"""Experiments from the presets file to the verdict, through the whole gateway: users who read what they are sent.

The engine writes another story at another temperature and the users like one kind better, so a difference is only there
if the variant's temperature really reaches the engine and every vote really arrives at its exchange.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.targets import ROOT, Target, gateway
from tests.fakes import FakeEngine
from tests.log.postgres import Postgres
from tests.records.house import SECRET, eventually, exported, tempera
from tests.records.visitors import Visitor, crowd

USERS = 2_000
LOOK_EVERY = 250  # users
STORIES = {"plain": "There was a ship, and it sailed.", "warm": "Oh, what a ship she was, and how she sailed!"}
LIKED = {"plain": 0.55, "warm": 0.75}  # how many of those who vote give a thumb up
VOTING = 0.7
EXPERIMENTS: dict[str, Any] = {
    "warmer-stories": {
        "preset": "creative",
        "state": "running",
        "min_days": 0,
        "variants": {"same": {}, "warmer": {"parameters": {"temperature": 1.1}}},
    },
    "nothing": {"preset": "role-play", "state": "running", "min_days": 0, "variants": {"a": {}, "b": {}}},
}


def story(body: dict[str, Any], _: int) -> str:
    return STORIES["warm" if body["temperature"] > 1 else "plain"]


@pytest.fixture(scope="module")
def presets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped presets with the two experiments."""
    document = yaml.safe_load((ROOT / "presets.yaml").read_text("utf-8")) | {"experiments": EXPERIMENTS}
    path = tmp_path_factory.mktemp("declared") / "presets.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False), "utf-8")
    return path


@dataclass(frozen=True)
class Visit:
    """One user's turn: what was served and what the user thought of it (None: nothing was said)."""

    experiment: str
    variant: str
    temperature: float
    user: int
    vote: float | None


@dataclass
class Season:
    """Everything that the users of one gateway know, and what a reader of the results saw on the way."""

    home: Path
    presets: Path
    target: Target
    visits: dict[str, Visit] = field(default_factory=dict)  # by exchange id
    looks: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in EXPERIMENTS})

    def of(self, experiment: str) -> list[Visit]:
        return [visit for visit in self.visits.values() if visit.experiment == experiment]

    def everybody(self, experiment: str) -> dict[str, Any] | None:
        """The result, once all users are in it."""
        result: dict[str, Any] = self.target.get(f"/v1/experiments/{experiment}").json
        return result if sum(arm["units"] for arm in result["arms"]) == USERS else None

    async def visit(self, visitor: Visitor, preset: str, user: int) -> None:
        answer = await visitor.chat("A story, please.", model=preset, user=f"user-{user}")
        assert answer.whole, answer
        mood = random.Random(f"{preset}/{user}")
        kind = next(kind for kind, text in STORIES.items() if _told(answer.body) == text)
        vote = None
        if mood.random() < VOTING:
            vote = 1.0 if mood.random() < LIKED[kind] else -1.0
            said = await visitor.vote(answer.exchange, vote)
            assert said.status == 201, said
        experiment, _, variant = answer.headers["x-tempera-variant"].partition("=")
        heat = float(re.findall(r"^temperature=([\d.]+)", answer.headers["x-tempera-params"])[0])
        self.visits[answer.exchange] = Visit(experiment, variant, heat, user, vote)


def _told(body: bytes) -> str:
    """The text of a stream."""
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory, presets: Path) -> Iterator[Season]:
    """Two thousand users, each on both presets, and a look at the results after every few hundred."""
    home = tmp_path_factory.mktemp("season")
    with FakeEngine.in_thread(text=story) as engine:
        flags = ("--presets", str(presets), "--upstream", engine.url, "--dialect", "vllm")
        with gateway(home, *flags, TEMPERA_SECRET=SECRET) as url:
            found = Season(home, presets, Target(url, "smollm2", ()))

            async def both(visitor: Visitor, user: int) -> None:
                await found.visit(visitor, "creative", user)
                await found.visit(visitor, "role-play", user)

            for first in range(0, USERS, LOOK_EVERY):
                asyncio.run(crowd(url, range(first, first + LOOK_EVERY), both))
                for name, looks in found.looks.items():
                    looks.append(found.target.get(f"/v1/experiments/{name}").json)
            for name, looks in found.looks.items():  # the last rows arrive a moment after the last reply
                looks.append(eventually(partial(found.everybody, name)))
            yield found


def test_a_true_difference_is_won(season: Season) -> None:
    result = season.looks["warmer-stories"][-1]
    assert (result["verdict"], result["reasons"]) == ("ship warmer", ["better"])
    (found,) = result["comparisons"]
    assert 0 < found["low"] < LIKED["warm"] - LIKED["plain"] < found["high"]
    assert found["max_e"] > 20
    assert not any(rail["harm"] for rail in found["guardrails"])


def test_an_a_a_is_never_won(season: Season) -> None:
    assert {look["verdict"] for look in season.looks["nothing"]} <= {"not yet", "no difference"}
    (found,) = season.looks["nothing"][-1]["comparisons"]
    assert found["low"] < 0 < found["high"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_result_counts_what_happened(season: Season, name: str) -> None:
    visits, result = season.of(name), season.looks[name][-1]
    assert len(visits) == USERS
    assert (result["moved"], result["sample_ratio"]["alarm"]) == (0, False)
    for arm in result["arms"]:
        mine = [visit for visit in visits if visit.variant == arm["variant"]]
        votes = [visit.vote for visit in mine if visit.vote is not None]
        assert (arm["units"], arm["exchanges"], arm["votes"]) == (len(mine), len(mine), len(votes))
        assert (arm["positives"], arm["negatives"]) == (votes.count(1.0), votes.count(-1.0))
        assert arm["mean"] == pytest.approx(votes.count(1.0) / len(votes))


def test_the_command_says_the_same(season: Season) -> None:
    flags = ("--presets", str(season.presets))
    lines = tempera(season.home, "experiments", *flags).decode().splitlines()
    assert [(line.split()[:2], line.split("votes  ")[1]) for line in lines] == [
        (["warmer-stories", "creative"], "Ship warmer"),
        (["nothing", "role-play"], "Not yet"),
    ]
    in_full = tempera(season.home, "experiments", "warmer-stories", *flags).decode().splitlines()
    assert in_full[-1] == "Ship warmer: Better than the control, and no guardrail shows harm."
    assert not any("more voters" in line for line in in_full)
    results = json.loads(tempera(season.home, "experiments", "--json", *flags))
    timeless = {"now": 0, "days": 0}
    for result in results:
        over_http = season.target.get(f"/v1/experiments/{result['name']}").json
        assert result | timeless == over_http | timeless


def test_by_temperature(season: Season) -> None:
    bins = season.target.get("/v1/exchanges?by=temperature&preset=creative").json["data"]
    table = tempera(season.home, "log", "--by", "temperature", "--preset", "creative").decode().splitlines()[1:]
    heats = Counter(visit.temperature for visit in season.of("warmer-stories"))
    assert [(found["temperature"], found["exchanges"]) for found in bins] == sorted(heats.items())
    assert set(heats) == {0.9, 1.1}
    for found, line in zip(bins, table, strict=True):
        same = [v.vote for v in season.of("warmer-stories") if v.temperature == found["temperature"]]
        votes = [vote for vote in same if vote is not None]
        assert (found["preset"], found["errors"], found["votes"]) == ("creative", 0, len(votes))
        assert found["feedback"] == pytest.approx(sum(votes) / len(votes))
        low, high = found["feedback_interval"]
        assert low < found["feedback"] < high
        assert found["tokens"] > 5
        assert found["ttft_ms"] > 0
        assert (found["judged"], found["degenerate"]) == (200, 0.0)
        assert line.split()[:4] == ["creative", str(found["temperature"]), str(found["exchanges"]), "0"]
        assert f"{found['feedback']:+.2f} [{low:+.2f}, {high:+.2f}]" in line
    everything = season.target.get("/v1/exchanges?by=temperature").json["data"]
    assert [(found["preset"], found["temperature"]) for found in everything] == [
        ("creative", 0.9),
        ("creative", 1.1),
        ("role-play", 1.0),
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_exported_rows_are_the_visits(season: Season, tmp_path: Path, form: str) -> None:
    file = tmp_path / f"rows.{form}"
    tempera(season.home, "export", "--format", form, "--out", str(file), "--experiment", "warmer-stories")
    found: list[dict[str, Any]]
    if form == "jsonl":
        found = [json.loads(line) for line in file.read_bytes().splitlines()]
    elif form == "csv":
        found = list(csv.DictReader(io.StringIO(file.read_text("utf-8-sig"))))
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    seen = {
        row["id"]: (row["variant"], float(row["feedback"]) if row["feedback"] not in ("", None) else None)
        for row in found
    }
    assert len(seen) == len(found)
    assert seen == {
        name: (visit.variant, visit.vote)
        for name, visit in season.visits.items()
        if visit.experiment == "warmer-stories"
    }
    assert len({row["unit"] for row in found}) == USERS
    assert not any("user-" in str(row["unit"]) for row in found)


def test_two_processes_are_one_gateway(tmp_path: Path, postgres_server: Postgres, presets: Path) -> None:
    users = 300
    told: tuple[dict[int, str], dict[int, str]] = ({}, {})  # of each process: user -> variant
    shared = {"TEMPERA_DATABASE_URL": postgres_server.url(), "TEMPERA_SECRET": SECRET}
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        home.mkdir()
    with FakeEngine.in_thread(text=story) as engine:
        flags = ("--presets", str(presets), "--upstream", engine.url, "--dialect", "vllm")
        with gateway(homes[0], *flags, **shared) as first, gateway(homes[1], *flags, **shared) as second:
            urls = [first, second]
            exchanges: dict[str, int] = {}

            async def ask_and_vote(number: int) -> None:
                async def ask(visitor: Visitor, user: int) -> None:
                    answer = await visitor.chat("A story, please.", model="creative", user=f"user-{user}")
                    assert answer.whole, answer
                    told[number][user] = answer.headers["x-tempera-variant"]
                    exchanges[answer.exchange] = number

                async def vote(visitor: Visitor, exchange: str) -> None:  # at the process that did not serve it
                    said = await visitor.vote(exchange, 1)
                    assert said.status == 201, said

                await crowd(urls[number], range(users), ask)
                await crowd(urls[1 - number], [name for name, by in exchanges.items() if by == number], vote)

            async def both() -> None:
                await asyncio.gather(ask_and_vote(0), ask_and_vote(1))

            asyncio.run(both())
            eventually(lambda: len(exported(first)) == 2 * users)
            results = [Target(url, "smollm2", ()).get("/v1/experiments/warmer-stories").json for url in urls]
            pages = [
                Target(url, "smollm2", ()).send("/v1/experiments/warmer-stories", None, {"accept": "text/html"}, "GET")
                for url in urls
            ]
    assert told[0] == told[1]
    assert set(told[0].values()) == {"warmer-stories=same", "warmer-stories=warmer"}
    for result in results:
        split = Counter(told[0].values())
        for arm in result["arms"]:
            units = split[f"warmer-stories={arm['variant']}"]
            assert (arm["units"], arm["exchanges"], arm["votes"]) == (units, 2 * units, 2 * units)
        assert result["moved"] == 0
    for page in pages:
        cells = re.findall(r"<td>([\d,]+)</td>", page.body.decode())
        assert [cells[at] for at in (1, 5)] == [str(arm["exchanges"]) for arm in results[0]["arms"]]
