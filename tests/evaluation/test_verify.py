"""verify over HTTP: an honest engine passes, four broken ones fail, and it says so in words and in JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping

import msgspec
import pytest

from gateway.evaluation import verify
from gateway.evaluation.tiers import Chain
from gateway.evaluation.verify import Options, Unprovable, run
from gateway.evaluation.wire import Adjustment, Candidate, Choice, Position, Reply
from tests.fakes import FakeEngine

SMALL = {"resolution": 0.25, "first_tokens": 200}


def vocabulary(drawn: list[str]) -> Mapping[str, float]:
    """Logits of 60 words after those drawn so far: sure in some places, lost in others."""
    source = random.Random(" ".join(drawn[-2:]))
    spread = source.uniform(1.0, 3.5)
    return {f" w{k}": source.gauss(0.0, spread) for k in range(60)}


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine.in_thread(vocab=vocabulary) as engine:
        yield engine


async def test_an_honest_engine_passes_and_says_what_was_measured(engine: FakeEngine) -> None:
    said: list[str] = []
    found = await run(Options(base_url=engine.url, temperatures=(0.5, 1.0), **SMALL), said.append)
    assert found.passed, said
    assert any(line.startswith("asked 0.50, measured 0.") and "PASS" in line for line in said)
    assert "T = 0 five times: 1 different answer(s): PASS" in said
    for at in found.temperatures:
        assert at.tier_a is None, "vLLM's dialect does not show probabilities after sampling"
        assert at.tier_b is not None
        assert at.tier_b.error is not None
        assert at.tier_b.error < 0.25 / 4
        assert at.chain is not None
        assert abs(at.tier_b.temperature - at.chain.temperature) < 4 * at.tier_b.error  # type: ignore[operator]
    document = json.loads(msgspec.json.encode(found.document()))
    assert document["passed"] is True
    assert [at["passed"] for at in document["temperatures"]] == [True, True]


@pytest.mark.parametrize(
    ("sampler", "temperatures"),
    [
        ("ignores_temperature", (0.5,)),
        ("halves_temperature", (0.7,)),
        ("top_k_5", (1.0,)),
        ("biased", (0.7,)),
    ],
)
async def test_a_broken_engine_fails(engine: FakeEngine, sampler: str, temperatures: tuple[float, ...]) -> None:
    engine.sampler = sampler  # type: ignore[assignment]
    found = await run(Options(base_url=engine.url, temperatures=temperatures, **SMALL))
    assert not found.passed
    assert "FAIL" in found.temperatures[0].line()
    assert found.document()["passed"] is False


async def test_an_engine_that_ignores_temperature_fails_the_rise_of_surprisal_too(engine: FakeEngine) -> None:
    engine.sampler = "ignores_temperature"
    found = await run(Options(base_url=engine.url, temperatures=(0.5, 1.3), resolution=1.0, first_tokens=20))
    assert found.warmth is not None
    assert not found.warmth.passed


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"temperature": 0.7, "repetition_penalty": 1.1}, "repetition_penalty is 1.1"),
        ({"temperature": 0.7, "top_k": 0.0}, "top_k is 0, but only 20 candidates"),
        ({"temperature": 0.0, "top_k": 20.0}, "too low to measure"),
    ],
)
def test_what_cannot_be_shown_is_said(params: dict[str, float], says: str) -> None:
    with pytest.raises(Unprovable, match=says):
        verify._chain(reply(params), 0.7)


def test_the_chain_is_what_the_gateway_says_it_used() -> None:
    adjusted = {"temperature": Adjustment(1.4, 0.5, "bound")}
    params = {"temperature": 0.5, "top_p": 0.9, "top_k": 20.0, "min_p": 0.0, "max_tokens": 1.0}
    chain = verify._chain(reply(params, adjusted), 1.4)
    assert chain == (Chain(temperature=0.5, top_p=0.9, top_k=20), "bound")
    line = verify.AtTemperature(asked=1.4, by="bound", chain=chain[0], problem="not tried").line()
    assert line == "asked 1.40, applied 0.50 (bound): NOT SHOWN, not tried"
    with pytest.raises(Unprovable, match="no top_logprobs"):
        verify._chain(Reply(choices=(Choice("x", "stop"),)), 0.7)


def reply(params: Mapping[str, float], adjusted: dict[str, Adjustment] | None = None) -> Reply:
    token = Candidate("a", "a", -0.1)
    choice = Choice("a", "length", (Position(token, (token,)),))
    return Reply(choices=(choice,), params=dict(params), adjusted=adjusted or {})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(temperatures=(0.7, 2.5)), r"temperatures: each must be in \[0.05, 2\], got 2.5"),
        (Options(resolution=0.0), "resolution: must be > 0, got 0.0"),
        (Options(concurrency=0), "concurrency: must be >= 1, got 0"),
    ],
)
async def test_bad_options_are_named(options: Options, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        await run(options)
