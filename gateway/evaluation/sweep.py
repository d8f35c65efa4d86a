"""Run a sweep: cases x temperatures x samples, prompt by prompt, each finished request in the file before the next.

Temperatures outside a preset's bounds would be clamped, so requests name the engine's own model and carry the preset's
other parameters themselves; which temperature was used is read from the reply. Knows requests, resuming and progress.
Does NOT score anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gateway.evaluation.cases import Case, choose, load_cases, shipped_cases
from gateway.evaluation.client import Client
from gateway.evaluation.degeneration import TAIL_PROBABILITY
from gateway.evaluation.progress import Progress, Say
from gateway.evaluation.rows import Header, Journal, Sample, Setup, read_rows, write_parquet
from gateway.evaluation.sweep_setup import (
    PROFILES,
    TOY,
    SweepOptions,
    count_parameters,
    engine_model,
    parse_temperatures,
    scenarios_for,
    settings_for,
)
from gateway.evaluation.turn import tempered_surprisal
from gateway.evaluation.wire import Choice, ClientError, Refused, Reply

SHARED = 16  # samples in one request: what the gateway allows
PATIENCE = 3  # failed requests in a row before a sweep gives up
_TAIL = math.log(TAIL_PROBABILITY)


class Group(msgspec.Struct, frozen=True):
    """The samples still to be made of one case at one temperature."""

    case: Case
    temperature: float
    samples: tuple[int, ...]


def sweep(options: SweepOptions, say: Say) -> int:
    """Run or continue a sweep. Exit code: 0 complete, 1 samples are missing, 130 interrupted.

    Raises SweepError (options, files), CaseError (cases) and ClientError (nothing answers), all fit to be shown."""
    try:
        return asyncio.run(_sweep(options, say))
    except KeyboardInterrupt:
        say(f"Interrupted. {journal_path(options.out)} keeps what is done; the same command goes on from there.")
        return 130


def journal_path(out: Path) -> Path:
    """Where rows are appended while a sweep runs: JSONL, which survives an interruption, also on the way to Parquet."""
    return out.with_suffix(".jsonl")


async def _sweep(options: SweepOptions, say: Say) -> int:
    path = journal_path(options.out)
    async with Client(options.base_url, api_key=options.api_key) as client:
        header = await prepare(client, options)
        journal = Journal(path, header)
        try:
            run = Run(client, header.setup, journal, say)
            say(f"{header.setup.model}: {run.progress.line()}")
            await run.all(options.concurrency)
        finally:
            journal.close()
    for failure in run.failures:
        say(failure)
    if run.progress.left:
        say(f"{run.progress.left} samples are missing; the same command asks for them again.")
        return 1
    if options.out != path:
        write_parquet(options.out, *read_rows(path))
    say(f"Complete: {options.out}")
    return 0


async def prepare(client: Client, options: SweepOptions) -> Header:
    """Ask the server what it has, and settle everything before the first sample."""
    model = engine_model(await client.models(), options.model)
    try:
        presets = await client.presets()
    except Refused:  # a plain engine: no presets
        presets = []
    profile = PROFILES[options.profile]
    cases = load_cases(options.cases) if options.cases else shipped_cases()
    scenarios = scenarios_for(options, cases)
    chosen = choose(cases, scenarios=scenarios, prompts=None if options.cases else profile.prompts)
    parameters = count_parameters(model)
    return Header(
        setup=Setup(
            model=model.id,
            temperatures=parse_temperatures(options.temperatures or profile.temperatures),
            samples=options.samples or profile.samples,
            max_tokens=profile.max_tokens,
            seed=options.seed,
            settings=settings_for(options, scenarios, presets),
            cases=chosen,
        ),
        profile=options.profile,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parameters=parameters,
        toy=options.toy if options.toy is not None else parameters is not None and parameters < TOY,
        revision=presets[0].get("revision") if presets else None,
    )


def groups(setup: Setup, done: Sequence[Sample]) -> Iterator[Group]:
    """What is left to do, prompt-major, so that the engine's prefix cache serves all temperatures of a prompt.

    One greedy sample per case comes along (temperature 0), for greedy agreement."""
    have = {sample.key for sample in done}
    for case in setup.cases:
        for temperature in sorted({0.0, *setup.temperatures}):
            count = setup.samples if temperature in setup.temperatures else 1
            left = tuple(i for i in range(count) if (case.id, temperature, i) not in have)
            if left:
                yield Group(case, temperature, left)


class Run:
    """One run over what is left. `failures` says which requests failed."""

    def __init__(self, client: Client, setup: Setup, journal: Journal, say: Say) -> None:
        self._client, self._setup, self._journal, self._say = client, setup, journal, say
        left = sum(len(group.samples) for group in groups(setup, journal.samples))
        self.progress = Progress(left + len(journal.samples), len(journal.samples), say, time.monotonic)
        self.failures: list[str] = []
        self._in_a_row = 0
        self._limit = SHARED  # samples per request; smaller once the engine has refused so many (llama.cpp: its slots)

    async def all(self, concurrency: int) -> None:
        """Make every missing sample, `concurrency` requests at a time."""
        work = groups(self._setup, self._journal.samples)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(self._work(work))

    async def _work(self, work: Iterator[Group]) -> None:
        for group in work:
            await self._make(group)
            if self._in_a_row >= PATIENCE:
                return

    async def _make(self, group: Group) -> None:
        left = list(group.samples)
        while left:
            # greedy samples are alike, and vLLM refuses n > 1 for them
            batch = left[: 1 if group.temperature == 0 else self._limit]
            try:
                reply = await self._client.chat(
                    [msgspec.to_builtins(message) for message in group.case.messages],
                    **fields(self._setup, group, batch),
                )
            except ClientError as error:
                if isinstance(error, Refused) and len(batch) > 1 and about_n(error):
                    self._limit = min(self._limit, len(batch) // 2)
                    continue
                self._fail(group, error)
                return
            made = rows(self._setup, group, batch, reply)
            self._journal.write(made)
            self._in_a_row = 0
            self._limit = min(self._limit, max(1, len(made))) if len(made) < len(batch) else self._limit
            self.progress.add(len(made), sum(sample.tokens or 0 for sample in made))
            left = left[len(made) :] if made else []

    def _fail(self, group: Group, error: ClientError) -> None:
        self._in_a_row += 1
        self.failures.append(f"{group.case.id} at {group.temperature:g}: {error}")


def about_n(error: Refused) -> bool:
    """Whether a refusal is about the number of samples in one request."""
    return error.param == "n" or re.search(r"(?:^|[^\w])['`\"]?n['`\"]?(?: must|: )", str(error)) is not None


def fields(setup: Setup, group: Group, batch: Sequence[int]) -> dict[str, Any]:
    """The body of one request beside its messages. The same sample of the same sweep always has the same seed."""
    key = f"{setup.seed}\0{group.case.id}\0{group.temperature}\0{batch[0]}"
    limit = group.case.max_tokens if setup.max_tokens is None else min(setup.max_tokens, group.case.max_tokens)
    return {
        **setup.settings[group.case.scenario].at(group.temperature),
        "model": setup.model,
        "max_tokens": limit,
        "n": len(batch) if len(batch) > 1 else None,
        "seed": int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1,
        "logprobs": True,
        "top_logprobs": 20,
    }


def rows(setup: Setup, group: Group, batch: Sequence[int], reply: Reply) -> list[Sample]:
    """A row per choice of the reply."""
    sent = setup.settings[group.case.scenario].at(group.temperature)
    used = reply.params.get("temperature", group.temperature)
    temperature = float(used) if isinstance(used, int | float) else group.temperature
    return [
        Sample(
            case=group.case.id,
            scenario=group.case.scenario,
            lang=group.case.lang,
            asked=group.temperature,
            temperature=temperature,
            sample=number,
            text=choice.text,
            finish=choice.finish_reason,
            **logprob_figures(choice, temperature),
            params=reply.params or dict(sent),
            exchange=reply.exchange,
            seconds=round(reply.seconds, 3),
        )
        for number, choice in zip(batch, reply.choices, strict=False)
    ]


def logprob_figures(choice: Choice, temperature: float) -> dict[str, Any]:
    """tokens, tail_rate, surprisal and entropy of one choice from its raw log-probabilities; None without any."""
    positions = choice.positions
    if not positions:
        return {"tokens": None, "tail_rate": None, "surprisal": None, "entropy": None}
    drawn = [position.sampled.logprob for position in positions]
    entropy = None
    if temperature > 0:
        surprisals = []
        for position in positions:
            shown = [rival.logprob for rival in position.top]
            if all(rival.key != position.sampled.key for rival in position.top):
                shown.append(position.sampled.logprob)
            surprisals.append(tempered_surprisal(position.sampled.logprob, shown, temperature))
        entropy = math.fsum(surprisals) / len(positions)
    return {
        "tokens": len(positions),
        "tail_rate": sum(value < _TAIL for value in drawn) / len(drawn),
        "surprisal": -math.fsum(drawn) / len(drawn),
        "entropy": entropy,
    }
