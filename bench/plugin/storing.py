"""The stored run, the verdicts on it, and its page."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.baselines import (
    KEY,
    StoredRun,
    compare,
    gate,
    load_run,
    parse_run,
    require_common,
    require_measured,
    seal,
    write_run,
    write_verdicts,
)
from bench.baselines.accepted import (
    FAILED,
    FIRST,
    FIRST_REASON,
    NARROWER,
    PASSED,
    accept,
    no_baseline,
)
from bench.baselines.configuration import recorded
from bench.baselines.storage import named
from bench.baselines.verdicts import left_out
from bench.errors import BenchError
from bench.files import SUITES, write_output
from bench.models.architectures import Model
from bench.plugin.ending import is_whole
from bench.plugin.internals import benchmarks_of
from bench.plugin.resuming import options_of
from bench.plugin.state import (
    AUTOSAVED,
    BASELINE,
    BESIDE,
    FAILING,
    GATE,
    IS_FIRST,
    JOURNAL,
    LOG,
    RESUMED,
    RUN,
    SAVE,
    SUBJECTS,
    THRESHOLDS,
    VERDICTS,
    WRONG,
    measured_machine,
    say,
    storage_folder,
)
from bench.units import counted, harmless, one_line


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """pytest-benchmark's own machine info knows no accelerator."""
    machine_info["bench"] = measured_machine(config).to_dict()


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_compare_machine_info() -> Generator[None, Any, Any]:
    """pytest-benchmark 5.3 warns that the machine is another with the folder's name as seen from
    here, which one outside of the current folder has not: ValueError. Verdicts say it anyway."""
    try:
        return (yield)
    except ValueError:
        return []


def run_document(config: pytest.Config) -> dict[str, Any]:
    """What is stored of this run, as far as it is known."""
    import json

    from pytest_benchmark.utils import safe_dumps

    log = config.stash[LOG]
    log.options = options_of(config)
    log.arguments = tuple(_relative(config, a) for a in config.args)
    log.only = _only(config)
    log.machine = measured_machine(config)
    models = _models(config)
    log.models = {label: recorded(model.config) for label, model in models.items()}
    log.places = {label: model.place for label, model in models.items() if model.place}
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
    benchmarks = benchmarks_of(config)
    document = hook.pytest_benchmark_generate_json(
        config=config, benchmarks=benchmarks, include_data=False,
        machine_info=machine_info, commit_info=commit_info,
    )  # fmt: skip
    hook.pytest_benchmark_update_json(config=config, benchmarks=benchmarks, output_json=document)
    document[KEY] = log.run(config.stash[SAVE] or "this run").table()
    parsed: dict[str, Any] = json.loads(safe_dumps(document))
    return parsed


def _models(config: pytest.Config) -> dict[str, Model]:
    """Every model that the run may be about, by label."""
    found = config.stash[SUBJECTS]
    groups = (found.structural, found.ranked, found.measured, found.own)
    return {s.model.label: s.model for group in groups for s in group.values()}


def _only(config: pytest.Config) -> dict[str, list[str]]:
    """What the options narrow the run to; a case beyond it was not asked for."""
    option, subjects = config.option, config.stash[SUBJECTS]
    every = [*subjects.structural.values(), *subjects.measured.values(), *subjects.own.values()]
    only: dict[str, list[str]] = {}
    if option.model:
        only["model"] = sorted({subject.model.label for subject in every})
    if option.scenario or option.target_modules or option.adapter:
        only["scenario"] = sorted({subject.name for subject in every})
    if option.rank:
        only["rank"] = [str(option.rank)]
    if option.precision:
        only["precision"] = list(option.precision)
    return only


def _relative(config: pytest.Config, argument: str) -> str:
    """An argument as the ids begin that it means: in the suites by their place in the project."""
    path, colons, rest = argument.partition("::")
    for module in _MODULES:
        if path == module or path.startswith(f"{module}."):
            path = str(SUITES.joinpath(*path[len(module) + 1 :].split(".")))
            path = path if Path(path).exists() else f"{path}.py"
    full = (config.invocation_params.dir / path).resolve()
    if full.is_relative_to(SUITES):
        path = "/".join(("suites", *full.relative_to(SUITES).parts))
    elif full.is_relative_to(config.rootpath):
        path = str(full.relative_to(config.rootpath))
    return one_line(path + colons + rest)


_MODULES = ("lora_target_bench.suites", "bench.suites")
"""What `--pyargs` calls the suites."""


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Store the run, hold it against the baseline, and let the gate decide the exit status."""
    config = session.config
    if config.option.collectonly or hasattr(config, "workerinput"):
        return
    log = config.stash[LOG]
    log.interrupted = not is_whole(session)
    if log.interrupted and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.INTERRUPTED  # a plugin ended it as if all were well
    # The case that was cut is not a failed one.
    log.records = {key: record for key, record in log.records.items() if record.reported}
    if not log.records and not log.resumed:
        _without_cases(session)
        return
    if log.resumed and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK  # the run to go on with had done all
    document = run_document(config)
    document["benchmarks"] += [
        entry
        for entry in config.stash[RESUMED].get("benchmarks", [])
        if entry["fullname"] in log.resumed
    ]
    config.stash[RUN] = run = parse_run(seal(document), "this run")
    if anew := sum("reruns" in record.detail for record in run.records.values()):
        say(config, f"{counted(anew, 'case')} begun anew on another node, the first being lost")
    refused = None
    try:
        _judge(session, run)
    except BenchError as error:
        refused = error
    finally:
        if name := config.stash[SAVE]:
            document[KEY] = replace(run, gate=_gate_result(session, run), name=name).table()
            try:
                _save(config, name, document)
            except BenchError as error:
                config.stash[GATE] = FAILED
                _fail(config, str(error))
                baseline = config.stash[BASELINE]
                if baseline is not None and refused is None and not config.stash[BESIDE]:
                    config.stash[BESIDE] = "the run was not stored"
                    _write_verdicts(config, run, baseline)
    if refused is not None:  # nothing was compared: there is no table to show
        config.stash[GATE] = FAILED
        if reporter := config.pluginmanager.get_plugin("terminalreporter"):
            reporter.line("")  # the line that counts the tests is still open
        pytest.exit(harmless(f"error: {refused}"), returncode=2)
    if config.option.report:
        _write_page(config)
    if config.stash[FAILING] and config.option.gate and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _without_cases(session: pytest.Session) -> None:
    """A run of which something was asked that takes a case, and that ran none, has not passed."""
    config, ended = session.config, session.exitstatus
    asked = {
        "--gate": config.option.gate,
        "--benchmark-compare": config.stash[BASELINE] is not None,
        "--benchmark-save": config.stash[SAVE] and not config.stash[AUTOSAVED],
    }
    if ended in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and any(asked.values()):
        option = next(name for name, given in asked.items() if given)
        nothing = "stored" if option == "--benchmark-save" else "compared"
        _fail(
            config,
            f"{option}: no case was run, so that nothing is {nothing}: each was deselected or "
            "skipped (-k, -m, --benchmark-only, --setup-plan), or python_files, python_classes or "
            "python_functions of your pytest's settings keep the suites' tests from being found",
        )


def _write_page(config: pytest.Config) -> None:
    """The run as one HTML page, where --report says."""
    from bench.reports.page import page
    from bench.reports.reached import run_trees

    run, baseline, file = config.stash[RUN], config.stash[BASELINE], config.option.report
    verdicts, failing = config.stash[VERDICTS], config.stash[FAILING]
    subjects = config.stash[SUBJECTS]
    try:
        html = page(
            [run], baseline, verdicts=verdicts, failing=failing,
            failed_beside=config.stash.get(BESIDE, ""),
            trees=run_trees(run, [*subjects.own.values(), *subjects.measured.values()]),
        )  # fmt: skip
        write_output(file, html)
    except BenchError as error:
        _fail(config, f"--report {error}")
    else:
        say(config, f"page: {_shown(config, file)}")


def _judge(session: pytest.Session, run: StoredRun) -> None:
    """Hold the run against the baseline, if there is one, and write the verdict file."""
    config = session.config
    baseline, option = config.stash[BASELINE], config.option
    if baseline is None:
        return
    config.stash[GATE] = FAILED  # until all is known
    verdicts = compare(baseline, run, config.stash[THRESHOLDS])
    config.stash[VERDICTS] = verdicts
    require_common(baseline, run, verdicts)
    if option.gate:
        require_measured(baseline, run)
    config.stash[FAILING] = failing = gate(verdicts, option.allow)
    config.stash[GATE] = FAILED if failing else PASSED if option.gate else None
    failed = f"{counted(session.testsfailed, 'test')} failed" if session.testsfailed else ""
    failed = failed or ("--benchmark-json was not written" if WRONG in config.stash else "")
    config.stash[BESIDE] = "the run was interrupted" if run.interrupted else failed
    _write_verdicts(config, run, baseline)


def _write_verdicts(config: pytest.Config, run: StoredRun, baseline: StoredRun) -> None:
    """Where --verdict-file says."""
    if config.option.verdict_file:
        try:
            write_verdicts(
                config.option.verdict_file, config.stash[VERDICTS], config.stash[FAILING],
                baseline, run, failed_beside=config.stash[BESIDE],
            )  # fmt: skip
        except BenchError as error:
            config.stash[GATE] = FAILED
            _fail(config, f"--verdict-file {error}")


def fail_of_json(config: pytest.Config, error: OSError) -> None:
    """pytest-benchmark's own file is not written; the run is stored all the same."""
    _fail(config, f"--benchmark-json {config.option.benchmark_json}: {error.strerror}")


def _fail(config: pytest.Config, text: str) -> None:
    """End with status 2 and this line, after the summary: the run itself is whole."""
    before = config.stash.get(WRONG, "")
    config.stash[WRONG] = "\n".join(filter(None, (before, harmless(f"error: {text}"))))


def _gate_result(session: pytest.Session, run: StoredRun) -> str | None:
    """What the stored run says of its gate: a run in which a test failed has not passed it."""
    result = session.config.stash[GATE]
    config = session.config
    if result == FAILED or session.exitstatus != 0 or run.interrupted or WRONG in config.stash:
        return FAILED
    baseline = config.stash[BASELINE]
    if result == PASSED and baseline is not None and left_out(baseline, run):
        return NARROWER
    named = not config.stash[AUTOSAVED]
    if result is None and config.stash[BASELINE] is None and named and config.stash[IS_FIRST]:
        return FIRST  # with --benchmark-disable too: then it holds no measured case
    return result


def benchmark_entries(config: pytest.Config, key: str) -> list[dict[str, Any]]:
    """What pytest-benchmark has of a case, as it is written to a stored run."""
    import json

    from pytest_benchmark.utils import safe_dumps

    found = [each for each in benchmarks_of(config) if each.fullname == key and not each.has_error]
    entries: list[dict[str, Any]] = json.loads(safe_dumps([e.as_dict(False) for e in found]))
    return entries


def _save(config: pytest.Config, name: str, document: dict[str, Any]) -> None:
    """Store the run; where its folder cannot take it, in the system's temporary folder, so that
    what was measured is not lost, and the run fails (BenchError says where it is)."""
    try:
        path = write_run(storage_folder(config), name, document)
    except BenchError as error:
        kept = write_run(Path(tempfile.mkdtemp(prefix="lora-target-bench-")), name, document)
        if (journal := config.stash[JOURNAL]) is not None:
            journal.close(done=True)
        raise BenchError(f"{error}; the run is kept in {kept}") from error
    journal = config.stash[JOURNAL]
    if journal is not None:
        journal.close(done=True)
        if journal.trouble:
            say(config, f"not every case was kept as it ended: {journal.trouble}")
        if journal.left is not None:
            left = _shown(config, journal.left)
            say(config, f"an earlier run of this name was killed: its cases are {left}")
    if taken := config.stash[LOG].resumed:
        before = Path(config.stash[RESUMED]["path"]).stem
        say(config, f"{counted(len(taken), 'case')} taken over from {before}, not measured again")
    stored = load_run(path)
    config.stash[RUN] = stored
    say(config, f"stored run: {_shown(config, path)}")
    if stored.gate == FIRST:
        record, _ = accept(path, FIRST_REASON)
        say(config, f"accepted as the first baseline here: recorded in {_shown(config, record)}")
    if why := no_baseline(stored):
        say(config, f"it is no baseline for later runs: {why}. {_way_to_a_baseline(config, path)}")


def _way_to_a_baseline(config: pytest.Config, path: Path) -> str:
    """What makes the run that was stored here one that later runs are held against."""
    stored = config.stash[RUN]
    if stored.interrupted:
        return f"Go on with it: {_resume_command(config)}"
    accept = f"Where its figures are right: bench accept {named(path)} --reason WHY"
    first = config.stash[IS_FIRST] and config.stash[BASELINE] is None and stored.gate is None
    if first:  # with no baseline there is nothing that --gate could hold it against
        return f"There is no baseline here yet, and --benchmark-save=NAME makes the first. {accept}"
    return accept


def _resume_command(config: pytest.Config) -> str:
    """This run again, its comparison too, without the cases that are stored. Another number in
    pytest-benchmark's own name would be no run to go on with."""
    given = [str(argument) for argument in config.invocation_params.args]
    if config.stash[AUTOSAVED]:
        given = [argument for argument in given if argument != "--benchmark-autosave"]
        given.append(f"--benchmark-save={config.stash[SAVE]}")
    return shlex.join(["pytest", *given, *(["--resume"] if "--resume" not in given else [])])


def save_command(config: pytest.Config) -> str:
    """This run again, stored: the same tests and options, less those of the comparison."""
    kept: list[str] = []
    arguments = iter(str(argument) for argument in config.invocation_params.args)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name in ("--threshold", "--allow", "--verdict-file", "--report", "--benchmark-save"):
            if not equals:
                next(arguments, None)
        elif name not in ("--gate", "--benchmark-compare", "--benchmark-autosave"):
            kept.append(argument)
    return shlex.join(["pytest", *kept]) + " --benchmark-save=NAME"


def _shown(config: pytest.Config, path: Path) -> str:
    here = config.invocation_params.dir
    return harmless(str(path.relative_to(here) if path.is_relative_to(here) else path))
