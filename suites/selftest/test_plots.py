"""Plots: what is drawn are the figures that went in, told apart without colour, in both formats."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrices import matrix
from test_history import runs

from bench.baselines.history import histories
from bench.cli import main
from bench.errors import BenchError
from bench.reports.reached import Strip
from bench.reports.rows import Row

plots = pytest.importorskip("bench.reports.plots")
pytest.importorskip("matplotlib", reason="pip install 'lora-target-bench[plots]'")

MIB = 2**20
ORIGIN = "0001_first: a machine, torch 2.13.0"


def row(scenario: str, precision: str, ms: float, mib: int, **more: Any) -> Row:
    return Row(
        run="r", model="opt", geometry=None, scenario=scenario, rank=8, precision=precision,
        step_median_seconds=ms / 1e3, peak_allocated_bytes=mib * MIB, **more,
    )  # fmt: skip


ROWS = [
    row("query", "fp32", 20, 40),
    row("all", "fp32", 40, 80),  # beaten by query
    row("value", "fp32", 30, 30),
    row("query", "nf4", 50, 10),
    row("<b>x</b>", "nf4", 40, 20),
]


def texts(figure: Any) -> list[str]:
    import matplotlib.text

    found = [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_visible()]
    return [text for text in found if text]


def cost() -> Any:
    return plots.cost_figure("opt", ROWS, ORIGIN)


def ranks() -> Any:
    counted = [
        Row(run="r", model="opt", geometry=None, scenario=name, rank=r, precision=None, trainable=n)
        for name, per in (("query", 10), ("key", 10), ("all", 30), ("once", 1))
        for r, n in ((1, per), (8, 8 * per))
        if name != "once" or r == 1
    ]
    return plots.rank_figure("opt", counted, ORIGIN)


BARS = [
    ("measured", {"weights": 30 * MIB, "activations": 12 * MIB}, True),
    ("predicted", {"weights": 30 * MIB, "activations": 11 * MIB}, False),
]


def memory() -> Any:
    bars = [plots.MemoryBar("case", label, parts, how) for label, parts, how in BARS]
    return plots.memory_figure("a step", bars, ORIGIN, ("T4", 50 * MIB))


def reach() -> Any:
    strip = Strip(
        "language: 3 layers", 3,
        {"q_proj": ["adapted"] * 3, "o_proj": ["frozen", None, "saved"]},
    )  # fmt: skip
    return plots.reach_figure("opt", [strip], ["gate_proj"], ORIGIN)


def coverage() -> Any:
    shares = {f"type{n}": [n / 90, None] for n in range(90)}
    return plots.coverage_figure("atlas", ["q-v", "all-linear"], shares, ORIGIN)


CHOICE = {
    "bf16": [
        plots.CostPoint(1, 30 * MIB, "1 narrow"),
        plots.CostPoint(1.5, 40 * MIB, "3 wide"),
    ],
    "nf4": [
        plots.CostPoint(1, 20 * MIB, "5 narrow", filled=True),
        plots.CostPoint(1.3, 10 * MIB, "6 narrow, ckpt", filled=True),
        plots.CostPoint(1.4, 22 * MIB, "proposed: 7 wide", filled=True, chosen=True),
        plots.CostPoint(1.6, 12 * MIB, "8 wide, ckpt", filled=True),
    ],
}


def choice() -> Any:
    return plots.choice_figure("opt", CHOICE, ORIGIN, ("T4", 25 * MIB))


def history() -> Any:
    series = histories(runs(1000, 1000, 1500, 1500), "peak_allocated_bytes")
    return plots.history_figure(series, ORIGIN)


MADE = (cost, choice, ranks, memory, reach, coverage, history)


@pytest.mark.parametrize(
    ("make", "form"),
    matrix(itertools.product(MADE, ("svg", "png")), by=lambda make, form: {make, form}),
)
def test_every_plot_is_written_in_both_formats(
    make: Callable[[], Any], form: str, tmp_path: Path
) -> None:
    file = tmp_path / f"plot.{form}"
    assert plots.plot_format(file) == form
    figure = make()
    figure.savefig(file)
    start = file.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if form == "png" else b"<?xml" in start
    assert any(ORIGIN in text for text in texts(figure)), "where the figures come from"


def test_the_front_is_drawn_through_its_points() -> None:
    figure = cost()
    axes = figure.axes[0]
    fronts = [list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()]
    assert fronts == [[(20, 40), (30, 30)], [(40, 20), (50, 10)]]
    said = texts(figure)
    assert {"query r8", "value r8", "<b>x</b> r8"} <= set(said)
    assert "all r8" not in said
    assert any("[ms]" in text for text in said)
    assert any("[MiB]" in text for text in said)


def test_a_choice_names_its_fronts_and_what_is_proposed() -> None:
    figure = choice()
    fronts = [list(zip(*line.get_data(), strict=True)) for line in figure.axes[0].get_lines()]
    assert fronts[:2] == [[(1, 30)], [(1, 20), (1.3, 10)]]
    assert list(fronts[2][0])[1] == 25  # the GPU's memory
    said = set(texts(figure))
    assert {"1 narrow", "5 narrow", "6 narrow, ckpt", "proposed: 7 wide"} <= said
    assert not {"3 wide", "8 wide, ckpt"} & said
    assert "T4" in said
    ringed = [c for c in figure.axes[0].collections if c.get_sizes()[0] > 100]
    assert [tuple(map(float, p)) for c in ringed for p in c.get_offsets()] == [(1.4, 22)]


def test_what_colour_tells_something_else_tells_too() -> None:
    markers = {tuple(map(tuple, c.get_paths()[0].vertices)) for c in cost().axes[0].collections}
    assert len(markers) == 2  # two precisions
    patches = {p.get_hatch() for p in memory().axes[0].patches if p.get_fill()}
    assert len(patches) == 2  # two parts
    states = {(p.get_facecolor()[:3], p.get_hatch()) for p in reach().axes[0].patches}
    assert len(states) == 3
    luminance = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for (r, g, b), _ in states)
    assert all(b - a > 0.1 for a, b in itertools.pairwise(luminance))


def test_bars_sum_to_what_is_written_above_them() -> None:
    said = texts(memory())
    assert {"42.00 MiB\nmeasured", "41.00 MiB\npredicted", "T4: 50.00 MiB"} <= set(said)


def test_scenarios_that_train_the_same_share_a_line() -> None:
    figure = ranks()
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["all", "query = key"]  # "once" has one rank alone
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == [30, 240]


def test_the_strip_has_a_cell_for_every_module() -> None:
    model, dead = reach().axes
    assert len(model.patches) == 5
    assert len(dead.patches) == 3
    assert [label.get_text() for label in model.get_yticklabels()] == ["q_proj", "o_proj"]
    assert [label.get_text() for label in dead.get_yticklabels()] == ["gate_proj"]


def test_a_refusal_is_no_share() -> None:
    figure = coverage()
    cells = [t for axes in figure.axes[:-1] for t in axes.texts]
    assert len(cells) == 180
    assert sum(t.get_text() == "—" for t in cells) == 90
    assert re.search(r"\[%\]", " ".join(texts(figure)))


def test_a_step_in_the_history_says_its_size() -> None:
    assert any("+50.0 %" in text for text in texts(history()))


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.svg.exe"])
def test_another_format_is_refused_by_name(name: str) -> None:
    with pytest.raises(BenchError, match=r"\.svg or \.png"):
        plots.plot_format(Path(name))


def test_nothing_to_plot_is_said() -> None:
    for empty in (lambda: plots.cost_figure("opt", [], ORIGIN),
                  lambda: plots.rank_figure("opt", ROWS, ORIGIN),
                  lambda: plots.memory_figure("opt", [], ORIGIN)):  # fmt: skip
        with pytest.raises(BenchError, match="opt: "):
            empty()


def test_a_missing_matplotlib_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    target = tmp_path / "a.svg"
    assert main(["targets", "opt-125m", "--target-modules", "q_proj", "--plot", str(target)]) == 2
    said = capsys.readouterr()
    assert "lora-target-bench[plots]" in said.err
    assert (said.out, target.exists()) == ("", False)


PICTURES = {
    "reach.svg": ["targets", "phi-3-medium", "--rank", "16", "--target-modules",
                  "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"],
    "evidence.svg": ["published"],
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_the_documents_pictures_are_what_the_data_say(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every word, and every place to within a point; `bench ... --plot docs/images/NAME`."""
    assert main([*PICTURES[name], "--plot", str(tmp_path / name)]) in (0, 1), capsys.readouterr()
    stored = (Path(__file__).parents[2] / "docs" / "images" / name).read_text(encoding="utf-8")
    drawn = (tmp_path / name).read_text(encoding="utf-8")
    words = re.compile(r"<!-- (.*?) -->")
    assert words.findall(drawn) == words.findall(stored)
    places = re.compile(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"|\bd="(M[^"]*)"')

    def numbers(text: str) -> list[float]:
        return [float(n) for m in places.findall(text) for n in re.findall(r"-?\d+\.?\d*", str(m))]

    assert len(numbers(stored)) > 100
    assert numbers(drawn) == pytest.approx(numbers(stored), abs=1)
