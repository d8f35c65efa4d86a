"""Compiles the modules on the way of a request with mypyc: `python hatch_build.py`, and as hatchling's hook while it
builds a wheel.

Half a minute, once per change of the sources. Where there is no C compiler it says so and ends well: everything works
as plain Python too. The result lies in gateway/_compiled, one folder per interpreter (see gateway/compiled.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from gateway import compiled  # noqa: E402 - the checkout's own


def build() -> None:
    """Brings gateway/_compiled up to date. Raises OSError, told for people, when that cannot be done."""
    if compiled.fresh():
        return
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        raise OSError(f"there is no {compiler}")
    print("Compiling the way of a request (half a minute, once per change) ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, str(Path(__file__)), "--into", scratch]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            said = (done.stdout + done.stderr).splitlines()
            errors = [line for line in said if "error: " in line]  # mypy's and the compiler's
            raise OSError("; ".join(errors[-3:] or said[-1:])[:500])
        shutil.rmtree(compiled.FOLDER, ignore_errors=True)
        compiled.FOLDER.mkdir(parents=True)
        for file in Path(scratch, "lib").rglob(f"*{compiled.SUFFIX}"):
            name = ".".join(file.relative_to(Path(scratch, "lib")).parts)
            shutil.copyfile(file, compiled.FOLDER / name)
        (compiled.FOLDER / compiled.STAMP).write_text(compiled.fingerprint(), "ascii")


def compile_into(scratch: Path) -> None:
    """One compilation, in a process of its own: mypyc and setuptools keep much in globals."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    paths = [f"gateway/{name.replace('.', '/')}.py" for name in compiled.MODULES]
    extensions = mypycify(paths, target_dir=str(scratch / "c"), group_name="gateway_compiled", debug_level="0")
    command: Any = Distribution({"name": "tempera", "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(scratch / "lib"), str(scratch / "o")
    command.ensure_finalized()
    command.run()


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    """A wheel holds the compiled form for the interpreter that builds it, or is one for every interpreter."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not attempt():
            return
        build_data["pure_python"], build_data["infer_tag"] = False, True
        for file in compiled.FOLDER.iterdir():
            build_data["force_include"][str(file)] = file.relative_to(ROOT).as_posix()


def attempt() -> bool:
    """Whether there is a compiled form now; says why not."""
    if os.environ.get("TEMPERA_COMPILED") == "off":
        return False
    try:
        build()
    except OSError as error:
        print(f"Not compiled ({error}): it runs as plain Python, at about 1.4 times the CPU.", file=sys.stderr)
    return compiled.fresh()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--into"]:
        compile_into(Path(sys.argv[2]))
    else:
        attempt()
