"""What the selftest starts: a warm interpreter, and pytest as a user of the suites does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import warm as warm_module
from model_folders import write_adapter, write_model
from suite_runs import COLLECTED, SUITES
from warm import Warm, ask_the_processor_once, our_own


def pytest_configure(config: pytest.Config) -> None:
    warm_module.LENT = getattr(config, "workerinput", {}).get("warm", "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    heavy = {"torch", "transformers", "peft", "pandas"}
    session.config.stash.setdefault(COLLECTED, heavy & set(sys.modules))


@pytest.fixture(scope="session")
def warm_process() -> Warm:
    """Started when a test first asks for it."""
    return our_own()


@pytest.fixture
def warm(warm_process: Warm) -> Iterator[Warm]:
    """Whatever the test, or the code under test, starts as `sys.executable` is forked."""
    with warm_process.in_place():
        yield warm_process


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """`bench choose` predicts in this process: those of a pool forget what they have traced, and
    the other processors have other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.choose.costs.usable_processors", lambda: 1)
        yield


@pytest.fixture(scope="module")
def traced_once() -> Iterator[None]:
    """No step is traced twice: the choices differ in the GPU's memory, which no trace knows."""
    from bench.predict import trace

    known: dict[object, object] = {}
    original = trace.trace

    def once(case: object, device: Any, *more: Any) -> object:
        key = repr(case), device.name, device.capability
        if key not in known:
            known[key] = original(case, device, *more)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace", once)
        yield


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs inside this process forget what they imported, and torch cannot be imported twice."""
    import bench.reports.tables
    import bench.scenarios.scenario  # noqa: F401
    from bench.adapters.config import AdapterConfig
    from bench.measure.counting import count, inject
    from bench.models.architectures import find_model

    folder = write_model(tmp_path_factory.mktemp("imported"))
    count(inject(find_model(str(folder)).build(), AdapterConfig(("q_proj",))))
    ask_the_processor_once()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of pytest that the test starts is no part of ours, whether that is spread or not."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(
    pytester: pytest.Pytester, warm: Warm, imported: None, alone: None
) -> Callable[..., pytest.RunResult]:
    """Run `pytest suites/` with options, in a project that holds a tiny model `mine`; in this
    process, which the test may have patched, or `apart`, where one that is killed must be. `bare`:
    with no model but those of the options, and it may end before it collects anything."""
    suites = pytester.mkdir("suites")
    for module in ("test_counts", "test_measurement"):
        shutil.copy(SUITES / f"{module}.py", suites)
    folder = pytester.mkdir("mine")
    write_model(folder)
    write_adapter(folder, ["q_proj", "v_proj"])
    pytester.makepyprojecttoml(
        "[tool.pytest.ini_options]\naddopts = ["
        "'--benchmark-quiet', '--strict-markers', '--import-mode=importlib']"
    )

    def run_pytest(
        *arguments: str, suites: str = "suites/", apart: bool = False, bare: bool = False
    ) -> pytest.RunResult:
        if apart:
            return pytester.runpytest_subprocess("-p", "bench.plugin.suite", suites, *arguments)
        mine = () if bare else ("--model", "mine")
        return pytester.runpytest_inprocess(
            "-p", "bench.plugin.suite", suites, *mine, *arguments, no_reraise_ctrlc=bare
        )

    return run_pytest
