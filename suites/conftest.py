"""Which predictions run: in the precisions asked for, and by default the published models' only.
And in which order: side by side, what takes longest begins first."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.models.precision import precision
from bench.process import collect_seldom

# What test modules share lies beside them: with --import-mode=importlib no folder is on the path.
if (_HERE := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.insert(0, _HERE)

# What the default run predicts: enough to hear of a change in half a minute.
PREDICTED_IN = ("fp16", "int8", "nf4")
PUBLISHED = {
    "phi-3-medium": {f"published-{number}" for number in range(1, 7)},
    "opt-350m": {"q_proj-v_proj"},
    "distilbert-base-uncased": {"query-value"},
}
SMALL = "distilbert-base-uncased"
PUBLISHED_CASES = {f"{model}-{name}" for model, names in PUBLISHED.items() for name in names}


def _few_scenarios(case: str) -> bool:
    every = (SMALL, "opt-350m", "phi-3-mini-fused")
    return case.startswith(every) or case.endswith("-everything") or case in PUBLISHED_CASES


# Of the measured cases each scenario of a small model, and each precision of one of them; of ranks
# each for that model, and one for the others; of scenarios each on such a model, the published, and
# the widest of every other model. (A suite without a subject has no string there.)
FEW: dict[str, Callable[[str], bool]] = {
    "measured": lambda case: (
        case.startswith(SMALL) and (case.endswith("-fp32") or "-query-value-" in case)
    ),
    "ranked": lambda case: (
        case.startswith(SMALL) or (case.endswith("-r8") and _few_scenarios(case[:-3]))
    ),
    "subject": _few_scenarios,
}


LONGEST = (
    "test_wheel.py", "test_documents.py", "test_suite_interrupted.py", "test_choose.py",
    "test_choose_costs.py", "test_predict_command.py", "test_suite_gate.py",
    "test_predict_levers.py", "test_page.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "wheel: builds a wheel and runs what it installs; slow, and part of the evidence",
        "evidence: whole matrices, of which few cases are run beside the other tests, the wheel's "
        "tests, and the documents' commands: `tox run -e evidence`",
    ):
        config.addinivalue_line("markers", line)
    collect_seldom()


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_configure_node(node: Any) -> None:
    """The workers share a warm interpreter, which takes ten seconds to make. It is the
    controller's, which outlives them."""
    folder = Path(__file__).resolve().parent / "selftest"
    asked = [Path(argument.partition("::")[0]).resolve() for argument in node.config.args]
    if any(folder in (path, *path.parents) or path in folder.parents for path in asked):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        from warm import our_own

        node.workerinput["warm"] = str(our_own().folder)


IMPORTS = pytest.StashKey[int]()


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Keep a million objects of the libraries out of every later garbage collection."""
    stash, imported = item.config.stash, len(sys.modules)
    if imported > stash.get(IMPORTS, 0) + 300:
        stash[IMPORTS] = imported
        _freeze()


def pytest_collection_finish(session: pytest.Session) -> None:
    """... and the thousands of tests."""
    _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)  # after the subjects, so that an id ends in the precision
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "predicted_in" in metafunc.fixturenames:
        asked = [precision(name).name for name in metafunc.config.option.precision]
        metafunc.parametrize("predicted_in", asked or PREDICTED_IN)


@pytest.hookimpl(tryfirst=True)  # before those marked slow are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every registered scenario can be predicted: hundreds, so only if asked for. Of the measured
    cases, of ranks and scenarios, all but a few are evidence; of Phi-3-medium's predictions those
    in one precision are not."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        # What pytest has in the place of an empty list's values is no text.
        values = {name: value for name, value in given.items() if isinstance(value, str)}
        predicted = {"predicted_in", "subject"} <= values.keys()
        if predicted and not config.option.model and values["subject"] not in PUBLISHED_CASES:
            item.add_marker(pytest.mark.slow)
        if predicted and values["predicted_in"] != "nf4" and "-published-" in values["subject"]:
            item.add_marker(pytest.mark.evidence)
        if any(name in values and not few(values[name]) for name, few in FEW.items()):
            item.add_marker(pytest.mark.evidence)
