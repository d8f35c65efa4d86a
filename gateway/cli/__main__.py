"""`python -m gateway.cli`: the same as the `tempera` command."""

from gateway.cli import main

main()
