"""What each command of `python -m bench` does with its options; the exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.subject import asked_subject, entries, predicted_subjects, split
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.formulas import Parameters
    from bench.models.architectures import Model
    from bench.scenarios.subjects import Subject
    from bench.targets import Ledger


def targets(options: argparse.Namespace) -> int:
    """What a configuration reaches on each model; 1 with --strict when an entry is dead."""
    from bench.reports.ledger import ledger_json, ledger_text

    if options.method is not None:
        return _other_method(options)
    if options.settings:
        raise BenchError(
            "--set goes with --method; LoRA's own fields go into an adapter_config.json (--adapter)"
        )
    failed = False
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number, name in enumerate(options.models):
        subject = asked_subject(options, name)
        ledger, parameters = _answer(subject)
        if options.json:
            print(json.dumps(ledger_json(subject, ledger, parameters)), flush=True)
        else:
            blank = "\n" if number else ""
            print(blank + ledger_text(subject, ledger, parameters, colour=colour), flush=True)
        failed |= bool(subject.dead_entries(ledger) or ledger.refusals)
    return 1 if options.strict and failed else 0


def _answer(subject: Subject) -> tuple[Ledger, Parameters | None]:
    from bench.formulas import lora_parameters
    from bench.targets import match

    ledger = match(subject.model.table, subject.adapter, subject.model.role_of)
    return ledger, None if ledger.refusals else lora_parameters(ledger)


# Options that say nothing about another method, and what to write instead.
_LORA_ONLY = {
    "adapter": "an adapter_config.json is LoRA's; write its fields with --set, or leave out "
               "--method",
    "scenario": "a scenario is a LoRA configuration; name its modules with --target-modules",
    "target_parameters": "only LoRA reaches parameters, without --method",
    "precision": "the counts are the same in every precision; leave it out",
}  # fmt: skip


def _other_method(options: argparse.Namespace) -> int:
    from bench.reports.methods import method_command
    from bench.scenarios.subjects import load_model

    for option, instead in _LORA_ONLY.items():
        if getattr(options, option):
            raise BenchError(f"--{option.replace('_', '-')} does not go with --method: {instead}")
    status = 0
    for name in options.models:
        model = load_model(name, options.auto_class, options.trust_remote_code)
        failed = method_command(
            _with_head(model, options),
            options.method,
            options.settings,
            rank=options.rank,
            target_modules=_asked_targets(options),
            modules_to_save=split(options.modules_to_save),
            exclude_modules=split(options.exclude_modules),
            task_type=options.task_type,
            optional=split(options.optional),
            strict=options.strict,
            as_json=options.json,
        )
        status = max(status, failed)
    return status


def _with_head(model: Model, options: argparse.Namespace) -> Model:
    """The model with the head that the task type trains, unless the class was given."""
    from bench.adapters.config import TASK_HEADS

    given = options.auto_class or options.task_type not in TASK_HEADS
    return model if given else model.for_task(options.task_type)


def _asked_targets(options: argparse.Namespace) -> tuple[str, ...] | str | None:
    return None if options.target_modules is None else entries(options.target_modules)


def methods(options: argparse.Namespace) -> int:
    """Every PEFT method at one budget of trained parameters."""
    from bench.reports.methods import budget_command
    from bench.scenarios.subjects import load_model

    model = load_model(options.model, options.auto_class, options.trust_remote_code)
    return budget_command(
        _with_head(model, options),
        options.budget,
        target_modules=_asked_targets(options),
        task_type=options.task_type,
        as_json=options.json,
    )


def explain(options: argparse.Namespace) -> int:
    """Which configurations train exactly so many parameters."""
    from bench.reports.explained import explain_command

    return explain_command(
        options.model,
        options.trainable,
        options.total,
        auto_class=options.auto_class,
        trust_remote_code=options.trust_remote_code,
        as_json=options.json,
    )


def memory(options: argparse.Namespace) -> int:
    """The predicted memory of a step."""
    from bench.reports.memory import DEFAULT_SEQ_LEN, Asked, memory_command
    from bench.training.cases import StepOptions

    asked = Asked(
        precisions=options.precision or ("bf16",),
        attention=options.attention,
        gpu=options.gpu,
        gpu_memory=options.gpu_memory,
        solve=options.solve,
        seq_len=options.seq_len,
        store=options.store,
        format=options.format,
        json=options.json,
    )
    step = StepOptions(
        batch_size=options.batch_size,
        seq_len=DEFAULT_SEQ_LEN if options.seq_len is None else options.seq_len,
        optimizer=options.optimizer,
        gradient_checkpointing=options.gradient_checkpointing,
        padded=options.padded,
    )
    return memory_command(predicted_subjects(options), step, asked)


# What `bench atlas` can do besides building, and the options that go with each.
_ATLAS_MODES = {
    "diff": ("types", "json"),
    "reach": ("types", "jobs"),
    "roles": (),
    "page": (),
}


def atlas(options: argparse.Namespace) -> int:
    """Build the atlas, or answer from the stored ones."""
    from bench.atlas import command

    given = [o for o in (*_ATLAS_MODES, "types", "output", "jobs", "json") if getattr(options, o)]
    mode = next((name for name in given if name in _ATLAS_MODES), "")
    if mode and (others := {*given} - {mode, *_ATLAS_MODES[mode]}):
        raise BenchError(f"--{mode} does not go with --{' or --'.join(sorted(others))}")
    types = split(options.types)
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


def report(options: argparse.Namespace) -> int:
    """The comparison table of stored runs."""
    from bench.reports import report_command

    return report_command(
        options.runs,
        format=options.format,
        baseline=options.baseline,
        output=options.output,
        storage=_results(),
    )


def compare(options: argparse.Namespace) -> int:
    """Verdicts on two stored runs; 1 if one fails."""
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


def ab(options: argparse.Namespace) -> int:
    """Two environments measured side by side; 1 if a verdict fails."""
    from bench.ab.command import ab_command
    from bench.ab.measure import Plan
    from bench.scenarios.subjects import Request
    from bench.training.cases import StepOptions

    request = Request(
        models=tuple(options.model),
        scenarios=tuple(options.scenario),
        r=options.rank,
        precisions=tuple(options.precision),
    )
    step = StepOptions(batch_size=options.batch_size, seq_len=options.seq_len)
    plan = Plan(request, step, options.rounds, tuple(options.launches))
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
    from bench.files import RESULTS

    here = Path("results")
    return here if here.is_dir() else RESULTS
