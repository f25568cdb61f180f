"""The pytest side: options, fixtures, markers and pytest-benchmark's hooks.

Answers come from the library below; this module only asks, records and reports.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.adapters import AdapterConfig
from bench.architectures import Model, read_toml
from bench.baselines import (
    KEY,
    Run,
    Thresholds,
    Verdict,
    compare,
    find_runs,
    gate,
    load_run,
    parse_run,
    seal,
    write_run,
    write_verdicts,
)
from bench.cases import StepOptions
from bench.errors import BenchError
from bench.runlog import Progress, Recorder, RunLog
from bench.subjects import Request, Subject, Subjects, load_model, select

GIB = 1024**3
_LOG = pytest.StashKey[RunLog]()
_PROGRESS = pytest.StashKey[Progress]()
_SUBJECTS = pytest.StashKey[Subjects]()
_RUN = pytest.StashKey[Run]()
_REFUSED = pytest.StashKey[int]()
_SAVE = pytest.StashKey[str | None]()
_BASELINE = pytest.StashKey[Run | None]()
_THRESHOLDS = pytest.StashKey[Thresholds]()
_VERDICTS = pytest.StashKey[list[Verdict]]()

# Fixture name → the subjects that parametrize it.
_PARAMETERS: dict[str, Callable[[Subjects], list[str]]] = {
    "architecture": lambda s: list(s.architectures),
    "subject": lambda s: list(s.structural),
    "ranked": lambda s: list(s.ranked),
    "measured": lambda s: list(s.measured),
    "user_subject": lambda s: list(s.own),
}
_XDIST_REASON = (
    "measured cases are refused under pytest-xdist: cases that run side by side share caches and "
    "memory bandwidth, so their times and peaks would mean nothing. Run them without -n, or leave "
    "them out with: -m 'not measured'"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Everything after `pytest suites/` that is ours."""
    add = parser.getgroup("bench", "LoRA target modules").addoption
    # fmt: off
    add("--model", action="append", default=[], metavar="MODEL",
        help="registered name, folder, config.json or hub id; repeatable (default: all registered)")
    add("--scenario", action="append", default=[], metavar="NAME",
        help="only this scenario; repeatable (default: all that apply)")
    add("--adapter", type=Path, metavar="FILE", help="a PEFT adapter_config.json, or its folder")
    add("--target-modules", default="", metavar="A,B", help="target modules, comma-separated")
    add("--rank", type=int, metavar="R", help="only this rank r")
    add("--precision", action="append", default=[], metavar="P",
        help="fp32, bf16, fp16, int8, nf4, fp4, nf4-dq, fp4-dq; repeatable (default: first five)")
    add("--optional", default="", metavar="A,B", help="entries that may reach nothing")
    add("--auto-class", metavar="CLASS", help="transformers class to build your own model with")
    add("--trust-remote-code", action="store_true", help="run a model repository's own code")
    add("--full-geometry", action="store_true",
        help="measure full-size models without a GPU too (they need tens of gigabytes)")
    add("--batch-size", type=int, default=2, help="sequences a step (default 2)")
    add("--seq-len", type=int, default=32, help="tokens a sequence (default 32)")
    add("--rounds", type=int, default=5, help="measured steps a case (default 5)")
    add("--memory-limit", type=float, default=6.0, metavar="GIB",
        help="a measured case's memory limit on the CPU, GiB (default 6)")
    add("--time-limit", type=float, default=300.0, metavar="SECONDS",
        help="a measured case's time limit, seconds (default 300)")
    add("--budget", type=float, metavar="MINUTES", help="measure what fits into this time")
    add("--check-loss", type=int, default=0, metavar="STEPS",
        help="train each measured case on, and fail it unless its loss falls (20 is usual)")
    add("--gate", action="store_true",
        help="with --benchmark-compare: fail unless every metric holds against the baseline")
    add("--threshold", action="append", default=[], metavar="METRIC=X%",
        help="tolerated change of a metric, such as step_seconds=10%%; repeatable")
    add("--allow", action="append", default=[], metavar="VERDICT[:ID]",
        help="a verdict that may pass the gate, for all cases or for a pattern of ids; repeatable")
    add("--verdict-file", type=Path, metavar="FILE", help="write the verdicts to this JSON file")
    # fmt: on


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads the options changed here
def pytest_configure(config: pytest.Config) -> None:
    """Check every option before anything runs: a wrong one ends the run with status 2."""
    for line in (
        "measured: runs a real training step and measures it",
        "gpu: needs a CUDA device",
        "slow: left out of the default run; choose it with -m slow",
    ):
        config.addinivalue_line("markers", line)
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
    load_model.cache_clear()  # a second run in this process may find other files
    config.stash[_LOG] = RunLog()
    config.stash[_SAVE] = option.benchmark_save
    config.stash[_BASELINE] = None
    config.stash[_VERDICTS] = []
    try:
        _check_numbers(option)
        config.stash[_THRESHOLDS] = _thresholds(config)
        config.stash[_SUBJECTS] = select(
            Request(
                models=tuple(option.model),
                scenarios=tuple(option.scenario),
                adapter=option.adapter,
                target_modules=_split(option.target_modules),
                r=option.rank,
                precisions=tuple(option.precision),
                optional=_split(option.optional),
                auto_class=option.auto_class,
                full_geometry=option.full_geometry,
                trust_remote_code=option.trust_remote_code,
            )
        )
        gate([], option.allow)
        if _under_xdist(config) and (option.benchmark_save or option.benchmark_compare):
            raise BenchError(f"--benchmark-save and --benchmark-compare: {_XDIST_REASON}")
        if option.gate and not option.benchmark_compare:
            raise BenchError("--gate needs --benchmark-compare: there is nothing to hold against")
        if option.benchmark_compare:
            selector = None if option.benchmark_compare is True else option.benchmark_compare
            storage = _storage(config)
            path = find_runs(storage, selector)[-1]
            config.stash[_BASELINE] = load_run(path)
            # pytest-benchmark reads the same run, for --benchmark-compare-fail.
            option.benchmark_storage, option.benchmark_compare = f"file://{storage}", str(path)
    except BenchError as error:
        pytest.exit(f"error: {error}", returncode=2)
    # The run is stored here, with every record, whole or not at all: see pytest_sessionfinish.
    option.benchmark_save = None


def _thresholds(config: pytest.Config) -> Thresholds:
    """The defaults, then pyproject's [tool.bench.thresholds], then --threshold."""
    thresholds = Thresholds()
    project = config.rootpath / "pyproject.toml"
    if project.exists():
        table = read_toml(project).get("tool", {}).get("bench", {}).get("thresholds", {})
        thresholds = thresholds.with_table(table, f"{project}: tool.bench.thresholds")
    return thresholds.with_options(config.option.threshold)


def _check_numbers(option: Any) -> None:
    for name in ("batch_size", "seq_len", "rounds", "memory_limit", "time_limit"):
        if getattr(option, name) <= 0:
            raise BenchError(f"--{name.replace('_', '-')} must be greater than 0")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _storage(config: pytest.Config) -> Path:
    """The folder of this machine's runs: `results/<machine>` of the project, or as asked for."""
    asked = str(config.option.benchmark_storage)
    if asked != "file://./.benchmarks":
        return Path(asked.removeprefix("file://"))
    from bench.machine import machine

    return config.rootpath / "results" / str(machine()["id"])


def _under_xdist(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput") or bool(getattr(config.option, "numprocesses", None))


# Collection


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each subject, called by its key."""
    subjects = metafunc.config.stash[_SUBJECTS]
    for name, keys in _PARAMETERS.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, keys(subjects), indirect=name != "architecture")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The tool's own tests are left out where pytest_collection_modifyitems would drop them all."""
    about_results = config.option.model or _stores(config)
    return True if collection_path.name == "selftest" and about_results else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for: with --model what is about no model, in a stored or
    compared run what records nothing. Under xdist refuse the measured cases, aloud."""
    keep, dropped = [], []
    refused: list[pytest.Item] = []
    slow_too = "slow" in config.option.markexpr
    wanted = set(_PARAMETERS) if config.option.model else {"record"}
    about_results = config.option.model or _stores(config)
    for item in items:
        empty = item.name.endswith("[NOTSET]")  # a suite with no subject in this run
        other = about_results and not wanted & set(_fixtures(item))
        slow = item.get_closest_marker("slow") and not slow_too
        if empty or other or slow:
            dropped.append(item)
        elif item.get_closest_marker("measured") and _under_xdist(config):
            refused.append(item)
        else:
            keep.append(item)
    if refused:
        # One failure says it for all of them.
        refused[0].stash[_REFUSED] = len(refused)
        keep.append(refused[0])
        dropped += refused[1:]
    items[:] = keep
    config.stash[_PROGRESS] = Progress(sum(map(_is_measured, keep)))
    if dropped:
        config.hook.pytest_deselected(items=dropped)


def _is_measured(item: pytest.Item) -> bool:
    return item.get_closest_marker("measured") is not None


def _stores(config: pytest.Config) -> bool:
    """Whether the run is stored or compared: then only tests that record something matter."""
    return bool(config.stash[_SAVE] or config.option.benchmark_compare)


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


def pytest_deselected(items: list[pytest.Item]) -> None:
    """A test that was left out did not vanish."""
    if items:
        items[0].config.stash[_LOG].deselected += [item.nodeid for item in items]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse measured cases under xdist; start none that would end beyond the budget."""
    if refused := item.stash.get(_REFUSED, 0):
        pytest.fail(f"{refused} cases: {_XDIST_REASON}", pytrace=False)
    minutes = item.config.option.budget
    if minutes and item.get_closest_marker("measured"):
        progress = item.config.stash[_PROGRESS]
        if progress.elapsed + progress.per_case > 60 * minutes:
            item.config.stash[_LOG].deselected.append(item.nodeid)
            pytest.skip(f"left out: beyond --budget {minutes:g} minutes")


def pytest_report_teststatus(
    report: pytest.TestReport, config: pytest.Config
) -> tuple[str, str, str] | None:
    """A line for each measured case: what it took, and how long the rest may take."""
    recorder = config.stash[_LOG].records.get(report.nodeid)
    if recorder is None or report.when != "call" or recorder.subject.precision is None:
        return None
    if config.option.benchmark_disable or report.failed:
        return None
    progress = config.stash[_PROGRESS]
    progress.done += 1
    said = recorder.summary()
    line = f"[{progress.done}/{progress.total}] {said}; {progress.left()}\n"
    return ("xfailed" if hasattr(report, "wasxfail") else "passed"), line, "PASSED"


# Fixtures


def _subject(name: str, group: str, doc: str) -> Any:
    """A fixture that gives the subject which the test's parameter names."""

    @pytest.fixture(name=name)
    def chosen(request: pytest.FixtureRequest) -> Subject:
        subjects: dict[str, Subject] = getattr(request.config.stash[_SUBJECTS], group)
        return subjects[str(request.param)]

    chosen.__doc__ = doc
    return chosen


subject = _subject("subject", "structural", "A registered model and scenario, at its own rank.")
ranked = _subject("ranked", "ranked", "A registered model and scenario at one of the ranks.")
measured = _subject("measured", "measured", "A model, scenario, rank and precision to measure.")
user_subject = _subject("user_subject", "own", "A user's own model or configuration.")


@pytest.fixture(scope="session")
def check_targets() -> Callable[..., Any]:
    """`bench.check_targets`: assert that a LoRA configuration has no dead entry on a model."""
    from bench.check import check_targets as check

    return check


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], Model]:
    """Model by name, each read once a session."""
    return load_model


@pytest.fixture(scope="session")
def peft_count() -> Callable[[Model, AdapterConfig], Any]:
    """What PEFT injects into a fresh meta model, each configuration once a session."""
    import gc

    from bench.counting import Count, count, inject

    # Hundreds of throw-away models are cyclic garbage; freezing what the imports made keeps each
    # collection from walking all of it again (a third of the time here).
    gc.collect()
    gc.freeze()
    known: dict[tuple[int, str], Count] = {}

    def counted(model: Model, adapter: AdapterConfig) -> Count:
        key = (id(model), repr(adapter))
        if key not in known:
            known[key] = count(inject(model.build(), adapter))
        return known[key]

    return counted


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Recorder:
    """This test's record in the stored run."""
    names = [name for name in _PARAMETERS if name in request.fixturenames]
    subject = request.getfixturevalue(names[0])
    suite = Path(str(request.node.path)).stem.removeprefix("test_")
    recorder = Recorder(suite, subject)
    request.config.stash[_LOG].records[request.node.nodeid] = recorder
    return recorder


@pytest.fixture(scope="session")
def measuring(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The session that starts one worker process a case."""
    from bench.measure import Session

    option = request.config.option
    with Session(
        memory_limit_bytes=int(option.memory_limit * GIB), time_limit_seconds=option.time_limit
    ) as session:
        yield session


@pytest.fixture(scope="session")
def step_options(request: pytest.FixtureRequest) -> StepOptions:
    """Batch size and length of the measured step."""
    option = request.config.option
    return StepOptions(batch_size=option.batch_size, seq_len=option.seq_len)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that passed makes its record a good one."""
    report = yield
    recorder = item.config.stash[_LOG].records.get(item.nodeid)
    if recorder is not None and report.when == "call" and report.passed:
        recorder.outcome = "ok"
    return report


# The stored run and the verdicts


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """pytest-benchmark's own machine info knows no accelerator."""
    from bench.machine import machine

    machine_info["bench"] = machine()


def _document(session: pytest.Session) -> dict[str, Any]:
    import json

    from pytest_benchmark.utils import safe_dumps

    config = session.config
    log = config.stash[_LOG]
    log.arguments = tuple(_relative(config, a) for a in config.args)
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
    document[KEY] = log.table(config.stash[_SAVE] or "this run")
    parsed: dict[str, Any] = json.loads(safe_dumps(document))
    return parsed


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
    log = config.stash[_LOG]
    if not log.records:
        return
    document = _document(session)
    config.stash[_RUN] = run = parse_run(seal(document), "this run")
    try:
        if name := config.stash[_SAVE]:
            path = write_run(_storage(config), name, document)
            _say(config, f"stored run: {_shown(config, path)}")
        baseline = config.stash[_BASELINE]
        if baseline is not None:
            verdicts = compare(baseline, run, config.stash[_THRESHOLDS])
            failing = gate(verdicts, config.option.allow)
            config.stash[_VERDICTS] = verdicts
            if config.option.verdict_file:
                write_verdicts(config.option.verdict_file, verdicts, failing, baseline, run)
            if failing and config.option.gate and session.exitstatus == 0:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
    except BenchError as error:
        pytest.exit(f"error: {error}", returncode=2)


def _shown(config: pytest.Config, path: Path) -> str:
    return str(path.relative_to(config.rootpath) if path.is_relative_to(config.rootpath) else path)


def _say(config: pytest.Config, line: str) -> None:
    config.stash.setdefault(_LINES, []).append(line)


_LINES = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Dead entries in red, the comparison table, the verdicts."""
    write = terminalreporter.write_line
    log = config.stash[_LOG]
    own = [r for r in log.records.values() if r.subject.scenario is None or
           r.subject.model.architecture is None]  # fmt: skip
    for recorder in own:
        for entry in recorder.detail.get("dead_entries", ()):
            write(
                f"dead entry: {entry} reaches nothing on {recorder.subject.model.label}", red=True
            )
    run = config.stash.get(_RUN, None)
    if run is None:
        return
    baseline = config.stash[_BASELINE]
    width, colour = terminalreporter._tw.fullwidth, terminalreporter.hasmarkup
    if any(record.suite == "measurement" for record in run.records.values()):
        from bench.reports import comparison_report, terminal

        terminalreporter.section("scenarios × precisions")
        write(terminal(comparison_report([run], baseline), width, colour=colour))
    if baseline is not None:
        from bench.reports import terminal, verdict_report

        verdicts = config.stash[_VERDICTS]
        failing = gate(verdicts, config.option.allow)
        terminalreporter.section(f"verdicts against {baseline.name}")
        write(terminal(verdict_report(verdicts, failing, baseline, run), width, colour=colour))
    for line in config.stash.get(_LINES, []):
        write(line)
