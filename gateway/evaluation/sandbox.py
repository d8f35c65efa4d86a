"""Run a model's Python against unit tests, in a child process with limits.

Knows processes and limits: 5 s of wall and processor time, 512 MiB of memory, 1 MiB files, a temporary working
directory, an empty environment,
`python -I`. It holds accidents (loops, recursion, stray files). It is NOT a jail: the code can read what this user can
read and use the network.
"""

from __future__ import annotations

import ast
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from gateway.evaluation.tokens import code_blocks

SECONDS = 5
_HARNESS = """\
import resource
for name, limit in (("CPU", {seconds}), ("AS", 512 << 20), ("FSIZE", 1 << 20), ("NOFILE", 32), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
space = {{"__name__": "candidate"}}
exec(compile({code!r}, "candidate.py", "exec"), space)
exec(compile({tests!r}, "tests.py", "exec"), space)
with open({verdict!r}, "w") as file:
    file.write({word!r})
"""


def python_of(text: str) -> str:
    """The longest fenced code block of a reply, or all of it when nothing is fenced."""
    return max(code_blocks(text), key=len, default=text)


def parses(code: str) -> bool:
    """Whether `code` is Python and defines or does anything."""
    try:
        return bool(ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes
        return False


def passes(code: str, tests: str, *, seconds: float = SECONDS) -> bool:
    """Whether `tests` (assert statements) run to their end in the namespace that `code` leaves."""
    if not parses(code):
        return False
    word = secrets.token_hex(16)  # the proof of having reached the end: exiting early with status 0 is not a pass
    with tempfile.TemporaryDirectory() as directory:
        verdict = Path(directory, "verdict")
        harness = _HARNESS.format(seconds=SECONDS, code=code, tests=tests, word=word, verdict=str(verdict))
        _run(harness, directory, seconds)
        return verdict.is_file() and verdict.read_bytes() == word.encode()


def _run(program: str, directory: str, seconds: float) -> None:
    process = subprocess.Popen(  # noqa: S603 - untrusted code within limits is the point
        [sys.executable, "-I", "-c", program],
        cwd=directory,
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # its own process group, so that its children end with it
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass  # no verdict was written
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
