"""`python -m ui`: the chat alone, in front of a gateway that runs already."""

from __future__ import annotations

import argparse
import sys

from ui.run import main

parser = argparse.ArgumentParser(prog="python -m ui", description="The chat, in front of a gateway that runs already.")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--gateway-url")
parser.add_argument("--data-dir")
sys.exit(main(**vars(parser.parse_args())))
