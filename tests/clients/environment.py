"""Sets up, once, the client libraries of docs/clients.md that the project's own environment does not hold.

Knows: which packages, Python's and Node's, where they are kept, how to tell that they are complete. Does not know what
is run with them. Uses the standard library alone, so any Python 3.11 or later can run it:

    python tests/clients/environment.py     # prints the directory; does nothing when it is already complete

The directory is one per set of inputs under the user's cache (400 MB), shared by every clone of the repository;
directories of older inputs stay until somebody deletes them.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = HERE.parents[1] / "deploy" / "locks" / "clients.txt"
NODE_PACKAGES = (HERE / "node" / "package.json", HERE / "node" / "package-lock.json")
STAMP = "complete"


class NotSetUp(Exception):
    """The environment is missing or belongs to other inputs; the message says what to do."""


def inputs() -> str:
    """64 hex digits that change with anything the directory is made from: packages, interpreter, machine."""
    digest = hashlib.sha256(repr((sys.version_info[:2], platform.system(), platform.machine())).encode())
    for path in (PACKAGES, *NODE_PACKAGES):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def directory() -> Path:
    """Where the environment is, or would be."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().resolve() / "tempera" / f"clients-{inputs()[:12]}"


def is_complete(where: Path) -> bool:
    """Whether `where` was set up to its end, from the inputs as they are now."""
    stamp = where / STAMP
    return stamp.is_file() and stamp.read_text(encoding="ascii") == inputs()


def ready() -> Path:
    """The directory of a complete environment, else `NotSetUp`."""
    where = directory()
    if not is_complete(where):
        raise NotSetUp(f"no complete client libraries at {where}: run `make test-clients`, which sets them up first")
    return where


def python_of(where: Path) -> Path:
    return where / "venv" / "bin" / "python"


def modules_of(where: Path) -> Path:
    return where / "node" / "node_modules"


def set_up() -> Path:
    """Makes the environment unless it is complete; other processes that want it meanwhile wait.

    Returns the directory.
    """
    where = directory()
    where.parent.mkdir(parents=True, exist_ok=True)
    with where.with_name(where.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_complete(where):
            shutil.rmtree(where, ignore_errors=True)
            _make(where)
            # Last, so that a set-up that was cut short is never taken for a complete one.
            (where / STAMP).write_text(inputs(), encoding="ascii")
    return where


def _make(where: Path) -> None:
    if shutil.which("npm") is None:
        raise SystemExit("The Node client needs Node 20 or later with npm: neither is on the PATH.")
    venv.create(where / "venv", with_pip=True, symlinks=True)
    pip = [python_of(where), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run("Python packages", [*pip, "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", PACKAGES], where)
    (where / "node").mkdir()
    for path in NODE_PACKAGES:
        shutil.copy(path, where / "node")
    _run("Node packages", ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], where / "node")


def _run(step: str, command: list[str | Path], at: Path) -> None:
    print(f"client libraries: {step}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=at, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit("\n".join(done.stdout.splitlines()[-40:]) + f"\nfailed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    print(set_up())
