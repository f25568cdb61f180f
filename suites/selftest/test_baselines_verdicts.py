"""Every verdict from hand-made runs, what the gate lets through, and the verdict file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_baselines import MIB, QUERY, STEP, STEP_NF4, run_with

from bench.baselines import (
    FAILING,
    METRICS,
    VERDICTS,
    Selection,
    Thresholds,
    Verdict,
    all_thresholds,
    compare,
    count_verdicts,
    gate,
    write_verdicts,
)
from bench.errors import BenchError

PROPERTY = settings(max_examples=60, derandomize=True, deadline=None, database=None)
Edit = Callable[[dict[str, Any]], None]
BASE = run_with(name="base")


def metric(record: str, name: str, value: Any) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        body["records"][record]["metrics"][name] = value

    return edit


def both(*edits: Edit) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        for each in edits:
            each(body)

    return edit


def outcome(record: str, word: str) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        body["records"][record]["outcome"] = word
        if word != "ok":
            body["records"][record]["metrics"].pop("step_seconds", None)

    return edit


def peft(version: str) -> Edit:
    return lambda body: body["versions"].update(peft=version)


def found(edit: Edit, base: Edit | None = None, **options: Any) -> list[Verdict]:
    """The verdicts other than unchanged between the sample (after `base`) and its edited copy."""
    baseline = run_with(base, "base") if base else BASE
    verdicts = compare(baseline, run_with(edit), **options)
    return [item for item in verdicts if item.verdict != "unchanged"]


def only(edit: Edit, base: Edit | None = None, **options: Any) -> Verdict:
    (verdict,) = found(edit, base, **options)
    return verdict


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
        "query_key_value 0 -> 24; query 24 -> 12; no longer reach a module: q_proj; "
        "peft 0.21.2 -> 0.22.0"
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


def slower(factor: float, rounds: int = 20) -> list[float]:
    return [factor * (0.8 + 0.001 * (i % 5)) for i in range(rounds)]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.10, "regressed"), (1.03, None), (1.0, None), (0.97, None), (0.90, "improved")],
)
def test_time_verdicts(factor: float, verdict: str | None) -> None:
    verdicts = found(
        metric(STEP, "step_seconds", slower(factor)), metric(STEP, "step_seconds", slower(1))
    )
    assert [item.verdict for item in verdicts] == [verdict] * bool(verdict)
    for item in verdicts:
        assert item.interval is not None
        assert item.interval[0] <= factor <= item.interval[1]
        assert item.baseline == pytest.approx(0.802)
        assert item.threshold == 0.05


def test_a_median_beyond_the_threshold_is_not_enough() -> None:
    """The medians differ by 10 %, the rounds by far more: nothing can be said."""
    wide = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]
    base = metric(STEP, "step_seconds", wide)
    assert found(metric(STEP, "step_seconds", [1.1 * x for x in wide]), base) == []


@pytest.mark.parametrize(("old", "new"), [(4, 20), (20, 4), (1, 1)])
def test_too_few_rounds_say_nothing_but_that(old: int, new: int) -> None:
    baseline = run_with(metric(STEP, "step_seconds", slower(1, old)))
    contender = run_with(metric(STEP, "step_seconds", slower(10, new)))
    (verdict,) = [
        v for v in compare(baseline, contender) if (v.record, v.metric) == (STEP, "step_seconds")
    ]
    assert verdict.verdict == "unchanged"
    assert verdict.explanation == (
        f"too few rounds to judge: {old} and {new}, and each side needs 5"
    )
    assert verdict.ratio == pytest.approx(10, rel=0.01)


def test_a_clock_that_did_not_move_says_nothing() -> None:
    assert found(metric(STEP, "step_seconds", [0.0] * 9)) == []


def _together(factor: float, launches: object = 10, token: str = "one") -> Edit:
    """Rounds that vary by a factor of two, within each launch and not between launches."""

    def edit(body: dict[str, Any]) -> None:
        record = body["records"][STEP]
        times = [factor * (0.5 + 0.1 * i) for _ in range(10) for i in range(4)]
        record["metrics"]["step_seconds"] = times
        record["detail"] |= {"interleaved": token, "launches": launches}

    return edit


def test_rounds_of_launches_are_compared_side_by_side() -> None:
    verdict = only(_together(1.1), _together(1.0))
    assert verdict.verdict == "regressed"
    assert verdict.interval == pytest.approx((1.1, 1.1))
    assert found(_together(1.1, token="two"), _together(1.0)) == []  # not each other's rounds
    assert found(_together(1.1, launches=5), _together(1.0)) == []
    # Numbers that do not fit the rounds, in a stored run that somebody wrote.
    for strange in (0, -1, 7, "10", None, [10]):
        assert found(_together(1.1, strange), _together(1.0, strange)) == []


def test_too_few_launches_give_no_verdict() -> None:
    runs = (run_with(_together(factor, launches=5)) for factor in (1.0, 2.0))
    (verdict,) = [v for v in compare(*runs) if (v.record, v.metric) == (STEP, "step_seconds")]
    assert (verdict.verdict, verdict.interval) == ("unchanged", None)
    assert verdict.explanation == "too few launches to judge: 5, and it needs 8"


@pytest.mark.parametrize("side", ["baseline", "contender", "both"])
def test_unstable_times_are_not_judged(side: str) -> None:
    def unstable(body: dict[str, Any]) -> None:
        body["records"][STEP]["detail"]["unstable"] = "IQR 31 %"

    twice = metric(STEP, "step_seconds", slower(2))
    baseline = run_with(both() if side == "contender" else unstable)
    contender = run_with(twice if side == "baseline" else both(twice, unstable))
    verdicts = {(v.record, v.metric): v for v in compare(baseline, contender)}
    time = verdicts[STEP, "step_seconds"]
    assert (time.verdict, time.interval) == ("unchanged", None)
    assert time.explanation == "time cannot be judged, unstable measurement: IQR 31 %"
    assert time.ratio == pytest.approx(2, rel=0.01)
    # What does not depend on the clock is judged all the same.
    bytes_too = both(twice, unstable, metric(STEP, "peak_allocated_bytes", 900 * MIB))
    assert only(bytes_too).metric == "peak_allocated_bytes"


def test_launches_side_by_side_are_judged_though_their_rounds_spread() -> None:
    def unstable(body: dict[str, Any]) -> None:
        body["records"][STEP]["detail"]["unstable"] = "IQR 31 %"

    assert only(both(_together(1.1), unstable), both(_together(1.0), unstable)).ratio == (
        pytest.approx(1.1)
    )


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


def test_thresholds_by_metric_kind_and_scenario() -> None:
    peak, rss, step = (
        METRICS[name] for name in ("peak_allocated_bytes", "peak_rss_bytes", "step_seconds")
    )
    assert [Thresholds().of(item) for item in (peak, rss, step)] == [0.01, 0.05, 0.05]
    assert Thresholds().of(METRICS["trainable_parameters"]) == 0
    project = Thresholds().with_table({"time": "8%", "step_seconds": 0.07}, "pyproject.toml")
    fixture = project.with_table({"step_seconds": "20%"}, "roles.toml", scenario="query")
    command = fixture.with_options(["peak_rss_bytes=2%"])
    assert command.of(METRICS["forward_seconds"]) == 0.08
    assert (command.of(step), command.of(step, "query"), command.of(step, "key")) == (
        0.07,
        0.20,
        0.07,
    )
    assert command.of(rss) == 0.02
    assert fixture.with_options(["time=1%"]).of(step, "query") == 0.01  # the last layer decides


def test_thresholds_from_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyproject, the scenario's fixture, the command line, in this order; a wrong one is named."""
    scenarios = tmp_path / "scenarios"
    scenarios.mkdir()
    fixture = scenarios / "mine.toml"
    text = '[scenario.query]\nroles = ["query"]\n[scenario.query.thresholds]\n'
    fixture.write_text(text + 'step_seconds = "20%"\n')
    monkeypatch.setattr("bench.scenarios.scenario.FIXTURES", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.bench.thresholds]\ntime = "8%"\n')
    step = METRICS["step_seconds"]
    found = all_thresholds((), project)
    assert (found.of(step, "query"), found.of(step, "key")) == (0.20, 0.08)
    found = all_thresholds(["time=1%"], project)
    assert (found.of(step, "query"), found.of(step, "key")) == (0.01, 0.01)
    project.write_text('[tool.bench.thresholds]\ntimes = "8%"\n')
    with pytest.raises(BenchError, match=r"pyproject\.toml: tool\.bench\.thresholds.*times"):
        all_thresholds((), project)
    project.unlink()
    fixture.write_text(text + 'step_secnds = "20%"\n')
    with pytest.raises(BenchError, match=r"scenario query: thresholds.*step_seconds"):
        all_thresholds((), project)


def test_a_threshold_changes_a_verdict() -> None:
    edit = metric(STEP, "peak_allocated_bytes", 1100 * MIB)
    assert only(edit).verdict == "regressed"
    assert found(edit, thresholds=Thresholds().with_options(["peak_allocated_bytes=10%"])) == []


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("step_second=10%", "did you mean step_seconds"),
        ("step_seconds", "METRIC=NUMBER"),
        ("step_seconds=fast", "not a threshold"),
        ("step_seconds=", "not a threshold"),
        ("step_seconds=-1%", "0 or more"),
        ("step_seconds=nan", "0 or more"),
        ("step_seconds=inf%", "0 or more"),
        ("step_seconds=10", "write 10%"),
        ("adapted_layers=1%", "equal or changed"),
        ("exact=1%", "equal or changed"),
    ],
)
def test_a_wrong_threshold_is_named(option: str, reason: str) -> None:
    with pytest.raises(BenchError, match=reason):
        Thresholds().with_options([option])


def test_a_wrong_threshold_in_a_table_names_the_file() -> None:
    for table in ({"step_seconds": True}, {"step_seconds": None}, {"step_seconds": [1]}):
        with pytest.raises(BenchError, match=r"pyproject\.toml"):
            Thresholds().with_table(table, "pyproject.toml")


MIXED = [Verdict(f"suites/a.py::test[{i}-{word}]", "case", word) for i, word in enumerate(VERDICTS)]


def test_the_gate_fails_four_verdicts() -> None:
    assert [item.verdict for item in gate(MIXED)] == list(FAILING)
    assert FAILING == ("regressed", "changed", "vanished", "incomparable")
    assert count_verdicts(MIXED) == dict.fromkeys(VERDICTS, 1)


@pytest.mark.parametrize(
    ("allow", "left"),
    [
        (["vanished"], ["regressed", "changed", "incomparable"]),
        (["vanished", "incomparable"], ["regressed", "changed"]),
        (["*"], []),
        (["suites/a.py::test[1-changed]"], ["regressed", "vanished", "incomparable"]),
        (["suites/a.py::test[1*"], ["regressed", "vanished", "incomparable"]),
        (["changed:*test[1-*"], ["regressed", "vanished", "incomparable"]),
        (["vanished:*test[1-*"], list(FAILING)),
        (["suites/b.py*"], list(FAILING)),
    ],
)
def test_what_is_allowed(allow: list[str], left: list[str]) -> None:
    assert [item.verdict for item in gate(MIXED, allow)] == left


@pytest.mark.parametrize("word", ["vanishd", "", "all"])
def test_a_misspelt_allowance_is_an_error(word: str) -> None:
    with pytest.raises(BenchError, match="verdict to allow"):
        gate(MIXED, [word])


def test_the_verdict_file(tmp_path: Path) -> None:
    edit = both(metric(QUERY, "adapted_layers", 12), metric(STEP, "loaded_bytes", 7), peft("0.22"))
    contender = run_with(edit)
    baseline = run_with(metric(STEP, "loaded_bytes", 0))
    verdicts = compare(baseline, contender)
    path = tmp_path / "verdicts.json"
    write_verdicts(path, verdicts, gate(verdicts, ["regressed"]), baseline, contender)
    document = json.loads(path.read_text())
    assert (document["schema"], document["passed"]) == (1, False)
    assert document["summary"]["changed"] == document["summary"]["regressed"] == 1
    assert document["contender"]["versions"]["peft"] == "0.22"
    by_metric = {(item["record"], item["metric"]): item for item in document["verdicts"]}
    assert len(by_metric) == len(verdicts)
    assert by_metric[QUERY, "adapted_layers"] == {
        "record": QUERY,
        "metric": "adapted_layers",
        "unit": "count",
        "verdict": "changed",
        "baseline": 24,
        "contender": 12,
        "ratio": 0.5,
        "interval": None,
        "threshold": 0.0,
        "explanation": "peft 0.21.2 -> 0.22",
        "fails": True,
    }
    loaded = by_metric[STEP, "loaded_bytes"]
    assert (loaded["ratio"], loaded["fails"]) == (None, False)  # from zero; allowed
    assert len(by_metric[STEP, "step_seconds"]["interval"]) == 2


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
