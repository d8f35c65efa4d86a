"""What is installed: our packages and nothing else, and lock files that cover all they need, with hashes."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway import compiled

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "deploy" / "locks").glob("*.txt"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DATA = {".yaml", ".json", ".jsonl", ".js", ".jsx", ".css", ".svg", ".md", ".mako", ".toml", ".txt", ".html", ".ini"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built with the tools that are here, as the images build it, without asking any index."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(out)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    whole = re.fullmatch(r"(.+?)-(py3-none-any|cp3\d+-cp3\d+-\w+)\.whl", built.name)
    assert whole is not None
    assert whole[1] == f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}"
    assert (whole[2] == "py3-none-any") != compiled.fresh(), (
        "compiled where there is a compiler, and for that Python only"
    )
    return zipfile.ZipFile(built)


def in_tree() -> set[str]:
    found = (path for room in ("gateway", "ui") for path in (ROOT / room).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix == ".py" or path.suffix in DATA}


def test_the_wheel_holds_our_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    about = {name for name in names if ".dist-info/" in name}
    made = {name for name in names if name.startswith("gateway/_compiled/")}
    assert {Path(name).name for name in made} == {file.name for file in compiled.FOLDER.glob("*") if compiled.fresh()}
    names -= made
    ours = {name for name in names - about if name.startswith(("gateway/", "ui/"))}
    assert names - about - ours == set()
    assert {name for name in ours if Path(name).suffix not in {".py", *DATA}} == set()
    assert ours - {"gateway/presets.yaml"} == in_tree() - {"gateway/presets.yaml"}
    assert wheel.read("gateway/presets.yaml") == (ROOT / "presets.yaml").read_bytes()
    assert {Path(name).name for name in about} == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}


def test_the_wheel_offers_one_command_and_asks_for_what_is_declared(wheel: zipfile.ZipFile) -> None:
    told = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    entries = configparser.ConfigParser()
    entries.read_string(told["entry_points.txt"])
    assert {part: dict(entries[part]) for part in entries.sections()} == {"console_scripts": PROJECT["scripts"]}
    wanted = [
        Requirement(line.split(": ", 1)[1])
        for line in told["METADATA"].splitlines()
        if line[:6] == "Requir" and "Dist" in line
    ]
    plain = {canonicalize_name(one.name) for one in wanted if one.marker is None}
    assert plain == {canonicalize_name(Requirement(one).name) for one in PROJECT["dependencies"]}


def test_the_presets_in_the_wheel_can_be_used(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Installed somewhere else, without the repository around it."""
    wheel.extractall(tmp_path / "site")
    code = "from gateway.serving import app; print(app.__file__, len(app.read_config(app.SHIPPED).presets))"
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    where, presets = done.stdout.split()
    assert where.startswith(str(tmp_path / "site"))
    assert int(presets) >= 6


# --- lock files


def pinned(lock: Path) -> dict[str, tuple[Requirement, int]]:
    """Each package of a lock file: what is pinned, and by how many hashes."""
    joined = re.sub(r"\\\n\s*", " ", lock.read_text("utf-8"))
    found = {}
    for line in (line for line in joined.splitlines() if line.strip() and not line.startswith("#")):
        requirement, *hashes = line.split(" --hash=")
        parsed = Requirement(requirement)
        found[canonicalize_name(parsed.name)] = parsed, sum(bool(re.match(r"sha256:[0-9a-f]{64}", h)) for h in hashes)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_of_a_lock_is_pinned_by_hash(lock: Path) -> None:
    found = pinned(lock)
    assert found
    for name, (requirement, hashes) in found.items():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), name
        assert requirement.url is None, name
        assert hashes, name
    assert "://" not in re.sub(r"^#.*$", "", lock.read_text("utf-8"), flags=re.MULTILINE), "a lock names no registry"


def made_from() -> list[tuple[str, set[str]]]:
    """(lock file, extras) as `make lock` resolves them from pyproject.toml."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    lines = re.findall(r"^\t\$\(UVC\) (.*) pyproject\.toml -o \$\(LOCKS\)/(\S+)$", makefile, re.MULTILINE)
    return [(name, set(re.findall(r"--extra (\w+)", flags))) for flags, name in lines]


@pytest.mark.parametrize(("name", "extras"), made_from(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_lock_covers_every_dependency(name: str, extras: set[str]) -> None:
    """What pyproject.toml asks for, and what that asks for in turn, as far as it is installed here."""
    lock = pinned(ROOT / "deploy" / "locks" / name)
    wanted = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    for requirement in map(Requirement, wanted):
        held, _ = lock[canonicalize_name(requirement.name)]
        (version,) = held.specifier
        assert requirement.specifier.contains(version.version, prereleases=True), f"{requirement}, locked: {held}"
        _covers(lock, requirement, set())


def _covers(lock: dict[str, tuple[Requirement, int]], requirement: Requirement, seen: set[tuple[str, str]]) -> None:
    name = canonicalize_name(requirement.name)
    assert name in lock, f"{requirement} is not locked"
    try:
        asked = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return  # not for this platform, or of an extra that is not installed
    for extra in {"", *requirement.extras}:
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for one in map(Requirement, asked):
            if one.marker is None or Marker(str(one.marker)).evaluate({"extra": extra}):
                _covers(lock, one, seen)
