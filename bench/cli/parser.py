"""The parser of `python -m bench`: every command from its own file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, Protocol

from bench import __version__
from bench.cli import (
    ab,
    accept,
    atlas,
    check,
    choose,
    compare,
    explain,
    history,
    learn,
    memory,
    methods,
    published,
    report,
    suites,
    targets,
)
from bench.cli import list as list_
from bench.cli.options import Add, Once
from bench.units import harmless_line


class Command(Protocol):
    """What a file of this folder gives: a line of help, its options, and what it does with them.

    The command is called as its file is. `run` returns the exit status. A file may have an EPILOG
    besides. It imports whatever is heavy when it runs: `bench --help` loads every command.
    """

    HELP: str

    def add_options(self, add: Add, /) -> None: ...

    def run(self, options: argparse.Namespace, /) -> int: ...


COMMANDS: dict[str, Command] = {
    "check": check,
    "choose": choose,
    "targets": targets,
    "methods": methods,
    "explain": explain,
    "memory": memory,
    "atlas": atlas,
    "report": report,
    "compare": compare,
    "accept": accept,
    "list": list_,
    "history": history,
    "ab": ab,
    "learn": learn,
    "published": published,
    "suites": suites,
}


def _path(text: str) -> Path:
    """A path; "" is none, as from a variable that is not set, and does not mean this folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found nothing")
    return Path(text)


class _Parser(argparse.ArgumentParser):
    """A parser that tells what is wrong in one line, as every other wrong input is told."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        told = f"{self.prog}: error: {message} ({self.prog} --help lists the options)"
        self.exit(2, harmless_line(told) + "\n")


def make_parser() -> argparse.ArgumentParser:
    """Every command with its options; `run` of the parsed options carries it out."""
    parser = _Parser(
        prog="bench", description="What LoRA target modules adapt, what they cost, what changed."
    )
    parser.add_argument("--version", action="version", version=f"bench {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        more = getattr(command, "EPILOG", None)
        sub = subparsers.add_parser(name, help=command.HELP, description=command.HELP, epilog=more)
        sub.set_defaults(run=command.run)
        sub.register("action", None, Once)  # what `add` makes unless it is told otherwise
        sub.register("type", Path, _path)
        command.add_options(sub.add_argument)
    return parser
