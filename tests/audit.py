"""Known vulnerabilities in what the lock files pin, by pip-audit. Run by `make check`; exits 1 if there is one.

Without the vulnerability service (no network, a mirror that has no such data) it says so and exits 0: a check of the
house must not fail because of somebody else's server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 5  # seconds for one answer of the service
PATIENCE = 300  # seconds for one lock file
FIRST = "container-build.txt"  # a few packages that everybody uses: without the service this takes a second

# Vulnerabilities that do not reach us, by id, each with the reason.
ACCEPTED: dict[str, str] = {}


class Unavailable(Exception):
    """Why nothing can be said about a lock file."""


def main(ask: Callable[[Path], str] | None = None) -> int:
    """Audit every lock file. `ask` gives pip-audit's JSON for one of them, or raises Unavailable."""
    found = 0
    for lock in sorted((ROOT / "deploy" / "locks").glob("*.txt"), key=lambda path: (path.name != FIRST, path.name)):
        try:
            audited, bad = read((ask or _ask)(lock))
        except Unavailable as reason:
            print(f"audit: skipped from {lock.name} on: {reason}.")
            break
        print(f"audit: {lock.name}: {audited} packages, {len(bad) or 'no'} known vulnerabilities")
        print("".join(f"  {line}\n" for line in bad), end="")
        found += len(bad)
    return 1 if found else 0


def read(report: str) -> tuple[int, list[str]]:
    """(how many packages the service knows, a line per vulnerability). Raises Unavailable when it knows none."""
    packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        raise Unavailable(f"the vulnerability service knows none of its {len(packages)} packages")
    bad = [
        f"{package['name']} {package['version']}: {entry['id']}, fixed in {', '.join(entry['fix_versions']) or 'none'}"
        for package in known
        for entry in package["vulns"]
        if entry["id"] not in ACCEPTED
    ]
    return len(known), bad


def _ask(lock: Path) -> str:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "-r", str(lock)]
    options = ["--format", "json", "--progress-spinner", "off", "--timeout", str(TIMEOUT)]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"no answer within {PATIENCE} s") from None
    if not done.stdout.startswith("{"):
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unavailable(said[-1][:200])
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
