"""The options of `pytest suites/`, checked before anything runs."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.adapters.config import AdapterConfig, written_targets
from bench.baselines import all_thresholds, begin_verdict_file, gate
from bench.baselines.accepted import check_gated, load_baseline
from bench.baselines.configuration import disagreeing
from bench.baselines.runlog import RunLog
from bench.baselines.storage import check_name
from bench.errors import BenchError, check_most, missing_extra
from bench.files import SUFFIXES, check_output
from bench.models.architectures import load_model
from bench.models.configs import read_config
from bench.plugin.benchmarks import check_benchmark_options, name_to_save
from bench.plugin.ending import until_the_end
from bench.plugin.geometry import GEOMETRIES, is_smaller, without_effect
from bench.plugin.internals import root_of, tell_unwritten
from bench.plugin.resuming import open_journal
from bench.plugin.state import (
    AUTOSAVED,
    BASELINE,
    FAILING,
    GATE,
    JOURNAL,
    LOG,
    RESUMED,
    SAVE,
    SUBJECTS,
    THRESHOLDS,
    VERDICTS,
    on_gpu,
    say,
    storage_folder,
    under_xdist,
)
from bench.plugin.storing import fail_of_json, save_command
from bench.process import as_interrupts, to_its_end
from bench.scenarios.subjects import Request, select
from bench.training.liger import check_library
from bench.training.options import MEASURED_LENGTH, add_step_options, check_step, step_from
from bench.units import harmless, one_line


def pytest_addoption(parser: pytest.Parser) -> None:
    """Everything after `pytest suites/` that is ours."""
    group = parser.getgroup("bench", "LoRA target modules")

    def add(name: str, **how: Any) -> None:
        group.addoption(name, **how)
        action = how.get("action", "store")
        if action in ("store", "append"):
            _VALUED.add(name)
        if action == "store":
            _OF_ONE_VALUE.add(name)

    # fmt: off
    add("--model", action="append", default=[], metavar="MODEL",
        help="registered name, folder, config.json or hub id; repeatable (default: all registered)")
    add("--scenario", action="append", default=[], metavar="NAME",
        help="only this scenario; repeatable (default: all that apply)")
    add("--adapter", type=Path, metavar="FILE", help="a PEFT adapter_config.json, or its folder")
    add("--target-modules", metavar="A,B", help="target modules, comma-separated")
    add("--rank", type=int, metavar="R", help="only this rank r")
    add("--precision", action="append", default=[], metavar="P",
        help="fp32, bf16, fp16, int8, nf4, fp4, nf4-dq, fp4-dq; repeatable (default: first five)")
    add("--optional", default="", metavar="A,B", help="entries that may reach nothing")
    add("--fail-on", default="", metavar="HAZARD,...",
        help="fail your own configuration on these hazards too (docs/hazards.md), or on all")
    add("--minimum-coverage", type=float, metavar="SHARE",
        help="... and when fewer of the linear weights carry an adapter, 0 to 1")
    add("--auto-class", metavar="CLASS", help="transformers class to build your own model with")
    add("--trust-remote-code", action="store_true", help="run a model repository's own code")
    add("--weights", type=Path, metavar="DIR",
        help="measure with the real weights in this folder (safetensors) of the one --model")
    add("--full-geometry", action="store_true",
        help="measure full-size models without a GPU too (they need tens of gigabytes)")
    add("--geometry", choices=GEOMETRIES,
        help="without a GPU: the usual reduced geometry, or a smaller one (default: as in the run "
        "to compare with; else by how fast this machine computes in half precision)")
    add_step_options(add, seq_len=MEASURED_LENGTH)
    add("--rounds", type=int, metavar="N",
        help="measured steps a case (default: 5, and up to 20 in half a second, until the interval "
        "of their median is narrow)")
    add("--memory-limit", type=float, metavar="GIB",
        help="a measured case's memory limit, GiB (default: 6 on the CPU, none on a GPU)")
    add("--time-limit", type=float, default=300.0, metavar="SECONDS",
        help="a measured case's time limit, seconds (default 300)")
    add("--cluster", metavar="ADDRESS",
        help="measure on the nodes of this Ray cluster: auto, or HOST:PORT (docs/scale.md)")
    add("--machine", metavar="NAME",
        help="with --cluster: only on nodes of this kind of machine, or pattern (default: a run "
        "for each kind)")
    add("--budget", type=float, metavar="MINUTES", help="measure what fits into this time")
    add("--check-loss", type=int, default=20, metavar="STEPS",
        help="fail a measured case whose loss has not fallen after so many steps on its fixed "
        "batch (default 20; 0: do not check)")
    add("--gate", action="store_true",
        help="with --benchmark-compare: fail unless every metric holds against the baseline")
    add("--threshold", action="append", default=[], metavar="METRIC=X%",
        help="tolerated change of a metric, such as step_seconds=10%%; repeatable")
    add("--allow", action="append", default=[], metavar="VERDICT[:ID]",
        help="a verdict that may pass the gate, for all cases or for a pattern of ids; repeatable")
    add("--resume", action="store_true",
        help="with --benchmark-save=NAME: go on with the interrupted run NAME")
    add("--verdict-file", type=Path, metavar="FILE", help="write the verdicts to this JSON file")
    add("--report", type=Path, metavar="FILE", help="write the run as one HTML page there")
    # fmt: on


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads the options changed here
def pytest_configure(config: pytest.Config) -> None:
    """Check every option before anything runs: a wrong one ends the run with status 2."""
    whole = ExitStack()
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    whole.enter_context(to_its_end(*([capture.global_and_fixture_disabled] if capture else [])))
    config.add_cleanup(whole.close)
    for line in (
        "measured: runs a real training step and measures it",
        "gpu: needs a CUDA device",
        "slow: left out of the default run; choose it with -m slow",
    ):
        config.addinivalue_line("markers", line)
    # A library's word about another one, which no user of the suites can act on.
    jit = r"ignore:.torch\.jit\.script_method. is deprecated:DeprecationWarning"
    config.addinivalue_line("filterwarnings", jit)
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "bench",
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("bench")
    option = config.option
    try:
        begin_verdicts(config)
    except BenchError as error:
        pytest.exit(harmless(f"error: {error}"), returncode=2)
    if not hasattr(option, "benchmark_save"):
        pytest.exit("error: pytest-benchmark is switched off, and these suites need it", 2)
    load_model.cache_clear()  # a second run in this process may find other files
    config.stash[LOG] = RunLog()
    config.stash[BASELINE] = None
    config.stash[VERDICTS] = config.stash[FAILING] = []
    config.stash[GATE] = config.stash[JOURNAL] = None
    config.stash[RESUMED] = {}
    config.stash[AUTOSAVED] = bool(option.benchmark_autosave and not option.benchmark_save)
    try:
        check_benchmark_options(config)
        # The run is stored with every record, whole or not at all: see pytest_sessionfinish.
        config.stash[SAVE] = name = name_to_save(config)
        if name is not None:
            check_name(name)
        check_given(config)
        _check_numbers(option)
        check_step(step_from(option))
        check_library(step_from(option))
        if option.report is not None:
            check_output(option.report, SUFFIXES["html"])
            import_module("jinja2")
        config.stash[THRESHOLDS] = all_thresholds(option.threshold, root_of(config))
        targets: tuple[str, ...] | str = ()
        if option.target_modules is not None:
            targets = written_targets(option.target_modules)
            AdapterConfig(targets)  # nothing at all is wrong, not absent
        geometry = option.geometry  # is_smaller says one where none was asked for
        config.stash[SUBJECTS] = select(
            Request(
                models=tuple(option.model),
                scenarios=tuple(option.scenario),
                adapter=option.adapter,
                target_modules=targets,
                r=option.rank,
                precisions=tuple(option.precision),
                optional=_split(option.optional),
                auto_class=option.auto_class,
                full_geometry=option.full_geometry,
                trust_remote_code=option.trust_remote_code,
                weights=option.weights,
                on_gpu=on_gpu(config),
            ),
            partial(is_smaller, config),
        )
        if geometry is not None and (said := without_effect(geometry, config.stash[SUBJECTS])):
            say(config, said)
        _check_class(config)
        if option.weights is not None:
            _say_of_weights(config)
        gate([], option.allow)
        if option.machine is not None and option.cluster is None:
            raise BenchError("--machine needs --cluster ADDRESS: it chooses among its nodes")
        if under_xdist(config) and (name or option.benchmark_compare):
            given = "--benchmark-save" if name else "--benchmark-compare"
            raise BenchError(
                f"{given} does not go with pytest-xdist: cases that run side by side are not "
                "measured, and what runs in other processes is not stored. Run it with -n 0"
            )
        if option.gate and option.collectonly:
            raise BenchError("--gate: --collect-only runs no case: leave one of them out")
        if option.gate and not option.benchmark_compare:
            raise BenchError("--gate needs --benchmark-compare: there is nothing to hold against")
        if option.benchmark_compare == "":
            raise BenchError("--benchmark-compare= names no run: give its number, or leave out =")
        if not option.benchmark_compare:
            _check_alone(config)
        if option.resume and name is None:
            raise BenchError(
                "--resume needs --benchmark-save=NAME: the name of the run to go on with"
            )
        if not option.collectonly:
            open_journal(config)
        if option.benchmark_compare:
            selector = None if option.benchmark_compare is True else option.benchmark_compare
            storage = storage_folder(config)
            config.stash[BASELINE] = baseline = load_baseline(
                storage, selector, save_command(config)
            )
            if option.gate:
                check_gated(baseline)
            # pytest-benchmark reads the same run, for its table.
            option.benchmark_storage = f"file://{storage}"
            option.benchmark_compare = str(baseline.path)
    except ModuleNotFoundError as error:
        if not (line := missing_extra(error)):
            raise
        pytest.exit(f"error: {line}", returncode=2)
    except BenchError as error:
        pytest.exit(harmless(f"error: {error}"), returncode=2)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """From here a signal ends the run with what is finished stored; pytest has set its own
    `sys.unraisablehook` by now, and would take what arrives in a callback for a warning."""
    config = session.config
    if not config.option.collectonly:
        until_the_end(config, as_interrupts())
        if config.option.benchmark_json:
            tell_unwritten(config, partial(fail_of_json, config))


_MOST = {
    "rounds": 100_000, "check_loss": 100_000, "memory_limit": 1 << 20, "time_limit": 30 * 86_400,
    "budget": 30 * 1440,
}  # fmt: skip
"""In their units: steps, GiB, seconds and minutes. More is a slip of the keyboard."""
_VALUED: set[str] = set()
"""Options that are no switch."""
_OF_ONE_VALUE: set[str] = set()
"""... and no list."""


def _check_alone(config: pytest.Config) -> None:
    """The file that is asked for would not be written. (Options in `addopts` hold for runs of both
    kinds, and a tolerance does no harm.)"""
    given = {str(argument).partition("=")[0] for argument in config.invocation_params.args}
    if "--verdict-file" in given:
        raise BenchError("--verdict-file needs --benchmark-compare: else there is no verdict")
    if idle := sorted(given & {"--threshold", "--allow"}):
        say(config, f"without effect, as nothing is compared: {', '.join(idle)}")


def _check_class(config: pytest.Config) -> None:
    """Raise BenchError for an --auto-class that a model of one's own cannot be built with: else
    each of its tests would fail."""
    if config.option.auto_class is not None:
        for subject in config.stash[SUBJECTS].own.values():
            subject.model.table  # noqa: B018  # built once


def _say_of_weights(config: pytest.Config) -> None:
    """What the config.json beside the weights says otherwise than that of the model: they may be
    another's, of the same shapes."""
    folder = config.option.weights
    models = [subject.model for subject in config.stash[SUBJECTS].measured.values()]
    if not models or not (folder / "config.json").is_file():
        return
    if told := disagreeing(read_config(folder / "config.json"), models[0].config):
        said = f"--weights {folder}: its config.json is not {models[0].label}'s: {told}"
        say(config, one_line(said))


def begin_verdicts(config: pytest.Config) -> None:
    """First of all: whatever is refused afterwards, an earlier run's "passed" does not stand for
    this one. BenchError where the file cannot be written."""
    option = config.option
    if option.verdict_file is not None and (option.gate or not option.collectonly):
        begin_verdict_file(option.verdict_file)


def check_given(config: pytest.Config) -> None:
    """An option of one value that is given twice would drop the first; one that is given empty, as
    from a variable that is not set, would ask for nothing. (pytest's own `addopts` may be
    overridden.)"""
    given = [str(argument) for argument in config.invocation_params.args]
    names = [argument.partition("=")[0] for argument in given]
    for name in sorted(_OF_ONE_VALUE):
        if names.count(name) > 1:
            raise BenchError(f"{name} is given twice, and takes one value")
    for name in sorted(_VALUED):
        if f"{name}=" in given or (name, "") in pairwise(given):
            raise BenchError(f"{name} is given empty: give a value, or leave it out")


def _check_numbers(option: Any) -> None:
    for name in ("batch_size", "seq_len", "rounds", "memory_limit", "time_limit", "budget"):
        value = getattr(option, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            kind = "a finite number " if isinstance(value, float) else ""
            raise BenchError(
                f"--{name.replace('_', '-')} must be {kind}greater than 0, not {value:g}"
            )
    for name, most in _MOST.items():
        check_most(f"--{name.replace('_', '-')}", getattr(option, name), most)
    if option.check_loss < 0:
        raise BenchError(
            f"--check-loss must be 0 (do not check) or a number of steps, not {option.check_loss}"
        )


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
