"""`python -m bench`: what is adapted, what it costs, what changed, from the command line.

Exit status: 0 all holds, 1 a check failed, 2 the input was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import __version__
from bench.errors import BenchError
from bench.quantization import quiet_bitsandbytes

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
    quiet_bitsandbytes()
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

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, more: str | None = None
    ) -> _Add:
        sub = commands.add_parser(name, help=text, description=text, epilog=more)
        sub.set_defaults(run=run)
        return sub.add_argument

    # fmt: off
    add = command("targets", _targets, "what a LoRA configuration reaches on a model")
    add("models", nargs="+", metavar="MODEL",
        help="registered name, folder or config.json, or hub id")
    _add_adapter(add)
    add("--target-parameters", default="", metavar="A,B")
    add("--exclude-modules", default="", metavar="A,B")
    add("--optional", default="", metavar="A,B", help="entries that may reach nothing")
    add("--strict", action="store_true", help="exit with 1 when an entry reaches nothing")
    add("--precision", metavar="P", help="as loaded in int8, nf4, ...: which heads cannot train")
    add("--method", metavar="M", help="another PEFT method: ia3, vera, prefix_tuning, full, ...")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="a field of that method's PEFT config; repeatable")

    add = command("methods", _methods, "every PEFT method at one budget of trained parameters")
    add("model", metavar="MODEL")
    add("--budget", type=int, required=True, metavar="N", help="trainable parameters")
    add("--target-modules", metavar="A,B|REGEX")
    add("--task-type", metavar="T")
    _add_model(add)

    add = command("explain", _explain, "which configurations train exactly this many parameters")
    add("model", metavar="MODEL")
    add("--trainable", type=int, required=True, metavar="N", help="the number in the log")
    add("--total", type=int, metavar="N", help="all parameters, where the log has them")
    _add_model(add)

    add = command("memory", _memory, "predict a step's GPU memory, without a GPU",
                  "Limits: one GPU and eager mode (no compilation, autocast or sharding); the CUDA "
                  "context is outside, and assumed to take 0.5 GiB where a GPU is asked for; the "
                  "allocator has its default settings and room. docs/prediction.md says more.")
    add("model", metavar="MODEL")
    _add_adapter(add, many=True)
    add("--precision", action="append", default=[], metavar="P", help="repeatable (default bf16)")
    add("--batch-size", type=int, default=1)
    add("--seq-len", type=int, default=512)
    add("--gradient-checkpointing", action="store_true")
    add("--padded", action="store_true", help="sequences of different length")
    add("--optimizer", default="adamw")
    add("--attention", choices=("flash", "efficient", "math"))
    add("--gpu", metavar="NAME", help="hold the prediction against this GPU")
    add("--gpu-memory", metavar="SIZE", help="... or against this much memory, such as 24GiB")
    add("--solve", choices=("batch-size", "seq-len", "rank"), help="the largest that fits")
    add("--format", choices=("terminal", "markdown", "csv", "latex"),
        help="of the table that several cases give (default markdown)")
    add("--store", action="store_true",
        help="keep the predictions in results/predicted, where the suite compares them")

    add = command("atlas", _atlas, "what every model type of transformers is made of")
    add("--types", default="", metavar="A,B", help="only these model types")
    add("--output", type=Path, metavar="DIR", help="where to store (default: fixtures/atlas)")
    add("--jobs", type=int, metavar="N", help="processes (default: one a core)")
    add("--diff", nargs=2, metavar=("OLD", "NEW"), help="tell two stored atlases apart instead")
    add("--reach", action="store_true",
        help="inject the popular targets into every type instead, and store what PEFT reaches")
    add("--roles", action="store_true", help="assign the roles of every stored atlas again instead")
    add("--page", type=Path, metavar="FILE", help="bring the figures of docs/atlas.md up to date")
    add("--json", action="store_true", help="one JSON object a line")

    add = command("report", _report, "comparison table of stored runs")
    add("runs", nargs="*", metavar="RUN",
        help="stored run: a file, or its number or name in results/ (default: the latest)")
    add("--format", choices=FORMATS, default="markdown")
    add("--json", action="store_const", const="json", dest="format",
        help="one JSON object a line: --format json")
    add("--baseline", metavar="RUN", help="hold the runs against this one")
    add("--output", type=Path, metavar="FILE", help="write the table there")

    add = command("compare", _compare, "verdicts on two stored runs")
    add("baseline", metavar="BASE")
    add("contender", metavar="NEW")
    _add_gate(add)
    add("--format", choices=FORMATS, default="terminal")
    add("--json", action="store_const", const="json", dest="format",
        help="one JSON object a line: --format json")

    add = command("ab", _ab, "what an upgrade changed, measured in two environments side by side")
    add("--baseline-env", required=True, metavar="ENV", help="a virtual environment or its python")
    add("--contender-env", required=True, metavar="ENV")
    add("--model", action="append", default=[], metavar="MODEL")
    add("--scenario", action="append", default=[], metavar="NAME")
    add("--rank", type=int, metavar="R")
    add("--precision", action="append", default=[], metavar="P")
    add("--batch-size", type=int, default=2)
    add("--seq-len", type=int, default=32)
    add("--rounds", type=int, nargs=2, metavar=("FEWEST", "MOST"))
    add("--clock", choices=("processor", "wall"), default="processor")
    _add_gate(add)
    add("--save", type=Path, metavar="DIR", help="store both runs there")
    add("--format", choices=("terminal", "markdown", "latex", "json"), default="terminal")
    add("--json", action="store_const", const="json", dest="format",
        help="one JSON object a line: --format json")
    # fmt: on
    return parser


_Add = Callable[..., argparse.Action]


def _add_model(add: _Add) -> None:
    add("--auto-class", metavar="CLASS", help="transformers class to build the model with")
    add("--trust-remote-code", action="store_true", help="run a model repository's own code")
    add("--json", action="store_true", help="one JSON object a line")


def _add_adapter(add: _Add, many: bool = False) -> None:
    # fmt: off
    add("--adapter", type=Path, help="a PEFT adapter_config.json, or its folder")
    if many:
        add("--scenario", action="append", metavar="NAME",
            help="a registered scenario, or a pattern such as 'published-*'; repeatable")
    else:
        add("--scenario", help="a registered scenario")
    add("--target-modules", metavar="A,B|REGEX",
        help="entries separated by commas, 'all-linear', or re:REGEX")
    add("--modules-to-save", default="", metavar="A,B")
    add("--rank", type=int, metavar="R")
    add("--task-type", metavar="T", help="SEQ_CLS, CAUSAL_LM, ...")
    # fmt: on
    _add_model(add)


def _add_gate(add: _Add) -> None:
    add("--threshold", action="append", default=[], metavar="METRIC=X%")
    add("--allow", action="append", default=[], metavar="VERDICT[:ID]")
    add("--verdict-file", type=Path, metavar="FILE")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


# targets


def _targets(options: argparse.Namespace) -> int:
    from bench.reports.ledger import ledger_json, ledger_text

    if options.method:
        return _other_method(options)
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

    ways = [w for w in ("adapter", "scenario", "target_modules") if getattr(options, w) is not None]
    if len(ways) > 1:
        raise BenchError(f"give one of --{', --'.join(w.replace('_', '-') for w in ways)}")
    model = load_model(name, options.auto_class, options.trust_remote_code)
    if isinstance(options.precision, str):
        model = model.loaded_in(options.precision)
    optional = _split(getattr(options, "optional", ""))
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
        "exclude_modules": _split(getattr(options, "exclude_modules", "")),
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
    parameters = _split(getattr(options, "target_parameters", ""))
    if options.target_modules is not None or parameters:
        return AdapterConfig(_entries(options.target_modules), target_parameters=parameters)
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


def _other_method(options: argparse.Namespace) -> int:
    from bench.reports.methods import method_command
    from bench.subjects import load_model

    for name in options.models:
        method_command(
            load_model(name, options.auto_class, options.trust_remote_code),
            options.method,
            options.settings,
            target_modules=_entries(options.target_modules) or None,
            modules_to_save=_split(options.modules_to_save),
            task_type=options.task_type,
            as_json=options.json,
        )
    return 0


def _methods(options: argparse.Namespace) -> int:
    from bench.reports.methods import budget_command
    from bench.subjects import load_model

    return budget_command(
        load_model(options.model, options.auto_class, options.trust_remote_code),
        options.budget,
        target_modules=_entries(options.target_modules) or None,
        task_type=options.task_type,
        as_json=options.json,
    )


def _explain(options: argparse.Namespace) -> int:
    from bench.reports.explained import explain_command

    return explain_command(
        options.model,
        options.trainable,
        options.total,
        auto_class=options.auto_class,
        trust_remote_code=options.trust_remote_code,
        as_json=options.json,
    )


def _memory(options: argparse.Namespace) -> int:
    from bench.cases import StepOptions
    from bench.reports.memory import Asked, memory_command

    asked = Asked(
        precisions=options.precision or ("bf16",),
        attention=options.attention,
        gpu=options.gpu,
        gpu_memory=options.gpu_memory,
        solve=options.solve,
        store=options.store,
        format=options.format,
        json=options.json,
    )
    step = StepOptions(
        batch_size=options.batch_size,
        seq_len=options.seq_len,
        optimizer=options.optimizer,
        gradient_checkpointing=options.gradient_checkpointing,
        padded=options.padded,
    )
    return memory_command(_predicted(options), step, asked)


def _predicted(options: argparse.Namespace) -> list[Subject]:
    """The configurations to predict: one's own, the scenarios asked for, or all that apply."""
    from bench.scenarios import matching_scenarios
    from bench.subjects import Request, load_model, select

    model = load_model(options.model, options.auto_class, options.trust_remote_code)
    if options.scenario and not (options.target_modules or options.adapter):
        names = matching_scenarios(options.scenario, model.architecture)
        asked = [argparse.Namespace(**{**vars(options), "scenario": name}) for name in names]
        return [_subject(one, options.model) for one in asked]
    beside = model.source_folder and (model.source_folder / "adapter_config.json").exists()
    if options.target_modules or options.adapter or beside:
        return [_subject(options, options.model)]
    found = select(Request(models=(options.model,), r=options.rank, full_geometry=True))
    return list({**found.structural, **found.own}.values())


# atlas


# What `bench atlas` can do besides building, and the options that go with each.
_ATLAS_MODES = {
    "diff": ("types", "json"),
    "reach": ("types", "jobs"),
    "roles": (),
    "page": (),
}


def _atlas(options: argparse.Namespace) -> int:
    from bench.atlas import command

    given = [o for o in (*_ATLAS_MODES, "types", "output", "jobs", "json") if getattr(options, o)]
    mode = next((name for name in given if name in _ATLAS_MODES), "")
    if mode and (others := {*given} - {mode, *_ATLAS_MODES[mode]}):
        raise BenchError(f"--{mode} does not go with --{' or --'.join(sorted(others))}")
    types = _split(options.types)
    if mode == "diff":
        old, new = options.diff
        return command.atlas_diff_command(old, new, types, options.json)
    if mode == "reach":
        return command.reach_command(types, options.jobs)
    if mode == "roles":
        return command.roles_command()
    if mode == "page":
        return command.page_command(options.page)
    return command.atlas_command(options.output, types, options.jobs, options.json)


# report, compare, ab


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


def _ab(options: argparse.Namespace) -> int:
    from bench.ab.command import ab_command
    from bench.ab.measure import Plan
    from bench.cases import StepOptions
    from bench.subjects import Request

    request = Request(
        models=tuple(options.model),
        scenarios=tuple(options.scenario),
        r=options.rank,
        precisions=tuple(options.precision),
    )
    plan = Plan(request, StepOptions(batch_size=options.batch_size, seq_len=options.seq_len))
    if options.rounds:
        plan = replace(plan, rounds=tuple(options.rounds))
    return ab_command(
        options.baseline_env,
        options.contender_env,
        plan,
        clock=options.clock,
        thresholds=options.threshold,
        allow=options.allow,
        verdict_file=options.verdict_file,
        save=options.save,
        format=options.format,
    )


def _results() -> Path:
    """Where stored runs are looked up by number or name: here, else in the project."""
    here = Path("results")
    from bench.architectures import FIXTURES

    return here if here.is_dir() else FIXTURES.parent / "results"
