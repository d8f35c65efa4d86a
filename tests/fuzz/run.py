"""`make fuzz`: each target in turn, guided by coverage, for so many seconds or inputs; what broke is stored and told.

What the search has learnt stays in .cache/fuzz. A finding goes to tests/fuzz/found/, where the test suite replays
it from then on. The last line is one JSON document. Exits 1 on a finding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.fuzz.targets import FOUND, TARGETS, found

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "fuzz"
LONGEST = 2048  # bytes of an input; targets repeat parts of it where length matters
HANG = 20  # seconds for one input
MEMORY = 1024  # MiB for the process
PLAIN = os.environ | {"TEMPERA_COMPILED": "off"}  # what is compiled tells atheris nothing of its branches


def main() -> int:
    arguments = _arguments()
    if find_spec("atheris") is None:
        print("atheris is not installed; it has wheels for Linux on x86-64 only, Python 3.11 to 3.13.")
        return 2
    reports = [fuzz(name, arguments.seconds, arguments.runs) for name in arguments.targets or TARGETS]
    print(json.dumps({"targets": reports, "findings": sum(len(report["findings"]) for report in reports)}))
    return 1 if any(report["findings"] for report in reports) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--runs", type=int, default=-1, help="at most so many inputs for each target")
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all if none is named")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - TARGETS.keys():
        parser.error(f"unknown target {unknown.pop()!r}; there are {', '.join(TARGETS)}")
    return arguments


def fuzz(name: str, seconds: int, runs: int) -> dict[str, Any]:
    """Run one target and report on it."""
    home, target = CACHE / name, TARGETS[name]
    for folder in (home / "corpus", home / "seeds", FOUND / name):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (home / "seeds" / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    words = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
    (home / "words").write_text("".join(f'"{word}"\n' for word in words))
    (home / "slowest").unlink(missing_ok=True)
    before = set(found(name))
    print(f"{name}: {target.about}", flush=True)
    began = time.monotonic()
    done = subprocess.run(_command(name, home, seconds, runs), cwd=ROOT, env=PLAIN, capture_output=True, check=False)
    said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    report = _report(name, home, said, time.monotonic() - began)
    report["findings"] = [str(path.relative_to(ROOT)) for path in found(name) if path not in before]
    if done.returncode != 0 and not report["findings"]:
        report["findings"] = [f"exit code {done.returncode}"]
    _tell(report, said)
    return report


def _command(name: str, home: Path, seconds: int, runs: int) -> list[str]:
    own = [sys.executable, "-m", "tests.fuzz.one", name, str(home / "slowest")]
    limits = [f"-max_total_time={seconds}", f"-runs={runs}", f"-max_len={LONGEST}", f"-timeout={HANG}"]
    more = [f"-rss_limit_mb={MEMORY}", f"-report_slow_units={HANG}", "-print_final_stats=1", "-reload=0"]
    where = [f"-dict={home / 'words'}", f"-artifact_prefix={FOUND / name}/"]
    return [*own, *limits, *more, *where, str(home / "corpus"), str(home / "seeds"), str(FOUND / name)]


def _report(name: str, home: Path, said: str, took: float) -> dict[str, Any]:
    stats = {key: int(value) for key, value in re.findall(r"stat::(\w+): +(\d+)", said)}
    marks = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    edges, features, kept = map(int, marks[-1] if marks else (0, 0, 0))
    slowest = json.loads((home / "slowest").read_text()) if (home / "slowest").exists() else None
    return {
        "target": name,
        "executions": stats.get("number_of_executed_units", 0),
        "seconds": round(took, 1),
        "per_second": round(stats.get("number_of_executed_units", 0) / took),
        "edges": edges,
        "features": features,
        "corpus": kept,
        "peak_mib": stats.get("peak_rss_mb", 0),
        "slowest_ms": round(slowest["seconds"] * 1000, 1) if slowest else None,
        "slowest_input": slowest["input"][:120] if slowest else None,
    }


def _tell(report: dict[str, Any], said: str) -> None:
    print(
        f"  {report['executions']:,} executions in {report['seconds']:.0f} s ({report['per_second']:,}/s), "
        f"{report['edges']} edges, {report['features']} features, corpus of {report['corpus']}, "
        f"at most {report['peak_mib']} MiB, slowest input {report['slowest_ms'] or 'under 2'} ms"
    )
    print(f"  findings: {', '.join(report['findings']) or 'none'}", flush=True)
    if report["findings"]:
        start = max(said.find("=== Uncaught"), said.find("ERROR: libFuzzer"), 0)
        print("  " + said[start:][-4000:].replace("\n", "\n  "), flush=True)


if __name__ == "__main__":
    sys.exit(main())
