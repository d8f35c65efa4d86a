"""The compiled form: made where there is a C compiler, from these sources and no others, left alone when asked."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gateway import compiled

ROOT = Path(__file__).resolve().parents[1]
HEADERS = Path(sysconfig.get_path("include"), "Python.h")
WHERE = "import sys; sys.path.insert(0, '.'); from gateway.serving import wire; print(wire.__file__)"


def imported(root: Path, **environment: str) -> str:
    """The file that `gateway.serving.wire` is loaded from by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WHERE],
        cwd=root,
        env={name: value for name, value in os.environ.items() if name != "TEMPERA_COMPILED"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def made() -> None:
    if shutil.which("cc") is None or not HEADERS.exists():
        pytest.skip("there is no C compiler, or no headers of this Python")


@pytest.fixture
def copy(made: None, tmp_path: Path) -> Path:
    """The package as it is, somewhere else."""
    shutil.copytree(ROOT / "gateway", tmp_path / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.usefixtures("made")
def test_what_is_installed_is_compiled() -> None:
    assert compiled.fresh(), "run `make install`"
    missing = [name for name in compiled.MODULES if not (compiled.FOLDER / f"gateway.{name}{compiled.SUFFIX}").exists()]
    assert missing == []
    assert imported(ROOT).endswith(compiled.SUFFIX)


@pytest.mark.usefixtures("made")
def test_it_is_left_alone_when_asked() -> None:
    assert imported(ROOT, TEMPERA_COMPILED="off") == str(ROOT / "gateway" / "serving" / "wire.py")


def test_an_edit_counts_at_once(copy: Path) -> None:
    assert imported(copy).endswith(compiled.SUFFIX), "a copy of the same sources is as good"
    source = copy / "gateway" / "protocol" / "errors.py"  # not compiled, but compiled modules have read it
    source.write_text(source.read_text("utf-8") + "\n# edited\n", "utf-8")
    assert imported(copy).endswith("wire.py")


def test_half_a_compiled_form_is_none(copy: Path) -> None:
    (copy / compiled.FOLDER.relative_to(ROOT) / compiled.STAMP).unlink()
    assert imported(copy).endswith("wire.py")


@pytest.mark.parametrize("name", compiled.MODULES)
def test_values_are_not_compiled(name: str) -> None:
    """mypyc gives a Struct neither its keywords nor its annotations: it would not be frozen, and check nothing."""
    source = (ROOT / "gateway" / f"{name.replace('.', '/')}.py").read_text("utf-8")
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes if any("Struct" in ast.unparse(base) for base in node.bases)] == []
