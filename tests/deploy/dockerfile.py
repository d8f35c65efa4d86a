"""Runs what a Dockerfile says without a container engine: the same commands, in a directory that stands for the root.

Knows the few instructions our Dockerfile uses and refuses any other. Stages share one directory, so the paths of two
stages must not clash; users and owners are not played (everything runs as whoever runs the tests).
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IGNORED = {"EXPOSE", "ARG"}
# Absolute paths of the image, but not those of the base image's own tools.
_ABSOLUTE = re.compile(r"(?<![\w./-])/(?=(?:opt|src|data|etc)\b)")


@dataclass
class Stage:
    """Where a stage has got to: environment, working directory (in the image), user, command."""

    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    command: list[str] = field(default_factory=list)


class Image:
    """A target of the Dockerfile, built below `at`."""

    def __init__(self, dockerfile: Path, target: str, at: Path) -> None:
        self.at = at
        self.stages: dict[str, Stage] = {}
        self._lines = list(_instructions(dockerfile.read_text(encoding="utf-8")))
        tools = at / "tools"
        tools.mkdir(parents=True, exist_ok=True)
        if not (tools / "python").exists():
            (tools / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
            (tools / "python").chmod(0o755)
            (tools / "apt-get").symlink_to(
                "/bin/true"
            )  # what the base image lacks this machine has, or the test says so
        self._tools = tools
        self.stage = self._build(target)

    def start(self, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """The image's CMD, as the container would run it."""
        environ = self._environ(self.stage) | {name: self._inside(value) for name, value in environment.items()}
        program = shutil.which(self.stage.command[0], path=environ["PATH"])
        assert program is not None, f"{self.stage.command[0]} is not in the image"
        with log.open("wb") as output:
            return subprocess.Popen(
                [program, *self.stage.command[1:]],
                cwd=self._path(self.stage.workdir),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _build(self, target: str) -> Stage:
        """Everything up to the target's last instruction, skipping stages it does not come from."""
        current: Stage | None = None
        for word, rest in self._lines:
            if word == "FROM":
                base, _, name = rest.partition(" AS ")
                current = None
                if name in _needed(self._lines, target):
                    parent = self.stages.get(base, Stage())
                    current = Stage(dict(parent.environment), parent.workdir)
                    self.stages[name] = current
            elif current is not None and word not in IGNORED:
                self._apply(current, word, rest)
        return self.stages[target]

    def _apply(self, stage: Stage, word: str, rest: str) -> None:
        if word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                stage.environment[name] = value
        elif word == "WORKDIR":
            stage.workdir = rest
            self._path(rest).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            self._copy(stage, shlex.split(rest))
        elif word == "RUN":
            self._run(stage, rest)
        elif word == "USER":
            stage.user = rest
        elif word == "CMD":
            stage.command = json.loads(rest)
        else:
            raise AssertionError(f"this Dockerfile uses {word}, which is not played here")

    def _run(self, stage: Stage, command: str) -> None:
        done = subprocess.run(
            ["sh", "-c", self._inside(command)],
            cwd=self._path(stage.workdir),
            env=self._environ(stage),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    def _copy(self, stage: Stage, words: list[str]) -> None:
        options = [word for word in words if word.startswith("--")]
        *sources, target = [word for word in words if not word.startswith("--")]
        into = target.endswith("/") or len(sources) > 1
        for source in sources:
            if any(option.startswith("--from=") for option in options):
                origin = self._path(source)
            else:
                origin = ROOT / source
                assert in_context(source), f"{source} is not in the build context: .dockerignore"
            where = self._path(target if target.startswith("/") else f"{stage.workdir}/{target}")
            where = where / origin.name if into else where
            assert origin.exists(), f"COPY {source}: there is no such file"
            if where == origin:
                continue
            where.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(
                    origin, where, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "_compiled")
                )
            else:
                shutil.copy(origin, where)

    def _environ(self, stage: Stage) -> dict[str, str]:
        # Where packages come from is this machine's business; of the rest of its environment nothing gets in.
        mine = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_")) or name == "HOME"
        }
        path = f"{self._tools}:/usr/bin:/bin"
        told = {name: self._inside(value).replace("$PATH", path) for name, value in stage.environment.items()}
        return {"PATH": path} | mine | told

    def _inside(self, text: str) -> str:
        return _ABSOLUTE.sub(f"{self.at}/", text)

    def _path(self, path: str) -> Path:
        return self.at / path.lstrip("/")


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def _needed(lines: list[tuple[str, str]], target: str) -> set[str]:
    """The stages a target is made from, itself included."""
    comes_from: dict[str, set[str]] = {}
    name = ""
    for word, rest in lines:
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            comes_from[name] = {base}
        elif word == "COPY" and (found := re.search(r"--from=(\S+)", rest)):
            comes_from[name].add(found[1])
    wanted, todo = set[str](), [target]
    while todo:
        name = todo.pop()
        if name in comes_from and name not in wanted:
            wanted.add(name)
            todo += comes_from[name]
    return wanted


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path into the build context: the last pattern that fits it or a parent decides."""
    kept = True
    parts = Path(path).parts
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if not pattern or pattern.startswith("#"):
            continue
        anywhere = line.removeprefix("!").startswith("**/")
        prefixes = parts if anywhere else ["/".join(parts[: at + 1]) for at in range(len(parts))]
        if any(fnmatch.fnmatch(prefix, pattern) and prefix.count("/") == pattern.count("/") for prefix in prefixes):
            kept = line.startswith("!")
    return kept
