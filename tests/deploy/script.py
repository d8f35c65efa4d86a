"""What deploy/vllm/vllm.sh would start, found out by running it with a stand-in for vLLM."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "vllm" / "vllm.sh"
MODES = ("default", "long-context", "small-gpu")


def run_script(tmp_path: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command the script turns into, and its environment: `vllm` and `hf` here say how they were run."""
    for name in ("vllm", "hf"):
        tool = tmp_path / name
        tool.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, dict(os.environ)]))\n")
        tool.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", SCRIPT, *arguments], env=environ, capture_output=True, text=True, check=True)
    argv, environment = json.loads(done.stdout)
    return [Path(argv[0]).name, *argv[1:]], environment


def option(argv: list[str], name: str) -> str:
    """The value that counts: of a flag given twice, argparse takes the last."""
    at = len(argv) - 1 - argv[::-1].index(name)
    return argv[at + 1]
