"""`python -m bench`: what is adapted, what it costs, what changed, from the command line.

Exit status: 0 all holds, 1 a check failed, 2 the input was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import __version__
from bench.errors import BenchError

FORMATS = ("terminal", "markdown", "csv", "latex", "json")

if TYPE_CHECKING:
    from bench.adapters import AdapterConfig
    from bench.architectures import Model
    from bench.formulas import Parameters
    from bench.subjects import Subject
    from bench.targets import Ledger


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Wrong input is one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader went away: `bench ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"bench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    targets = commands.add_parser("targets", help="what a LoRA configuration reaches on a model")
    targets.add_argument("models", nargs="+", metavar="MODEL",
                         help="registered name, folder or config.json, or hub id")  # fmt: skip
    given = targets.add_mutually_exclusive_group()
    given.add_argument("--adapter", type=Path, help="a PEFT adapter_config.json, or its folder")
    given.add_argument("--scenario", help="a registered scenario")
    given.add_argument("--target-modules", metavar="A,B|REGEX",
                       help="entries separated by commas, 'all-linear', or re:REGEX")  # fmt: skip
    targets.add_argument("--target-parameters", default="", metavar="A,B")
    targets.add_argument("--modules-to-save", default="", metavar="A,B")
    targets.add_argument("--exclude-modules", default="", metavar="A,B")
    targets.add_argument("--rank", type=int, metavar="R")
    targets.add_argument("--task-type", metavar="T", help="SEQ_CLS, CAUSAL_LM, ...")
    targets.add_argument("--auto-class", metavar="CLASS",
                         help="transformers class to build the model with")  # fmt: skip
    targets.add_argument("--optional", default="", metavar="A,B",
                         help="entries that may reach nothing")  # fmt: skip
    targets.add_argument("--strict", action="store_true",
                         help="exit with 1 when an entry reaches nothing")  # fmt: skip
    targets.add_argument("--trust-remote-code", action="store_true")
    targets.add_argument("--json", action="store_true", help="one JSON object a line")
    targets.set_defaults(run=_targets)

    report = commands.add_parser("report", help="comparison table of stored runs")
    report.add_argument("runs", nargs="*", metavar="RUN",
                        help="stored run: a file, or its number or name in results/ "
                        "(default: the latest)")  # fmt: skip
    report.add_argument("--format", choices=FORMATS, default="markdown")
    report.add_argument("--baseline", metavar="RUN", help="hold the runs against this one")
    report.add_argument("--output", type=Path, metavar="FILE", help="write the table there")
    report.set_defaults(run=_report)

    compare = commands.add_parser("compare", help="verdicts on two stored runs")
    compare.add_argument("baseline", metavar="BASE")
    compare.add_argument("contender", metavar="NEW")
    compare.add_argument("--threshold", action="append", default=[], metavar="METRIC=X%")
    compare.add_argument("--allow", action="append", default=[], metavar="VERDICT[:ID]")
    compare.add_argument("--verdict-file", type=Path, metavar="FILE")
    compare.add_argument("--format", choices=FORMATS, default="terminal")
    compare.set_defaults(run=_compare)
    return parser


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


# targets


def _targets(options: argparse.Namespace) -> int:
    from bench.reports.ledger import ledger_json, ledger_text

    failed = False
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number, name in enumerate(options.models):
        subject = _subject(options, name)
        ledger, parameters = _answer(subject)
        if options.json:
            print(json.dumps(ledger_json(subject, ledger, parameters)), flush=True)
        else:
            blank = "\n" if number else ""
            print(blank + ledger_text(subject, ledger, parameters, colour=colour), flush=True)
        failed |= bool(subject.dead_entries(ledger) or ledger.refusals)
    return 1 if options.strict and failed else 0


def _subject(options: argparse.Namespace, name: str) -> Subject:
    from bench.scenarios import find_scenario
    from bench.subjects import Subject, load_model

    model = load_model(name, options.auto_class, options.trust_remote_code)
    optional = _split(options.optional)
    scenario = find_scenario(options.scenario) if options.scenario else None
    if scenario is not None:
        adapter = scenario.adapter(model, options.rank)
        optional += scenario.optional
    else:
        adapter = _own_adapter(options, model)
    given = {
        "r": options.rank,
        "task_type": options.task_type,
        "modules_to_save": _split(options.modules_to_save),
        "exclude_modules": _split(options.exclude_modules),
    }
    adapter = replace(adapter, **{key: value for key, value in given.items() if value})
    if not options.auto_class:
        model = model.for_task(adapter.task_type)
    return Subject(model, options.scenario or "own", adapter, scenario, optional)


def _own_adapter(options: argparse.Namespace, model: Model) -> AdapterConfig:
    """From --target-modules, from --adapter, from the file beside the model's config, or PEFT's
    default for the model type."""
    from bench.adapters import AdapterConfig

    if options.rank is not None:
        AdapterConfig(r=options.rank)  # a rank of 0 is wrong, not absent
    if options.target_modules is not None or options.target_parameters:
        return AdapterConfig(
            _entries(options.target_modules), target_parameters=_split(options.target_parameters)
        )
    if options.adapter is not None:
        return AdapterConfig.from_file(options.adapter)
    beside = model.source_folder and model.source_folder / "adapter_config.json"
    return AdapterConfig.from_file(beside) if beside and beside.exists() else AdapterConfig()


def _entries(text: str | None) -> tuple[str, ...] | str:
    if text is None:
        return ()
    if text.startswith("re:"):
        return text.removeprefix("re:")
    return text if text.lower() == "all-linear" else _split(text)


def _answer(subject: Subject) -> tuple[Ledger, Parameters | None]:
    from bench.formulas import lora_parameters
    from bench.targets import match

    ledger = match(subject.model.table, subject.adapter, subject.model.role_of)
    return ledger, None if ledger.refusals else lora_parameters(ledger)


# report, compare


def _report(options: argparse.Namespace) -> int:
    from bench.reports import report_command

    return report_command(
        options.runs,
        format=options.format,
        baseline=options.baseline,
        output=options.output,
        storage=_results(),
    )


def _compare(options: argparse.Namespace) -> int:
    from bench.reports import compare_command

    return compare_command(
        options.baseline,
        options.contender,
        thresholds=options.threshold,
        allow=options.allow,
        verdict_file=options.verdict_file,
        format=options.format,
        storage=_results(),
    )


def _results() -> Path:
    """Where stored runs are looked up by number or name: here, else in the project."""
    here = Path("results")
    from bench.architectures import FIXTURES

    return here if here.is_dir() else FIXTURES.parent / "results"
