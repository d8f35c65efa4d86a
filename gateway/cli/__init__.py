"""The `tempera` command. Each command is a few lines: read settings, call the room that does it, print, exit.

Exit codes: 0 done, 1 the answer is "no", 2 wrong usage. Rooms are imported by the command that needs them, so that
`--help` is quick.
"""

from __future__ import annotations

import click

from gateway.cli import evaluation, keys, records, running
from gateway.compiled import used


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(
    package_name="tempera-gateway",
    prog_name="tempera",
    message=f"%(prog)s, version %(version)s, {'compiled' if used() else 'plain Python'}",
)
def main() -> None:
    """Scenario presets with guard rails, in front of an OpenAI-compatible engine."""


for command in (*running.COMMANDS, keys.keys, *records.COMMANDS, *evaluation.COMMANDS):
    main.add_command(command)
