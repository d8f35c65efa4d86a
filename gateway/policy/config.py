"""presets.yaml as one immutable Config with the hash of everything it was made from.

`load` is pure: the text comes in, prompt files are read by the callable it is given, and either a whole Config or
every problem at once comes out. Knows presets, upstreams and experiments; knows nothing about where the file lies or
when it is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.policy.document import Document, Path, Problem
from gateway.policy.experiments import Experiment, problems
from gateway.policy.params import MAX_GENERATION, PARAMS, Param
from gateway.policy.presets import Arm, Preset, PresetFile, build_guard, build_rules, narrow

Seconds = Annotated[float, Meta(gt=0, le=86400)]
ReadPrompt = Callable[[str], str]


class Timeouts(Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds.

    `headers`: to the reply's status line, which for a reply that is not streamed is the whole generation; `idle`:
    between chunks.
    """

    connect: Seconds = 2.0
    headers: Seconds = 600.0
    idle: Seconds = 120.0


class Upstream(Struct, frozen=True, forbid_unknown_fields=True):
    """A named engine endpoint. `api_key_env` names the environment variable that holds our key to it."""

    base_url: Annotated[str, Meta(pattern=r"^https?://[^/?#\s]+")]
    dialect: Literal["vllm", "llama.cpp"] = "vllm"
    api_key_env: str = "TEMPERA_UPSTREAM_API_KEY"
    timeouts: Timeouts = Timeouts()


class PresetsFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """presets.yaml. `open_fields` names request fields that are fenced off unless the operator opens them."""

    presets: dict[str, PresetFile]
    default: str = "balanced"
    upstreams: dict[str, Upstream] = {}
    experiments: dict[str, Experiment] = {}
    open_fields: list[str] = []


class Trial(Struct, frozen=True):
    """An experiment with its variants worked out."""

    name: str
    experiment: Experiment
    arms: Mapping[str, Arm]


class Config(Struct, frozen=True, kw_only=True, eq=False):
    """Everything presets.yaml decides. Equal only to itself, so that it can key a cache.

    `revision` is 12 hex digits of the hash of the text and of every prompt it names.
    """

    revision: str
    text: str
    prompts: Mapping[str, str]
    default: str
    presets: Mapping[str, Preset]
    upstreams: Mapping[str, Upstream]
    trials: Mapping[str, Trial]  # every experiment, by its name
    running: Mapping[str, Trial]  # the one that is running on a preset, by the preset's name
    open_fields: frozenset[str]


class BadConfig(Exception):
    """A presets file with problems: all of them, in the order of their lines."""

    def __init__(self, found: list[Problem]) -> None:
        self.problems = sorted(set(found))
        super().__init__("\n".join(map(str, self.problems)))


def load(text: str, read_prompt: ReadPrompt) -> Config:
    """The Config of a presets.yaml text.

    `read_prompt(path)` gives a prompt file's text or raises OSError. Raises BadConfig.
    """
    document = Document(text)
    file = _check_names(document)
    if file is None:
        raise BadConfig(document.problems)
    prompts: dict[str, str] = {}
    prompt = _prompt_reader(document, prompts, read_prompt)
    presets = {
        name: Preset(
            name=name,
            file=entry,
            arm=Arm(
                build_guard(
                    document, ("presets", name), entry.parameters, entry.when_hot, entry.on_violation == "reject"
                ),
                prompt(("presets", name, "system_prompt"), entry.system_prompt),
            ),
        )
        for name, entry in file.presets.items()
    }
    trials = {
        name: trial
        for name, experiment in file.experiments.items()
        if (trial := _trial(document, name, experiment, presets, prompt)) is not None
    }
    running = _running(document, trials)
    if document.problems:
        raise BadConfig(document.problems)
    return Config(
        revision=_revision(text, prompts),
        text=text,
        prompts=prompts,
        default=file.default,
        presets=presets,
        upstreams=file.upstreams,
        trials=trials,
        running=running,
        open_fields=frozenset(file.open_fields),
    )


_NAMED: Final = ("presets", "upstreams", "experiments")
ReadOne = Callable[[Path, str | None], str | None]


def _prompt_reader(document: Document, prompts: dict[str, str], read_prompt: ReadPrompt) -> ReadOne:
    """Reads each prompt file once, into `prompts`; what cannot be read is reported at the key that names it."""

    def prompt(path: Path, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            prompts[name] = prompts.get(name) or read_prompt(name).strip()
            if not prompts[name]:
                raise ValueError("it is empty")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            document.report(path, f"cannot read the prompt {name!r}: {getattr(error, 'strerror', None) or error}")
        return prompts.get(name)

    return prompt


def _check_names(document: Document) -> PresetsFile | None:
    """The file's own shape, and that every name in it stands for something."""
    if document.problems and document.value is None:
        return None
    raw = document.value if isinstance(document.value, dict) else {}
    file = document.convert(document.value, PresetsFile)
    presets = _mapping(raw.get("presets"))
    _check_words(document, raw)
    default = raw.get("default", "balanced")
    if presets and isinstance(default, str) and default not in presets:
        document.report(("default",), f"there is no preset {default!r}; there are: {', '.join(presets)}")
    if "presets" in raw and not presets:
        document.report(("presets",), "at least one preset is needed")
    upstreams = _mapping(raw.get("upstreams"))
    for name, entry in presets.items():
        upstream = entry.get("upstream") if isinstance(entry, dict) else None
        if isinstance(upstream, str) and upstream not in upstreams:
            document.report(("presets", name, "upstream"), f"there is no upstream {upstream!r}")
    if file is None:
        _check_rules_anyway(document, presets)
    return file  # type: ignore[no-any-return]


def _check_words(document: Document, raw: Mapping[str, Any]) -> None:
    """Names stand in headers, metrics and addresses."""
    paths: list[Path] = [(section, name) for section in _NAMED for name in _mapping(raw.get(section))]
    for name, entry in _mapping(raw.get("experiments")).items():
        paths += [("experiments", name, "variants", variant) for variant in _mapping(_mapping(entry).get("variants"))]
    for path in paths:
        if not _is_name(str(path[-1])):
            document.report(path, "a name is lower-case letters, digits, '.', '_' and '-', at most 64")


def _check_rules_anyway(document: Document, presets: Mapping[str, Any]) -> None:
    """A file that fails elsewhere still gets its parameters checked, so that all problems come at once."""
    for name, entry in presets.items():
        entry, hot = _mapping(entry), _mapping(entry).get("when_hot")
        build_guard(
            document, ("presets", name), _mapping(entry.get("parameters")), hot if isinstance(hot, dict) else None
        )


def _trial(
    document: Document,
    name: str,
    experiment: Experiment,
    presets: Mapping[str, Preset],
    prompt: ReadOne,
) -> Trial | None:
    path: Path = ("experiments", name)
    for key, message in problems(experiment):
        document.report((*path, *key.split(".")), message)
    preset = presets.get(experiment.preset)
    if preset is None:
        document.report((*path, "preset"), f"there is no preset {experiment.preset!r}")
        return None
    if preset.file.log == "off":
        document.report((*path, "preset"), f"{preset.name!r} has log: off, so this would never have data")
    arms = {}
    for variant_name, variant in experiment.variants.items():
        here = (*path, "variants", variant_name)
        rules = build_rules(document, (*here, "parameters"), variant.parameters)
        text = prompt((*here, "system_prompt"), variant.system_prompt)
        arms[variant_name] = Arm(
            narrow(document, (*here, "parameters"), preset.arm.guard, rules),
            text if variant.system_prompt is not None else preset.arm.system_prompt,
        )
    return Trial(name, experiment, arms)


def _running(document: Document, trials: Mapping[str, Trial]) -> dict[str, Trial]:
    """Two experiments on one preset at a time would answer neither question."""
    running: dict[str, Trial] = {}
    for name, trial in trials.items():
        if trial.experiment.state != "running":
            continue
        other = running.setdefault(trial.experiment.preset, trial)
        if other is not trial:
            document.report(("experiments", name, "preset"), f"{other.name!r} is already running on this preset")
    return running


def _revision(text: str, prompts: Mapping[str, str]) -> str:
    digest = sha256(text.encode())
    for name in sorted(prompts):
        digest.update(f"\0{name}\0{prompts[name]}".encode())
    return digest.hexdigest()[:12]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_name(name: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    return 0 < len(name) <= 64 and set(name) <= allowed and name[0].isalnum()


def schema() -> dict[str, Any]:
    """The JSON Schema of presets.yaml for editors, from the same structs and the same parameter table."""
    result = msgspec.json.schema(PresetsFile)
    definitions = result["$defs"]
    parameters = {name: _parameter_schema(param) for name, param in PARAMS.items()}
    parameters["seed"] = {"anyOf": [{"type": "integer"}, _rule_schema({"type": "integer"})]}
    text = {"type": "string", "minLength": 1}
    texts = {"anyOf": [text, {"type": "array", "items": text, "maxItems": 4}]}
    parameters["stop"] = {"anyOf": [texts, _rule_schema(texts)]}
    closed = {"type": "object", "properties": parameters, "additionalProperties": False}
    definitions["PresetFile"]["properties"]["parameters"] = closed
    definitions["Variant"]["properties"]["parameters"] = closed
    hot = {name: _number_schema(param) for name, param in PARAMS.items() if name not in ("temperature", "max_tokens")}
    definitions["PresetFile"]["properties"]["when_hot"] = {
        "type": "object",
        "properties": {"above": _number_schema(PARAMS["temperature"])} | hot,
        "required": ["above"],
        "additionalProperties": False,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tempera presets"} | result


def _number_schema(param: Param) -> dict[str, Any]:
    low = {"exclusiveMinimum" if param.open_low else "minimum": min((param.low, *param.off))}
    high = MAX_GENERATION if param.name == "max_tokens" else param.high
    return {"type": "integer" if param.integer else "number", "maximum": high} | low


def _rule_schema(value: dict[str, Any], bounds: bool = False) -> dict[str, Any]:
    keys = ("default", "min", "max", "pin") if bounds else ("default", "pin")
    return {"type": "object", "properties": dict.fromkeys(keys, value), "additionalProperties": False}


def _parameter_schema(param: Param) -> dict[str, Any]:
    value = _number_schema(param)
    return {"anyOf": [value, _rule_schema(value, bounds=True)]}
