"""One real vLLM on a loopback port, and what can be seen of it from outside: its log and its metrics.

Knows: the start flags, when it is up, how to read from its log which sampling parameters a request really ran with, how
to end it. Does not know: how its environment came to be (`environment`), nor what is asserted.
"""

import ast
import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.vllm import environment

MODEL = "smollm2-135m"
CONTEXT = 4096
START_LIMIT_S = 600.0
STOP_LIMIT_S = 30.0

# Eager mode and a small cache keep the start short; the request log is where the tests read the SamplingParams from.
FLAGS = (
    *("--served-model-name", MODEL, "--dtype", "bfloat16", "--max-model-len", str(CONTEXT), "--max-num-seqs", "16"),
    *("--enforce-eager", "--enable-log-requests", "--host", "127.0.0.1"),
)
NEUTRAL_DEFAULTS = ("--generation-config", "vllm")
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}

_RUNNING = re.compile(r"^vllm:num_requests_running\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Engine:
    """A running server. `base_url` has no `/v1`; `log` is everything it has said so far."""

    base_url: str
    log: Path
    process: subprocess.Popen[bytes]

    def sampled_with(self, reply_id: str) -> list[dict[str, Any]]:
        """The SamplingParams of the engine requests behind one reply, by the id in its body; empty when it made none.

        One entry per prompt or conversation. vLLM prints it before it generates; `logit_bias` and `allowed_token_ids`
        are not printed. An id that was used twice yields both: it is only as unique as the `X-Request-Id` behind it.
        """
        line = re.compile(rf"Received request {re.escape(reply_id)}(?:[-_]\d+)?: params: (.*), lora_request: ")
        return [_arguments(found.group(1)) for found in line.finditer(self.said())]

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def core(self) -> int:
        """The process id of its engine core, the child that runs the model; without it the server is an empty shell."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                if f"PPid:\t{self.process.pid}\n" not in status.read_text():
                    continue
                if (status.parent / "cmdline").read_bytes().startswith(b"VLLM::EngineCore"):
                    return int(status.parent.name)
        raise AssertionError("the engine core is not among the server's children")

    def running(self) -> int:
        """How many requests the engine is working on now."""
        found = _RUNNING.search(httpx.get(f"{self.base_url}/metrics", trust_env=False).text)
        assert found is not None, "the engine no longer publishes vllm:num_requests_running"
        return int(float(found.group(1)))


@contextlib.contextmanager
def serve(log: Path, flags: Sequence[str] = NEUTRAL_DEFAULTS) -> Iterator[Engine]:
    """Starts a vLLM, waits until it is healthy, ends it.

    Raises `environment.NotSetUp`, or AssertionError with the log's tail when it does not come up.
    """
    where = environment.ready()
    port = _free_port()
    # The `vllm` command asks for the metadata of a package of that name, which the CPU build has not.
    start = [environment.python_of(where), "-m", "vllm.entrypoints.openai.api_server"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*start, "--model", environment.model_of(where), *FLAGS, *flags, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            # Not the repository: `-m` puts the working directory first on the path.
            cwd=where,
            env=inherited | QUIET,
            start_new_session=True,
        )
    engine = Engine(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait_until_up(engine)
        yield engine
    finally:
        stop(process)


def known_flags() -> set[str]:
    """Every long flag the installed engine's own argument parser knows."""
    asked = (
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser as parser;"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser;"
        "print('flags:', *parser(Parser())._option_string_actions)"
    )
    where = environment.ready()
    answer = subprocess.run(
        [environment.python_of(where), "-c", asked], cwd=where, capture_output=True, text=True, check=True
    )
    return {flag for line in answer.stdout.splitlines() if line.startswith("flags: ") for flag in line.split()[1:]}


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to whatever of its process group is left: the engine core is a process of its own."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until_up(engine: Engine) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and engine.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{engine.base_url}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.25)
    tail = "\n".join(engine.said().splitlines()[-60:])
    raise AssertionError(f"vLLM did not come up (exit status {engine.process.poll()}); the end of its log:\n{tail}")


def _arguments(call: str) -> dict[str, Any]:
    # A repr, not code: read as a syntax tree. What is no literal (structured outputs) stays the text it was printed as.
    tree = ast.parse(call, mode="eval").body
    assert isinstance(tree, ast.Call)
    return {keyword.arg: _literal(keyword.value) for keyword in tree.keywords if keyword.arg is not None}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
