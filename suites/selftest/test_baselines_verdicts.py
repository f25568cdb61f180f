"""Every verdict from hand-made runs: exact figures, memory, outcomes, cases that come and go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_baselines import MIB, QUERY, STEP, STEP_NF4, run_with
from verdict_edits import BASE, Edit, both, found, metric, only, outcome, peft

from bench.baselines import (
    Selection,
    Thresholds,
    compare,
    gate,
)

PROPERTY = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def test_the_same_run_is_unchanged_throughout() -> None:
    verdicts = compare(BASE, run_with())
    assert {item.verdict for item in verdicts} == {"unchanged"}
    assert [item.metric for item in verdicts if item.record == QUERY] == [
        "adapted_layers",
        "trainable_parameters",
        "total_parameters",
    ]
    assert len(verdicts) == 9
    assert gate(verdicts) == []


def test_an_exact_figure_that_differs_by_one_is_changed() -> None:
    verdict = only(metric(QUERY, "trainable_parameters", 786433))
    assert (verdict.record, verdict.metric, verdict.verdict) == (
        QUERY,
        "trainable_parameters",
        "changed",
    )
    assert (verdict.baseline, verdict.contender) == (786432, 786433)
    assert verdict.explanation == "nothing recorded explains it: same libraries, same roles"


def test_fewer_is_as_much_a_change_as_more() -> None:
    assert only(metric(QUERY, "trainable_parameters", 1)).verdict == "changed"


def test_a_change_names_the_role_the_dead_entry_and_the_library() -> None:
    def edit(body: dict[str, Any]) -> None:
        record = body["records"][QUERY]
        record["metrics"]["adapted_layers"] = 36
        record["detail"] = {
            "adapted_by_role": {"query": 12, "query_key_value": 24},
            "dead_entries": ["q_proj"],
        }
        body["versions"]["peft"] = "0.22.0"

    assert only(edit).explanation == (
        "query_key_value 0 -> 24; query 24 -> 12; dead now: q_proj; peft 0.21.2 -> 0.22.0"
    )


def test_a_doubled_rank_and_a_changed_dtype_are_named() -> None:
    def edit(body: dict[str, Any]) -> None:
        body["records"][QUERY]["metrics"]["trainable_parameters"] *= 2
        body["records"][QUERY]["rank"] = 16
        body["records"][STEP]["metrics"]["peak_allocated_bytes"] //= 2
        body["records"][STEP]["precision"] = "bf16"

    changed, improved = found(edit)
    assert (changed.verdict, changed.explanation) == ("changed", "rank 8 -> 16")
    assert (improved.verdict, improved.explanation) == ("improved", "precision fp32 -> bf16")


def test_a_text_metric_is_equal_or_changed() -> None:
    verdict = only(metric(QUERY, "ledger_digest", "bbb"), metric(QUERY, "ledger_digest", "aaa"))
    assert (verdict.verdict, verdict.baseline, verdict.ratio) == ("changed", "aaa", None)


@pytest.mark.parametrize(
    ("name", "mib", "verdict"),
    [
        ("peak_allocated_bytes", 1010, None),  # 1 % is tolerated
        ("peak_allocated_bytes", 1011, "regressed"),
        ("peak_allocated_bytes", 991, None),
        ("peak_allocated_bytes", 990, "improved"),  # 1000 / 1.01 = 990.1
        ("peak_rss_bytes", 1575, None),  # 5 % of 1500
        ("peak_rss_bytes", 1576, "regressed"),
        ("peak_rss_bytes", 1429, None),  # 1500 / 1.05 = 1428.6
        ("peak_rss_bytes", 1428, "improved"),
    ],
)
def test_memory_thresholds(name: str, mib: int, verdict: str | None) -> None:
    assert [v.verdict for v in found(metric(STEP, name, mib * MIB))] == [verdict] * bool(verdict)


def test_memory_from_nothing() -> None:
    name = "loaded_bytes"
    assert only(metric(STEP, name, 1), metric(STEP, name, 0)).verdict == "regressed"
    assert only(metric(STEP, name, 0), metric(STEP, name, 1)).verdict == "improved"
    assert found(metric(STEP, name, 0), metric(STEP, name, 0)) == []


def _rss(peak: int, files: object) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        body["records"][STEP]["metrics"]["peak_rss_bytes"] = peak * MIB
        body["records"][STEP]["detail"]["file_pages_bytes"] = files

    return edit


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((1500, 300 * MIB), (1600, 400 * MIB), None),  # all of the rise are pages of files
        ((1500, 300 * MIB), (1600, 300 * MIB), "regressed"),  # 1200 -> 1300
        ((1500, 300 * MIB), (1600, 345 * MIB), None),  # 1200 -> 1255, under 5 %
        ((1500, 300 * MIB), (1400, 100 * MIB), "regressed"),  # the same, and less of files
        ((1500, 300 * MIB), (1500, 450 * MIB), "improved"),  # 1200 -> 1050
        ((1500, 300 * MIB), (1600, None), "regressed"),  # not told: the whole peak counts
        ((1500, 0), (1600, 100 * MIB), "regressed"),
        ((1500, "300"), (1600, 400 * MIB), "regressed"),
        ((1500, 300 * MIB), (1600, 2000 * MIB), "regressed"),
    ],
)
def test_pages_of_files_alone_are_no_regression(old: Any, new: Any, verdict: str | None) -> None:
    runs = run_with(_rss(*old)), run_with(_rss(*new))
    found = {(v.record, v.metric): v for v in compare(*runs)}[STEP, "peak_rss_bytes"]
    assert found.verdict == (verdict or "unchanged")
    assert ("only pages of files" in found.explanation) == (verdict is None)
    if new[1] == 100 * MIB and old[1]:
        sizes, *why = found.explanation.split("; ")
        assert sizes == "without pages of files 1.172 GiB -> 1.270 GiB"
        assert why in ([], ["nothing recorded explains it: same libraries, same roles"])
    assert found.ratio == pytest.approx(new[0] / old[0])


def test_more_memory_of_its_own_under_the_same_peak() -> None:
    """Pages of files made room for it: the peak did not change, and there is nothing to explain."""
    runs = run_with(_rss(1500, 300 * MIB)), run_with(_rss(1500, 200 * MIB))
    found = {(v.record, v.metric): v for v in compare(*runs)}[STEP, "peak_rss_bytes"]
    assert (found.verdict, found.ratio) == ("regressed", 1.0)
    assert found.explanation == "without pages of files 1.172 GiB -> 1.270 GiB"


def test_outcomes() -> None:
    broke = only(both(outcome(STEP, "oom"), peft("0.22.0")))
    assert (broke.metric, broke.verdict) == ("outcome", "regressed")
    assert (broke.baseline, broke.contender) == ("ok", "oom")
    assert broke.explanation == "peft 0.21.2 -> 0.22.0"

    def unrecorded(body: dict[str, Any]) -> None:  # by a case that failed early
        body["records"][STEP]["detail"].pop("seq_len")

    failed = found(both(outcome(STEP, "failed"), unrecorded, peft("0.22.0")))
    assert [f.explanation for f in failed if f.metric == "outcome"] == ["peft 0.21.2 -> 0.22.0"]
    assert only(outcome(STEP, "ok"), outcome(STEP, "crashed")).verdict == "improved"
    assert only(outcome(STEP, "crashed"), outcome(STEP, "oom")).verdict == "changed"
    assert found(outcome(STEP, "oom"), outcome(STEP, "oom")) == []


def test_out_of_memory_on_a_smaller_machine_is_incomparable() -> None:
    def smaller(body: dict[str, Any]) -> None:
        body["machine"]["memory_bytes"] = 1024

    def ended(name: str) -> str:
        found = compare(run_with(), run_with(both(outcome(STEP, name), smaller)))
        return next(item.verdict for item in found if item.metric == "outcome")

    assert ended("oom") == "incomparable"
    assert ended("timed-out") == "incomparable"
    assert ended("crashed") == "regressed"


def test_a_vanished_case_and_a_new_one() -> None:
    def drop(body: dict[str, Any]) -> None:
        del body["records"][STEP]
        record = body["records"][QUERY]
        body["records"]["suites/test_counts.py::test_counts[gpt2-query]"] = {
            **record,
            "model": "gpt2",
        }

    vanished, new = found(drop)
    assert (vanished.record, vanished.metric, vanished.verdict) == (STEP, "case", "vanished")
    assert vanished.explanation == "in the baseline, not in this run"
    assert (new.record, new.metric, new.verdict) == (
        "suites/test_counts.py::test_counts[gpt2-query]",
        "case",
        "new",
    )


def test_a_renamed_case_vanishes_with_a_hint() -> None:
    def rename(body: dict[str, Any]) -> None:
        body["records"]["suites/test_steps.py::test_other"] = body["records"].pop(STEP)

    vanished, new = found(rename)
    assert (vanished.verdict, new.verdict) == ("vanished", "new")
    assert "renamed? the new suites/test_steps.py::test_other" in vanished.explanation


def test_a_narrowed_run_makes_only_its_own_cases_vanish() -> None:
    def drop_all(body: dict[str, Any]) -> None:
        body["records"].clear()

    def gone(**options: Any) -> list[str]:
        return [verdict.record for verdict in found(drop_all, **options)]

    assert gone() == [QUERY, STEP, STEP_NF4]
    assert gone(selection=Selection(("suites/test_counts.py",))) == [QUERY]
    assert gone(selection=Selection(("suites",), frozenset([STEP]))) == [QUERY, STEP_NF4]
    everything = gone(selection=Selection())
    assert gone(selection=Selection(only={"precision": ("nf4",)})) == [QUERY, STEP_NF4]
    assert gone(selection=Selection(only={"model": ("another",)})) == []
    assert gone(selection=Selection(only={"scenario": ("another",)})) == []
    assert gone(selection=Selection(only={"rank": ("8",)})) == everything
    assert gone(selection=Selection(only={"rank": ("4",)})) == []

    def narrowed(body: dict[str, Any]) -> None:
        drop_all(body)
        body["selection"] = {"arguments": ["suites/test_steps.py"], "deselected": [STEP]}

    assert [verdict.record for verdict in found(narrowed)] == [STEP_NF4]

    def one_precision(body: dict[str, Any]) -> None:
        narrowed(body)
        body["selection"]["only"] = {"precision": ["fp32"]}

    assert found(one_precision) == []


def test_a_metric_that_vanished_or_is_new() -> None:
    def drop(body: dict[str, Any]) -> None:
        del body["records"][STEP]["metrics"]["peak_rss_bytes"]
        body["records"][STEP]["metrics"]["loaded_bytes"] = 5

    vanished, new = found(drop)
    assert (vanished.metric, vanished.verdict, vanished.baseline) == (
        "peak_rss_bytes",
        "vanished",
        1500 * MIB,
    )
    assert (new.metric, new.verdict, new.contender) == ("loaded_bytes", "new", 5)


def test_another_workload_is_incomparable() -> None:
    def edit(body: dict[str, Any]) -> None:
        body["records"][STEP]["detail"]["batch_size"] = 4

    verdicts = found(edit)
    assert {item.metric for item in verdicts} == {
        "peak_allocated_bytes",
        "peak_rss_bytes",
        "step_seconds",
    }
    assert {item.explanation for item in verdicts} == {"another workload: batch_size 2 -> 4"}
    assert {item.verdict for item in verdicts} == {"incomparable"}


@PROPERTY
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0, 1))
def test_swapping_the_runs_mirrors_a_memory_verdict(old: int, new: int, tolerated: float) -> None:
    mirror = {"regressed": "improved", "improved": "regressed", "unchanged": "unchanged"}
    one, two = (run_with(metric(STEP, "loaded_bytes", value)) for value in (old, new))
    thresholds = Thresholds().with_table({"loaded_bytes": tolerated}, "here")

    def verdict(first: Any, second: Any) -> str:
        (item,) = (v for v in compare(first, second, thresholds) if v.metric == "loaded_bytes")
        return item.verdict

    assert verdict(one, one) == "unchanged"
    assert verdict(two, one) == mirror[verdict(one, two)]


def _models(**fields: Any) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        model = body["records"][QUERY]["model"]
        body.setdefault("detail", {})["models"] = {model: {**_CONFIG, **fields}}

    return edit


_CONFIG = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 20, "attention_dropout": 0.0,
           "rope_theta": 10000.0, "text_config.num_experts": 8}  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "fields", "named"),
    [
        ("predicted_flops", {"num_hidden_layers": 3}, "num_hidden_layers 2 -> 3"),
        ("predicted_operations", {"hidden_size": 64}, "hidden_size 32 -> 64"),
        ("trainable_parameters", {"text_config.num_experts": 9}, "text_config.num_experts 8 -> 9"),
        ("predicted_flops", {"attention_dropout": 0.1}, "attention_dropout 0.0 -> 0.1"),
        ("trainable_parameters", {"attention_dropout": 0.1}, None),  # no step has a part in it
        ("adapted_layers", {"hidden_size": 64}, None),  # a width adds no layer
        ("adapted_layers", {"num_hidden_layers": 3}, "num_hidden_layers 2 -> 3"),
        ("predicted_flops", {"rope_theta": 5.0}, None),
        ("predicted_flops", {"new_field": True}, "new_field absent -> True"),
    ],
)
def test_a_changed_config_is_named_where_it_can_be_the_cause(
    figure: str, fields: dict[str, Any], named: str | None
) -> None:
    before = run_with(both(metric(QUERY, figure, 100), _models()))
    after = run_with(both(metric(QUERY, figure, 200), _models(**fields)))
    (found,) = [v for v in compare(before, after) if (v.record, v.metric) == (QUERY, figure)]
    nothing = "nothing recorded explains it: same libraries, same roles"
    assert (found.verdict, found.explanation) == ("changed", named or nothing)


def test_an_adapters_other_fields_are_named_and_what_an_older_run_lacks() -> None:
    def adapter(**fields: Any) -> Edit:
        return lambda body: body["records"][QUERY]["detail"].update(adapter=fields)

    figure = "trainable_parameters"
    plain, dora = adapter(use_dora=False, lora_alpha=8), adapter(use_dora=True, lora_alpha=16)
    before = run_with(both(metric(QUERY, figure, 100), plain, _models()))
    after = run_with(both(metric(QUERY, figure, 200), dora, _models()))
    (found,) = [v for v in compare(before, after) if (v.record, v.metric) == (QUERY, figure)]
    assert found.explanation == "use_dora False -> True"
    older, newer = run_with(metric(QUERY, figure, 100)), run_with(_models())
    (found,) = [v for v in compare(older, newer) if (v.record, v.metric) == (QUERY, figure)]
    assert "does not record the model's configuration" in found.explanation
