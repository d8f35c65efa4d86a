"""What a sweep will ask for: profiles, temperatures, the cases, and each scenario's parameters as its preset has them.

Knows options and presets as the gateway shows them. Does NOT send requests; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

import msgspec

from gateway.evaluation.cases import Case
from gateway.evaluation.rows import Hot, Setting, SweepError
from gateway.evaluation.wire import Model

MOST = 40  # temperatures
TOY = 10**9  # parameters below which no number says anything about quality
NEUTRAL: Mapping[str, float] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}

Name = Literal["smoke", "dev", "full"]


class Profile(msgspec.Struct, frozen=True):
    scenarios: int | None  # the first ones; None: all
    prompts: int  # per scenario, half zh and half en
    temperatures: str  # evenly spaced, which TURN needs
    samples: int
    max_tokens: int


PROFILES: Mapping[Name, Profile] = {
    "smoke": Profile(1, 4, "0.2:1.4:0.6", 4, 48),
    "dev": Profile(None, 4, "0.2:1.4:0.4", 6, 64),
    "full": Profile(None, 24, "0.1:1.6:0.3", 8, 160),
}


class SweepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `tempera sweep` was asked. None means "as the profile says".

    Without `preset`, each scenario is swept with the parameters of the preset of its name, where there is one; with it,
    the preset's own scenario, or all when no case has that name. `neutral` switches every other parameter off.
    """

    base_url: str = "http://127.0.0.1:8001"
    model: str | None = None
    api_key: str | None = None
    preset: str | None = None
    neutral: bool = False
    profile: Name = "dev"
    temperatures: str | None = None
    samples: int | None = None
    scenarios: Sequence[str] = ()
    cases: Path | None = None
    concurrency: int = 2
    out: Path = Path("sweep.jsonl")
    seed: int = 1
    toy: bool | None = None  # None: guess from the model

    def __post_init__(self) -> None:
        if self.samples is not None and not 2 <= self.samples <= 64:
            raise SweepError(f"samples: must be in 2..64, got {self.samples}")
        if not 1 <= self.concurrency <= 64:
            raise SweepError(f"concurrency: must be in 1..64, got {self.concurrency}")
        if self.out.suffix not in (".jsonl", ".parquet"):
            raise SweepError(f"out: must end with .jsonl or .parquet, got {self.out}")
        if self.preset is not None and self.neutral:
            raise SweepError("neutral: excludes preset")


def parse_temperatures(text: str) -> list[float]:
    """`0.1:1.5:0.2` (both ends, where the steps meet it) or `0.2,0.7,1`: rising, in [0, 2], MOST of them."""
    try:
        if ":" in text:
            start, stop, step = (Decimal(part.strip()) for part in text.split(":"))
            if step <= 0 or stop < start:
                raise SweepError(f"temperatures: start:stop:step must rise, got {text!r}")
            values = [start + step * i for i in range(min(int((stop - start) / step) + 1, MOST + 1))]
        else:
            values = sorted({Decimal(part.strip()) for part in text.split(",")})
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise SweepError(f"temperatures: expected start:stop:step or a comma list, got {text!r}") from error
    if not all(value.is_finite() and 0 <= value <= 2 for value in values):
        raise SweepError(f"temperatures: must be in [0, 2], got {text!r}")
    if not 1 <= len(values) <= MOST:
        raise SweepError(f"temperatures: must be 1..{MOST} values, got {text!r}")
    return [float(value) for value in values]


def count_parameters(model: Model) -> int | None:
    """How many parameters a model has: what the server says, else the "7b" or "135M" in its name; None if neither."""
    if model.parameters is not None:
        return model.parameters
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", model.id.lower())
    return int(float(found[1]) * (10**9 if found[2] == "b" else 10**6)) if found else None


def engine_model(models: Sequence[Model], wanted: str | None) -> Model:
    """The model to sweep: the one named, else the first that is not a preset. A preset's name would clamp."""
    own = [model for model in models if model.owned_by != "tempera"]
    for model in models:
        if model.id == wanted and model in own:
            return model
    if wanted is None and own:
        return own[0]
    names = ", ".join(model.id for model in own) or "none"
    raise SweepError(f"model: expected one of the engine's own models ({names}), got {wanted!r}")


def setting_of(entry: Mapping[str, Any]) -> Setting:
    """A preset, as one entry of `GET /v1/presets`, for a sweep."""
    rules = entry["parameters"]
    hot = dict(entry.get("when_hot") or {})
    own = {name: rules[name]["default"] for name in NEUTRAL if name in rules and rules[name]["default"] is not None}
    heat = rules.get("temperature", {})
    pin = heat.get("pin")
    return Setting(
        preset=entry["name"],
        title=dict(entry.get("title") or {}),
        fields={**NEUTRAL, **own},
        hot=Hot(hot.pop("above"), hot) if hot else None,
        default=heat.get("default"),
        low=heat.get("min") if pin is None else pin,
        high=heat.get("max") if pin is None else pin,
        system_prompt=bool(entry.get("system_prompt")),
    )


def settings_for(
    options: SweepOptions, scenarios: Sequence[str], presets: Sequence[Mapping[str, Any]]
) -> dict[str, Setting]:
    """Each scenario's parameters. Raises SweepError for a preset that does not exist."""
    known = {entry["name"]: entry for entry in presets}
    if options.preset is not None and options.preset not in known:
        raise SweepError(f"preset: there is no {options.preset!r}; there are: {', '.join(known) or 'none'}")
    chosen = {} if options.neutral else known
    names = {scenario: options.preset or scenario for scenario in scenarios}
    return {
        scenario: setting_of(chosen[name]) if name in chosen else Setting(fields=dict(NEUTRAL))
        for scenario, name in names.items()
    }


def scenarios_for(options: SweepOptions, cases: Sequence[Case]) -> list[str]:
    """The scenarios to sweep, in order."""
    all_of_them = list(dict.fromkeys(case.scenario for case in cases))
    if options.scenarios:
        return list(options.scenarios)
    if options.preset in all_of_them:
        return [options.preset]
    return all_of_them[: PROFILES[options.profile].scenarios]
