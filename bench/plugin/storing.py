"""The stored run, the verdicts on it and the tables at the end."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bench.baselines import (
    KEY,
    compare,
    gate,
    parse_run,
    require_common,
    seal,
    write_run,
    write_verdicts,
)
from bench.errors import BenchError
from bench.plugin.state import (
    BASELINE,
    LINES,
    LOG,
    RUN,
    SAVE,
    SUBJECTS,
    THRESHOLDS,
    VERDICTS,
    storage_folder,
)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """pytest-benchmark's own machine info knows no accelerator."""
    from bench.training.machine import machine

    machine_info["bench"] = machine().to_dict()


def _document(session: pytest.Session) -> dict[str, Any]:
    import json

    from pytest_benchmark.utils import safe_dumps

    config = session.config
    log = config.stash[LOG]
    log.arguments = tuple(_relative(config, a) for a in config.args)
    log.only = _only(config)
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
    benchmarks = config._benchmarksession.benchmarks  # type: ignore[attr-defined]
    document = hook.pytest_benchmark_generate_json(
        config=config, benchmarks=benchmarks, include_data=False,
        machine_info=machine_info, commit_info=commit_info,
    )  # fmt: skip
    hook.pytest_benchmark_update_json(config=config, benchmarks=benchmarks, output_json=document)
    document[KEY] = log.run(config.stash[SAVE] or "this run").table()
    parsed: dict[str, Any] = json.loads(safe_dumps(document))
    return parsed


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
    path, colons, rest = argument.partition("::")
    full = (config.invocation_params.dir / path).resolve()
    inside = full.is_relative_to(config.rootpath)
    return (str(full.relative_to(config.rootpath)) if inside else path) + colons + rest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Store the run, hold it against the baseline, and let the gate decide the exit status."""
    config = session.config
    if config.option.collectonly or hasattr(config, "workerinput"):
        return
    log = config.stash[LOG]
    cut = session.exitstatus == pytest.ExitCode.INTERRUPTED
    log.interrupted = bool(cut or session.shouldfail or session.shouldstop)
    # The case that was cut is not a failed one.
    log.records = {key: record for key, record in log.records.items() if record.reported}
    if not log.records:
        return
    document = _document(session)
    config.stash[RUN] = run = parse_run(seal(document), "this run")
    try:
        if name := config.stash[SAVE]:
            _save(config, name, document)
        baseline = config.stash[BASELINE]
        if baseline is not None:
            verdicts = compare(baseline, run, config.stash[THRESHOLDS])
            config.stash[VERDICTS] = verdicts
            if config.option.gate:
                require_common(baseline, run, verdicts)
            failing = gate(verdicts, config.option.allow)
            if config.option.verdict_file:
                write_verdicts(config.option.verdict_file, verdicts, failing, baseline, run)
            if failing and config.option.gate and session.exitstatus == 0:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
    except BenchError as error:
        pytest.exit(f"error: {error}", returncode=2)


def _save(config: pytest.Config, name: str, document: dict[str, Any]) -> None:
    """Store the run; where its folder cannot take it, in the system's temporary folder, so that
    what was measured is not lost, and the run fails (BenchError says where it is)."""
    try:
        path = write_run(storage_folder(config), name, document)
    except BenchError as error:
        kept = write_run(Path(tempfile.mkdtemp(prefix="lora-target-bench-")), name, document)
        raise BenchError(f"{error}; the run is kept in {kept}") from error
    _say(config, f"stored run: {_shown(config, path)}")


def _save_command(config: pytest.Config) -> str:
    """This run again, stored: the same tests and options, less those of the comparison."""
    kept: list[str] = []
    arguments = iter(str(argument) for argument in config.invocation_params.args)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name in ("--threshold", "--allow", "--verdict-file", "--benchmark-save"):
            if not equals:
                next(arguments, None)
        elif name not in ("--gate", "--benchmark-compare"):
            kept.append(argument)
    return shlex.join(["pytest", *kept]) + " --benchmark-save=NAME"


def _shown(config: pytest.Config, path: Path) -> str:
    return str(path.relative_to(config.rootpath) if path.is_relative_to(config.rootpath) else path)


def _say(config: pytest.Config, line: str) -> None:
    config.stash.setdefault(LINES, []).append(line)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Dead entries in red, the comparison table, the verdicts."""
    write = terminalreporter.write_line
    log = config.stash[LOG]
    own = [r for r in log.records.values() if r.subject.scenario is None or
           r.subject.model.architecture is None]  # fmt: skip
    for recorder in own:
        for entry in recorder.detail.get("dead_entries", ()):
            write(
                f"dead entry: {entry} reaches nothing on {recorder.subject.model.label}", red=True
            )
    run = config.stash.get(RUN, None)
    if run is None:
        return
    baseline = config.stash[BASELINE]
    width, colour = terminalreporter._tw.fullwidth, terminalreporter.hasmarkup
    if any(record.suite == "measurement" for record in run.records.values()):
        from bench.reports import comparison_report, terminal

        terminalreporter.section("scenarios × precisions")
        write(terminal(comparison_report([run], baseline, phases=False), width, colour=colour))
    if baseline is not None:
        from bench.reports import terminal, verdict_report

        verdicts = config.stash[VERDICTS]
        failing = gate(verdicts, config.option.allow)
        terminalreporter.section(f"verdicts against {baseline.name}")
        report = verdict_report(verdicts, failing, baseline, run, _save_command(config))
        write(terminal(report, width, colour=colour))
    for line in config.stash.get(LINES, []):
        write(line)
