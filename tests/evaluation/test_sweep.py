import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path

import pytest

from gateway.evaluation.progress import Progress, duration
from gateway.evaluation.rows import Header, Journal, SweepError, read_rows
from gateway.evaluation.sweep import about_n, groups, sweep
from gateway.evaluation.sweep_setup import (
    PROFILES,
    SweepOptions,
    count_parameters,
    engine_model,
    parse_temperatures,
    scenarios_for,
    setting_of,
    settings_for,
)
from gateway.evaluation.wire import Model, Refused, Unreachable
from tests.fakes import FakeEngine, Fault

CHECKS = [{"check": "words", "max": 9}, {"check": "include", "any": ["cat"]}]


@pytest.fixture
def cases(tmp_path):
    """Two cases, one in each language."""
    file = tmp_path / "cases.jsonl"
    file.write_text(
        "".join(
            json.dumps(
                {
                    "id": f"pet-{lang}",
                    "lang": lang,
                    "scenario": "pets",
                    "messages": [{"role": "user", "content": words}],
                    "checks": CHECKS,
                    "max_tokens": 12,
                }
            )
            + "\n"
            for lang, words in (("zh", "说说猫。"), ("en", "Talk about cats."))
        )
    )
    return file


@pytest.fixture
def engine():
    with FakeEngine.in_thread(models=("tiny-135m",)) as engine:
        yield engine


def options(engine, cases, tmp_path, **changes):
    given = {"temperatures": "0.2,1.0", "samples": 3, "out": tmp_path / "out.jsonl", **changes}
    return SweepOptions(base_url=f"http://127.0.0.1:{engine.port}", cases=cases, **given)


def asked(engine):
    return [seen.json for seen in engine.requests if seen.path == "/v1/chat/completions"]


def test_a_sweep_from_end_to_end(engine, cases, tmp_path):
    said = []
    given = options(engine, cases, tmp_path, concurrency=1)
    assert sweep(given, said.append) == 0
    header, samples = read_rows(given.out)
    assert header.toy
    assert header.parameters == 135_000_000
    # 2 cases x (2 temperatures x 3 samples + 1 greedy)
    assert Counter((s.case, s.asked) for s in samples) == {
        (case, t): n for case in ("pet-zh", "pet-en") for t, n in ((0.0, 1), (0.2, 3), (1.0, 3))
    }
    bodies = asked(engine)
    assert [(body["messages"][0]["content"], body["temperature"], body.get("n")) for body in bodies] == [
        (prompt, t, n) for prompt in ("说说猫。", "Talk about cats.") for t, n in ((0.0, None), (0.2, 3), (1.0, 3))
    ]  # prompt by prompt
    assert all(body["model"] == "tiny-135m" and body["max_tokens"] == 12 for body in bodies)
    assert all(body["top_p"] == 1 and body["top_k"] == 0 and body["repetition_penalty"] == 1 for body in bodies)
    assert len({body["seed"] for body in bodies}) == 6
    assert all(s.finish in ("stop", "length") and s.tokens for s in samples)
    assert said[-1] == f"Complete: {given.out}"


def test_a_second_run_makes_only_what_is_missing(engine, cases, tmp_path):
    given = options(engine, cases, tmp_path)
    assert sweep(given, print) == 0
    whole = given.out.read_bytes().splitlines(keepends=True)
    # as an interruption leaves it: the last two samples gone, a third cut in the middle
    given.out.write_bytes(b"".join(whole[:-3]) + whole[-3][:40])
    engine.requests.clear()
    assert sweep(given, print) == 0
    assert sum(body.get("n", 1) for body in asked(engine)) == 3
    assert sorted(given.out.read_bytes().splitlines()) != []
    _, samples = read_rows(given.out)
    assert len({s.key for s in samples}) == len(samples) == 14
    engine.requests.clear()
    assert sweep(given, print) == 0
    assert asked(engine) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [({"seed": 2}, "seed"), ({"temperatures": "0.2,0.9"}, "temperatures"), ({"samples": 4}, "samples")],
)
def test_two_sweeps_never_share_a_file(engine, cases, tmp_path, change, field):
    assert sweep(options(engine, cases, tmp_path), print) == 0
    with pytest.raises(SweepError, match=f"holds another sweep, {field} differs"):
        sweep(options(engine, cases, tmp_path, **change), print)


def test_a_file_that_is_no_sweep_is_left_alone(engine, cases, tmp_path):
    (tmp_path / "out.jsonl").write_text("a diary\n")
    with pytest.raises(SweepError, match=r"out\.jsonl:1: "):
        sweep(options(engine, cases, tmp_path), print)
    assert (tmp_path / "out.jsonl").read_text() == "a diary\n"


def test_fewer_samples_per_request_where_the_engine_has_fewer_slots(engine, cases, tmp_path):
    refusal = {"error": {"code": 400, "message": "Field 'n': Value must be between 1 <= value <= 2, but got 3"}}
    engine.script = deque([Fault(), Fault(status=400, body=refusal)])  # the greedy request passes, the next is refused
    given = options(engine, cases, tmp_path, concurrency=1)
    assert sweep(given, print) == 0
    assert [body.get("n", 1) for body in asked(engine)][1:5] == [3, 1, 1, 1]
    assert len(read_rows(given.out)[1]) == 14


def test_failures_are_told_and_the_next_run_tries_again(engine, cases, tmp_path):
    engine.script = deque([Fault(), Fault(status=400, body={"error": {"message": "the prompt is too long"}})])
    said = []
    given = options(engine, cases, tmp_path, concurrency=1)
    assert sweep(given, said.append) == 1
    assert any("pet-zh at 0.2" in line and "the prompt is too long" in line for line in said)
    assert "3 samples are missing" in said[-1]
    assert sweep(given, said.append) == 0


def test_it_gives_up_when_nothing_works(engine, cases, tmp_path):
    engine.fault = Fault(status=400, body={"error": {"message": "no"}})
    assert sweep(options(engine, cases, tmp_path, concurrency=1), print) == 1
    assert len(asked(engine)) == 3


def test_nothing_there(tmp_path, cases):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gone = SweepOptions(base_url=f"http://127.0.0.1:{port}", cases=cases, out=tmp_path / "x.jsonl")
    with pytest.raises(Unreachable):
        sweep(gone, print)
    assert not (tmp_path / "x.jsonl").exists()


def test_parquet_holds_the_same_rows(engine, cases, tmp_path):
    pytest.importorskip("pyarrow")
    given = options(engine, cases, tmp_path, out=tmp_path / "out.parquet")
    assert sweep(given, print) == 0
    assert read_rows(tmp_path / "out.parquet") == read_rows(tmp_path / "out.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(SweepError, match=r"bad\.parquet: not the Parquet file"):
        read_rows(tmp_path / "bad.parquet")


def test_one_writer_at_a_time(engine, cases, tmp_path):
    given = options(engine, cases, tmp_path)
    assert sweep(given, print) == 0
    header, _ = read_rows(given.out)
    journal = Journal(given.out, header)
    with pytest.raises(SweepError, match="another sweep is writing"):
        sweep(given, print)
    journal.close()


def test_ctrl_c_keeps_what_is_done(cases, tmp_path):
    out = tmp_path / "out.jsonl"
    program = f"""
import sys
from pathlib import Path
from gateway.evaluation.sweep import sweep
from gateway.evaluation.sweep_setup import SweepOptions
files = {{"cases": Path({str(cases)!r}), "out": Path({str(out)!r})}}
sys.exit(sweep(SweepOptions(base_url=sys.argv[1], temperatures="0.2,1.0", samples=3, **files), print))
"""
    with FakeEngine.in_thread(models=("tiny-135m",), pace=0.02) as engine:
        url = f"http://127.0.0.1:{engine.port}"
        process = subprocess.Popen(
            [sys.executable, "-c", program, url], cwd=Path.cwd(), stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") > 2):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "the same command goes on from there" in said
        before = len(read_rows(out)[1])
        assert 0 < before < 14
        engine.pace = 0.0
        engine.requests.clear()
        assert sweep(SweepOptions(base_url=url, cases=cases, out=out, temperatures="0.2,1.0", samples=3), print) == 0
        assert sum(body.get("n", 1) for body in asked(engine)) == 14 - before


# --- what a sweep asks for


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1:1.5:0.2", [0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5]),
        ("0.1:1.5:0.3", [0.1, 0.4, 0.7, 1.0, 1.3]),
        ("1, 0.2,0.2", [0.2, 1.0]),
        ("0:2:2", [0.0, 2.0]),
        ("0.7", [0.7]),
    ],
)
def test_temperatures(text, values):
    assert parse_temperatures(text) == values


@pytest.mark.parametrize(
    "text", ["", "a", "1:0:0.1", "0:1:0", "0:1", "2.1", "-0.1,1", "nan", "0:2:0.01", "1:2:3:4", "0:inf:1"]
)
def test_temperatures_that_are_none(text):
    with pytest.raises(SweepError, match="temperatures: "):
        parse_temperatures(text)


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("qwen2.5-7b-instruct", None, 7 * 10**9),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", None, 135 * 10**6),
        ("Llama-3.2-1B", None, 10**9),
        ("Qwen/Qwen2.5-0.5B", None, 5 * 10**8),
        ("anything", 134_515_008, 134_515_008),
        ("gpt-4o", None, None),
        ("model-v2beta", None, None),
    ],
)
def test_size_of_a_model(name, said, expected):
    assert count_parameters(Model(name, parameters=said)) == expected


def test_a_preset_name_is_no_model_to_sweep():
    models = [Model("qwen", "vllm"), Model("creative", "tempera")]
    assert engine_model(models, None).id == "qwen"
    with pytest.raises(SweepError, match=r"expected one of the engine's own models \(qwen\), got 'creative'"):
        engine_model(models, "creative")


PRESET = {
    "name": "creative",
    "title": {"en": "Creative", "zh": "创意"},
    "parameters": {
        "temperature": {"default": 0.9, "min": 0.7, "max": 1.2, "pin": None},
        "top_p": {"default": 0.9, "min": None, "max": None, "pin": None},
        "max_tokens": {"default": 512, "min": None, "max": None, "pin": None},
        "min_p": {"default": 0.05, "min": None, "max": None, "pin": 0.05},
    },
    "when_hot": {"above": 1.0, "repetition_penalty": 1.1},
    "system_prompt": False,
    "revision": "abc",
}


def test_a_preset_gives_its_other_parameters_and_its_range():
    setting = setting_of(PRESET)
    assert (setting.default, setting.low, setting.high) == (0.9, 0.7, 1.2)
    cold, hot = setting.at(1.0), setting.at(1.4)
    assert cold == {
        "temperature": 1.0, "top_p": 0.9, "min_p": 0.05, "top_k": 0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    assert hot == {**cold, "temperature": 1.4, "repetition_penalty": 1.1}


def test_which_scenarios_and_whose_parameters(tmp_path, cases):
    from gateway.evaluation.cases import shipped_cases

    shipped = shipped_cases()
    assert len(scenarios_for(SweepOptions(), shipped)) == 5
    assert scenarios_for(SweepOptions(profile="smoke"), shipped) == ["customer-service"]
    assert scenarios_for(SweepOptions(preset="creative"), shipped) == ["creative"]
    assert scenarios_for(SweepOptions(preset="other", scenarios=["coding"]), shipped) == ["coding"]
    own = settings_for(SweepOptions(), ["creative", "coding"], [PRESET])
    assert (own["creative"].preset, own["coding"].preset) == ("creative", None)
    assert own["coding"].at(0.5)["top_p"] == 1.0
    assert settings_for(SweepOptions(neutral=True), ["creative"], [PRESET])["creative"].preset is None
    assert settings_for(SweepOptions(preset="creative"), ["coding"], [PRESET])["coding"].preset == "creative"
    with pytest.raises(SweepError, match="there is no 'x'; there are: creative"):
        settings_for(SweepOptions(preset="x"), ["coding"], [PRESET])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 1}, r"samples: must be in 2\.\.64, got 1"),
        ({"concurrency": 0}, r"concurrency: must be in 1\.\.64, got 0"),
        ({"out": Path("x.csv")}, r"out: must end with \.jsonl or \.parquet, got x\.csv"),
        ({"preset": "a", "neutral": True}, "neutral: excludes preset"),
    ],
)
def test_options_that_make_no_sense(changes, message):
    with pytest.raises(SweepError, match=message):
        SweepOptions(**changes)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_stay_within_their_budget(name, tmp_path):
    from gateway.evaluation.cases import choose, shipped_cases
    from gateway.evaluation.rows import Setting, Setup

    profile = PROFILES[name]
    every = shipped_cases()
    chosen = choose(every, scenarios=scenarios_for(SweepOptions(profile=name), every), prompts=profile.prompts)
    setup = Setup(
        model="m", temperatures=parse_temperatures(profile.temperatures), samples=profile.samples,
        max_tokens=profile.max_tokens, seed=1, settings={case.scenario: Setting() for case in chosen}, cases=chosen,
    )  # fmt: skip
    made = sum(len(group.samples) for group in groups(setup, []) if group.temperature)
    assert made * profile.max_tokens <= {"smoke": 2_400, "dev": 31_000, "full": 925_000}[name]


@pytest.mark.parametrize(
    ("message", "param", "expected"),
    [
        ("400 Field 'n': Value must be between 1 <= value <= 8, but got 9", None, True),
        ("400 n must be 1 when using greedy sampling, got 3.", None, True),
        ("400 anything", "n", True),
        ("400 the conversation must end", None, False),
        ("400 maximum context length is 4096", "messages", False),
    ],
)
def test_refusals_about_n(message, param, expected):
    assert about_n(Refused(message, status=400, param=param)) is expected


def test_progress_counts_this_run_only_for_its_pace():
    clock = iter([0.0, 10.0, 10.0])
    said = []
    progress = Progress(100, 40, said.append, lambda: next(clock))
    progress.add(20, 500)
    assert said == ["60 of 100 samples (60%), 50 tokens/s, 20s to go"]
    assert progress.left == 40
    assert [duration(s) for s in (45, 370, 7500)] == ["45s", "6m10s", "2h05m"]


def test_a_header_carries_its_cases(engine, cases, tmp_path):
    given = options(engine, cases, tmp_path)
    assert sweep(given, print) == 0
    header, _ = read_rows(given.out)
    assert isinstance(header, Header)
    assert [case.id for case in header.setup.cases] == ["pet-zh", "pet-en"]
    assert header.setup.cases[0].checks
