"""Experiments over a real database: won, not won, broken, harmful, early; and the long-run promises, simulated."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from gateway.cli import records
from gateway.log import results, store, words
from gateway.log.allocation import EVERY, Learner, shares
from gateway.log.digest import digest
from gateway.log.evidence import Evidence, Unit, Vote
from gateway.log.finding import Result
from gateway.log.row import new_id
from gateway.log.schema import feedback
from gateway.policy.experiments import Experiment, Variant, assign, hash_unit
from tests.log.made import assigned, exchange, plan

DAY = 86400.0
START = 1_790_000_000.0


def declared(**changes: Any) -> Experiment:
    arms = {"plain": Variant(), "warm": Variant(parameters={"temperature": 1.1})}
    return Experiment(**{"preset": "creative", "variants": arms, "state": "running"} | changes)


def seen(
    rates: dict[str, float], units: int, *, seed: int = 1, days: float = 10.0, answers: float = 0.7, **changes: Any
) -> Evidence:
    """Units assigned as the gateway would, some of which vote; a thumb is up with the rate of their variant."""
    rng = random.Random(seed)
    experiment = declared(variants={name: Variant() for name in rates})
    found = Evidence([], [], 0, False, {})
    for number in range(units):
        unit = hash_unit("user", f"{seed} {number}")
        given = assign("warmer", experiment, unit)
        assert given is not None
        at = START + days * DAY * number / units
        made = {"errors": 0, "tokens": rng.gauss(100, 20), "latency_ms": rng.gauss(300, 50)} | changes
        for name, value in made.items():
            made[name] = value(given.variant, rng) if callable(value) else value
        found.units.append(Unit(unit=unit.id, variant=given.variant, first=at, exchanges=1, **made))
        if rng.random() < answers:
            up = rng.random() < rates[given.variant]
            found.votes.append(Vote(at + 60, unit.id, 1.0 if up else -1.0))
    return found


def judged(found: Evidence, experiment: Experiment | None = None, *, days: float = 10.0) -> Result:
    return results.judge("warmer", experiment or declared(), found, START + days * DAY)[0]


@pytest.mark.parametrize(
    ("rates", "units", "verdict"),
    [
        ({"plain": 0.6, "warm": 0.72}, 4000, "ship warm"),
        ({"plain": 0.72, "warm": 0.6}, 4000, "keep plain"),
        ({"plain": 0.6, "warm": 0.6}, 1000, "not yet"),
        ({"plain": 0.9, "warm": 0.9}, 20_000, "no difference"),
        ({"plain": 0.6, "warm": 0.62, "hot": 0.75}, 6000, "ship hot"),
    ],
)
def test_verdicts(rates: dict[str, float], units: int, verdict: str) -> None:
    experiment = declared(variants={name: Variant() for name in rates})
    result = judged(seen(rates, units), experiment)
    assert result.verdict == verdict
    assert sum(arm.units for arm in result.arms) == units
    for comparison in result.comparisons:
        truth = rates[comparison.variant] - rates["plain"]
        assert comparison.low is not None
        assert comparison.high is not None
        assert comparison.low < truth < comparison.high
        assert 100 <= len(comparison.history) <= 402
    exact = [comparison.exact_e for comparison in result.comparisons]
    assert [e is None or e > 20 for e in exact] == [len(rates) > 2 or truth != 0] * len(exact)


def test_no_number_before_twenty_of_each_kind() -> None:
    result = judged(seen({"plain": 0.6, "warm": 0.95}, 300))
    assert min(result.arms[1].positives, result.arms[1].negatives) < 20
    assert result.comparisons[0].difference is None
    assert (result.verdict, result.reasons) == ("not yet", ["few_votes"])
    assert result.needed is not None
    assert result.needed.voters_missing > 500


def test_early_wins_wait_for_the_days() -> None:
    found = seen({"plain": 0.5, "warm": 0.75}, 3000, days=2)
    assert judged(found, days=2).reasons == ["too_early"]
    assert judged(found, declared(min_days=0), days=2).verdict == "ship warm"


def test_a_broken_split_shows_no_effect() -> None:
    """53:47 of assigned units is loud at 40,000; 50:50 is silent at any look."""
    found = seen({"plain": 0.5, "warm": 0.7}, 40_000, answers=0.2)
    assert judged(found).sample_ratio.alarm is False  # type: ignore[union-attr]
    lost = [unit for number, unit in enumerate(found.units) if unit.variant == "plain" or number % 100 >= 12]
    result = judged(Evidence(lost, found.votes, 0, False, {}))
    assert (result.verdict, result.comparisons) == ("invalid: sample ratio", [])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("errors", {"errors": lambda variant, rng: int(variant == "warm" and rng.random() < 0.1)}),
        ("errors", {"errors": lambda variant, rng: int(variant == "warm")}),
        ("tokens", {"tokens": lambda variant, rng: rng.gauss(200 if variant == "warm" else 100, 20)}),
        ("latency", {"latency_ms": lambda variant, rng: rng.gauss(450 if variant == "warm" else 300, 50)}),
    ],
)
def test_a_winner_that_harms_is_not_shipped(name: str, change: dict[str, Any]) -> None:
    result = judged(seen({"plain": 0.5, "warm": 0.75}, 3000, **change))
    assert (result.verdict, result.reasons) == ("keep plain", [f"guardrail: {name} (warm)"])


def test_harm_is_told_while_votes_say_nothing_and_ends_what_can_not_be_won() -> None:
    broken = {"errors": lambda variant, rng: int(variant == "warm")}
    found = seen({"plain": 0.6, "warm": 0.6}, 400, answers=0.02, **broken)
    assert (judged(found).verdict, judged(found).reasons) == ("keep plain", ["hurt: errors (warm)"])
    assert words.reason("hurt: errors (warm)", "en") == "A guardrail shows harm: Errors (warm)."
    arms = {"plain": Variant(), "warm": Variant(), "hot": Variant()}
    found = seen({"plain": 0.6, "warm": 0.6, "hot": 0.6}, 600, answers=0.02, **broken)
    result = judged(found, declared(variants=arms))
    assert (result.verdict, result.reasons) == ("not yet", ["few_votes", "hurt: errors (warm)"])


def test_unequal_voting_is_harm_in_either_direction() -> None:
    for silent in ("plain", "warm"):
        found = seen({"plain": 0.5, "warm": 0.75}, 5000)
        arm = {unit.unit: unit.variant for unit in found.units}
        found.votes = [v for n, v in enumerate(found.votes) if arm[v.unit] != silent or n % 4]
        assert judged(found).reasons == ["guardrail: feedback_rate (warm)"]


def test_evidence_is_remembered(engine: Engine) -> None:
    """The highest evidence and the first crossing survive the rows they came from."""
    found = seen({"plain": 0.5, "warm": 0.75}, 2000)
    result, kept = results.judge("warmer", declared(), found, START + 10 * DAY)
    results.evidence.remember(engine, "warmer", kept)
    weaker = {"warm": results.Remembered(1.0, START + 9 * DAY)}
    results.evidence.remember(engine, "warmer", weaker)
    read = results.evidence.read(engine, "warmer").remembered
    assert read == kept
    again, _ = results.judge("warmer", declared(), Evidence([], [], 0, False, read), START + 11 * DAY)
    assert again.comparisons[0].difference is None
    assert result.comparisons[0].max_e == pytest.approx(math.exp(kept["warm"].max_log_e))


def fill(engine: Engine, experiment: Experiment, users: int, rates: dict[str, float], seed: int = 3) -> None:
    """What the gateway and its users would leave behind."""
    rng = random.Random(seed)
    rows, votes = [], []
    for number in range(users):
        user, at = f"user {number}", START + 9 * DAY * number / users
        given = assign("warmer", experiment, hash_unit("user", user))
        assert given is not None
        for turn in range(rng.choice((1, 1, 2))):
            made = exchange(at=at + turn, plan=plan(assignment=given))
            rows.append(digest(made))
            for again in range(rng.choice((0, 1, 1, 2))):  # a second thumb replaces the first
                value = 1.0 if rng.random() < rates[given.variant] else -1.0
                said = {"id": new_id(at), "exchange_id": made.id, "time": at + 10 + again, "name": "thumb"}
                votes.append(said | {"value": value, "comment": None, "source": "test"})
    store.write(engine, rows)
    with engine.begin() as connection:
        connection.execute(insert(feedback), votes)


def test_two_thousand_users_over_a_database(engine: Engine) -> None:
    fill(engine, declared(), 2000, {"plain": 0.5, "warm": 0.75})
    result = results.examine(engine, "warmer", declared(), START + 10 * DAY)
    assert result.verdict == "ship warm"
    assert sum(arm.units for arm in result.arms) == 2000
    assert result.arms[0].votes > result.arms[0].voters
    assert result.moved == 0
    low, high = result.comparisons[0].low, result.comparisons[0].high
    assert low is not None
    assert high is not None
    assert low < 0.25 < high
    a_a = results.examine(engine, "another", declared(), START + 10 * DAY)
    assert (a_a.verdict, a_a.started) == ("not yet", None)


def test_the_same_users_without_a_difference(engine: Engine) -> None:
    fill(engine, declared(), 2000, {"plain": 0.6, "warm": 0.6})
    assert results.examine(engine, "warmer", declared(), START + 10 * DAY).verdict == "not yet"


def test_a_unit_counts_in_its_first_arm(engine: Engine) -> None:
    for at, variant in ((START, "plain"), (START + 5, "warm")):
        store.write(engine, [digest(exchange(at=at, plan=plan(assignment=assigned("warmer", variant, "ann"))))])
    found = results.evidence.read(engine, "warmer")
    assert ([unit.variant for unit in found.units], found.moved) == (["plain"], 1)


def test_looking_all_the_time_does_not_find_what_is_not_there() -> None:
    """200 A/A experiments, looked at about every fourth vote: at most 5% may ever show an interval beyond zero."""
    wrong = 0
    for seed in range(200):
        result = judged(seen({"plain": 0.6, "warm": 0.6}, 1500, seed=seed))
        history = result.comparisons[0].history
        wrong += any(point.low > 0 or point.high < 0 for point in history)
    assert wrong <= 10 + 2 * math.sqrt(200 * 0.05 * 0.95)


ADAPTIVE = {"allocation": "adaptive"}


def test_adaptive_runs_are_judged_by_the_universal_e_process_only() -> None:
    won = judged(seen({"plain": 0.4, "warm": 0.75}, 1500), declared(**ADAPTIVE))
    assert won.verdict == "ship warm"
    assert (won.sample_ratio, won.comparisons[0].low, won.comparisons[0].exact_e) == (None, None, None)
    assert (won.adaptive_e or 0) > 20
    assert won.needed is None  # the formula is for even arms
    assert judged(seen({"plain": 0.75, "warm": 0.4}, 1500), declared(**ADAPTIVE)).verdict == "keep plain"
    assert judged(seen({"plain": 0.6, "warm": 0.6}, 1500), declared(**ADAPTIVE)).verdict == "not yet"


def test_the_terminal_says_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    records._in_full(judged(seen({"plain": 0.6, "warm": 0.72}, 4000)))
    said = capsys.readouterr().out
    for words_ in (
        "sample ratio",
        "warm - plain: +0.1",
        "Tokens per answer",
        "no harm shown (25% tolerated)",
        "Ship warm",
    ):
        assert words_ in said
    records._in_full(judged(seen({"plain": 0.4, "warm": 0.75}, 1500), declared(**ADAPTIVE, min_days=30)))
    said = capsys.readouterr().out
    assert "the arms differ: e = " in said
    assert "Not yet: The difference is there" in said
    assert "not enough votes" not in said
    assert "more voters" not in said
    assert max(map(len, said.splitlines()[:-1])) <= 80


def test_adaptive_weights_follow_the_evidence_with_a_floor() -> None:
    assert shares([(0, 0), (0, 0)], "seed") == pytest.approx([0.5, 0.5], abs=0.03)
    leader = shares([(20, 80), (80, 20), (50, 50)], "seed")
    assert sum(leader) == pytest.approx(1)
    assert leader[1] == max(leader)
    assert min(leader) >= 0.1
    assert shares([(1, 2), (2, 1)], "a") == shares([(1, 2), (2, 1)], "a")


def test_processes_agree_on_learnt_weights_and_old_units_stay(engine: Engine) -> None:
    experiment = declared(**ADAPTIVE)
    fill(engine, experiment, 400, {"plain": 0.3, "warm": 0.8})
    now = START + 10 * DAY
    one, other = Learner(engine), Learner(engine)
    assert one.refresh({"warmer": experiment}, now) == {}
    later = now + EVERY
    learnt = one.refresh({"warmer": experiment}, later)["warmer"]
    assert other.refresh({"warmer": experiment}, later)["warmer"] == learnt
    assert learnt.weights[1] > 0.5
    assert len(learnt.known) == 400
    for number in range(400):
        unit = hash_unit("user", f"user {number}")
        before, after = assign("warmer", experiment, unit), assign("warmer", experiment, unit, learnt)
        assert before == after
    new = assigned("warmer", "plain", "new")
    one.note(new)
    assert learnt.known[new.unit] == "plain"
    assert one.refresh({"warmer": declared()}, later) == {}
