"""The modules on the way of a request in their compiled form, where there is one for this interpreter and these
sources.

mypyc makes extension modules of MODULES (`python hatch_build.py` in the repository, and whatever builds a wheel);
without them everything works as plain Python, at about 1.4 times the CPU. What was compiled from other sources is never
used: an edit counts at once. TEMPERA_COMPILED=off leaves the compiled form alone, for debuggers and coverage.

Knows files and imports; nothing about how they are made or what the modules do.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent
ROOMS: Final = ("protocol", "policy", "log", "serving")  # a compiled module depends on sources of these
MODULES: Final = (
    "protocol.envelope", "protocol.sse", "policy.fences", "policy.plan", "log.digest", "log.exchange", "log.writer",
    "serving.connection", "serving.counting", "serving.cycle", "serving.front",
    "serving.ids", "serving.keeping", "serving.ledger", "serving.metrics", "serving.relay", "serving.replies",
    "serving.reply", "serving.routes", "serving.stay", "serving.upstream", "serving.wire",
)  # fmt: skip
SUFFIX: Final = EXTENSION_SUFFIXES[0]
FOLDER: Final = PACKAGE / "_compiled" / SUFFIX.split(".")[1]
STAMP: Final = "sources.sha256"


def fingerprint() -> str:
    """What the sources say now: a hash of every module that a compiled one may depend on, and of this one."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for room in ROOMS:
        for path in sorted((PACKAGE / room).glob("*.py")):
            digest.update(b"%b %b" % (path.name.encode(), hashlib.sha256(path.read_bytes()).digest()))
    return digest.hexdigest()


def fresh() -> bool:
    """Whether there is a compiled form, made for this interpreter from these sources."""
    try:
        return (FOLDER / STAMP).read_text("ascii") == fingerprint()
    except OSError:
        return False


class Finder:
    """Finds modules in FOLDER, which holds them under their full names."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of a compiled module; None for every other."""
        file = FOLDER / f"{name}{SUFFIX}"
        if not file.exists():
            return None
        return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))


def use() -> None:
    """From now on imports give the compiled form, if it may be used."""
    if os.environ.get("TEMPERA_COMPILED") != "off" and Finder not in sys.meta_path and fresh():
        sys.meta_path.insert(0, Finder)


def used() -> bool:
    """Whether this process runs the compiled form."""
    return Finder in sys.meta_path
