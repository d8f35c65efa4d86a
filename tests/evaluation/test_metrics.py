from datetime import UTC, datetime

import pytest

from gateway.evaluation.cases import Case, Message
from gateway.evaluation.constraints import Include, Words
from gateway.evaluation.metrics import ALL, cells, score, summarise
from gateway.evaluation.rows import Header, Sample, Setting, Setup

LOW, HIGH = 0.2, 1.0


def make_case(number, scenario="own", lang="en"):
    return Case(
        id=f"{scenario}-{lang}-{number}",
        lang=lang,
        scenario=scenario,
        messages=[Message("user", "Say something about cats.")],
        checks=[Words(max=3), Include(any=["cat"])],
        max_tokens=20,
    )


def make_sample(case, asked, number, text, **changes):
    figures = {"tokens": 4, "tail_rate": 0.0, "surprisal": 1.0, "entropy": 0.5, **changes}
    return Sample(
        case=case.id, scenario=case.scenario, lang=case.lang, asked=asked, sample=number, text=text, finish="stop",
        params={}, exchange=None, seconds=0.1, **{"temperature": asked, **figures},
    )  # fmt: skip


def make_header(cases):
    setup = Setup(
        model="m", temperatures=[LOW, HIGH], samples=2, max_tokens=20, seed=1,
        settings={case.scenario: Setting() for case in cases}, cases=cases,
    )  # fmt: skip
    return Header(setup=setup, profile="dev", created=datetime.now(UTC).isoformat(), parameters=None, toy=False)


def both(case, cold, hot):
    """Two samples at each temperature, and the greedy one (which says what the first cold one says)."""
    return [
        make_sample(case, 0.0, 0, cold[0], entropy=None),
        *(make_sample(case, LOW, i, text) for i, text in enumerate(cold)),
        *(make_sample(case, HIGH, i, text) for i, text in enumerate(hot)),
    ]


def test_one_prompt_by_hand():
    case = make_case(1)
    scored = score(make_header([case]), both(case, ["a cat", "a cat"], ["a cat", "one two three four"]))
    cold, hot = scored.values[case.id, LOW], scored.values[case.id, HIGH]
    assert (cold["quality"], hot["quality"]) == (1.0, 0.5)  # (1 + 1) / 2; (1 + 0) / 2
    assert (cold["agreement"], hot["agreement"]) == (1.0, 0.0)
    assert (cold["greedy_agreement"], hot["greedy_agreement"]) == (1.0, 0.5)
    assert (cold["distinct_1"], hot["distinct_1"]) == (0.5, 1.0)
    assert cold["dispersion"] == pytest.approx(0.0)
    assert cold["degenerate"] == 0.0
    assert scored.n == {case.id: 2}


def test_prompts_with_gaps_are_left_out_and_named():
    whole, gap = make_case(1), make_case(2)
    samples = both(whole, ["a cat", "b"], ["c", "d"]) + both(gap, ["a", "b"], ["c", "d"])[:-1]
    scored = score(make_header([whole, gap]), samples)
    assert scored.incomplete == [gap.id]
    assert [case.id for case in scored.cases] == [whole.id]


def test_the_same_n_at_every_temperature():
    case = make_case(1)
    samples = [*both(case, ["a", "b"], ["c", "d"]), make_sample(case, LOW, 2, "cat")]
    scored = score(make_header([case]), samples)
    assert scored.n[case.id] == 2
    assert scored.values[case.id, LOW]["quality"] == 0.5


def test_a_temperature_that_was_clamped_is_shown_where_it_was_used():
    case = make_case(1)
    samples = [
        *(make_sample(case, LOW, i, "a cat") for i in range(2)),
        *(make_sample(case, HIGH, i, "b", temperature=0.5) for i in range(2)),
    ]
    scored = score(make_header([case]), samples)
    assert scored.temperatures == [LOW, 0.5]
    assert scored.clamped == [(HIGH, 0.5)]


def test_means_and_intervals_over_prompts():
    cases = [make_case(i) for i in range(8)]
    samples = [
        sample
        for i, case in enumerate(cases)
        for sample in both(case, ["a cat", "a cat"], ["a cat", "a cat"] if i % 2 else ["no", "no"])
    ]
    points = {
        (p.scenario, p.temperature): p
        for p in summarise(score(make_header(cases), samples))[0]
        if p.metric == "quality"
    }
    cold, hot = points["own", LOW], points["own", HIGH]
    assert (cold.value, cold.low, cold.high, cold.prompts, cold.n) == (1.0, 1.0, 1.0, 8, 2)
    assert hot.value == pytest.approx(0.75)  # half of the prompts score 1, half .5
    # a mean of 8 fair coins worth .5 or 1: the 2.5% quantile has 1 or 2 heads, the 97.5% one 6 or 7
    assert 0.5 + 0.5 / 8 <= hot.low <= 0.5 + 0.5 * 2 / 8
    assert 0.5 + 0.5 * 6 / 8 <= hot.high <= 0.5 + 0.5 * 7 / 8


def test_no_interval_below_eight_prompts_and_languages_stay_apart():
    cases = [
        make_case(i, lang=lang, scenario=name) for name in ("one", "two") for lang in ("en", "zh") for i in range(4)
    ]
    samples = [sample for case in cases for sample in both(case, ["a cat", "x"], ["a cat", "y"])]
    points = [p for p in summarise(score(make_header(cases), samples))[0] if p.metric == "quality"]
    assert {(p.scenario, p.lang, p.prompts) for p in points} == {
        ("one", "en", 4), ("one", "zh", 4), ("two", "en", 4), ("two", "zh", 4), (ALL, "en", 8), (ALL, "zh", 8)
    }  # fmt: skip
    assert all((p.low is None) == (p.prompts < 8) for p in points)


def test_cells_for_the_recommender():
    case = make_case(1)
    found = cells(score(make_header([case]), both(case, ["a cat sat", "a cat sat"], ["a cat", "dogs"])))
    assert [cell.temperature for cell in found] == [LOW, HIGH]
    assert found[0].n == 2
    assert found[0].consistency == 1.0
    assert found[0].diversity < found[1].diversity
    assert found[0].entropy == 0.5


def test_metrics_without_logprobs_are_missing_not_zero():
    case = make_case(1)
    samples = both(case, ["a cat", "b"], ["c", "d"])
    blind = [
        make_sample(case, s.asked, s.sample, s.text, tokens=None, tail_rate=None, surprisal=None, entropy=None)
        for s in samples
    ]
    scored = score(make_header([case]), blind)
    assert scored.values[case.id, LOW]["tail_rate"] is None
    assert not [p for p in summarise(scored)[0] if p.metric in ("tail_rate", "entropy")]
    assert [cell.entropy for cell in cells(scored)] == [None, None]


def test_embeddings_replace_the_surface():
    import numpy as np

    case = make_case(1)
    samples = both(case, ["a cat", "b"], ["c", "d"])
    scored = score(make_header([case]), samples, embed=lambda texts: np.eye(len(texts)))
    assert scored.semantic
    assert scored.values[case.id, LOW]["dispersion"] == pytest.approx(1.0)
    assert scored.values[case.id, LOW]["vendi"] == pytest.approx(2.0)


def test_a_change_is_paired_by_prompt():
    cases = [make_case(i) for i in range(8)]
    # half of the prompts are hard, each loses exactly .5: the curve's intervals have width, the difference's has none
    easy, hard = (["a cat"] * 2, ["no"] * 2), (["far too many words, cat"] * 2, ["far too many words"] * 2)
    samples = [sample for i, case in enumerate(cases) for sample in both(case, *(hard if i % 2 else easy))]
    points, changes = summarise(score(make_header(cases), samples))
    quality = next(change for change in changes if change.metric == "quality")
    assert (quality.cold, quality.hot, quality.low, quality.high, quality.prompts) == (0.75, 0.25, -0.5, -0.5, 8)
    assert all(p.high - p.low > 0.1 for p in points if p.metric == "quality")
