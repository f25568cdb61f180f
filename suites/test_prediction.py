"""What each scenario's step would take on a GPU, predicted at full size, and exactly as stored.

Nothing here is measured: the step is traced without weights. The published models' cases run by
default, those of the other architectures under the `slow` marker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bench.baselines.predicted import (
    difference,
    figures,
    load_predictions,
    store_command,
    stored_file,
)
from bench.formulas import lora_parameters
from bench.plugin.state import SUBJECTS, say
from bench.scenarios.subjects import Subject
from bench.targets import match
from bench.training.cases import Case, StepOptions
from bench.units import one_line

LONGEST = 2048
"""Tokens of the one sequence, where the model has that many positions."""
Predict = Callable[[Subject, Case], Any]


@pytest.fixture(scope="module")
def full_step() -> Callable[[Subject], StepOptions]:
    """One sequence of 2048 tokens, or of as many as the model has positions for; or an image, whose
    length is what `bench memory` calls it by."""
    from bench.training.cases import PREDICTED_LENGTH
    from bench.training.limits import case_limit

    known: dict[str, int] = {}

    def step(subject: Subject) -> StepOptions:
        label = subject.model.label
        if label not in known:
            case = replace(subject, precision="bf16").case(StepOptions())
            images = not case.task.has_length
            known[label] = PREDICTED_LENGTH if images else min(case_limit(case) or LONGEST, LONGEST)
        return StepOptions(batch_size=1, seq_len=known[label])

    return step


@pytest.fixture(scope="module")
def predicted(request: pytest.FixtureRequest, full_step, cluster) -> Predict:
    """Predictions, each step traced once: a dead entry in the list changes nothing. With --cluster
    they are tasks, handed out before the first test asks for one."""
    from bench.predict import predict

    known: dict[tuple[object, ...], Any] = {}

    def key_of(subject: Subject, case: Case) -> tuple[object, ...]:
        ledger = match(subject.model.table, subject.adapter, subject.model.role_of)
        reached = tuple(sorted((item.name, item.r) for item in ledger.adapted))
        rest = {k: v for k, v in case.adapter.items() if k != "target_modules"}
        return (case.model, reached, repr(sorted(rest.items())), case.precision, case.step)

    def hand_out(subject: Subject, case: Case) -> tuple[object, ...]:
        if (key := key_of(subject, case)) not in known:
            known[key] = predict(case) if cluster is None else cluster.submit(predict, case)
        return key

    def prediction(subject: Subject, case: Case) -> Any:
        found = known[hand_out(subject, case)]
        found = found if cluster is None else found.answer()
        return replace(found, case=case.id, scenario=case.scenario)

    if cluster is not None:
        for subject, precision in _asked(request):
            hand_out(subject, replace(subject, precision=precision).case(full_step(subject)))
    return prediction


def _asked(request: pytest.FixtureRequest) -> Iterator[tuple[Subject, str]]:
    """What the tests of this file will ask for at full size, in their order."""
    subjects = request.config.stash[SUBJECTS].structural
    for item in request.session.items:
        values = getattr(getattr(item, "callspec", None), "params", {})
        if item.path == request.path and {"subject", "predicted_in"} <= values.keys():
            yield subjects[values["subject"]], values["predicted_in"]


def _check(record: Any, subject: Subject, case: Case, found: Any) -> None:
    """Record a prediction that is sound: parts that sum up, and the closed form's parameters, of
    the layers that the precision has."""
    ledger = replace(subject, precision=case.precision).ledger
    record.metrics |= {
        "predicted_peak_allocated_bytes": found.peak_allocated_bytes,
        "predicted_peak_reserved_bytes": found.peak_reserved_bytes,
        "predicted_flops": found.flops,
        "predicted_operations": found.operations,
    }
    record.detail |= {
        "predicted_in": case.precision,
        **case.step.recorded(),
        "predicted_breakdown": found.breakdown,
    }
    assert found.trainable_parameters == lora_parameters(ledger).trainable
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes
    assert min(found.breakdown.values()) >= 0
    assert found.loaded_bytes < found.peak_allocated_bytes <= found.peak_reserved_bytes


def test_prediction(subject: Subject, predicted_in: str, predicted, full_step, record) -> None:
    """A registered scenario at full size."""
    case = replace(subject, precision=predicted_in).case(full_step(subject))
    _check(record, subject, case, predicted(subject, case))


def test_stored_prediction(subject: Subject, predicted_in: str, predicted, full_step) -> None:
    """The same, held exactly against what is stored for the installed libraries."""
    case = replace(subject, precision=predicted_in).case(full_step(subject))
    path = stored_file()
    if (stored := load_predictions(path).get(case.id)) is None:
        missing = f"no prediction of {case.id}" if path.exists() else "none for these versions"
        pytest.skip(f"{path.name}: {missing}; store it: {store_command(case)}")
    if different := difference(case.id, stored, figures(predicted(subject, case))):
        pytest.fail(f"{different}\nIf that is meant: {store_command(case)}", pytrace=False)


def test_user_prediction(
    user_subject: Subject, predicted_in: str, predicted, step_options, record, pytestconfig
) -> None:
    """A user's own model or configuration, with the batch and length of the command line. What
    cannot be traced (docs/prediction.md) is skipped, and told at the end of the run."""
    from bench.predict.journal import Untraceable

    case = replace(user_subject, precision=predicted_in).case(step_options)
    try:
        found = predicted(user_subject, case)
    except Untraceable as error:
        say(pytestconfig, one_line(f"not predicted: {error}"))
        pytest.skip(f"not predicted: {error}")
    _check(record, user_subject, case, found)
