"""Tables checked cell by cell against numbers written by hand, in every form they are written."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest
from report_runs import GPU, case, cells, many, run_of
from test_baselines import MIB, QUERY, STEP, run_with

from bench.baselines import compare, gate
from bench.reports import (
    Report,
    Table,
    comparison_report,
    comparison_rows,
    comparison_table,
    latex,
    markdown,
    terminal,
)


def test_each_measured_case_is_a_row_with_the_counted_figures_filled_in() -> None:
    fp32, nf4 = comparison_rows([run_with()])
    assert (fp32.model, fp32.scenario, fp32.rank, fp32.precision) == (
        "opt-350m",
        "query",
        8,
        "fp32",
    )
    assert (fp32.layers, fp32.trainable, fp32.total) == (24, 786432, 331982848)
    assert fp32.share_percent == pytest.approx(0.236889, rel=1e-5)
    assert (fp32.peak_allocated_bytes, fp32.peak_reserved_bytes) == (1000 * MIB, None)
    assert fp32.peak_rss_bytes == 1500 * MIB
    assert fp32.step_median_seconds == pytest.approx(0.80)
    assert fp32.step_iqr_seconds == pytest.approx(0.015)  # quartiles 0.7925 and 0.8075
    assert fp32.rounds == 6
    assert (nf4.precision, nf4.rounds, nf4.step_median_seconds) == ("nf4", 5, 1.25)
    assert nf4.verdict is None


def test_a_case_with_figures_of_its_own_keeps_them() -> None:
    counted = case("m", None, metrics={"adapted_layers": 24, "trainable_parameters": 7})
    own = case("m", "nf4", metrics={"adapted_layers": 6})
    (row,) = comparison_rows([run_of(counted, own)])
    assert (row.precision, row.layers, row.trainable) == ("nf4", 6, 7)


def test_markdown_cell_by_cell() -> None:
    text = markdown(comparison_report([run_with()]))
    header, rule, *rows = cells(text)
    assert header == [
        "scenario",
        "r",
        "layers",
        "trainable",
        "share",
        "precision",
        "peak allocated",
        "peak RSS",
        "step time",
    ]
    assert rule[1].endswith("-:")
    assert rows == [
        ["query", "8", "24", "786,432", "0.237 %", "fp32", "1,000 MiB", "1.465 GiB", "800 ± 15 ms"],
        [
            "query",
            "8",
            "24",
            "786,432",
            "0.237 %",
            "nf4",
            "300.0 MiB",
            "700.0 MiB",
            "1.25 ± 0.06 s",
        ],
    ]
    assert "### opt-350m" in text
    for part in ("linux-x86\\_64-cpu", "1 thread;", "torch 2.13.0+cpu", "batch × length 2 × 64"):
        assert part in text
    assert "median ± interquartile range" in text


def test_models_are_grouped_and_a_reduced_geometry_stands_apart() -> None:
    reduced = {"detail": {"batch_size": 2, "seq_len": 64, "geometry": "6 of 24 layers"}}
    full = {"metrics": {"adapted_layers": 24}}
    text = markdown(
        comparison_report(
            [
                run_of(
                    case("opt-350m", "fp32", **reduced, metrics={"adapted_layers": 6}),
                    case("phi-3-medium", "fp32", metrics={"adapted_layers": 80}),
                    case("opt-350m", "bf16", **reduced),
                    case("opt-350m", None, **full),
                )
            ]
        )
    )
    assert re.findall("### (.*)", text) == ["opt-350m (6 of 24 layers)", "phi-3-medium"]
    rows = [row for row in cells(text) if row[0] == "query"]
    assert [(row[2], row[3]) for row in rows] == [("6", "fp32"), ("—", "bf16"), ("80", "fp32")]
    assert "1 further case counted but not measured" in text


def test_precisions_and_ranks_in_order() -> None:
    names = ("nf4", "zz4", "bf16", "int8", "fp32", "fp16")
    rows = comparison_rows(
        [run_of(*(case("m", name, rank=rank) for rank in (64, 8) for name in names))]
    )
    order = ["fp32", "bf16", "fp16", "int8", "nf4", "zz4"]
    assert [(row.rank, row.precision) for row in rows] == [(r, p) for r in (8, 64) for p in order]


def test_a_run_without_measurements_lists_its_counts_once() -> None:
    counted = case("gpt2", None, rank=None, suite="counts", metrics={"adapted_layers": 12})
    eight = case("gpt2", None, metrics={"trainable_parameters": 10, "total_parameters": 1000})
    rows = comparison_rows([run_of(counted, eight, {**eight, "rank": 16})])
    assert [(row.rank, row.layers, row.trainable, row.share_percent) for row in rows] == [
        (8, 12, 10, 1.0),
        (16, 12, 10, 1.0),
    ]
    assert cells(markdown(comparison_report([run_of(counted, eight)])))[2:] == [
        ["query", "8", "12", "10", "1.00 %"]
    ]


def test_outcomes_are_words_in_the_cells() -> None:
    figures = {"peak_allocated_bytes": MIB, "step_seconds": [0.5]}
    oom = case("m", "fp32", outcome="oom")
    late = case("m", "bf16", outcome="timed-out", metrics={"peak_allocated_bytes": MIB})
    diverged = case("m", "fp16", outcome="diverged", metrics=figures)
    table = cells(markdown(comparison_report([run_of(oom, late, diverged)])))
    assert table[0][2:] == ["precision", "peak allocated", "step time"]
    assert [row[2:] for row in table[2:]] == [
        ["fp32", "out of memory", "out of memory"],
        ["bf16", "1.000 MiB", "timed out"],
        ["fp16", "1.000 MiB", "500 ± 0 ms (diverged)"],
    ]


def test_a_failed_count_and_its_dead_entries_are_told() -> None:
    """There is no figure in whose place the outcome could stand."""
    detail = {"dead_entries": ["dead"], "adapter": {"r": 8}}
    counted = [
        case(model, None, scenario="own", outcome="failed", metrics={"adapted_layers": 2},
             detail=detail) for model in ("one", "two")
    ]  # fmt: skip
    text = markdown(comparison_report([run_of(*counted)]))
    assert cells(text)[0][:3] == ["scenario", "r", "outcome"]
    assert [row[2] for row in cells(text) if row[0] == "own"] == ["failed", "failed"]
    assert "failed: one own r8, two own r8\n" in text
    told = "dead: dead reaches nothing on one (own r8), dead reaches nothing on two (own r8)"
    assert told in text
    known = case("one", None, scenario="published-1", detail={"dead_entries": ["dead"]})
    assert "dead" not in markdown(comparison_report([run_of(known)]))


def test_allocated_and_reserved_never_share_a_column() -> None:
    cpu = run_of(
        case("m", "fp32", metrics={"peak_allocated_bytes": MIB, "peak_rss_bytes": 2 * MIB})
    )
    gpu = run_of(
        case(
            "m", "fp32", metrics={"peak_allocated_bytes": 3 * MIB, "peak_reserved_bytes": 4 * MIB}
        ),
        name="gpu",
        accelerator=GPU,
    )
    assert cells(markdown(comparison_report([cpu])))[0][3:] == ["peak allocated", "peak RSS"]
    assert cells(markdown(comparison_report([gpu])))[0][3:] == ["peak allocated", "peak reserved"]
    header, _, first, second = cells(markdown(comparison_report([cpu, gpu])))
    columns = ("run", "peak allocated", "peak reserved", "peak RSS")
    at = [header.index(name) for name in columns]
    assert [first[i] for i in at] == ["mine", "1.000 MiB", "—", "2.000 MiB"]
    assert [second[i] for i in at] == ["gpu", "3.000 MiB", "4.000 MiB", "—"]
    assert "1 × NVIDIA H200 with 140.0 GiB, driver 570.1, CUDA 12.8" in markdown(
        comparison_report([gpu])
    )


def test_what_the_whole_process_takes_on_the_gpu_is_shown_where_it_is_known() -> None:
    """Runs stored before it was are loaded and compared all the same."""
    metrics = {"peak_allocated_bytes": 3 * MIB, "peak_reserved_bytes": 4 * MIB}
    before = run_of(case("m", "fp32", metrics=metrics), accelerator=GPU)
    now = metrics | {"process_bytes": 500 * MIB}
    after = run_of(case("m", "fp32", metrics=now), name="after", accelerator=GPU)
    header, _, row = cells(markdown(comparison_report([after])))
    assert header[3:] == ["peak allocated", "peak reserved", "process on the GPU"]
    assert row[3:] == ["3.000 MiB", "4.000 MiB", "500.0 MiB"]
    assert comparison_table([after])["process on the GPU [bytes]"].tolist() == [500 * MIB]
    found = {verdict.metric: verdict.verdict for verdict in compare(before, after)}
    assert found == {
        "peak_allocated_bytes": "unchanged",
        "peak_reserved_bytes": "unchanged",
        "process_bytes": "new",
    }
    assert gate(compare(before, after)) == []
    more = run_of(case("m", "fp32", metrics=now | {"process_bytes": 526 * MIB}), accelerator=GPU)
    (regressed,) = gate(compare(after, more))  # 5 % are 525 MiB
    assert (regressed.metric, regressed.verdict) == ("process_bytes", "regressed")


def test_unstable_measurements_carry_a_mark_and_a_footnote() -> None:
    def shaky(reason: str) -> dict[str, Any]:
        return {"metrics": {"step_seconds": [0.5]}, "detail": {"unstable": reason}}

    run = run_of(
        case("m", "fp32", **shaky("IQR\n31 %")),
        case("m", "bf16", metrics={"step_seconds": [0.5]}),
        case("m", "nf4", **shaky("throttled")),
        case("m", "int8", **shaky("IQR\n31 %")),
    )
    report = comparison_report([run])
    marks = [row[2] for row in cells(markdown(report))[2:]]
    assert marks == ["fp32 †1", "bf16", "int8 †1", "nf4 †2"]
    assert report.notes[1:] == ("†1 unstable: IQR 31 %", "†2 unstable: throttled")


def test_against_a_baseline() -> None:
    def edit(body: dict[str, Any]) -> None:
        metrics = body["records"][STEP]["metrics"]
        metrics["peak_allocated_bytes"] = 1100 * MIB
        body["records"][QUERY]["metrics"]["adapted_layers"] = 12  # both rows are of this count
        metrics["step_seconds"] = [1.2 * x for x in metrics["step_seconds"]]
        body["machine"]["memory_bytes"] += 1

    new, base = run_with(edit), run_with(name="base")
    fp32, nf4 = comparison_rows([new], base)
    assert (fp32.allocated_ratio, fp32.step_ratio, fp32.verdict) == (
        pytest.approx(1.1),
        pytest.approx(1.2),
        "regressed",
    )
    assert (nf4.allocated_ratio, nf4.step_ratio, nf4.verdict) == (1.0, 1.0, "changed")
    table = cells(markdown(comparison_report([new], base)))
    assert table[0][-3:] == ["Δ peak", "Δ step", "verdict"]
    assert table[2][-3:] == ["+10.0 %", "+20.0 %", "regressed"]
    assert table[3][-3:] == ["±0.0 %", "±0.0 %", "changed"]

    def elsewhere(body: dict[str, Any]) -> None:
        body["machine"].update(id="another", accelerator=GPU)

    row = comparison_rows([run_with(elsewhere)], base)[0]
    assert (row.allocated_ratio, row.step_ratio, row.verdict) == (None, None, "incomparable")


def test_the_data_frame_is_raw_with_units_in_its_header() -> None:
    frame = comparison_table([run_with()])
    first = frame.iloc[0]
    assert first["peak allocated [bytes]"] == 1000 * MIB
    assert first["step time, median [s]"] == pytest.approx(0.80)
    assert frame["trainable parameters"].tolist() == [786432, 786432]
    assert frame["peak reserved [bytes]"].isna().all()
    (row, _) = csv.DictReader(io.StringIO(frame.to_csv(index=False)))
    assert row["peak RSS [bytes]"] == str(1500 * MIB)  # an integer, although others are missing
    assert row["peak reserved [bytes]"] == ""
    assert comparison_table([run_of()]).empty


HOSTILE = "a|b_c & 100% *x* <i> $y$ {z} \\ [l](u) `q` # ~ ^"


def test_markdown_and_latex_escape_what_they_must() -> None:
    report = Report(HOSTILE, (HOSTILE,), (Table(HOSTILE, ("h_1",), ((HOSTILE,),)),), (HOSTILE,))
    text = markdown(report)
    assert [len(row) for row in cells(text)] == [1, 1, 1]
    assert cells(text)[2] == [r"a\|b\_c & 100% \*x\* \<i\> $y$ {z} \\ \[l\](u) \`q\` # ~ ^"]
    tex = latex(report)
    body = tex.partition("\n")[2]  # the first line is a comment
    bare = re.sub(r"\\[&%$#_{}]|\\[a-zA-Z]+\*?\{[^{}]*\}|\\\^\{\}", "", body)
    assert not re.search(r"[$#_~^%]", bare)
    assert body.count(r"a|b\_c \& 100\%") == 4  # title, caption, cell, note


def test_latex_has_booktabs_and_no_bare_symbols() -> None:
    text = latex(comparison_report([run_with()], run_with(name="base")))
    for part in (
        r"\begin{table}",
        r"\toprule",
        r"\bottomrule",
        r"\caption{opt-350m.",
        r"800 $\pm$ 15 ms",
    ):
        assert part in text
    assert text.isascii()
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    run = many()
    for report in (
        comparison_report([run]),
        comparison_report([run], run),
        comparison_report([run, run_with()], run),
    ):
        lines = terminal(report, width).splitlines()
        assert [line for line in lines if len(line) > width] == []
        text = " ".join(terminal(report, width).split())
        for figure in ("12.06 GiB", "22.91 GiB", "1.25 ± 0.09 s", "12,582,912", "out of memory"):
            assert figure in text


def test_a_wide_terminal_gets_a_flat_table_and_a_narrow_one_groups() -> None:
    report = comparison_report([many()])
    assert re.search(r"query +8 +120 +12,582,912 +3.66 % +fp32 +12.06 GiB", terminal(report, 200))
    narrow = terminal(report, 80)
    assert "query, r 8, layers 120, trainable 12,582,912, share 3.66 %\n  fp32 " in narrow
    assert narrow.count("12,582,912") == 3  # once a scenario


def test_colour_is_added_around_lines_only() -> None:
    report = comparison_report([many()])
    for width in (40, 80, 200):
        painted = terminal(report, width, colour=True)
        assert "\x1b[31m" in painted  # out of memory
        assert re.sub(r"\x1b\[\d+m", "", painted) == terminal(report, width)
