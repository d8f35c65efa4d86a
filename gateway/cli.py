"""The `tempera` command. Each command is a few lines: read settings, call the room that does it, print, exit.

Exit codes: 0 done, 1 the answer is "no", 2 wrong usage.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from gateway.settings import BadSettings, Settings, read


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="tempera-gateway", prog_name="tempera")
def main() -> None:
    """Scenario presets with guard rails, in front of an OpenAI-compatible engine."""


def _settings(**flags: Any) -> Settings:
    try:
        return read(**flags)
    except BadSettings as error:
        raise click.UsageError(str(error)) from None


def _serving_options(command: Any) -> Any:
    options = (
        click.option("--host", help="Address to bind to  [default: 127.0.0.1]"),
        click.option("--port", type=click.IntRange(0, 65535), help="Port of the gateway  [default: 8001]"),
        click.option("--presets", type=click.Path(path_type=Path), help="The presets file."),
        click.option("--upstream", metavar="URL", help="The engine; without it the embedded one is started."),
        click.option("--dialect", type=click.Choice(["vllm", "llama.cpp"]), help="How that engine spells its fields."),
        click.option("--model", type=click.Path(path_type=Path), help="A GGUF file for the embedded engine."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_serving_options
def serve(model: Path | None, **flags: Any) -> None:
    """Run the gateway (and the embedded engine, if no upstream is given)."""
    from gateway.serving import running

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(running.serve(_settings(**flags), model))


@main.command()
@_serving_options
def up(model: Path | None, **flags: Any) -> None:
    """Run everything: engine, gateway and chat, with what to try first."""
    from gateway.serving import running

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(running.serve(_settings(**flags), model, welcome=True))


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--schema", is_flag=True, help="Print the JSON Schema for editors instead.")
def check(file: Path, schema: bool) -> None:
    """Check a presets FILE: every mistake at once, with its line."""
    from gateway.policy.config import BadConfig
    from gateway.policy.config import schema as presets_schema
    from gateway.serving.app import read_config

    if schema:
        click.echo(json.dumps(presets_schema(), indent=2, ensure_ascii=False))
        return
    try:
        config = read_config(file)
    except BadConfig as error:
        for problem in error.problems:
            click.echo(f"{file}:{problem}", err=True)
        click.echo(f"{len(error.problems)} problem(s) in {file}.", err=True)
        sys.exit(1)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read {file}: {error}") from None
    click.echo(f"{file}: {len(config.presets)} presets, revision {config.revision}. No problems.")


@main.command()
@click.option("--presets", type=click.Path(path_type=Path), help="The presets file.")
def presets(presets: Path | None) -> None:
    """Show the presets in force, as a table."""
    from gateway.policy.config import BadConfig
    from gateway.serving.app import presets_path, read_config
    from gateway.serving.table import table

    path = presets_path(_settings(presets=presets))
    try:
        config = read_config(path)
    except (BadConfig, OSError) as error:
        click.echo(f"{path}:\n{error}", err=True)
        sys.exit(1)
    click.echo(table(config))
    click.echo(f"\n{path}, revision {config.revision}; the default preset is marked with *.")


if __name__ == "__main__":
    main()
