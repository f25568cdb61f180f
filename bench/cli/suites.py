"""`bench suites`: where the suites lie that pytest runs, in a checkout and in an installation."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from bench.cli.options import Add
from bench.cli.output import put
from bench.errors import EXTRAS
from bench.files import SUITES

HELP = "where the suites lie: pytest $(bench suites), or pytest --pyargs lora_target_bench.suites"


def add_options(add: Add) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    """Print the folder; ModuleNotFoundError, which the command line tells, without the suites'
    extra."""
    for module in (name for name, extra in EXTRAS.items() if extra == "suites"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(name=module)
    put(f"{SUITES}\n")
    return 0
