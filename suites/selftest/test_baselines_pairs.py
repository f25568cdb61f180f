"""Which case of one run is held against which of the other, and the ratios of launches by hand."""

from __future__ import annotations

from typing import Any

import pytest
from test_baselines import QUERY, STEP, STEP_NF4, run_with

from bench.baselines import Selection, compare, require_common
from bench.baselines.history import histories
from bench.baselines.verdicts import launch_ratios, left_out
from bench.errors import BenchError
from bench.reports.rows import comparison_rows

AT_8, AT_16 = (f"suites/test_parameters.py::test_user[opt-350m-own-r{r}]" for r in (8, 16))


def own(*ids: str, **changes: Any):
    """A run with cases of a user's own configuration, each as QUERY is stored."""

    def edit(body: dict[str, Any]) -> None:
        records = body["records"]
        for key in ids:
            records[key] = {**records[QUERY], "scenario": "own", "rank": int(key[-3:-1].strip("r"))}
            records[key] |= changes

    return run_with(edit)


def test_the_users_case_at_another_rank_is_the_same_case() -> None:
    """Its rank is what changed: it neither vanished nor is it new, and nothing was left out."""
    before, after = own(AT_8), own(AT_16)
    verdicts = compare(before, after)
    told = {v.record for v in verdicts if "own" in v.record}
    assert told == {AT_8}
    assert not {"vanished", "new"} & {v.verdict for v in verdicts}
    assert left_out(before, after) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (own(AT_8), own(AT_16, precision="nf4")),
        (own(AT_8), own(AT_16, model="opt-125m")),
        (own(AT_8, scenario="query"), own(AT_16, scenario="query")),  # not the user's own
        (own(AT_8), own(AT_16.replace("test_user", "test_other"))),
        (own(AT_8, AT_8.replace("r8", "r4")), own(AT_16)),  # which of the two?
        (own(AT_8), own(AT_16, AT_16.replace("r16", "r32"))),
    ],
)
def test_another_case_at_another_rank_is_another_case(before, after) -> None:
    verdicts = compare(before, after)
    gone = {v.record for v in verdicts if v.verdict == "vanished"}
    came = {v.record for v in verdicts if v.verdict == "new"}
    assert gone == {*before.records} - {*after.records}
    assert came == {*after.records} - {*before.records}


def predicted(*precisions: str, asked: bool = True):
    """A run with predictions of a user's own configuration, and nothing else; their `precision` is
    None, as nothing was measured in it."""

    def edit(body: dict[str, Any]) -> None:
        case = {**body["records"][QUERY], "suite": "prediction", "scenario": "own"}
        body["records"] = {
            FORETOLD.format(precision): {
                **case,
                "metrics": {"predicted_peak_allocated_bytes": 1000 + len(precision)},
                "detail": {"predicted_in": precision},
            }
            for precision in precisions
        }
        if asked:
            body["selection"] = {"only": {"precision": [*precisions]}}

    return run_with(edit)


FORETOLD = "suites/test_prediction.py::test_user_prediction[tiny-own-{}]"


@pytest.mark.parametrize(
    ("before", "after"),
    [(("fp16", "nf4"), ("fp16", "bf16")), (("fp16",), ("bf16",)), (("fp16", "nf4"), ("bf16",))],
)
def test_predictions_in_two_precisions_are_two_cases(
    before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    """The one was not asked for, and the other is new; none is held against the other."""
    old, new = predicted(*before), predicted(*after)
    both = {*before} & {*after}
    told = {(v.record, v.verdict) for v in compare(old, new)}
    assert told == {
        *((FORETOLD.format(p), "unchanged") for p in both),
        *((FORETOLD.format(p), "new") for p in {*after} - both),
    }
    assert left_out(old, new) == [FORETOLD.format(p) for p in before if p not in both]


def test_a_prediction_in_another_precision_is_no_new_name() -> None:
    vanished, new = compare(predicted("fp32", asked=False), predicted("fp16", asked=False))
    assert (vanished.record, vanished.verdict) == (FORETOLD.format("fp32"), "vanished")
    assert vanished.explanation == "in the baseline, not in this run"
    assert (new.record, new.verdict) == (FORETOLD.format("fp16"), "new")


def test_a_prediction_speaks_for_the_row_of_its_own_precision() -> None:
    """Where that is measured; one that failed says nothing about the others."""

    def edit(*failing: str):
        def change(body: dict[str, Any]) -> None:
            case = {**body["records"][QUERY], "suite": "prediction", "metrics": {}}
            for name in failing:
                key = f"suites/test_prediction.py::test_prediction[opt-350m-query-{name}]"
                body["records"][key] = {
                    **case, "outcome": "failed", "detail": {"predicted_in": name}
                }  # fmt: skip

        return change

    def outcomes(*failing: str) -> dict[str | None, str]:
        return {row.precision: row.outcome for row in comparison_rows([run_with(edit(*failing))])}

    assert outcomes() == {"fp32": "ok", "nf4": "ok"}
    assert outcomes("nf4") == {"fp32": "ok", "nf4": "failed"}
    assert outcomes("int8") == {"fp32": "failed", "nf4": "failed"}  # it has no row of its own


def named(**places: str):
    """A run with one case for each model that lies in a place, called by the label before it."""
    labels = {label.replace("__", "/"): place for label, place in places.items()}

    def edit(body: dict[str, Any]) -> None:
        made = {
            f"suites/test_counts.py::test_counts[{label}-own]":
            {**body["records"][QUERY], "scenario": "own", "rank": 8, "model": label}
            for label in labels
        }  # fmt: skip
        body["records"].clear()
        body["records"].update(made)
        body["selection"] = {"only": {"model": [*labels]}}
        known = {place: label for label, place in labels.items() if place}
        body["detail"] = {
            "models": {label: {"model_type": "llama"} for label in labels},
            "places": {label: place for place, label in known.items()},
        }

    return run_with(edit)


BOTH = {"t1__model": "x/t1/model", "t2__model": "x/t2/model"}


@pytest.mark.parametrize(
    ("before", "after", "case", "others"),
    [
        (named(**BOTH), named(model="x/t2/model"), "t2/model", ()),
        (named(model="x/t2/model"), named(**BOTH), "model", ("t1/model",)),
        # A name that begins as another does.
        (
            named(**BOTH),
            named(model="x/t2/model", **{"model-2": "x/n"}),
            "t2/model",
            ("model-2",),
        ),
    ],
    ids=["alone", "beside another", "beside a name that begins alike"],
)
def test_a_model_is_found_by_its_place_whatever_is_given_beside(
    before, after, case: str, others: tuple[str, ...]
) -> None:
    verdicts = compare(before, after)
    ids = {f"suites/test_counts.py::test_counts[{name}-own]" for name in (case, *others)}
    assert {v.record for v in verdicts} == ids
    assert {v.record for v in verdicts if v.verdict == "new"} == {
        key for key in ids if f"[{case}-" not in key
    }
    assert not [v for v in verdicts if v.verdict == "vanished"]
    assert all(f"[{case}-" not in key for key in left_out(before, after))
    assert any(row.verdict == "unchanged" for row in comparison_rows([after], before))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (named(**BOTH), named(model="x/t3/model")),
        (named(model="x/t3/model"), named(**BOTH)),
        (named(t1__model="", t2__model=""), named(model="x/t1/model")),  # stored by another release
        (named(model=""), named(**BOTH)),
    ],
)
def test_another_model_is_never_taken_for_it_and_the_way_out_is_told(before, after) -> None:
    verdicts = compare(before, after)
    assert {v.verdict for v in verdicts} == {"new"}
    with pytest.raises(BenchError, match="the name depends on which others are given beside"):
        require_common(before, after, verdicts)


def in_place(place: str, peak: int = 0, **fields: object):
    """A run of one model, called `model`, that lies there and has this configuration."""

    def edit(body: dict[str, Any]) -> None:
        record = {**body["records"][QUERY], "scenario": "own", "rank": 8, "model": "model"}
        if peak:
            record["metrics"] = {**record["metrics"], "trainable_parameters": peak}
        body["records"].clear()
        body["records"]["suites/test_counts.py::test_counts[model-own]"] = record
        config = {"model_type": "llama", "hidden_size": 32, **fields}
        body["detail"] = {"models": {"model": config}}
        if place:
            body["detail"]["places"] = {"model": place}

    return run_with(edit)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (in_place("a/model"), in_place("b/model", hidden_size=64), "incomparable"),
        (in_place("a/model"), in_place("b/model", 7, hidden_size=64), "incomparable"),
        (in_place(""), in_place("b/model", hidden_size=64), "incomparable"),  # a registered one
        (in_place("a/model"), in_place("b/model"), "unchanged"),  # the same model, moved
        (in_place("a/model"), in_place("b/model", transformers_version="5"), "unchanged"),
        (in_place("a/model"), in_place("a/model", 7, hidden_size=64), "changed"),  # one, edited
        (in_place(""), in_place("", 7, hidden_size=64), "changed"),
    ],
)
def test_one_name_in_two_places_is_two_models(before, after, verdict: str) -> None:
    verdicts = compare(before, after)
    assert verdict in {v.verdict for v in verdicts}
    if verdict == "incomparable":
        (only,) = verdicts
        assert only.explanation.startswith("another model of the same name: model was in ")
        assert "b/model: hidden_size 32 -> 64" in only.explanation
    elif verdict == "unchanged":
        assert {v.verdict for v in verdicts} == {"unchanged"}


REAL = "model-own-r8-{}-real-weights"


def with_weights(place: str, weights: str, peak: int, precision: str = "int8", code: str = ""):
    """A run of a user's model whose weights and code, by their digests, lie there."""

    def edit(body: dict[str, Any]) -> None:
        key, record = REAL.format(precision), body["records"][STEP]
        facts = {"scenario": "own", "model": "model", "precision": precision}
        metrics = {"trainable_parameters": 4, "peak_allocated_bytes": peak}
        body["records"].clear()
        body["records"][f"suites/test_steps.py::test_step[{key}]"] = {
            **record, **facts, "rank": 8, "metrics": metrics,
        }  # fmt: skip
        subject = {"model": "model", "weights": weights, "code": code or None}
        body["detail"] = {"models": {"model": {"hidden_size": 32}}, "places": {"model": place},
                          "subjects": {key: subject}}  # fmt: skip

    return run_with(edit)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "why"),
    [
        # LLM.int8 keeps as many columns in 16 bits as the values have outliers: 2.7 GiB on an H200
        (("a", "1", 100), ("b", "2", 150), "incomparable", "in another place: other weights"),
        (("a", "1", 100), ("a", "2", 150), "regressed", "other weights, and int8"),  # trained on
        (("a", "1", 100), ("b", "2", 100), "unchanged", ""),
        (("a", "1", 100), ("b", "1", 150), "regressed", "nothing recorded"),  # moved
        (("a", "1", 100, "nf4"), ("b", "2", 150, "nf4"), "regressed", "nothing recorded"),
    ],
)
def test_what_other_weights_decide(before, after, verdict: str, why: str) -> None:
    """Their values decide no figure but int8's; the counts of parameters compare all the same."""
    found = {v.metric: v for v in compare(with_weights(*before), with_weights(*after))}
    assert found["peak_allocated_bytes"].verdict == verdict
    assert why in found["peak_allocated_bytes"].explanation
    assert found["trainable_parameters"].verdict == "unchanged"


def test_equal_configurations_with_other_code_are_two_models() -> None:
    before, after = (with_weights(p, "1", 100, "fp32", code=p) for p in ("a", "b"))
    (only,) = compare(before, after)
    assert only.verdict == "incomparable"
    assert only.explanation.endswith("is in b: other code of its own")
    same = compare(before, with_weights("b", "1", 100, "fp32", code="a"))
    assert {v.verdict for v in same} == {"unchanged"}


def test_a_step_between_two_models_says_so() -> None:
    runs = [in_place("a/model", 5), in_place("a/model", 5), in_place("b/model", 7, hidden_size=64)]
    (series,) = histories(runs, "trainable_parameters")
    (step,) = series.steps
    assert step.changed[0].startswith("another model of the same name: model was in a/model")


def test_a_rank_that_was_asked_for_makes_another_case() -> None:
    asked = Selection(only={"rank": ["16"]})
    verdicts = compare(own(AT_8), own(AT_16), selection=asked)
    assert AT_16 in {v.record for v in verdicts if v.verdict == "new"}


def test_a_case_that_was_not_asked_for_is_left_out() -> None:
    def drop(body: dict[str, Any]) -> None:
        del body["records"][STEP]
        body["selection"] = {"only": {"precision": ["nf4"]}}

    after = run_with(drop)
    assert left_out(run_with(), after) == [STEP]
    assert not [v for v in compare(run_with(), after) if v.record == STEP]


def test_what_another_file_holds_is_left_out() -> None:
    def drop_all(body: dict[str, Any]) -> None:
        body["records"].clear()
        body["selection"] = {"arguments": ["suites/test_counts.py"]}

    assert left_out(run_with(), run_with(drop_all)) == [STEP, STEP_NF4]


def test_ratios_of_launches_by_hand() -> None:
    """Pairs are added, what the order did cancels; each launch gives the median of its pairs."""
    old = [1.0, 3.0, 2.0, 2.0, 1.0, 1.0]
    new = [3.0, 1.0, 4.0, 4.0, 3.0, 5.0]
    assert launch_ratios(old, new, 3) == [1.0, 2.0, 4.0]
    assert launch_ratios(old, new, 1) == [2.0]


@pytest.mark.parametrize(
    ("old", "new"), [([1.0, 1.0, 1.0], [1.0] * 3), ([1.0] * 2, [1.0] * 4), ([1.0] * 4, [1.0] * 2)]
)
def test_rounds_without_a_partner_raise(old: list[float], new: list[float]) -> None:
    with pytest.raises(ValueError, match="zip"):
        launch_ratios(old, new, 1)
