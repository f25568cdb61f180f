"""`bench targets`: what a LoRA configuration, or another PEFT method, reaches on models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.adapters.patterns import ALL_LINEAR
from bench.cli.options import (
    PRINTED,
    REPEATABLE,
    TEXT,
    Add,
    add_adapter,
    add_building,
    add_format,
    add_hazard_gate,
    add_list,
    add_plot,
    names,
    split,
)
from bench.cli.output import check_plot, fitted, in_colour, json_lines, put, save_figure, written
from bench.cli.subject import asked_subject, check_asked, with_head
from bench.errors import BenchError, UnknownName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.formulas.kinds import Kind
    from bench.models.architectures import Model
    from bench.scenarios.subjects import Subject
    from bench.targets import Ledger

HELP = "what a LoRA configuration reaches on a model"


def add_options(add: Add) -> None:
    """The models, the configuration, and which entries may be dead."""
    # fmt: off
    add("models", nargs="+", metavar="MODEL",
        help="registered name, folder or config.json, or hub id")
    add_adapter(add)
    add_building(add)
    add_list(add, "--target-parameters")
    add("--exclude-modules", type=names, default=(), metavar="A,B|re:REGEX")
    add_list(add, "--optional", help="entries that may reach nothing")
    add("--strict", action="store_true",
        help="exit with 1 when an entry has no effect, PEFT refuses, or a hazard means something "
             "else than what was written")
    add_hazard_gate(add)
    add("--precision", metavar="P",
        help="as loaded in int8, nf4, ...: which heads cannot train, and the three totals")
    add_plot(add, "draw what is reached, layers by projections")
    add("--modules", action="store_true", help="list every adapted module, and every missed one")
    add_format(add, "terminal", PRINTED)
    add("--gradients", action="store_true",
        help="list adapters that a step gives no gradient: they match, and train nothing")
    add("--method", metavar="M", help="another PEFT method: ia3, vera, prefix_tuning, full, ...")
    add("--set", **REPEATABLE, metavar="FIELD=VALUE", dest="settings",
        help="a field of that method's PEFT config, a list as A,B; repeatable")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Tell what every entry reaches on each model; 1 with --strict when one is dead."""
    if options.method is not None:
        return _other_method(options)
    if options.settings:
        raise BenchError(
            "--set goes with --method; LoRA's own fields go into an adapter_config.json (--adapter)"
        )
    check_asked(options)
    if options.plot and len(options.models) > 1:
        raise BenchError("--plot draws one model: give one MODEL")
    check_plot(options.plot)
    from bench.check.gate import HazardGate
    from bench.formulas import lora_parameters
    from bench.reports.ledger import (
        adapted_modules,
        ledger_json,
        ledger_report,
        ledger_text,
        missed_modules,
        modules_text,
    )
    from bench.scenarios.subjects import check_optional

    gate = HazardGate.of_project().with_options(
        options.fail_on, options.allow, options.minimum_coverage, options.strict
    )
    failed = False
    subjects = _subjects(options)
    check_optional(options.optional, subjects)
    for number, subject in enumerate(subjects):
        ledger = gate.judge(subject.ledger)
        if options.gradients and not ledger.refusals:
            from bench.predict.gradients import with_gradients

            ledger = with_gradients(subject.model, ledger)
        parameters = None if ledger.refusals else lora_parameters(ledger)
        failing = gate.failing(ledger)
        if options.format == "json":
            answer = ledger_json(subject, ledger, parameters, failing=failing)
            if options.modules:
                answer["adapted_modules"] = adapted_modules(ledger)
                answer["missed_modules"] = missed_modules(subject, ledger)
            put(json_lines([answer]))
        elif options.format != "terminal":
            report = ledger_report(subject, ledger, parameters, modules=options.modules)
            put(written(report, options.format))
        else:
            blank = "\n" if number else ""
            text = ledger_text(subject, ledger, parameters, colour=in_colour(), failing=failing)
            put(blank + fitted(text) + "\n")
            if options.modules:
                put(modules_text(subject, ledger) + "\n")
        if options.plot:
            save_figure(_drawn(subject, ledger), options.plot)
        failed |= bool(failing)
        failed |= options.strict and bool(subject.dead_entries(ledger) or ledger.refusals)
    return 1 if failed else 0


def _subjects(options: argparse.Namespace) -> list[Subject]:
    """Those of all models, none of which is built yet, each called so that one can tell which."""
    from bench.scenarios.subjects import told_apart

    found: dict[str, Subject] = {}
    for name in options.models:
        if name in found:
            raise BenchError(f"MODEL {name} is given twice")
        found[name] = _subject(options, name)
    models = told_apart({name: subject.model for name, subject in found.items()}, "MODEL")
    return [replace(s, model=model) for s, model in zip(found.values(), models, strict=True)]


def _subject(options: argparse.Namespace, name: str) -> Subject:
    """The model called `name` with the configuration that the options give. BenchError says so
    where it is none, and looks like the modules of the model before it."""
    from bench.models.roles import UNKNOWN, role_of

    try:
        return asked_subject(options, name)
    except UnknownName as error:
        modules = [*split(name)]
        known = [m for m in modules if m == ALL_LINEAR or role_of(m) != UNKNOWN]
        if name == options.models[0] or not modules or known != modules or options.target_modules:
            raise
        raise BenchError(f"{name} is no model: write --target-modules {name}") from error


def _drawn(subject: Subject, ledger: Ledger) -> Figure:
    from bench.reports.plots import reach_figure
    from bench.reports.reached import strips
    from bench.training.machine import versions

    title = f"{subject.model.label}: {subject.name}, r {subject.adapter.r}"
    footer = ", ".join(f"{name} {version}" for name, version in versions().items())
    return reach_figure(title, strips(ledger), ledger.dead_entries, footer)


# Options that say nothing about another method, and what to write instead.
_LORA_ONLY = {
    "scenario": "a scenario is a LoRA configuration; name its modules with --target-modules",
    "target_parameters": "only LoRA reaches parameters, without --method",
    "fail_on": "hazards are LoRA's",
    "allow": "hazards are LoRA's",
    "minimum_coverage": "coverage is LoRA's",
    "modules": "it lists LoRA's; leave it out",
    "precision": "the counts are the same in every precision; leave it out",
    "plot": "it draws what LoRA reaches; leave it out",
    "gradients": "the step that is traced has LoRA's adapters; leave it out",
}  # fmt: skip


def _other_method(options: argparse.Namespace) -> int:
    from bench.formulas.methods import method
    from bench.models.architectures import load_model

    for option, instead in _LORA_ONLY.items():
        if getattr(options, option):
            raise BenchError(f"--{option.replace('_', '-')} does not go with --method: {instead}")
    if options.format not in TEXT:
        raise BenchError(
            f"--format {options.format} does not go with --method: its answer is text, or --json"
        )
    kind = method(options.method).kind
    file = _of_file(kind, options)
    given = _settings(kind, options.settings)
    for option, value in _asked(options).items():
        field = _field(kind, option)
        if field in given:
            raise BenchError(f"{field} is given twice: --set and --{option.replace('_', '-')}")
        given[field] = value
    status = 0
    for name in options.models:
        model = load_model(name, options.auto_class, options.trust_remote_code)
        model = with_head(model, options)
        if not (options.auto_class or options.task_type):
            model = model.for_task(file.get("task_type"))
        status = max(status, _tell_method(model, kind, {**file, **given}, options))
    return status


def _of_file(kind: Kind, options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the adapter's file, where one is given; options and --set come before them."""
    if options.adapter is None:
        return {}
    if kind.peft_class in ("LoraConfig", ""):
        raise BenchError(
            f"--adapter does not go with --method {kind.name}: an adapter_config.json of LoRA is "
            "read without --method"
        )
    if options.target_modules is not None:
        raise BenchError("give one of --adapter, --target-modules")
    from bench.readers.peft import method_fields

    return method_fields(options.adapter, kind)


def _tell_method(
    model: Model, kind: Kind, given: dict[str, Any], options: argparse.Namespace
) -> int:
    from bench.formulas.methods import method, method_ledger, method_parameters
    from bench.reports.methods import method_json, method_text
    from bench.scenarios.subjects import Subject, check_optional

    if kind.size == "num_virtual_tokens" and "task_type" not in given:
        given = {**given, "task_type": model.task_type}
    asked = method(options.method, **given)
    counted = method_parameters(model.table, asked, model.transformers_config)
    ledger = method_ledger(model.table, asked, model.role_of)
    subject = Subject(model, kind.name, ledger.adapter, None, options.optional)
    check_optional(options.optional, [subject])
    dead = subject.dead_entries(ledger)
    if options.format == "json":
        put(json_lines([method_json(model, asked, counted, ledger)]))
    else:
        text = "\n".join(filter(None, (method_text(model, asked, counted), dead)))
        put(fitted(text) + "\n")
    return 1 if options.strict and dead else 0


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """The options that fill in a method's field, as far as they were given."""
    asked = {
        "rank": options.rank,
        "target_modules": options.target_modules,
        "modules_to_save": options.modules_to_save or None,
        "exclude_modules": options.exclude_modules or None,
        "task_type": options.task_type,
    }
    return {option: value for option, value in asked.items() if value is not None}


def _field(kind: Kind, option: str) -> str:
    """The method's field that an option fills in. Raises BenchError where it has none."""
    if option == "rank":
        if kind.size in ("r", "init_r"):
            return kind.size
        instead = f"its size is {kind.size}: --set {kind.size}=N" if kind.size else "it has no rank"
        raise BenchError(f"--rank does not go with --method {kind.name}: {instead}")
    if option not in kind.common:
        why = f": PEFT's {kind.peft_class} has no {option}" if kind.peft_class else ""
        raise BenchError(f"--{option.replace('_', '-')} does not go with --method {kind.name}{why}")
    return option


def _settings(kind: Kind, texts: Sequence[str]) -> dict[str, Any]:
    from bench.formulas.settings import parse_setting

    given: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BenchError(f"--set takes FIELD=VALUE, not {text!r}")
        if key in given:
            raise BenchError(f"--set {key} is given twice")
        given[key] = parse_setting(kind.name, key, value)
    return given
