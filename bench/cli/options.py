"""Options that several commands share, each written once, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

FORMATS = ("terminal", "markdown", "csv", "latex", "json")
PRINTED = ("terminal", "markdown", "latex", "json")
"""... of what is no one table."""
TEXT = ("terminal", "json")
"""... of what is text."""


def _given(text: str) -> str:
    """One of many values, which must not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a value, found nothing")
    return text


REPEATABLE = {"action": "append", "default": [], "type": _given}

Add = Callable[..., argparse.Action]


def add_model(add: Add) -> None:
    """The one model that a command is about, and how it is built."""
    add("model", metavar="MODEL", help="registered name, folder or config.json, or hub id")
    add_building(add)


def add_building(add: Add) -> None:
    """How a model is built."""
    add("--auto-class", metavar="CLASS", help="transformers class to build the model with")
    add("--trust-remote-code", action="store_true", help="run a model repository's own code")


def add_adapter(add: Add, many: bool = False) -> None:
    """A LoRA configuration, in one of three ways; `many` scenarios may be asked for."""
    # fmt: off
    add("--adapter", type=Path, help="a PEFT adapter_config.json, or its folder")
    if many:
        add("--scenario", action="append", type=_given, metavar="NAME",
            help="a registered scenario, or a pattern such as 'published-*'; repeatable")
    else:
        add("--scenario", help="a registered scenario")
    add_targets(add)
    add_list(add, "--modules-to-save")
    add_rank(add)
    # fmt: on


def add_targets(add: Add) -> None:
    """Target modules, and the task whose head is trained with them."""
    # fmt: off
    add("--target-modules", type=entries, metavar="A,B|REGEX",
        help="entries separated by commas, 'all-linear', or a regular expression (re:REGEX "
             "where it could be a name)")
    add("--task-type", metavar="T", help="SEQ_CLS, CAUSAL_LM, ...")
    # fmt: on


def add_list(add: Add, option: str, metavar: str = "A,B", help: str | None = None) -> None:
    """Names between commas; () where the option is left out."""
    add(option, type=_listed, default=(), metavar=metavar, help=help)


def add_hazard_gate(add: Add) -> None:
    """Which hazards fail, and how much has to be covered."""
    # fmt: off
    add_list(add, "--fail-on", "HAZARD,...",
        help="exit with 1 on these hazards too (docs/hazards.md), or on all")
    add_list(add, "--allow", "HAZARD,...", help="never fail on these hazards")
    add("--minimum-coverage", type=float, metavar="SHARE",
        help="exit with 1 when fewer of the linear weights carry an adapter, 0 to 1")
    # fmt: on


def add_rank(add: Add) -> None:
    """One rank instead of the scenario's own."""
    add("--rank", type=_whole, metavar="R", help="at this rank instead of the scenario's own")


def _whole(text: str) -> int:
    """A whole number, for which a configuration says what it may be; of digits without end the
    first are told."""
    try:
        if len(text) <= _DIGITS:
            return int(text)
    except ValueError:
        pass
    shown = text if len(text) < 40 else f"{text[:40]}..."
    fewer = f" of at most {_DIGITS} digits" if text.isdecimal() else ""
    raise argparse.ArgumentTypeError(f"expected a whole number{fewer}, not {shown!r}")


_DIGITS = 20


def add_step(add: Add, batch_size: int, seq_len: int) -> None:
    """The shape of a training step. Where no length is given, `seq_len` stays None: images have
    none, and refuse one."""
    # fmt: off
    add("--batch-size", type=int, default=batch_size, metavar="N",
        help="sequences in a step (default: %(default)s)")
    add("--seq-len", type=int, metavar="N",
        help=f"tokens in a sequence (default: {seq_len}); images have none")
    # fmt: on


def add_gpu(add: Add, help: str) -> None:
    """A GPU to predict for, by its name or its memory."""
    add("--gpu", metavar="NAME", help=f"{help}: {_gpu_names()}")
    add("--gpu-memory", metavar="SIZE", help="... or one of this much memory, such as 24GiB")


@cache
def _gpu_names() -> str:
    from bench.files import FIXTURES, read_toml

    return ", ".join(read_toml(FIXTURES / "gpus.toml")["gpu"])


def add_plot(add: Add, help: str) -> None:
    """A picture of the answer."""
    add("--plot", type=Path, metavar="FILE", help=f"{help} (.svg or .png)")


def add_format(
    add: Add, default: str | None, formats: tuple[str, ...] = FORMATS, help: str | None = None
) -> None:
    """The format of an answer, with `--json` for one of them, in every command that has either.
    Without a default it is for the terminal on one, and Markdown elsewhere: see
    `bench.cli.output.format_for`; `help` says where it is another."""
    told = help or f"(default: {default or 'terminal on a terminal, else markdown'})"
    # fmt: off
    add("--format", choices=formats, default=default, help=told)
    add("--json", action=Once, nargs=0, const="json", dest="format",
        help="one JSON object a line: --format json")
    # fmt: on


class Once(argparse.Action):
    """Stores a value, or without one its `const`; an option that is given twice would drop the
    first, and so would two that set the same, unless they say the same."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Keep the value, unless there is one already."""
        if values == "" and option_string and self.nargs != "?":  # a variable that is not set
            parser.error(f"{option_string} is given empty: give a value, or leave it out")
        given = namespace.__dict__.setdefault("_given", {})
        value = self.const if self.nargs == 0 else values
        again = self.nargs != 0 and given.get(self.dest) == option_string
        same = getattr(namespace, self.dest) == value and not again
        if option_string is not None and self.dest in given and not same:
            both = sorted({given[self.dest], option_string}, reverse=True)
            if len(both) > 1:
                parser.error(f"give {' or '.join(both)}, not both")
            parser.error(f"{option_string} is given twice, and takes one value")
        given[self.dest] = option_string
        setattr(namespace, self.dest, value)


def split(text: str) -> tuple[str, ...]:
    """The parts between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _listed(text: str) -> tuple[str, ...]:
    """The same of an option, which has to name something."""
    if parts := split(text):
        return parts
    raise argparse.ArgumentTypeError("expected names between commas, found none")


def names(text: str) -> tuple[str, ...] | str:
    """Names between commas, or a regular expression."""
    from bench.adapters.config import written_names

    return written_names(text)


def entries(text: str) -> tuple[str, ...] | str:
    """target_modules as written on the command line: names, `all-linear`, or an expression."""
    from bench.adapters.config import written_targets
    from bench.errors import BenchError

    if not text.strip():
        raise BenchError("target_modules is empty: name at least one module")
    return written_targets(text)


def as_written(targets: tuple[str, ...] | str) -> str:
    """What `entries` reads as these targets."""
    if not isinstance(targets, str):
        return ",".join(targets)
    return targets if entries(targets) == targets else f"re:{targets}"


MOST_PARAMETERS = 10**13
"""No model has as many."""


def count(most: int) -> Callable[[str], int]:
    """How an option reads a whole number of things, 1 to `most`; argparse tells anything else by
    the option."""

    def read(text: str) -> int:
        digits = text.replace(",", "").replace("_", "")
        if not digits.isdecimal() or not int(digits[:20]) or len(digits) > 20:
            shown = text if len(text) < 40 else f"{text[:40]}..."
            raise argparse.ArgumentTypeError(
                f"expected a whole number from 1 to {most:,}, not {shown!r}"
            )
        if int(digits) > most:
            raise argparse.ArgumentTypeError(f"{int(digits):,} is too many: {most:,} is most")
        return int(digits)

    return read
