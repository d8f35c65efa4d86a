"""Commands that read the sample log: experiments, log, export.

They ask the database itself, so no gateway has to run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gateway.cli.options import DATABASE, PRESETS, config_of, settings_of, several

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.log.finding import Result

_LOG = several(DATABASE, click.option("--data-dir", type=click.Path(path_type=Path), help="[default: ./data]"))
_FILTERS = several(
    click.option("--preset", help="Only this preset."),
    click.option("--experiment", help="Only this experiment."),
    click.option("--outcome", help="Only this outcome (ok, client_disconnect, ...)."),
    click.option("--since", type=click.DateTime(), help="From this time on (UTC)."),
    click.option("--until", type=click.DateTime(), help="Before this time (UTC)."),
)


@contextmanager
def _database(flags: dict[str, Any]) -> Iterator[Engine]:
    """The log's database; one that is not there ends the command with exit code 1."""
    from gateway.log import store

    settings = settings_of(**flags)
    try:
        engine = store.connect(settings.database_url or store.default_url(settings.data_dir))
    except ValueError as error:
        raise click.UsageError(f"{error}.") from None
    try:
        store.prepare(engine)
        yield engine
    except store.Away as error:
        click.echo(f"The log's database does not answer: {error}", err=True)
        sys.exit(1)
    finally:
        engine.dispose()


def _filters(asked: dict[str, Any]) -> Any:
    from gateway.log.queries import Filters

    times = {name: asked.pop(name) for name in ("since", "until")}
    stamps = {name: at.replace(tzinfo=UTC).timestamp() for name, at in times.items() if at is not None}
    return Filters(**asked, **stamps)


@click.command(short_help="Results of A/B experiments.")
@click.argument("name", required=False)
@_LOG
@PRESETS
@click.option("--json", "as_json", is_flag=True, help="The whole result as JSON.")
def experiments(name: str | None, presets: Path | None, as_json: bool, **flags: Any) -> None:
    """Results of experiments: all of them in a line each, or NAME in full."""
    from gateway.log import results

    _, config = config_of(settings_of(presets=presets))
    if name is not None and name not in config.trials:
        raise click.UsageError(f"there is no experiment {name!r}; there are: {', '.join(config.trials) or 'none'}")
    chosen = [config.trials[name]] if name is not None else list(config.trials.values())
    if not chosen:
        click.echo("No experiments in the presets file. docs/experiments.md shows how to declare one.")
        return
    with _database(flags) as engine:
        found = [results.examine(engine, trial.name, trial.experiment, time.time()) for trial in chosen]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found[0] if name else found), indent=2).decode())
        return
    tell: Callable[[Result], None] = _in_full if name is not None else _in_a_line
    for result in found:
        tell(result)


def _in_a_line(result: Result) -> None:
    from gateway.log import words

    votes = sum(arm.votes for arm in result.arms)
    click.echo(f"{result.name:20} {result.preset:18} {result.state:8} {votes:6} votes  "
               f"{words.verdict(result.verdict, 'en')}")  # fmt: skip


def _in_full(result: Result) -> None:
    from gateway.log import words

    click.echo(f"{result.name} on {result.preset} ({result.state}, {result.days:.1f} days)\n")
    ratio = result.sample_ratio
    if ratio is not None:
        click.echo(f"  sample ratio  e = {ratio.e:.3g}: {'ALARM, no effect is shown' if ratio.alarm else 'clean'}")
    for arm in result.arms:
        mean = "no votes" if arm.mean is None else f"mean {arm.mean:.3f}"
        click.echo(f"  {arm.variant:14} {arm.units:6} units  {arm.votes:6} votes  {arm.voters:6} voters  {mean}")
    if result.adaptive_e is not None:
        click.echo(f"  the arms differ: e = {result.adaptive_e:.3g} (decides from 20 on)")
    for found in result.comparisons:
        if found.difference is not None:
            click.echo(f"  {found.variant} - {found.control}: {found.difference:+.3f} "
                       f"[{found.low:+.3f}, {found.high:+.3f}], e = {found.max_e:.3g}")  # fmt: skip
        else:
            why = "not enough votes of both kinds yet" if result.adaptive_e is None else "no interval in adaptive runs"
            click.echo(f"  {found.variant} - {found.control}: {why}")
        for rail in found.guardrails:
            click.echo(f"    {words.text(rail.name, 'en'):20} {rail.change:+7.1%} [{rail.low:+.1%}, {rail.high:+.1%}], "
                       f"{'HARM' if rail.harm else 'no harm shown'} ({rail.tolerance:.0%} tolerated)")  # fmt: skip
    if result.needed is not None and result.needed.voters_missing and result.wants_votes:
        click.echo(f"  about {result.needed.voters_missing} more voters per arm to see {result.needed.detect:g}")
    reasons = "; ".join(words.reason(reason, "en") for reason in result.reasons)
    click.echo(f"\n{words.verdict(result.verdict, 'en')}" + (f": {reasons}" if reasons else ""))


@click.command("log", short_help="The newest exchanges, or by temperature.")
@click.option("--by", type=click.Choice(["temperature"]), help="Summarise instead of listing.")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many to list.")
@click.option("--ids", is_flag=True, help="Put the exchange ids in front.")
@_FILTERS
@_LOG
def show_log(
    by: str | None, limit: int, ids: bool, database_url: str | None, data_dir: Path | None, **asked: Any
) -> None:
    """The newest exchanges, or what came out at each temperature."""
    from gateway.log import bins, queries

    with _database({"database_url": database_url, "data_dir": data_dir}) as engine:
        if by is None:
            for row in queries.page(engine, _filters(asked), limit=limit)[0]:
                click.echo((f"{row['id']}  " if ids else "") + _exchange_line(row))
            return
        from gateway.cli.running import _degenerate

        found = bins.by_temperature(engine, _filters(asked), degenerate=_degenerate)
    click.echo("preset             T     n  errors  tokens  ttft ms  votes  feedback           degenerate")
    for item in found:
        click.echo(_bin_line(item))


def _exchange_line(row: dict[str, Any]) -> str:
    at = time.strftime("%m-%d %H:%M:%S", time.gmtime(row["time"]))
    heat = (row["effective"] or {}).get("temperature", "-")
    text = " ".join((row["text"] or "").split())[:26]
    return f"{at} {row['preset'] or '-':16} {heat!s:>4}  {row['outcome'][:17]:8} {text}"


def _bin_line(item: Any) -> str:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    low_high = item.feedback_interval
    said = number(item.feedback, "+.2f") + (f" [{low_high[0]:+.2f}, {low_high[1]:+.2f}]" if low_high else "")
    return (
        f"{item.preset:16} {item.temperature:4.1f} {item.exchanges:5} {item.errors:7} {number(item.tokens, '7.0f'):>7} "
        f"{number(item.ttft_ms, '8.0f'):>8} {item.votes:6}  {said:18} {number(item.degenerate, '.2f')}"
    )


@click.command()
@click.option("--format", "form", type=click.Choice(["jsonl", "csv", "parquet"]), default="jsonl", show_default=True)
@click.option("--out", type=click.File("wb"), default="-", help="A file  [default: standard output]")
@_FILTERS
@_LOG
def export(form: Any, out: Any, database_url: str | None, data_dir: Path | None, **asked: Any) -> None:
    """Exchanges with their feedback, as a file for analysis."""
    from gateway.log.export import NoParquet
    from gateway.log.export import export as pieces

    with _database({"database_url": database_url, "data_dir": data_dir}) as engine:
        try:
            for piece in pieces(engine, form, _filters(asked)):
                out.write(piece)
        except NoParquet as error:
            raise click.UsageError(f"{error}.") from None


COMMANDS = (experiments, show_log, export)
