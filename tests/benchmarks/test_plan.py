"""docs/scale.md says what benchmarks/plan.py computes, and the arithmetic is right."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import plan


def test_the_page_holds_these_tables() -> None:
    text = plan.PAGE.read_text(encoding="utf-8")
    assert plan.page(text) == text, "python benchmarks/plan.py --write"


def test_every_figure_has_a_unit_and_says_where_it_is_from() -> None:
    for name, figure in plan.FIGURES.items():
        assert figure.value > 0 and figure.unit, name
        assert figure.source.split()[0].strip(",:") in (
            "measured",
            "counted",
            "assumed",
            "chosen",
            "by",
            "PostgreSQL's",
            "the",
        )


def test_a_thousand_streams_by_hand() -> None:
    v = {name: figure.value for name, figure in plan.FIGURES.items()}
    found = plan.needs(1_000)
    assert found["chunks_per_second"] == 1_000 * v["chunk_rate"]
    requests = 1_000 * v["chunk_rate"] / v["reply"]
    assert found["rows_per_second"] == requests
    cpu = (found["chunks_per_second"] * v["chunk_cpu"] + requests * v["request_cpu"]) / 1e6
    assert found["cores_used"] == round(cpu, 2)
    assert found["workers"] * v["busy"] >= cpu > (found["workers"] - 2) * v["busy"]
    assert found["log_gb_per_day"] == round(requests * 86_400 * v["row_size"] / 1e9, 1)
    assert found["gbit_per_second_each_way"] == round(1_000 * v["chunk_rate"] * v["chunk_size"] * 8 / 1e9, 2)


def test_a_limit_is_where_its_part_is_full() -> None:
    found = {limit.part: limit.streams for limit in plan.limits()}
    assert list(found.values()) == sorted(found.values())
    v = {name: figure.value for name, figure in plan.FIGURES.items()}
    assert plan.cores(found["one worker's core"]) == pytest.approx(v["busy"], rel=0.01)
    disk = plan.rows_per_day(found["1 TB for the log, rows kept 30 days"]) * v["row_size"] * v["retention"]
    assert disk == pytest.approx(v["disk"])
    bits = found["the balancer's 10 Gbit/s"] * v["chunk_rate"] * v["chunk_size"] * 8
    assert bits == pytest.approx(v["link"] * v["busy"])


def test_the_event_is_framed_as_its_own_length_says() -> None:
    length, _, rest = plan.EVENT.partition(b"\r\n")
    assert int(length, 16) == len(rest.removesuffix(b"\r\n"))


def test_the_last_line_is_one_json_document() -> None:
    done = subprocess.run([sys.executable, plan.__file__], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) == {str(streams) for streams in plan.STREAMS}
