"""`bench check`: whatever file or folder one has, taken for what it is, against its base model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.options import (
    TEXT,
    Add,
    add_building,
    add_format,
    add_gpu,
    add_hazard_gate,
    add_list,
)
from bench.cli.output import fitted, in_colour, json_lines, put, say
from bench.cli.subject import card_of
from bench.errors import BenchError, check_most
from bench.training.options import MOST

if TYPE_CHECKING:
    from bench.check.answer import Checked, Question

HELP = "check a training configuration or a trained adapter, whichever tool wrote it"
EPILOG = (
    "PATH is PEFT's adapter_config.json, an adapter's folder, a checkpoint of Trainer, or a file "
    "of axolotl, LLaMA-Factory, TRL, LitGPT or ms-swift. Exit status: 0 nothing wrong; 1 a dead "
    "entry, weights that do not fit, or with --gpu a step that does not, or that cannot be "
    "predicted; 2 the input was wrong. "
    "docs/check.md says more."
)


def add_options(add: Add) -> None:
    """The files, the base model, and what to look into beside the ledger."""
    # fmt: off
    add("paths", nargs="+", type=Path, metavar="PATH", help="a file, or a folder that holds one; "
        "the further adapters that PEFT saves in an adapter's folder are checked too")
    add("--model", metavar="MODEL",
        help="the base model: registered name, folder or config.json, or hub id "
             "(default: the one that the file names)")
    add_building(add)
    add_list(add, "--optional", help="entries that may reach nothing")
    add_hazard_gate(add)
    add("--no-gradients", action="store_false", dest="gradients",
        help="do not look for adapters that a step gives no gradient")
    add("--weights", action="store_true",
        help="read a trained adapter's values too: never trained, NaN, norms by role")
    add_gpu(add, "predict the memory of the file's own step on this GPU")
    add("--seq-len", type=int, metavar="N", help="tokens in a row, where the file leaves it open")
    add_format(add, "terminal", (*TEXT, "github"),
        help="github: annotations on the lines of the files (default: %(default)s)")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Check every path; 1 if anything is wrong in one of them, 2 if one could not be checked,
    which keeps none of the others from it."""
    gpu = card_of(options)
    if options.seq_len is not None and options.seq_len < 1:
        raise BenchError(f"--seq-len must be at least 1, not {options.seq_len}")
    check_most("--seq-len", options.seq_len, MOST["seq_len"])
    from bench.check.answer import Checked, Question
    from bench.check.gate import HazardGate
    from bench.check.report import check_annotations, check_json, check_text
    from bench.scenarios.subjects import check_optional

    question = Question(
        model=options.model,
        auto_class=options.auto_class,
        trust_remote_code=options.trust_remote_code,
        optional=options.optional,
        gpu=gpu,
        seq_len=options.seq_len,
        weights=options.weights,
        gradients=options.gradients,
        gate=HazardGate.of_project().with_options(
            options.fail_on, options.allow, options.minimum_coverage
        ),
    )
    status = 0
    answers: Iterable[Checked | Wrong] = (
        _checked(path, question) for path in _with_further(options.paths)
    )
    if question.optional:  # a slip in one is told before any report
        answers = [*answers]
        check_optional(question.optional, [a.subject for a in answers if isinstance(a, Checked)])
    for number, answer in enumerate(answers):
        if isinstance(answer, Wrong):
            _tell_wrong(answer, options.format)
            status = 2
            continue
        if options.format == "json":
            put(json_lines([check_json(answer)]))
        elif options.format == "github":
            if text := check_annotations(answer):
                put(text + "\n")
        else:
            blank = "\n" if number else ""
            put(blank + fitted(check_text(answer, colour=in_colour())) + "\n")
        status = max(status, int(answer.failed))
    return status


def _with_further(paths: list[Path]) -> Iterator[Path]:
    """The paths, and after an adapter's folder the further adapters that PEFT saved in it."""
    from bench.saved.folder import further

    for path in paths:
        yield path
        adapters, _ = further(path)
        yield from (adapter for adapter in adapters if adapter not in paths)


@dataclass(frozen=True)
class Wrong:
    """A path that could not be checked; others are all the same."""

    path: Path
    error: str


def _checked(path: Path, question: Question) -> Checked | Wrong:
    from bench.check.answer import check

    try:
        return check(path, question)
    except BenchError as error:
        return Wrong(path, str(error))


def _tell_wrong(wrong: Wrong, format: str) -> None:
    """On standard error, and where a program or GitHub reads the others."""
    say(*f"bench: error: {wrong.error}".split("\n"))
    if format == "json":
        found = {"path": str(wrong.path), "error": wrong.error, "failed": True}
        put(json_lines([found]))
    elif format == "github":
        from bench.check.report import annotation

        line = re.search(r"line (\d+)", wrong.error)
        at = int(line[1]) if line else 1
        put(annotation("error", wrong.error, str(wrong.path), at, "bench: input") + "\n")
