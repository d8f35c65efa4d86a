"""Known answers of the recommender: simulated sweeps whose truth is known, and the promises it makes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.evaluation.cells import Cell, compare
from gateway.evaluation.recommend import Recommendation, recommend
from gateway.evaluation.study import Options

GRID = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
FLAT = (0.8,) * 7
DROPS = (0.80, 0.80, 0.79, 0.78, 0.66, 0.50, 0.30)  # by more than .10 after .8
AT_THE_MARGIN = (0.8, 0.8, 0.8, 0.8, 0.699, 0.5, 0.3)  # by just more than .10: where overshooting is likeliest
FALLS = (0.9, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0)
RISES = (0.3, 0.5, 0.8, 0.8, 0.5, 0.3, 0.1)
TURNING = (0.1, 0.2, 0.35, 0.55, 0.9, 2.5, 5.0)  # ln H turns convex from .6 to .8 on
CLEAN = (0.0,) * 7


def sweep(
    seed: int,
    quality: tuple[float, ...] | None = FLAT,
    *,
    prompts: int = 20,
    samples: int = 8,
    degenerate: tuple[float, ...] = CLEAN,
    entropy: tuple[float, ...] | None = None,
    lang: str = "en",
) -> list[Cell]:
    """Prompts of differing difficulty, scored pass or fail on each of their samples; diversity rises with T."""
    rng = np.random.default_rng(seed)
    cells = []
    for i in range(prompts):
        ease = rng.normal(0, 0.15)
        for k, t in enumerate(GRID):
            chance = None if quality is None else float(np.clip(quality[k] + ease, 0, 1))
            cells.append(
                Cell(
                    scenario="creative",
                    lang=lang,
                    prompt=f"p{i:03}",
                    temperature=t,
                    quality=None if chance is None else rng.binomial(samples, chance) / samples,
                    degenerate=rng.binomial(samples, degenerate[k]) / samples,
                    diversity=0.3 + 0.3 * t + rng.normal(0, 0.05),
                    consistency=float(np.clip(1.0 - 0.5 * t + rng.normal(0, 0.05), 0, 1)),
                    entropy=None if entropy is None else entropy[k],
                    n=samples,
                )
            )
    return cells


@pytest.mark.parametrize("quality", [DROPS, AT_THE_MARGIN], ids=["clear drop", "drop at the margin"])
@pytest.mark.parametrize(("prompts", "runs", "close"), [(20, 300, 0.80), (40, 100, 0.95)])
def test_the_range_rarely_goes_beyond_the_truth_and_comes_close_to_it(
    quality: tuple[float, ...], prompts: int, runs: int, close: float
) -> None:
    truth = 0.8
    found = [recommend(sweep(seed, quality, prompts=prompts), Options(delta=0.10, seed=seed)) for seed in range(runs)]
    high = np.array([result.high for result in found], dtype=float)
    assert (high > truth).mean() <= 0.10 + 3 * math.sqrt(0.10 * 0.90 / runs)
    assert (abs(high - truth) < 0.21).mean() >= close
    for result in found:
        assert result.low is not None
        assert result.temperature is not None
        assert result.high is not None
        assert 0.2 <= result.low <= result.temperature <= result.high


def test_flat_quality_gives_the_whole_grid() -> None:
    found = recommend(sweep(1))
    assert (found.verdict, found.temperature, found.high) == ("recommend", 1.4, 1.4)
    assert "hotter temperatures were not tried" in " ".join(found.reasons)
    assert found.low == 1.2, "four fifths of the gain in diversity"


def test_quality_that_falls_at_once_gives_the_coldest_temperature() -> None:
    found = recommend(sweep(2, FALLS))
    assert (found.verdict, found.low, found.temperature, found.high) == ("recommend", 0.2, 0.2, 0.2)


def test_noise_is_no_reason_to_change_anything() -> None:
    noise = recommend(sweep(3, prompts=6))
    assert (noise.verdict, noise.temperature, noise.points) == ("insufficient_data", None, [])
    assert "6 prompts" in noise.reasons[0]
    few = recommend(sweep(3, prompts=12))
    assert few.verdict == "keep_preset"
    assert few.high is not None
    assert "20 are needed to recommend" in few.reasons[0]
    unclear = [recommend(sweep(seed, (0.5,) * 7, samples=1)) for seed in range(20)]
    vague = [found for found in unclear if found.high == 0.2]
    assert vague
    assert {found.verdict for found in vague} == {"keep_preset"}
    assert "nor to be harmful" in vague[0].reasons[0]


def test_one_seed_gives_one_answer_and_the_order_of_the_cells_does_not_matter() -> None:
    cells = sweep(4, DROPS)
    shuffled = random.Random(1).sample(cells, len(cells))
    assert (
        recommend(cells, Options(seed=7)) == recommend(cells, Options(seed=7)) == recommend(shuffled, Options(seed=7))
    )
    assert recommend(cells, Options(seed=7)).points != recommend(cells, Options(seed=8)).points


@pytest.mark.parametrize("quality", [FLAT, DROPS, AT_THE_MARGIN])
def test_a_worse_and_hotter_temperature_never_raises_the_range(quality: tuple[float, ...]) -> None:
    for seed in range(40):
        cells = sweep(seed, quality)
        hottest = {cell.prompt: cell for cell in cells if cell.temperature == 1.4}
        worse = [
            replace(cell, temperature=1.6, quality=max(0.0, cell.quality - 0.3), degenerate=1.0)
            for cell in hottest.values()
            if cell.quality is not None
        ]
        before, after = recommend(cells).high, recommend(cells + worse).high
        assert before is not None
        assert after is not None
        assert after <= before


def test_degeneration_alone_ends_the_range() -> None:
    found = recommend(sweep(5, degenerate=(0, 0, 0, 0.01, 0.3, 0.5, 0.9)))
    assert found.high == 0.8
    hopeless = recommend(sweep(5, degenerate=(0.5,) * 7))
    assert (hopeless.verdict, hopeless.temperature) == ("keep_preset", None)
    assert "even at 0.2" in hopeless.reasons[0]


def test_the_turning_point_is_a_ceiling_and_lower_for_a_majority_vote() -> None:
    capped = recommend(sweep(6, entropy=TURNING))
    assert (capped.cap, capped.high) == (0.9, 0.8)
    assert "caps the range at 0.9" in " ".join(capped.reasons)
    assert recommend(sweep(6, entropy=TURNING), Options(objective="consistency")).cap == 0.8
    assert recommend(sweep(6)).cap is None


def test_where_quality_rises_the_range_begins_at_its_best() -> None:
    found = recommend(sweep(7, RISES, prompts=40))
    assert found.low is not None
    assert found.low >= 0.6
    assert found.high == 0.8
    assert "quality rises significantly" in " ".join(found.reasons)


def test_the_other_objectives() -> None:
    best = recommend(sweep(8, RISES, prompts=40), Options(objective="max_quality"))
    assert (best.verdict, best.temperature) == ("recommend", 0.6), "the smallest within one standard error of the best"
    same = recommend(sweep(8, prompts=40), Options(objective="consistency"))
    assert (same.temperature, same.high) == (0.2, 0.2), "agreement falls by .1 a step, the margin is .05"
    free = recommend(sweep(8, None, degenerate=(0, 0, 0, 0, 0, 0.4, 0.8)), Options(objective="label_free"))
    assert (free.verdict, free.temperature) == ("recommend", 1.0)
    assert "quality was not looked at" in " ".join(free.reasons)
    blind = recommend(sweep(8, None))
    assert blind.verdict == "insufficient_data"
    assert "not measured at all: quality" in blind.reasons


def test_a_preset_that_is_as_good_is_kept() -> None:
    assert recommend(sweep(1), Options(current=1.4)).verdict == "keep_preset"
    assert recommend(sweep(1), Options(current=0.2)).verdict == "recommend"


def test_languages_are_strata_and_none_may_be_shown_to_lose_more_than_the_margin() -> None:
    good, bad = sweep(9, lang="en", prompts=30), sweep(10, (0.8, 0.8, 0.8, 0.8, 0.5, 0.5, 0.5), lang="zh", prompts=10)
    found = recommend(good + bad, Options(delta=0.10))
    assert found.prompts == {"en": 30, "zh": 10}
    assert found.high == 0.8, "together they lose .075 at 1.0, zh alone .3"
    assert recommend(good).high == 1.4


def test_missing_cells_leave_out_prompts_or_a_temperature_and_say_so() -> None:
    cells = sweep(11, prompts=25)
    interrupted = [cell for cell in cells if cell.prompt != "p024" or cell.temperature < 0.7]
    found = recommend(interrupted)
    assert (found.prompts, found.verdict) == ({"en": 24}, "recommend")
    assert "1 of 25 prompts" in " ".join(found.reasons)
    sparse = [cell for cell in cells if cell.temperature != 1.4 or cell.prompt < "p010"]
    found = recommend(sparse)
    assert (found.prompts, found.high) == ({"en": 25}, 1.2)
    assert "too few complete cells: temperature 1.4" in " ".join(found.reasons)
    thin = [replace(cell, n=3) if cell.prompt == "p003" else cell for cell in cells]
    assert recommend(thin).prompts == {"en": 24}, "a cell of fewer samples cannot be compared with the others"
    unscored = [replace(cell, quality=None) if cell.prompt == "p003" else cell for cell in cells]
    assert recommend(unscored).prompts == {"en": 24}


def test_points_hold_what_was_measured() -> None:
    cells = sweep(12, DROPS)
    found = recommend(cells)
    for point in found.points:
        scores = [cell.quality for cell in cells if cell.temperature == point.temperature]
        assert point.means["quality"] == pytest.approx(np.mean(scores))  # type: ignore[arg-type]
        low, high = point.intervals["quality"]
        assert low < point.means["quality"] < high
        assert "entropy" not in point.means
    assert [point.safe for point in found.points] == [t <= (found.high or 0) for t in GRID]


def test_words_for_people() -> None:
    assert recommend(sweep(1)).lines()[0] == (
        "creative: recommend, 1.4 in [1.2, 1.4] (20 en prompts x 8 samples, max_diversity_st_quality)"
    )
    assert recommend(sweep(1, prompts=3)).lines()[0].startswith("creative: insufficient_data (3 en prompts")


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([], "exactly one scenario"),
        ([*sweep(1), replace(sweep(1)[0], scenario="coding")], "exactly one scenario"),
        ([*sweep(1), sweep(1)[0]], "prompt 'p000' has two cells at 0.2"),
    ],
)
def test_cells_that_cannot_be_compared(cells: list[Cell], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recommend(cells)


def test_a_recommendation_survives_json() -> None:
    import msgspec

    found = recommend(sweep(1))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Recommendation) == found
    assert compare(sweep(1), {"quality"}).temperatures == list(GRID)
