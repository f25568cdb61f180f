"""What the suites, and a user's own tests, can ask for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.adapters.config import AdapterConfig
from bench.baselines.runlog import Recorder
from bench.baselines.verdicts import slower
from bench.models.architectures import Model, load_model
from bench.plugin.state import (
    BASELINE,
    CLUSTER,
    JOURNAL,
    KIND,
    LOG,
    MEASURED,
    PARAMETERS,
    SUBJECTS,
    THRESHOLDS,
    measured_machine,
    on_gpu,
    under_xdist,
)
from bench.plugin.storing import benchmark_entries
from bench.scenarios.subjects import Subject, has_gpu
from bench.training.options import StepOptions, step_from
from bench.units import GIB

if TYPE_CHECKING:
    from bench.measure import Rounds, Session, Spread
    from bench.measure.cluster import Cluster, ClusterSpread

CPU_MEMORY_LIMIT_GIB = 6


def memory_limit_bytes(gib: float | None, *, on_gpu: bool) -> int | None:
    """A measured case's memory limit: as asked for, else 6 GiB on the CPU, where a case without
    one can bring the machine down, and none on a GPU, which runs out by itself."""
    if gib is None:
        return None if on_gpu else CPU_MEMORY_LIMIT_GIB * GIB
    return int(gib * GIB)


def _subject(name: str, group: str, doc: str) -> Any:
    """A fixture that gives the subject which the test's parameter names."""

    @pytest.fixture(name=name)
    def chosen(request: pytest.FixtureRequest) -> Subject:
        subjects: dict[str, Subject] = getattr(request.config.stash[SUBJECTS], group)
        return subjects[str(request.param)]

    chosen.__doc__ = doc
    return chosen


subject = _subject("subject", "structural", "A registered model and scenario, at its own rank.")
ranked = _subject("ranked", "ranked", "A registered model and scenario at one of the ranks.")
measured = _subject("measured", "measured", "A model, scenario, rank and precision to measure.")
user_subject = _subject("user_subject", "own", "A user's own model or configuration.")


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], Model]:
    """Model by name, each read once a session."""
    return load_model


@pytest.fixture(scope="session")
def peft_count() -> Callable[[Model, AdapterConfig], Any]:
    """What PEFT injects into a fresh meta model, each configuration once a session."""
    import gc

    from bench.measure.counting import Count, count, inject, inject_instead

    # Hundreds of throw-away models are cyclic garbage; freezing what the imports made keeps each
    # collection from walking all of it again (a third of the time here).
    gc.collect()
    gc.freeze()
    known: dict[tuple[int, str], Count] = {}
    injected: dict[tuple[int, str], Any] = {}  # the last one: its ranks follow each other

    def counted(model: Model, adapter: AdapterConfig) -> Count:
        key = (id(model), repr(adapter))
        if key not in known:
            but_for_its_rank = (id(model), repr(adapter.with_rank(1)))
            tied = adapter.ensure_weight_tying or adapter.monteclora_config is not None
            if but_for_its_rank in injected and not (adapter.rank_pattern or tied):
                inject_instead(injected[but_for_its_rank], adapter)
            else:
                injected.clear()
                injected[but_for_its_rank] = inject(model.build(), adapter)
            known[key] = count(injected[but_for_its_rank])
        return known[key]

    return counted


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Recorder:
    """This test's record in the stored run."""
    names = [name for name in PARAMETERS if name in request.fixturenames]
    subject = request.getfixturevalue(names[0])
    suite = Path(str(request.node.path)).stem.removeprefix("test_")
    recorder = Recorder(suite, subject)
    request.config.stash[LOG].records[request.node.nodeid] = recorder
    return recorder


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster | None:
    """Where tasks run with --cluster; None without."""
    return request.config.stash.get(CLUSTER, None)


@pytest.fixture(scope="session")
def measuring(
    request: pytest.FixtureRequest,
    step_options: StepOptions,
    timed_rounds: Rounds,
    cluster: Cluster | None,
) -> Iterator[Session | Spread | ClusterSpread]:
    """What starts one worker process a case; on several GPUs, ahead on each of them, and on the
    CPU's cores too where times are not measured. With --cluster, on its nodes."""
    from bench.measure import Session, Spread
    from bench.training.machine import usable_processors

    config = request.config
    option = config.option
    there = on_gpu(config)
    limit = memory_limit_bytes(option.memory_limit, on_gpu=has_gpu() if there is None else there)
    subjects = [config.stash[SUBJECTS].measured[key] for key in config.stash[MEASURED]]
    cases = [subject.case(step_options) for subject in subjects]
    timed = not option.benchmark_disable
    if cluster is not None:
        from bench.measure.cluster import ClusterSpread

        with ClusterSpread(
            cluster, config.stash[KIND].nodes, cases, timed_rounds, option.check_loss, timed=timed,
            memory_limit_bytes=limit, time_limit_seconds=option.time_limit,
        ) as everywhere:  # fmt: skip
            yield everywhere
        return
    with Session(memory_limit_bytes=limit, time_limit_seconds=option.time_limit) as session:
        devices = session.devices
        if devices == ("cpu",) and not timed:  # no times that they could disturb
            devices *= usable_processors()
        if len(devices) == 1 or under_xdist(config):  # which spreads the cases itself
            yield session
            return
        with Spread(session, cases, timed_rounds, option.check_loss, devices) as spread:
            yield spread


@pytest.fixture(scope="session")
def timed_rounds(request: pytest.FixtureRequest) -> Rounds:
    """How many timed steps each measured case takes; one where no times are asked for."""
    from bench.measure import WARMUP_ROUNDS, Rounds

    option = request.config.option
    if option.benchmark_disable:
        return Rounds.exactly(1)
    return Rounds() if option.rounds is None else Rounds.exactly(option.rounds, WARMUP_ROUNDS)


LAUNCHES = 3
"""How often a case is measured at most. What a neighbour on the machine does to the times of one
launch passes, or differs from the next one's; what the code does is there in each."""


@pytest.fixture
def launches(
    request: pytest.FixtureRequest, record: Recorder, measuring: Session | Spread | ClusterSpread
) -> Iterator[int]:
    """A number for each time that the case is to be measured: 1, and the next while a time is worse
    than the baseline's. Cases that are measured ahead, on several GPUs or a cluster, are once."""
    from bench.measure import Session

    config = request.config
    baseline = config.stash[BASELINE] if isinstance(measuring, Session) else None

    def got_slower() -> bool:
        return baseline is not None and slower(
            baseline, measured_machine(config), record.record(request.node.nodeid),
            config.stash[THRESHOLDS],
        )  # fmt: skip

    def numbers() -> Iterator[int]:
        yield 1
        for number in range(2, LAUNCHES + 1):
            if not got_slower():
                return
            record.detail["launch"] = number
            yield number

    return numbers()


@pytest.fixture(scope="session")
def step_options(request: pytest.FixtureRequest) -> StepOptions:
    """The measured step, as the options say it."""
    return step_from(request.config.option)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that passed makes its record a good one; one that is skipped has none."""
    report = yield
    records = item.config.stash[LOG].records
    if report.skipped and not hasattr(report, "wasxfail"):
        records.pop(item.nodeid, None)
    recorder = records.get(item.nodeid)
    if recorder is not None:
        recorder.reported = recorder.reported or report.when == "call" or report.failed
        if report.when == "call" and report.passed:
            recorder.outcome = "ok"
        journal = item.config.stash[JOURNAL]
        if journal is not None and report.when == "call":
            timed = benchmark_entries(item.config, item.nodeid)
            journal.add(item.nodeid, recorder.record(item.nodeid).to_dict(), timed)
    return report
