"""The simulation against closed forms, and its comparison with runs that it made itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import simulate as simulation
from benchmarks.simulate import Cost, Costs, Machine, Process, Setup, calibrated, compare, main, passed, simulate

FREE = Cost(0.0, 0.0, 0.0)


def mean_wait(load: float, service: str, jobs: int = 100_000) -> float:
    """How long a job waits for its turn, in services, when jobs come at random to one process."""
    machine, random = Machine(1), Random(7)
    begun: list[float] = []
    costs = [1.0 if service == "constant" else random.expovariate(1.0) for _ in range(jobs)]

    def done(key: int, items: list[float], now: float) -> None:
        begun.append(now - costs[key] - items[0])

    process = Process((0,), 0.0, lambda key, _: costs[key], done)

    def arrive(key: int) -> None:
        machine.give(process, key, machine.now)
        if key + 1 < jobs:
            machine.at(machine.now + random.expovariate(load), lambda: arrive(key + 1))

    machine.at(0.0, lambda: arrive(0))
    machine.play(math.inf)
    assert len(begun) == jobs
    return sum(begun) / jobs


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waiting_is_that_of_m_d_1(load: float) -> None:
    # Pollaczek-Khinchine with no variance of the service: W = load / (2 (1 - load)).
    assert mean_wait(load, "constant") == pytest.approx(load / (2 * (1 - load)), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_waiting_is_that_of_m_m_1(load: float) -> None:
    assert mean_wait(load, "exponential") == pytest.approx(load / (1 - load), rel=0.05)


def greedy(machine: Machine, cores: Sequence[int], cost: float) -> Process:
    """A process that always has something to do."""

    def again(key: int, _: list[float], now: float) -> None:
        machine.give(process, key, now)

    process = Process(cores, 0.0, lambda key, items: cost, again)
    machine.give(process, 0, 0.0)
    machine.give(process, 1, 0.0)
    return process


def test_a_core_is_shared_fairly_whatever_the_visits_take() -> None:
    machine = Machine(1)
    short, long = greedy(machine, (0,), 10.0), greedy(machine, (0,), 500.0)
    machine.play(1e6)
    assert short.used + long.used == pytest.approx(1e6, rel=0.01)
    assert short.used == pytest.approx(long.used, rel=0.05)


def test_no_core_rests_while_somebody_who_may_use_it_waits() -> None:
    machine = Machine(2)
    fixed, free, other = greedy(machine, (0,), 20.0), greedy(machine, (0, 1), 20.0), greedy(machine, (1,), 20.0)
    machine.play(1e6)
    assert fixed.used + free.used + other.used == pytest.approx(2e6, rel=0.01)
    for process in (fixed, free, other):
        assert process.used == pytest.approx(2e6 / 3, rel=0.1)


def plain(**changes: Any) -> Setup:
    """Two cores of their own for a gateway on one side, engine and client on the other."""
    costs = Costs(Cost(0.0, 10.0, 5.0), Cost(0.0, 0.0, 8.0), Cost(0.0, 3.0, 2.0), 100.0)
    return replace(Setup(100, 20_000.0, costs, (0,), (1,), seconds=1.0), **changes)


def test_below_saturation_chunks_come_at_the_engines_pace_and_take_their_own_time() -> None:
    setup = plain(streams=10)
    found = simulate(setup)
    assert found["chunks_per_second"] == pytest.approx(10 * 50, rel=0.02)
    assert found["p50"] == pytest.approx(10 + 5 + 3 + 2, abs=0.5)  # from when the engine wrote it
    took = 2 * 64 * 0.02 + setup.seconds  # of which the streams begin one after the other in the first quarter or so
    whole = 10 * 50 * (15 * 65 / 64 + 100 / 64) * (took - 0.45 * 64 * 0.02) / 1e6
    assert found["cores_used"]["gateways"] * took == pytest.approx(whole, rel=0.05)


def test_at_saturation_a_core_is_full_and_says_the_rate() -> None:
    costs = Costs(Cost(0.0, 0.0, 40.0), FREE, FREE, 0.0)  # nothing is saved by taking several at once
    found = simulate(plain(streams=2000, costs=costs))
    assert found["cores_used"]["gateways"] > 0.94  # streams begin one after the other
    assert found["chunks_per_second"] == pytest.approx(1e6 / 40 * 64 / 65, rel=0.03)
    two = simulate(plain(streams=2000, costs=costs, gateways=(0, 1)))
    assert two["chunks_per_second"] == pytest.approx(2 * found["chunks_per_second"], rel=0.03)
    same = simulate(plain(streams=2000, costs=costs, gateways=(0, 0)))
    assert same["chunks_per_second"] == pytest.approx(found["chunks_per_second"], rel=0.03)


def test_chunks_that_are_late_are_taken_together_and_that_carries_more() -> None:
    costs = Costs(Cost(0.0, 40.0, 2.0), FREE, FREE, 0.0)
    found = simulate(plain(streams=1000, costs=costs))
    assert found["per_chunk"]["gateways"][1] < 0.8
    assert found["chunks_per_second"] > 1.2e6 / 42


def test_the_same_setup_gives_the_same_day() -> None:
    assert simulate(plain()) == simulate(plain())


COSTS = Costs(Cost(6.0, 6.0, 5.0), Cost(4.0, 0.0, 7.0), Cost(4.0, 3.0, 2.0), 100.0)


@pytest.fixture(autouse=True, scope="module")
def remembered() -> Iterator[None]:
    """The same setup gives the same day, so each is simulated once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "simulate", cache(simulation.simulate))
        yield


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """What would be measured on a machine that is as the simulation has it."""
    made: dict[str, Any] = {"cores": 2, "pace": 20, "chunks_per_stream": 64, "request_us": COSTS.request, "rows": []}
    for gateways in (1, 2):
        for streams in (400, 1000, 2000):
            found = simulate(simulation.placed(made, gateways, streams, COSTS))
            used = {}
            for part, cost in (("gateways", COSTS.gateway), ("engine", COSTS.engine), ("clients", COSTS.client)):
                wakes, visits, each = found["per_chunk"][part]
                used[part] = (wakes * cost.wake + visits * cost.visit + each * cost.chunk) * 65 / 64
            used["gateways"] += COSTS.request / 64
            row = {"gateways": gateways, "streams": streams, "chunks_per_second": found["chunks_per_second"]}
            made["rows"].append(row | {"cpu_us_per_chunk": used, "late_p99_ms": found["p99"] / 1000})
    return made


def test_a_run_of_its_own_is_reproduced(run: dict[str, Any]) -> None:
    lines = compare(run, calibrated(run))
    assert passed(lines)
    judged = [line for line in lines if line.judged]
    assert len(judged) == 4  # three steps, and where delivery falls behind
    assert max(abs(line.error) for line in judged) < 0.05
    assert not any("late" in line.name for line in judged)


def test_nothing_of_two_gateways_calibrates(run: dict[str, Any]) -> None:
    lies = [row | {"cpu_us_per_chunk": {}} if row["gateways"] == 2 else row for row in run["rows"]]
    assert calibrated(run | {"rows": lies}) == calibrated(run)


def otherwise(run: dict[str, Any], factor: float) -> dict[str, Any]:
    """The run, had its largest step with two gateways carried `factor` of what it did."""
    *rows, last = run["rows"]
    return run | {"rows": [*rows, last | {"chunks_per_second": last["chunks_per_second"] * factor}]}


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_one_step_that_is_missed_is_a_failure(
    run: dict[str, Any], factor: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(otherwise(run, factor)))
    assert main(["--check", str(path)]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["good"] is False


def test_a_run_that_is_not_reproduced_foretells_nothing(run: dict[str, Any]) -> None:
    from benchmarks import foretold

    told = run | {"date": "2026-01-01", "reps": 1}
    told["summary"] = {"ratio": {"2": 1.1}, "highest_ratio_here": 1.2, "cores_needed_for_two": 3.3, "cores": 2}
    told["rows"] = [row | {"cores_used": {"others": 0.0}} for row in run["rows"]]
    lines, costs = compare(run, COSTS), COSTS
    assert "workers of the plan" not in foretold.markdown(told, "name", (lines, False, costs))
    assert "workers of the plan" in foretold.markdown(told, "name", (lines, True, costs))


def test_without_steps_of_two_gateways_nothing_has_passed(run: dict[str, Any]) -> None:
    one = run | {"rows": [row for row in run["rows"] if row["gateways"] == 1]}
    assert not passed(compare(one, COSTS))
    with pytest.raises(ValueError, match="one gateway"):
        calibrated(run | {"rows": [row for row in run["rows"] if row["gateways"] == 2]})


def test_where_delivery_falls_behind() -> None:
    # 100 % at 100 streams, 90 % at 200: 95 % in the middle.
    assert simulation.falls_behind([(100, 100.0), (200, 180.0)], 1.0) == pytest.approx(150)
    assert simulation.falls_behind([(100, 100.0), (200, 199.0)], 1.0) is None
