"""Commands that judge: verify, sweep, recommend, report. Clients of a gateway, or of any OpenAI-compatible server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.cli.options import several

_SERVER = several(
    click.option("--base-url", default="http://127.0.0.1:8001", show_default=True, help="The gateway, or any server."),
    click.option("--model", help="A model of that server  [default: its first]"),
    click.option("--api-key", envvar="TEMPERA_API_KEY", help="[default: $TEMPERA_API_KEY]"),
)
_OBJECTIVE = click.option(
    "--objective",
    type=click.Choice(["max_diversity_st_quality", "max_quality", "consistency", "label_free"]),
    default="max_diversity_st_quality",
    show_default=True,
)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that each room keeps its own defaults."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def _say(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _faults() -> Iterator[None]:
    """What the rooms raise for people to read ends the command: 2 for wrong options, 1 for the rest."""
    from gateway.evaluation.advice import AdviceError
    from gateway.evaluation.cases import CaseError
    from gateway.evaluation.rows import SweepError
    from gateway.evaluation.wire import ClientError

    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except (AdviceError, CaseError, SweepError, ClientError) as error:
        click.echo(f"tempera: {error}", err=True)
        sys.exit(1)


def _json(document: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


@click.command(short_help="Prove that temperatures are applied.")
@_SERVER
@click.option("--preset", help="Verify what this preset really applies.")
@click.option("--temperatures", help="A list such as 0.2,0.7,1.3  [default: 0.2,0.5,0.7,1.0,1.3]")
@click.option("--resolution", type=click.FloatRange(0.01, 1), help="Difference to be told apart  [default: 0.1]")
@click.option("--concurrency", type=click.IntRange(1, 64), help="Requests at a time  [default: 8]")
@click.option("--json", "as_json", is_flag=True, help="The whole finding as JSON on standard output.")
def verify(temperatures: str | None, as_json: bool, **options: Any) -> None:
    """Prove that the temperature asked for is the one applied: exit code 0 or 1."""
    from gateway.evaluation import verify as room

    with _faults():
        asked = tuple(float(part) for part in temperatures.split(",")) if temperatures else None
        say: Callable[[str], None] = _say if as_json else click.echo
        found = room.verify(room.Options(**_given(temperatures=asked, **options)), say)
    if as_json:
        _json(found.document())
    else:
        click.echo("PASS" if found.passed else "FAIL")
    sys.exit(0 if found.passed else 1)


@click.command(short_help="Try temperatures on cases; resumes.")
@_SERVER
@click.option("--preset", help="Sweep with this preset's other parameters  [default: each scenario's own]")
@click.option("--neutral", is_flag=True, default=None, help="Switch every other parameter off instead.")
@click.option("--profile", type=click.Choice(["smoke", "dev", "full"]), default="dev", show_default=True)
@click.option("--temperatures", help="Such as 0.1:1.5:0.2 or 0.2,0.7,1.2  [default: the profile's]")
@click.option("--samples", type=int, help="Samples per prompt and temperature  [default: the profile's]")
@click.option("--scenario", "scenarios", multiple=True, help="Only these scenarios; may be repeated.")
@click.option("--cases", type=click.Path(path_type=Path), help="Cases of your own, as .jsonl.")
@click.option("--concurrency", type=int, help="Requests at a time  [default: 2]")
@click.option("--out", type=click.Path(path_type=Path), help=".jsonl or .parquet  [default: sweep.jsonl]")
@click.option("--seed", type=int, help="Seed of the samples  [default: 1]")
@click.option("--toy/--no-toy", default=None, help="Under 1B parameters or not  [default: guessed from the model]")
def sweep(**options: Any) -> None:
    """Run cases x temperatures x samples; the same command goes on where it stopped."""
    from gateway.evaluation.sweep import sweep as run
    from gateway.evaluation.sweep_setup import SweepOptions

    with _faults():
        code = run(SweepOptions(**_given(**options)), _say)
    sys.exit(code)


@click.command(short_help="A range for each scenario of a sweep.")
@click.argument("sweep", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--scenario", "scenarios", multiple=True, help="Only these scenarios; may be repeated.")
@_OBJECTIVE
@click.option("--delta", type=float, help="Quality that may be lost  [default: 0.10, from 40 prompts 0.05]")
@click.option("--alpha", type=float, help="[default: 0.10]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--allow-toy-model", is_flag=True, default=None, help="Under 1B parameters: recommend all the same.")
@click.option("--write", type=click.Path(path_type=Path), help="Print the change to this presets file as a diff.")
@click.option("--json", "as_json", is_flag=True, help="The whole finding as JSON.")
def recommend(as_json: bool, **options: Any) -> None:
    """A temperature range for each scenario of a SWEEP file, or why not."""
    from gateway.evaluation.advice import AdviceOptions, advise

    with _faults():
        found = advise(AdviceOptions(**_given(**options)))
    if as_json:
        _json(found.document())
    else:
        for line in found.lines():
            click.echo(line)
        if found.diff:
            click.echo(f"\n{found.diff}", nl=False)
    sys.exit(found.exit_code)


@click.command(short_help="A sweep as a page to read.")
@click.argument("sweep", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), help="Where to, without the ending  [default: beside SWEEP]")
@click.option("--format", "formats", type=click.Choice(["html", "md", "json"]), multiple=True, help="[default: all]")
@click.option("--lang", type=click.Choice(["auto", "en", "zh"]), default="auto", show_default=True)
@click.option("--verification", type=click.Path(path_type=Path), help="What `verify --json` printed.")
@_OBJECTIVE
@click.option("--embeddings-url", help="An OpenAI-compatible server for semantic diversity.")
@click.option("--embeddings-model", help="Its model.")
@click.option("--embeddings-key", envvar="TEMPERA_EMBEDDINGS_KEY", help="[default: $TEMPERA_EMBEDDINGS_KEY]")
def report(**options: Any) -> None:
    """A SWEEP file as a page to read: HTML, Markdown and JSON."""
    from gateway.evaluation.report import ReportOptions
    from gateway.evaluation.report import report as write

    with _faults():
        paths = write(ReportOptions(**_given(**options)), _say)
    for path in paths:
        click.echo(path)


COMMANDS = (verify, sweep, recommend, report)
