"""One target under atheris: `python -m tests.fuzz.one NAME SLOWEST [libFuzzer's arguments]`. Started by run.py.

The slowest input so far (in processor time, so that a busy machine does not count) is kept in the file SLOWEST.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway", "tests.fuzz"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    target, slowest = TARGETS[sys.argv[1]], Path(sys.argv[2])
    worst = 0.002

    def check(data: bytes) -> None:
        nonlocal worst
        if len(data) < target.head:
            return
        before = time.thread_time()
        target.check(data)
        took = time.thread_time() - before
        if took > worst:
            worst = took
            slowest.write_text(json.dumps({"seconds": took, "input": data.hex()}))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        made = target.mutate(data, seed) if target.mutate is not None and seed % 3 == 0 else None
        return made if made is not None and len(made) <= most else bytes(atheris.Mutate(data, most))

    own = {} if target.mutate is None else {"custom_mutator": mutate}
    atheris.Setup([sys.argv[0], *sys.argv[3:]], check, **own)
    atheris.Fuzz()


main()
