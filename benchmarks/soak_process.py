"""What a running process holds: memory, files, threads from /proc (Linux), and its asyncio tasks.

The tasks are told by the process itself: a few lines that Python imports at its start (`PROBE`, as sitecustomize)
write them to a file on SIGUSR2. Knows nothing of what the process is for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PROBE = """
import os
import signal


def tell(*_):
    import asyncio
    import json
    from collections import Counter

    tasks = asyncio.all_tasks(asyncio.get_running_loop())
    coroutines = [task.get_coro() for task in tasks]
    found = Counter(getattr(one, "__qualname__", type(one).__name__) for one in coroutines)  # compiled ones have none
    path = os.environ["SOAK_PROBE"]
    with open(path + ".new", "w") as file:
        json.dump(found, file)
    os.replace(path + ".new", path)


signal.signal(signal.SIGUSR2, tell)
"""


@dataclass(frozen=True)
class Sample:
    at: float  # seconds since the load began
    memory: float  # resident, MB
    files: int  # open descriptors
    threads: int


def sample(pid: int, at: float) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE)}
    return Sample(at, numbers["VmRSS"] / 1024, len(os.listdir(f"/proc/{pid}/fd")), numbers["Threads"])


def cpu(pid: int) -> float:
    """Seconds of CPU so far, threads that ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int, ports: dict[int, str]) -> Counter[str]:
    """How many of each kind are open. A TCP socket is named after the port in `ports` that it has on either side."""
    sockets: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        mine, theirs = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        listening = fields[3] == "0A"
        name = ports.get(mine) or ports.get(theirs) or "another port"
        sockets[fields[9]] = f"socket {'listening' if listening else 'with'} {name}"
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        sockets[line.split()[6]] = "socket unix"
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found[sockets.get(target[8:-1], "socket of no kind")] += 1
        elif target.startswith(("pipe:", "anon_inode:")):
            found[target.partition(":[")[0]] += 1
        else:
            found[f"file *{Path(target).suffix}" if target.endswith(".spool") else f"file {Path(target).name}"] += 1
    return found


def tasks(pid: int, probe: Path) -> Counter[str]:
    """The asyncio tasks of a process that was started with PROBE, by the name of their coroutine."""
    probe.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR2)
    for _ in range(200):
        if probe.exists():
            return Counter(json.loads(probe.read_text()))
        time.sleep(0.05)
    raise TimeoutError(f"process {pid} did not tell its tasks")
