"""Assignment: uniform, stable, and untouched by ramping."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

import msgspec
import pytest

from gateway.policy.experiments import (
    Allocation,
    Experiment,
    Unit,
    Variant,
    assign,
    bucket,
    choose_unit,
    hash_unit,
    problems,
)

UNITS = [hash_unit("user", f"user-{n}") for n in range(20_000)]


def experiment(exposure: float = 1.0, **variants: float) -> Experiment:
    arms = {name: Variant(weight=weight) for name, weight in (variants or {"a": 1.0, "b": 1.0}).items()}
    return Experiment(preset="creative", variants=arms, state="running", exposure=exposure)


def arms(
    name: str, of: Experiment, units: list[Unit] = UNITS, allocation: Allocation | None = None
) -> list[str | None]:
    given = [assign(name, of, unit, allocation) for unit in units]
    return [g.variant if g else None for g in given]


def chi2(counts: list[int], shares: list[float]) -> float:
    total = sum(counts)
    return sum((c - total * s) ** 2 / (total * s) for c, s in zip(counts, shares, strict=True))


@pytest.mark.parametrize("name", ["warm", "温度", "x"])
@pytest.mark.parametrize("weights", [(1, 1), (9, 1), (1, 1, 1), (5, 3, 2)])
def test_assignment_is_uniform(name: str, weights: tuple[int, ...]) -> None:
    given = Counter(arms(name, experiment(**{f"v{i}": w for i, w in enumerate(weights)})))
    shares = [w / sum(weights) for w in weights]
    assert chi2([given[f"v{i}"] for i in range(len(weights))], shares) < 20  # p < 2e-4 even with 2 degrees of freedom


def test_the_formula_is_the_documented_one() -> None:
    unit = hash_unit("user", "alice")
    digest = sha256(f"warm\0variant\0{unit.id}".encode()).digest()
    assert bucket("warm", "variant", unit.id) == int.from_bytes(digest[:4], "big") / 2**32
    assert hash_unit("user", "alice").id == sha256(b"\0user\0alice").hexdigest()[:32]


def test_assignments_do_not_change_between_releases() -> None:
    """Literal values: an edit that moves units under a running experiment must fail here."""
    assert arms("warm", experiment(), UNITS[:12]) == list("aaaabbbbaabb")


def test_ramping_moves_no_unit() -> None:
    before: dict[str, str] = {}
    for exposure in (0.0, 0.01, 0.1, 0.5, 1.0):
        now = {u.id: v for u, v in zip(UNITS, arms("warm", experiment(exposure)), strict=True) if v}
        assert before.items() <= now.items()
        assert abs(len(now) / len(UNITS) - exposure) < 0.02
        before = now


def test_exposure_and_variant_are_independent_and_so_are_experiments() -> None:
    exposed = Counter(v for v in arms("warm", experiment(0.3)) if v)
    assert chi2([exposed["a"], exposed["b"]], [0.5, 0.5]) < 15
    both = Counter(zip(arms("warm", experiment()), arms("cold", experiment()), strict=True))
    assert chi2([both[x, y] for x in "ab" for y in "ab"], [0.25] * 4) < 20


@pytest.mark.parametrize("state", ["draft", "stopped"])
def test_only_a_running_experiment_assigns(state: str) -> None:
    assert set(arms("warm", msgspec.structs.replace(experiment(), state=state))) == {None}
    assert assign("warm", experiment(), None) is None


@pytest.mark.parametrize(
    ("accepts", "identifiers", "kind"),
    [
        ("any", {"user": "u", "unit": "x", "conversation": "c"}, "user"),
        ("any", {"user": None, "unit": "x", "conversation": "c"}, "unit"),
        ("any", {"user": "", "unit": None, "conversation": "c"}, "conversation"),
        ("user", {"conversation": "c"}, None),
        ("user", {"unit": "x", "conversation": "c"}, "unit"),
        ("conversation", {"user": "u", "conversation": "c"}, "conversation"),
        ("any", {}, None),
    ],
)
def test_which_identifier_is_the_unit(accepts: str, identifiers: dict[str, str | None], kind: str | None) -> None:
    unit = choose_unit(identifiers, accepts)  # type: ignore[arg-type]
    assert (unit.kind if unit else None) == kind


def test_a_unit_hides_its_identifier() -> None:
    unit = hash_unit("user", "alice@example.org")
    assert len(unit.id) == 32 and "alice" not in unit.id
    assert unit != hash_unit("conversation", "alice@example.org")
    assert unit != hash_unit("user", "alice@example.org", pepper="secret")


def test_adaptive_weights_reach_new_units_only() -> None:
    adaptive = msgspec.structs.replace(experiment(), allocation="adaptive")
    old = {u.id: v for u, v in zip(UNITS[:5000], arms("warm", adaptive, UNITS[:5000]), strict=True) if v}
    later = arms("warm", adaptive, UNITS, Allocation((0.1, 0.9), old))
    assert later[:5000] == list(old.values())
    assert abs(Counter(later[5000:])["b"] / 15_000 - 0.9) < 0.02


def test_an_experiment_is_read_strictly() -> None:
    good = {"preset": "creative", "variants": {"a": {}, "b": {"parameters": {"temperature": 1.1}, "weight": 2}}}
    parsed = msgspec.convert(good, Experiment)
    assert parsed.control == "a" and parsed.state == "draft" and not list(problems(parsed))
    for bad in ({"exposure": 1.5}, {"typo": 1}, {"variants": {"a": {"weight": 0}}}, {"state": "on"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(good | bad, Experiment)
    assert [key for key, _ in problems(experiment(a=1.0))] == ["variants"]
    assert [key for key, _ in problems(experiment(a=1.0, b=0.001))] == ["variants.b.weight"]
