"""Options that several commands share, and how wrong settings are said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.policy.config import BadConfig, Config
from gateway.settings import BadSettings, Settings, read

_Command = TypeVar("_Command", bound=Callable[..., Any])

PRESETS = click.option("--presets", type=click.Path(path_type=Path), help="The presets file  [default: ./presets.yaml]")
DATABASE = click.option(
    "--database-url", metavar="URL", help="The log's database  [default: SQLite in the data directory]"
)


def settings_of(**flags: Any) -> Settings:
    """Settings from the environment and these flags; wrong ones end the command with exit code 2."""
    try:
        return read(**flags)
    except BadSettings as error:
        raise click.UsageError(str(error)) from None


def config_of(settings: Settings) -> tuple[Path, Config]:
    """The presets file in force and its Config; a broken one ends the command with exit code 1."""
    from gateway.serving.app import presets_path, read_config

    path = presets_path(settings)
    try:
        return path, read_config(path)
    except BadConfig as error:
        for problem in error.problems:
            click.echo(f"{path}:{problem}", err=True)
    except (OSError, UnicodeDecodeError) as error:
        click.echo(f"Cannot read {path}: {error}", err=True)
    sys.exit(1)


def several(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """A few options as one decorator, listed in --help in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
