"""Which models the engines have: one question at a time, at most one a second, and the last good answer counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.policy.choice import Engine, Model
from gateway.protocol.dialects import LLAMA_CPP, VLLM
from gateway.protocol.errors import UpstreamReset, UpstreamUnavailable
from gateway.serving import models as module
from gateway.serving.models import Models, read_models
from tests.serving.driven import FakePool, Hang, plain


def listed(*names: str, **more: Any) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]}).encode()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (listed("m", max_model_len=4096, root="/secret/path"), [Model("m", 4096)]),  # vLLM
        (listed("m", meta={"n_ctx": 2048, "n_ctx_train": 8192}), [Model("m", 2048)]),  # llama.cpp
        (listed("m", "lora", max_model_len=4096), [Model("m", 4096), Model("lora", 4096)]),
        (listed("m"), [Model("m")]),
        (listed("m", max_model_len=None, meta=None), [Model("m")]),
        (listed("m", max_model_len="4096"), [Model("m")]),
        (listed("m", max_model_len=-1), [Model("m")]),
        (b'{"data":[{"id":5},{"x":1},7,null,{"id":"m"}]}', [Model("m")]),
        (b'{"data":{}}', []),
        (b'{"error":{"message":"x"}}', []),
        (b"[]", []),
        (b"<html>", []),
        (b'{"data":"\xff"}', []),
        (b'{"data":' + b"[" * 100_000, []),
    ],
)
def test_reading_the_list(body: bytes, found: list[Model]) -> None:
    assert [(model.id, model.context) for model in read_models(body)] == [(m.id, m.context) for m in found]


class Clock:
    """The loop's time, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)


def made(**answers: Any) -> tuple[Models, dict[str, FakePool], list[Mapping[str, Engine]]]:
    pools = {name: FakePool(answer) for name, answer in answers.items()}
    published: list[Mapping[str, Engine]] = []
    engines = {name: Engine(LLAMA_CPP if name == "small" else VLLM) for name in answers}
    return Models(pools, engines, published.append), pools, published  # type: ignore[arg-type]


async def test_an_answer_is_published_and_an_equal_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    models, pools, published = made(big=plain(listed("m", max_model_len=10)), small=plain(listed("s")))
    assert models.reached == {"big": False, "small": False}
    await models.refresh()
    assert [(e.dialect.name, [m.id for m in e.models]) for e in published[0].values()] == [
        ("vllm", ["m"]),
        ("llama.cpp", ["s"]),
    ]
    assert pools["big"].sent[0][:2] == (b"GET", b"/v1/models")
    assert models.reached == {"big": True, "small": True}
    pools["big"].answer, pools["small"].answer = plain(listed("m", max_model_len=10)), plain(listed("s"))
    clock.now += 60
    await models.refresh()
    assert (len(published), len(pools["big"].sent)) == (1, 2)
    pools["big"].answer, pools["small"].answer = plain(listed("m", "new", max_model_len=10)), plain(listed("s"))
    clock.now += 60
    await models.refresh()
    assert [m.id for m in published[1]["big"].models] == ["m", "new"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (UpstreamUnavailable("nothing listens there"), "nothing listens there"),
        (plain(b'{"da', UpstreamReset("gone")), "gone"),
        (plain(b'{"error":"Unauthorized"}', status=401), "401"),
        (plain(b'{"data":[]}'), "without models"),
        (plain(*[b" " * 1_000_000] * 9), "bytes"),
    ],
)
async def test_an_engine_in_trouble_keeps_its_last_models(
    answer: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    models, pools, published = made(big=plain(listed("m")), small=plain(listed("s")))
    await models.refresh()
    pools["big"].answer, pools["small"].answer = answer, plain(listed("s2"))
    clock.now += 60
    await models.refresh()
    assert models.reached == {"big": False, "small": True}
    assert words in models.trouble["big"]
    assert [[m.id for m in e.models] for e in published[-1].values()] == [["m"], ["s2"]]
    assert not hasattr(answer, "closed") or answer.closed


async def test_at_most_one_question_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    models, pools, _ = made(big=UpstreamUnavailable("x"))
    for moment, asked in ((0, 1), (0.5, 1), (0.49, 1), (0.02, 2), (0.5, 2), (5, 3)):
        clock.now += moment
        await models.refresh()
        assert len(pools["big"].sent) == asked


async def test_all_who_miss_at_once_wait_for_one_answer_and_one_may_leave() -> None:
    models, pools, published = made(big=plain(listed("m")))
    waiting = [asyncio.create_task(models.refresh()) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # the one that began it
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True] + [False] * 49
    assert (len(pools["big"].sent), len(published)) == (1, 1)


async def test_an_engine_that_does_not_answer_holds_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_TIMEOUT", 0.01)
    models, _, published = made(big=Hang, small=plain(listed("s")))
    await models.refresh()
    assert models.reached == {"big": False, "small": True}
    assert "no answer" in models.trouble["big"]
    assert [m.id for m in published[0]["small"].models] == ["s"]


async def test_watching_is_eager_until_all_are_there_and_calm_after(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    models, pools, _ = made(big=UpstreamUnavailable("x"))

    async def nap(seconds: float, *_: Any) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            pools["big"].answer = plain(listed("m"))
        if len(naps) == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr(module, "MISS_INTERVAL", 0.0)
    monkeypatch.setattr(module, "asyncio", Quick(nap))
    with pytest.raises(asyncio.CancelledError):
        await models.watch()
    assert naps == [0.0, 0.0, 0.0, module.STEADY_INTERVAL]


class Quick:
    """asyncio with a sleep of the test's own."""

    def __init__(self, nap: Any) -> None:
        self.sleep = nap

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)
