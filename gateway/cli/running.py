"""Commands that run the gateway or look at its presets: up, serve, check, presets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from gateway.cli.options import PRESETS, config_of, settings_of, several

_SERVING = several(
    click.option("--host", help="Address to bind to  [default: 127.0.0.1]"),
    click.option("--port", type=click.IntRange(0, 65535), help="Port of the gateway  [default: 8001]"),
    click.option("--workers", type=click.IntRange(1, 64), help="Processes that share the port  [default: 1]"),
    PRESETS,
    click.option("--upstream", metavar="URL", help="The engine; without it the embedded one is started."),
    click.option("--dialect", type=click.Choice(["vllm", "llama.cpp"]), help="How that engine spells its fields."),
    click.option("--model", type=click.Path(path_type=Path), help="A GGUF file for the embedded engine."),
    click.option("--data-dir", type=click.Path(path_type=Path), help="Log, spool and keys  [default: ./data]"),
    click.option(
        "--shutdown-timeout",
        type=click.FloatRange(0, 86400),
        metavar="SECONDS",
        help="Given to open requests at the end  [default: 30]",
    ),
)

# The command of one of several workers. -P: a file in the working directory must not stand in for a module.
_WORKER = (sys.executable, "-P", "-m", "gateway.cli", "worker")


def _degenerate(text: str) -> bool:
    """Whether a logged text shows a sign of degeneration. Nobody knows which language it should be in: Latin and Han
    letters may stand side by side.
    """
    from gateway.evaluation.degeneration import signs

    return signs(text, None).degenerate


@click.command(short_help="Run the gateway.")
@_SERVING
def serve(model: Path | None, **flags: Any) -> None:
    """Run the gateway (and the embedded engine, if no upstream is given)."""
    from gateway.serving import logs
    from gateway.serving.running import Start, serve

    settings = settings_of(**flags)
    logs.set_up(settings)
    start = Start(settings, config_of(settings)[1], model, degenerate=_degenerate, worker=_WORKER)
    sys.exit(serve(start))


@click.command(short_help="Run everything: engine, gateway and chat.")
@_SERVING
@click.option("--no-chat", is_flag=True, help="Leave the chat out.")
def up(model: Path | None, no_chat: bool, **flags: Any) -> None:
    """Run everything: engine, gateway and chat, with what to try first."""
    from gateway.serving import logs
    from gateway.serving.running import Start, serve

    settings = settings_of(**flags)
    logs.set_up(settings, otherwise="warning")
    config = config_of(settings)[1]
    sys.exit(serve(Start(settings, config, model, True, not no_chat, _degenerate, _WORKER)))


@click.command(hidden=True)
@click.argument("descriptor", type=int)
def worker(descriptor: int) -> None:
    """One of several workers. `serve --workers N` starts it; it is of no use by hand."""
    from gateway.serving.worker import work

    sys.exit(work(descriptor, _degenerate))


@click.command(short_help="Every mistake of a presets file, or of cases.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--schema", is_flag=True, help="Print the JSON Schema for editors instead.")
def check(file: Path, schema: bool) -> None:
    """Check a presets FILE (or a .jsonl of cases): every mistake, with its line."""
    from gateway.policy.config import schema as presets_schema

    if schema:
        click.echo(json.dumps(presets_schema(), indent=2, ensure_ascii=False))
        return
    if file.suffix == ".jsonl":
        _check_cases(file)
        return
    _, config = config_of(settings_of(presets=file))
    click.echo(f"{file}: {len(config.presets)} presets, revision {config.revision}. No problems.")


def _check_cases(file: Path) -> None:
    from gateway.evaluation.cases import CaseError, load_cases

    try:
        cases = load_cases(file)
    except CaseError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    click.echo(f"{file}: {len(cases)} cases. No problems.")


@click.command()
@PRESETS
def presets(presets: Path | None) -> None:
    """Show the presets in force, as a table."""
    from gateway.serving.table import table

    path, config = config_of(settings_of(presets=presets))
    click.echo(table(config))
    click.echo(f"\n{path}, revision {config.revision}; the default preset is marked with *.")


COMMANDS = (up, serve, worker, check, presets)
