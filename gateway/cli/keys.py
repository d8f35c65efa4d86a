"""The commands of `tempera keys`: make, list and revoke API keys and their limits.

They write the keys file itself; a running gateway reads the change within a second or so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli.options import config_of, settings_of

_DATA_DIR = click.option("--data-dir", type=click.Path(path_type=Path), help="Where keys.yaml lies  [default: ./data]")
_MOST = click.IntRange(1)


@click.group()
def keys() -> None:
    """API keys and their limits."""


@keys.command("new")
@click.argument("name")
@click.option("--presets", metavar="A,B", help="The presets this key may use  [default: all]")
@click.option("--preset", help="The preset it gets when a request names none.")
@click.option("--rpm", type=_MOST, help="Requests per minute  [default: any number]")
@click.option("--tpm", type=_MOST, help="Tokens per minute, prompts and replies  [default: any number]")
@click.option("--concurrency", type=_MOST, help="Requests in flight at once  [default: any number]")
@_DATA_DIR
def new_key(name: str, presets: str | None, preset: str | None, data_dir: Path | None, **limits: Any) -> None:
    """Make a key NAME, print it once, and keep its hash."""
    from gateway.serving.app import keys_path
    from gateway.serving.keyfile import BadKeys, Limits, add_key

    settings = settings_of(data_dir=data_dir)
    allowed = [part.strip() for part in presets.split(",")] if presets else None
    _, config = config_of(settings)
    unknown = sorted({*(allowed or ()), *([preset] if preset else ())} - config.presets.keys())
    if unknown:
        raise click.UsageError(f"there is no preset {unknown[0]!r}; there are: {', '.join(config.presets)}")
    try:
        key = add_key(keys_path(settings), name, preset, allowed, Limits(**limits))
    except BadKeys as error:
        raise click.UsageError(str(error)) from None
    click.echo(key)
    click.echo(f"This is the only time it is shown. Its hash is in {keys_path(settings)}.", err=True)


@keys.command("list")
@_DATA_DIR
def list_keys(data_dir: Path | None) -> None:
    """Show the keys' names, presets and limits."""
    from gateway.serving.app import keys_path
    from gateway.serving.keyfile import BadKeys, read_keys

    path = keys_path(settings_of(data_dir=data_dir))
    try:
        found = read_keys(path)
    except BadKeys as error:
        raise click.UsageError(str(error)) from None
    if not found:
        click.echo(f"No keys in {path}.")
        return
    width = max(4, *(len(key.name) for key in found))
    click.echo(f"{'name':{width}} {'rpm':>7} {'tpm':>9} {'in flight':>9}  presets (* when none is named)")
    for key in found:
        limits = f"{key.rpm or '-':>7} {key.tpm or '-':>9} {key.concurrency or '-':>9}"
        presets = [*(key.presets if key.presets is not None else ["all"])]
        named = ", ".join(f"{name}*" if name == key.preset else name for name in presets)
        own = f", {key.preset}*" if key.preset and key.preset not in presets else ""
        click.echo(f"{key.name:{width}} {limits}  {named}{own}")


@keys.command("revoke")
@click.argument("name")
@_DATA_DIR
def revoke(name: str, data_dir: Path | None) -> None:
    """Make the key NAME worth nothing; its requests in flight may end."""
    from gateway.serving.app import keys_path
    from gateway.serving.keyfile import BadKeys, revoke_key

    path = keys_path(settings_of(data_dir=data_dir))
    try:
        revoke_key(path, name)
    except BadKeys as error:
        raise click.UsageError(str(error)) from None
    click.echo(f"{name} is taken out of {path}.")
