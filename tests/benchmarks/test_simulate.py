"""The simulation against closed forms, and its comparison with a run against a run that it made itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.simulate import SECOND, Core, Fit, Hop, Setup, Simulation, compare, fitted, main, of_run, simulate


def mean_wait(load: float, service: str, jobs: int = 200_000) -> float:
    """How long a job waits for its turn, in services, when jobs come at random to one loop."""
    simulation, random = Simulation(Setup(streams=0, pace=1, hops=())), Random(7)
    loop = simulation.__class__._made(simulation, Hop((0,), 0.0))[0]
    waits: list[float] = []

    def arrive(now: float) -> None:
        cost = 1.0 if service == "constant" else random.expovariate(1.0)
        loop.add(now, (cost, 0.0, None), lambda begun: waits.append(begun - now))
        if len(waits) < jobs:
            simulation.at(now + random.expovariate(load), arrive)

    arrive(0.0)
    simulation.play(float("inf"))
    return sum(waits) / len(waits)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waiting_is_that_of_m_d_1(load: float) -> None:
    # Pollaczek-Khinchine with no variance of the service: W = load / (2 (1 - load)).
    assert mean_wait(load, "constant") == pytest.approx(load / (2 * (1 - load)), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_waiting_is_that_of_m_m_1(load: float) -> None:
    assert mean_wait(load, "exponential") == pytest.approx(load / (1 - load), rel=0.05)


def alone(**changes: object) -> Setup:
    """One stream through one gateway: nothing waits."""
    plain = Setup(
        streams=1,
        pace=10_000.0,
        hops=(Hop((0,), 30.0),),
        engine=Hop((1,), 10.0, writing=0.5),
        client=Hop((2,), 8.0),
        spread=0.0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_chunk_alone_takes_its_own_time_and_its_passages() -> None:
    found = simulate(alone(wire=100.0))
    # From when the engine has its turn to when the client reads: two passages, engine and gateway in full.
    assert found["p50"] == found["p99"] == pytest.approx(10 + 30 + 2 * 100)
    # Every 65th step of the engine ends a stream and is no chunk.
    assert found["chunks_per_second"] == pytest.approx(100 * 64 / 65, rel=0.02)


def test_a_core_is_busy_as_long_as_its_work_takes() -> None:
    setup = alone(streams=300, hops=(Hop((0,), 20.0),), seconds=2.0)
    expected = 300 * SECOND / setup.pace * 20.0 / SECOND
    assert simulate(setup)["busiest"] == pytest.approx(expected, rel=0.03)


def test_what_comes_together_waits_for_what_came_with_it() -> None:
    # A burst of n through one server: chunk k waits for k services, on average half of the burst.
    setup = alone(
        streams=100, together=True, engine=Hop((), 0.0), client=Hop((), 0.0), hops=(Hop((0,), 30.0, writing=1),)
    )
    assert simulate(setup)["mean"] == pytest.approx(30 * (100 + 1) / 2, rel=0.03)
    half = replace(setup, hops=(Hop((0, 1), 30.0, writing=1),))
    assert simulate(half)["mean"] == pytest.approx(30 * (50 + 1) / 2, rel=0.03)


def test_two_loops_on_one_core_are_no_faster_than_one() -> None:
    one = alone(streams=250, pace=10_000.0)
    two = replace(one, hops=(Hop((0, 0), 30.0),))
    assert simulate(two)["busiest"] == pytest.approx(simulate(one)["busiest"], rel=0.02)


def test_the_log_delays_chunks_by_a_slice_at_most() -> None:
    # So many rows that the log has work all the time: chunks get their turn between two slices of 1 ms.
    heavy = alone(chunks=1, hops=(Hop((0,), 30.0, log=50_000.0),), streams=20, pace=100_000.0)
    simulation = Simulation(heavy)
    found = simulation.run()
    assert found["busiest"] > 0.9
    assert found["p99"] < 1000 + 20 * 40 + 100


def test_the_same_seed_gives_the_same_day() -> None:
    setup = alone(streams=50, spread=0.5)
    assert simulate(setup) == simulate(setup)
    assert simulate(setup) != simulate(replace(setup, seed=2))


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """What benchmarks/paced.py would print on a machine that is as the simulation has it."""
    made: dict[str, Any] = {
        "gateways": 2,
        "streams": 25,
        "pace": 20,
        "together": True,
        "chunks_per_stream": 64,
    }
    used = {"engine": 11.0, "client": 9.0, "gateways": 34.0}
    for way in ("direct", "one", "through"):
        made[way] = {"cpu_us_per_chunk": used}
        found = simulate(of_run(made, way, Fit(0.7, 0.6)))
        made[way] = {
            "cpu_us_per_chunk": used,
            "chunks_per_second": found["chunks_per_second"],
            "one_way_us": {name: found[name] for name in ("mean", "p50", "p99")},
        }
    return made


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return document


def test_a_run_of_its_own_is_reproduced(
    run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = fitted(run)
    assert (fit.ends, fit.gateways) == (pytest.approx(0.7, rel=0.05), pytest.approx(0.6, rel=0.05))
    assert max(abs(error) for _, _, _, error in compare(run, fit)) < 0.05
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    assert main(["--against", str(path), "--streams", "100", "--gateways", "1"]) == 0
    found = told(capsys)
    assert found["good"] is True
    assert found["simulated"]["chunks_per_second"] == pytest.approx(100 * 20, rel=0.02)


def test_a_run_that_was_otherwise_is_not_and_then_nothing_is_foretold(
    run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(run))
    rate = run["through"]["chunks_per_second"] / 1.3
    bad.write_text(json.dumps(run | {"through": run["through"] | {"chunks_per_second": rate}}))
    assert main(["--against", str(good), str(bad), "--streams", "100"]) == 1
    found = told(capsys)
    assert found["good"] is False and "simulated" not in found


def test_a_core_that_was_never_used_is_not_busy() -> None:
    assert Core().busy == 0
