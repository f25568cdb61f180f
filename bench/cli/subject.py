"""The model, LoRA configuration, cases and GPU that the options of a command name."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.cli.options import as_written
from bench.errors import BenchError

if TYPE_CHECKING:
    from pathlib import Path

    from bench.adapters.config import AdapterConfig
    from bench.models.architectures import Model
    from bench.predict.gpus import Gpu
    from bench.scenarios.subjects import Subject
    from bench.training.cases import Case
    from bench.training.options import StepOptions


def check_asked(options: argparse.Namespace) -> None:
    """Raise BenchError for a configuration that can be none, before any model is looked at."""
    from bench.adapters.config import AdapterConfig
    from bench.scenarios.scenario import find_scenario

    ways = [w for w in ("adapter", "scenario", "target_modules") if getattr(options, w) is not None]
    if len(ways) > 1:
        raise BenchError(f"give one of --{', --'.join(w.replace('_', '-') for w in ways)}")
    parameters = getattr(options, "target_parameters", ())
    if parameters and ways not in ([], ["target_modules"]):
        raise BenchError(
            f"--target-parameters goes with --target-modules, not with --{ways[0]}: write "
            "target_parameters into an adapter_config.json and give that as --adapter"
        )
    AdapterConfig(task_type=options.task_type)
    if options.rank is not None:
        AdapterConfig(r=options.rank)
    if options.target_modules is not None and not parameters:
        AdapterConfig(options.target_modules)
    named = options.scenario if isinstance(options.scenario, list) else [options.scenario]
    for name in named:
        if name is not None and not set(name) & set("*?["):
            find_scenario(name)


def asked_subject(options: argparse.Namespace, name: str) -> Subject:
    """The model called `name` with the configuration that the options give, as `check_asked` let
    pass."""
    from bench.models.architectures import load_model
    from bench.scenarios.scenario import find_scenario
    from bench.scenarios.subjects import Subject

    model = load_model(name, options.auto_class, options.trust_remote_code)
    if isinstance(options.precision, str):
        model = model.loaded_in(options.precision)
    optional = getattr(options, "optional", ())
    scenario = find_scenario(options.scenario) if options.scenario else None
    file = None
    if scenario is not None:
        adapter = scenario.adapter(model, options.rank)
        optional += scenario.optional
    else:
        adapter, file = _own_adapter(options, model)
    given = {
        "r": options.rank,
        "task_type": options.task_type,
        "modules_to_save": options.modules_to_save,
        "exclude_modules": getattr(options, "exclude_modules", ()),
    }
    adapter = replace(adapter, **{key: value for key, value in given.items() if value})
    if not options.auto_class:
        model = model.for_task(adapter.task_type)
    return Subject(model, options.scenario or "own", adapter, scenario, optional, adapter_file=file)


def _own_adapter(options: argparse.Namespace, model: Model) -> tuple[AdapterConfig, Path | None]:
    """From --target-modules, from --adapter, from the file beside the model's config, or PEFT's
    default for the model type; and the file that it was read from."""
    from bench.adapters.config import AdapterConfig

    parameters = getattr(options, "target_parameters", ())
    if options.target_modules is not None or parameters:
        return AdapterConfig(options.target_modules or (), target_parameters=parameters), None
    file = options.adapter or model.adapter_beside
    return (AdapterConfig.from_file(file) if file else AdapterConfig()), file


def with_head(model: Model, options: argparse.Namespace) -> Model:
    """The model with the head that the task type trains, unless the class was given."""
    from bench.tasks import heads_of

    given = options.auto_class or not heads_of(options.task_type)
    return model if given else model.for_task(options.task_type)


def predicted_subjects(options: argparse.Namespace) -> list[Subject]:
    """The configurations to predict: one's own, the scenarios asked for, or all that apply."""
    from bench.models.architectures import load_model
    from bench.scenarios.scenario import matching_scenarios
    from bench.scenarios.subjects import Request, select

    model = load_model(options.model, options.auto_class, options.trust_remote_code)
    if options.scenario and not (options.target_modules or options.adapter):
        found = matching_scenarios(options.scenario, model.architecture)
        asked = [argparse.Namespace(**{**vars(options), "scenario": name}) for name in found]
        return [asked_subject(one, options.model) for one in asked]
    if options.target_modules or options.adapter or model.adapter_beside:
        return [asked_subject(options, options.model)]
    applying = select(Request(models=(options.model,), r=options.rank, full_geometry=True))
    return list({**applying.structural, **applying.own}.values())


def card_of(options: argparse.Namespace) -> Gpu | None:
    """The GPU to hold predictions against, if one was named."""
    from bench.predict.gpus import find_gpu, gpu_with_memory

    if options.gpu and options.gpu_memory:
        raise BenchError("give --gpu or --gpu-memory, not both")
    if options.gpu:
        return find_gpu(options.gpu)
    return gpu_with_memory(options.gpu_memory) if options.gpu_memory else None


def cases_of(options: argparse.Namespace) -> tuple[list[Subject], list[Case]]:
    """Every case that the options ask to predict; and the subjects, each in the first precision of
    those in which its model has other layers: in floats, and quantized."""
    from bench.models.precision import precision
    from bench.training.parallel import check_parallel

    step = predicted_step(options)
    subjects: list[Subject] = []
    cases: list[Case] = []
    for subject in predicted_subjects(options):
        precisions, as_stored = _precisions(subject, options, step)
        kinds: dict[bool, Subject] = {}
        for name in precisions:
            loaded = replace(subject, precision=name)
            kinds.setdefault(precision(name).quantized, loaded)
            cases.append(loaded.case(as_stored))
        subjects += kinds.values()
    for case in cases:
        check_parallel(case)
    if cases and not step.loss_scaling and not any(case.scales_loss for case in cases):
        raise BenchError(
            "--no-loss-scaling: nothing here has a loss scaler to leave out: give --precision fp16 "
            "or --autocast fp16"
        )
    return subjects, cases


def predicted_step(options: argparse.Namespace) -> StepOptions:
    """The step to predict, of the length that is predicted where none is given."""
    from bench.training.options import PREDICTED_LENGTH, step_from

    length = PREDICTED_LENGTH if options.seq_len is None else options.seq_len
    return step_from(options, predicted=True, seq_len=length)


def memory_command(options: argparse.Namespace, case: Case) -> str:
    """The `bench memory` that predicts a changed case of the model that the options name."""
    from bench.training.options import StepOptions

    words = ["bench", "memory", str(options.model)]
    if options.target_modules is not None:
        words += ["--target-modules", as_written(options.target_modules)]
    for name in ("adapter", "rank", "task_type", "auto_class"):
        if getattr(options, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    if options.scenario:
        words += ["--scenario", case.scenario]
    if options.modules_to_save and case.adapter.get("modules_to_save"):
        words += ["--modules-to-save", as_written(options.modules_to_save)]
    words += ["--precision", case.precision, "--batch-size", str(case.step.batch_size)]
    if case.task.has_length:
        words += ["--seq-len", str(case.step.seq_len)]
    usual = StepOptions()
    rest = replace(case.step, batch_size=usual.batch_size, seq_len=usual.seq_len)
    words += rest.words()
    words += ["--gpu", options.gpu] if options.gpu else ["--gpu-memory", options.gpu_memory]
    words += ["--trust-remote-code"] if options.trust_remote_code else []
    return shlex.join(words)


def _precisions(
    subject: Subject, options: argparse.Namespace, step: StepOptions
) -> tuple[Sequence[str], StepOptions]:
    """The precisions to predict, and the step in them: those asked for, or how the model's
    config.json says that its weights are stored."""
    from bench.models.precision import precision
    from bench.models.stored import stored_precision

    model = subject.model
    if options.precision:
        return options.precision, step
    said = stored_precision(model.config.get("quantization_config"), model.label)
    if said is None:
        return ("bf16",), step
    name, compute = said
    if precision(name).bits == 4 and compute not in (None, "bf16") and not step.compute_dtype:
        step = replace(step, compute_dtype=compute)
    return (name,), step
