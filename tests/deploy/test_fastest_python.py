"""deploy/fastest_python.sh with stand-ins for interpreters: what it takes, and what it passes over."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def choose(tmp_path: Path, *says: str) -> subprocess.CompletedProcess[str]:
    """The choice among interpreters that answer so, in the order of PATH; "" is one that cannot be used."""
    for number, said in enumerate(says):
        python = tmp_path / str(number) / "python3"
        python.parent.mkdir()
        python.write_text(f"#!/bin/sh\n{f'echo {said}' if said else 'exit 1'}\n")
        python.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("awk", "sh"):
        (tools / tool).symlink_to(
            next(path for folder in ("/usr/bin", "/bin") if (path := Path(folder, tool)).exists())
        )
    path = ":".join([*(str(tmp_path / str(number)) for number in range(len(says))), str(tools)])
    script = ROOT / "deploy" / "fastest_python.sh"
    return subprocess.run(["/bin/sh", script], env={"PATH": path}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("says", "chosen"),
    [
        (("1 0.0170 /first", "1 0.0140 /faster"), "/faster"),
        (("1 0.0150 /first", "1 0.0140 /hardly"), "/first"),
        (("0 0.0140 /bare", "1 0.0170 /headers"), "/headers"),
        (("1 0.0170 /headers", "0 0.0100 /bare"), "/headers"),
        (("", "1 0.0170 /a folder/python3"), "/a folder/python3"),
    ],
)
def test_choice(tmp_path: Path, says: tuple[str, ...], chosen: str) -> None:
    assert choose(tmp_path, *says).stdout == f"{chosen}\n"


def test_nothing_fit_is_a_failure(tmp_path: Path) -> None:
    done = choose(tmp_path, "", "")
    assert (done.returncode, done.stdout) == (1, "")
