"""`verify`: proof, from the outside, that the temperature asked for is the temperature applied.

Tier A compares the engine's own probabilities after its sampler chain with the law of its raw ones (llama.cpp only);
tier B estimates the temperature from what is drawn; tier C holds many first tokens against the whole law; tier D looks
at T = 0 and at how surprisal grows. Knows which requests to make and what a verdict is; the tests themselves are in
tiers.py. Does NOT know dialects: it asks in the gateway's names, and a gateway says in its reply headers what it used.

Limit: penalties change the law with every token in a way that cannot be seen from outside. They are asked off, and
where a preset pins one on, that is said in place of a verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.evaluation import tiers
from gateway.evaluation.client import Client
from gateway.evaluation.progress import Say
from gateway.evaluation.tiers import CANDIDATES, Chain, Estimate, Heat, Omnibus
from gateway.evaluation.wire import Position, Refused, Reply

TEMPERATURES = (0.2, 0.5, 0.7, 1.0, 1.3)
COLDEST = 0.05  # below, next to nothing is drawn but the likeliest token, and there is nothing to measure
MOST = 8_000  # positions per temperature, however little a very sure model tells
SHOWN = {"logprobs": True, "top_logprobs": CANDIDATES}
UNPENALISED = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
UNCUT = {"top_p": 1, "min_p": 0}
PROMPTS = (  # English only: llama.cpp gives no log-probabilities of tokens that end inside a character
    "Tell me a story about a lighthouse keeper who finds something strange on the beach.",
    "Describe a small town after the rain.",
    "Invent five names for a bookshop and say why each one fits.",
    "Describe a morning in a city you have never seen.",
    "Write a few lines to an old friend after many years.",
    "List things one could do on a long train journey.",
    "Write a dialogue between a river and a stone.",
    "Tell how somebody found something surprising in a kitchen.",
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to verify. `resolution` is the difference in temperature to be told apart (power .9); half of it costs 4
    times the tokens. No `temperatures`: TEMPERATURES, or with a preset its default and bounds."""

    base_url: str = "http://127.0.0.1:8001"
    model: str | None = None
    api_key: str | None = None
    preset: str | None = None
    temperatures: tuple[float, ...] = ()
    resolution: float = 0.1
    first_tokens: int = 400
    concurrency: int = 8


class Unprovable(Exception):
    """The parameters in effect leave nothing to compute a law from; the message says which."""


class AtTemperature(msgspec.Struct, frozen=True, kw_only=True):
    """The findings at one temperature. `asked` is None where the preset's default was taken."""

    asked: float | None
    by: str | None = None  # why another temperature was applied than asked: bound, pin
    chain: Chain | None = None  # in effect, as far as it was said
    tier_a: float | None = None  # the largest gap; None: not an engine that shows its own probabilities
    tier_b: Estimate | None = None
    tier_c: Omnibus | None = None
    problem: str | None = None

    @property
    def passed(self) -> bool:
        exact = self.tier_a is None or self.tier_a < tiers.GAP_LIMIT
        return exact and bool(self.tier_b and self.tier_b.passed and self.tier_c and self.tier_c.passed)

    def line(self) -> str:
        """`asked 0.70, measured 0.71 +/- 0.02: PASS`, and what it rests on."""
        asked = "default" if self.asked is None else f"asked {self.asked:.2f}"
        if self.chain and (self.asked is None or self.by):
            asked += f", applied {self.chain.temperature:.2f}" + (f" ({self.by})" if self.by else "")
        if self.problem or not (self.tier_b and self.tier_c):
            return f"{asked}: NOT SHOWN, {self.problem}"
        b, c = self.tier_b, self.tier_c
        measured = "outside 0.001..100" if b.temperature is None else f"{b.temperature:.2f}"
        error = "" if b.error is None else f" +/- {b.error:.2f}"
        rests = f"{b.positions} tokens, z {b.z:+.1f}, {b.skipped} impossible; first tokens p {c.p:.4f}"
        exact = "" if self.tier_a is None else f"; probabilities exact to {self.tier_a:.0e}"
        return f"{asked}, measured {measured}{error}: {'PASS' if self.passed else 'FAIL'}  ({rests}{exact})"


class Warmth(msgspec.Struct, frozen=True, kw_only=True):
    """Tier D. `greedy` counts the different answers to one question asked five times at T = 0."""

    greedy: int
    heats: list[Heat]

    @property
    def passed(self) -> bool:
        return self.greedy == 1 and tiers.rises(self.heats)

    def lines(self) -> list[str]:
        grows = ", ".join(f"{h.surprisal:.2f} ({h.tail_rate:.1%}) at {h.temperature:.2f}" for h in self.heats)
        return [
            f"T = 0 five times: {self.greedy} different answer(s): {'PASS' if self.greedy == 1 else 'FAIL'}",
            f"surprisal (tail tokens) {grows}: {'PASS' if tiers.rises(self.heats) else 'FAIL'}",
        ]


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Everything found. `warmth` is None with a preset: its bounds may exclude T = 0, and its cuts hide the tail."""

    base_url: str
    model: str
    preset: str | None
    temperatures: list[AtTemperature]
    warmth: Warmth | None

    @property
    def passed(self) -> bool:
        return all(found.passed for found in self.temperatures) and (self.warmth is None or self.warmth.passed)

    def document(self) -> dict[str, Any]:
        """For `--json`: all of it, with the verdicts."""
        whole: dict[str, Any] = msgspec.to_builtins(self)
        for found, said in zip(self.temperatures, whole["temperatures"], strict=True):
            said["passed"] = found.passed
        return {"passed": self.passed, **whole}


class Subject(NamedTuple):
    """Who is asked, and with which fields besides the messages."""

    client: Client
    fields: Mapping[str, Any]
    options: Options
    progress: Say

    async def ask(self, prompt: str, temperature: float | None, **fields: Any) -> Reply:
        messages = [{"role": "user", "content": prompt}]
        return await self.client.chat(messages, temperature=temperature, **{**self.fields, **fields})


def verify(options: Options, progress: Say) -> Verification:
    """`tempera verify`, from start to end; see `run`."""
    return asyncio.run(run(options, progress))


async def run(options: Options, progress: Say = lambda line: None) -> Verification:
    """Verify at every temperature; `progress` gets a line now and then. Raises ClientError, or ValueError for
    options."""
    _check(options)
    async with Client(options.base_url, model=options.model, api_key=options.api_key) as client:
        cuts = {"preset": options.preset} if options.preset else UNCUT
        subject = Subject(client, {**UNPENALISED, **SHOWN, **cuts, "top_k": CANDIDATES}, options, progress)
        asked: tuple[float | None, ...] = options.temperatures or TEMPERATURES
        if options.preset and not options.temperatures:
            asked = await _preset_temperatures(client, options.preset)
        found = []
        for temperature in asked:
            found.append(await _at(subject, temperature))
            progress(found[-1].line())
        warmth = None if options.preset else await _warmth(subject)
        for line in warmth.lines() if warmth else ():
            progress(line)
        model = options.model or (await client.models())[0].id
    return Verification(
        base_url=options.base_url, model=model, preset=options.preset, temperatures=found, warmth=warmth
    )


def _check(options: Options) -> None:
    for temperature in options.temperatures:
        if not COLDEST <= temperature <= 2:
            raise ValueError(f"temperatures: each must be in [{COLDEST}, 2], got {temperature}")
    if options.resolution <= 0:
        raise ValueError(f"resolution: must be > 0, got {options.resolution}")
    for name in ("first_tokens", "concurrency"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: must be >= 1, got {getattr(options, name)}")


async def _preset_temperatures(client: Client, name: str) -> tuple[float | None, ...]:
    """None for the default, then the bounds, as far as a temperature can be measured there."""
    presets = {preset["name"]: preset for preset in await client.presets()}
    if name not in presets:
        raise ValueError(f"preset: there is no {name!r}; there are: {', '.join(presets)}")
    rule = presets[name]["parameters"].get("temperature", {})
    bounds = {bound for bound in (rule.get("min"), rule.get("max")) if bound is not None and bound >= COLDEST}
    return (None, *sorted(bounds - {rule.get("default")}))


async def _at(subject: Subject, temperature: float | None) -> AtTemperature:
    try:
        reply = await subject.ask(PROMPTS[0], temperature, max_tokens=1)
        if subject.options.preset not in (None, reply.preset):
            raise Unprovable(f"the server applied the preset {reply.preset!r}")
        chain, by = _chain(reply, temperature)
    except Unprovable as reason:
        return AtTemperature(asked=temperature, problem=str(reason))
    estimate = await _tier_b(subject, temperature, chain)
    if not estimate.passed:
        estimate = await _tier_b(subject, temperature, chain)
    omnibus = await _tier_c(subject, temperature, chain)
    if not omnibus.passed:
        omnibus = await _tier_c(subject, temperature, chain)
    gap = await _tier_a(subject, temperature, chain)
    return AtTemperature(asked=temperature, by=by, chain=chain, tier_a=gap, tier_b=estimate, tier_c=omnibus)


def _chain(reply: Reply, temperature: float | None) -> tuple[Chain, str | None]:
    """The sampler fields in effect: what the gateway says it used, or what was asked where no gateway says anything."""
    if not any(position.top for choice in reply.choices for position in choice.positions):
        raise Unprovable("the engine gives no top_logprobs")
    used: dict[str, Any] = {"temperature": temperature, "top_k": CANDIDATES, **UNCUT, **UNPENALISED, **reply.params}
    for name, neutral in UNPENALISED.items():
        if used[name] != neutral:
            raise Unprovable(f"{name} is {used[name]}, which changes the law with every token")
    if not 1 <= used["top_k"] <= CANDIDATES:
        raise Unprovable(f"top_k is {used['top_k']:g}, but only {CANDIDATES} candidates are shown")
    if used["temperature"] is None or used["temperature"] < COLDEST:
        raise Unprovable(f"the temperature applied is {used['temperature']}, too low to measure")
    chain = Chain(
        temperature=float(used["temperature"]),
        top_k=int(used["top_k"]),
        top_p=float(used["top_p"]),
        min_p=float(used["min_p"]),
    )
    adjusted = reply.adjusted.get("temperature")
    return chain, adjusted.by if adjusted else None


async def _tier_b(subject: Subject, temperature: float | None, chain: Chain) -> Estimate:
    """Draw until the laws seen would tell `resolution` apart, whatever was drawn: stopping then biases nothing."""
    positions: list[Position] = []
    tokens = 0
    target = subject.options.resolution / tiers.RESOLVING
    turn = 0
    while True:
        prompts = [PROMPTS[(turn + k) % len(PROMPTS)] for k in range(subject.options.concurrency)]
        turn += len(prompts)
        replies = await asyncio.gather(*(subject.ask(prompt, temperature, max_tokens=64) for prompt in prompts))
        positions += [p for reply in replies for choice in reply.choices for p in choice.positions]
        tokens += sum(reply.usage.completion_tokens for reply in replies)
        draws = tiers.draws_of(positions)
        error = tiers.predicted_error(draws, chain)
        if error <= target or len(positions) >= MOST:
            return tiers.estimate(draws, chain, lost=max(0, tokens - len(positions)))
        needed = min(MOST, len(positions) * (error / target) ** 2)
        subject.progress(f"{chain.temperature:.2f}: {len(positions)} of about {needed:.0f} tokens")


async def _tier_c(subject: Subject, temperature: float | None, chain: Chain) -> Omnibus:
    """Many first tokens of one prompt, one request after the other: engines keep its prefill for the next."""
    first: list[Position] = []
    asked, together = 0, 4
    while asked < subject.options.first_tokens:
        try:
            reply = await subject.ask(PROMPTS[0], temperature, max_tokens=1, n=together)
        except Refused:
            if together == 1:
                raise
            together = 1  # llama.cpp takes no larger n than it has slots
            continue
        asked += len(reply.choices)
        first += [choice.positions[0] for choice in reply.choices if choice.positions]
    return tiers.omnibus(first, chain, lost=asked - len(first))


async def _tier_a(subject: Subject, temperature: float | None, chain: Chain) -> float | None:
    gaps = []
    for prompt in PROMPTS[:3]:
        raw = await subject.ask(prompt, temperature, max_tokens=1)
        after = await subject.ask(prompt, temperature, max_tokens=1, post_sampling_probs=True)
        for before, then in zip(raw.choices[0].positions, after.choices[0].positions, strict=False):
            if then.after_sampling:
                gaps.append(tiers.gap(before, then, chain))
    return max(gaps, default=None)


async def _warmth(subject: Subject) -> Warmth | None:
    """Tier D, at temperatures too far apart for little text to hide it, nothing cut; None where T = 0 is changed."""
    free = {"max_tokens": 48, "top_k": 0, "top_logprobs": 1}
    greedy = [await subject.ask(PROMPTS[0], 0.0, **free) for _ in range(5)]
    if any("temperature" in reply.adjusted for reply in greedy):
        return None
    heats = []
    for temperature in (TEMPERATURES[0], TEMPERATURES[2], TEMPERATURES[-1]):
        replies = await asyncio.gather(*(subject.ask(prompt, temperature, **free) for prompt in PROMPTS))
        texts = [[p.sampled.logprob for p in choice.positions] for reply in replies for choice in reply.choices]
        heats.append(tiers.heat(temperature, [text for text in texts if text]))
    return Warmth(greedy=len({reply.texts[0] for reply in greedy}), heats=heats)
