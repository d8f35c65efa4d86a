"""Cases: a prompt with objective checks, one JSON object per line; those that ship, and files people write themselves.

Knows the file format and says file, line and field of what is wrong. Does NOT know models, temperatures or scores.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from gateway.evaluation.checks import CHECK_NAMES, AnyCheck
from gateway.evaluation.degeneration import Lang

SHIPPED = Path(__file__).with_name("case_files")
SCENARIOS = ("customer-service", "summarization", "creative", "coding", "role-play")
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class CaseError(Exception):
    """A file of cases that cannot be used; the message lists `file:line: what - at field`, one per line."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str

    def __post_init__(self) -> None:
        if not self.content.strip():
            raise ValueError("content: expected text")


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`max_tokens` bounds the reply in the model's tokens; a sweep's profile may ask for fewer."""

    id: str
    lang: Lang
    scenario: str
    messages: list[Message]
    checks: list[AnyCheck]
    max_tokens: int

    def __post_init__(self) -> None:
        for field in ("id", "scenario"):
            if not _NAME.fullmatch(getattr(self, field)):
                raise ValueError(f"{field}: expected lower-case letters, digits and -, got {getattr(self, field)!r}")
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError("messages: expected at least one, the last of role user")
        if len(self.checks) < 2:
            raise ValueError(f"checks: expected at least 2, got {len(self.checks)}")
        if not 1 <= self.max_tokens <= 8192:
            raise ValueError(f"max_tokens: expected 1..8192, got {self.max_tokens}")

    @property
    def source(self) -> str:
        """All that was said before the reply."""
        return "\n".join(message.content for message in self.messages)


def load_cases(path: Path) -> list[Case]:
    """The cases of one JSONL file, or of every `*.jsonl` of a directory in order of name; blank lines are skipped.

    Raises CaseError with every fault found, each with file, line and field."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    cases: list[Case] = []
    faults: list[str] = []
    seen: dict[str, str] = {}
    for file in files:
        for number, line in _lines(file):
            where = f"{file}:{number}"
            try:
                case = msgspec.json.decode(line, type=Case)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                names = f"; checks are {', '.join(CHECK_NAMES)}" if str(error).endswith(".check`") else ""
                faults.append(f"{where}: {error}{names}")
                continue
            if case.id in seen:
                faults.append(f"{where}: id {case.id!r} is already used at {seen[case.id]} - at `$.id`")
            seen.setdefault(case.id, where)
            cases.append(case)
    if not faults and not cases:
        faults.append(f"{path}: no cases in it")
    if faults:
        raise CaseError("\n".join(faults))
    return cases


def _lines(file: Path) -> list[tuple[int, bytes]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CaseError(f"{file}: {error.strerror}") from error
    return [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]


def shipped_cases() -> list[Case]:
    """The 120 cases that ship: 12 zh and 12 en for each of SCENARIOS, in that order."""
    cases = load_cases(SHIPPED)
    return sorted(cases, key=lambda case: SCENARIOS.index(case.scenario))


def choose(cases: Sequence[Case], *, scenarios: Sequence[str] = (), prompts: int | None = None) -> list[Case]:
    """The first `prompts` cases of each scenario, as evenly over its languages as they go; all scenarios when none is
    named."""
    chosen: list[Case] = []
    for scenario in scenarios or dict.fromkeys(case.scenario for case in cases):
        here = [case for case in cases if case.scenario == scenario]
        if not here:
            raise CaseError(f"scenario: no case of {scenario!r}; there are {sorted({case.scenario for case in cases})}")
        by_lang = [[case for case in here if case.lang == lang] for lang in dict.fromkeys(case.lang for case in here)]
        turns = [case for i in range(len(here)) for group in by_lang for case in group[i : i + 1]]
        chosen += turns[: len(here) if prompts is None else prompts]
    return chosen


def digest(cases: Sequence[Case]) -> str:
    """12 hex digits that change when a case, a check or their order does."""
    return hashlib.sha256(msgspec.json.encode(list(cases))).hexdigest()[:12]
