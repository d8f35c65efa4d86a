"""Sets up, once, the `vllm-router` that the scale tests put between gateways and engines: an environment of its own.

Knows: which packages, where they are kept, how to tell that they are complete. Does not know how the router is
started. Uses the standard library alone, so any Python 3.11 or later can run it:

    python tests/scale/environment.py       # prints the directory; does nothing when it is already complete

The directory is one per set of inputs under the user's cache (120 MB), shared by every clone of the repository.
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

PACKAGES = Path(__file__).resolve().parents[2] / "deploy" / "locks" / "vllm-router.txt"
STAMP = "complete"


class NotSetUp(Exception):
    """The environment is missing or belongs to other inputs; the message says what to do."""


def inputs() -> str:
    """64 hex digits that change with anything the directory is made from: packages, interpreter, machine."""
    made_from = (PACKAGES.read_bytes(), sys.version_info[:2], platform.system(), platform.machine())
    return hashlib.sha256(repr(made_from).encode()).hexdigest()


def directory() -> Path:
    """Where the environment is, or would be."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().resolve() / "tempera" / f"vllm-router-{inputs()[:12]}"


def is_complete(where: Path) -> bool:
    """Whether `where` was set up to its end, from the inputs as they are now."""
    stamp = where / STAMP
    return stamp.is_file() and stamp.read_text(encoding="ascii") == inputs()


def router() -> Path:
    """The router's program in a complete environment, else `NotSetUp`."""
    where = directory()
    if not is_complete(where):
        raise NotSetUp(f"no complete router at {where}: run `make test-scale`, which sets it up first")
    return where / "venv" / "bin" / "vllm-router"


def set_up() -> Path:
    """Makes the environment unless it is complete; other processes that want it meanwhile wait."""
    where = directory()
    where.parent.mkdir(parents=True, exist_ok=True)
    with where.with_name(where.name + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if is_complete(where):
            return where
        shutil.rmtree(where, ignore_errors=True)
        venv.create(where / "venv", with_pip=True, symlinks=True)
        print("router environment: packages", file=sys.stderr, flush=True)
        pip = [where / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        done = subprocess.run([*pip, "-r", PACKAGES], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit("\n".join((done.stdout + done.stderr).splitlines()[-40:]))
        # Last, so that a set-up that was cut short is never taken for a complete one.
        (where / STAMP).write_text(inputs(), encoding="ascii")
    return where


if __name__ == "__main__":
    print(set_up())
