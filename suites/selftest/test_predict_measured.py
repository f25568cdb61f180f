"""Steps that others measured on a GPU, said on the command line and predicted: nothing is fitted.

Most of the 49 differ by a batch or a length alone. A quick selection runs by default, one for each
way to compute and model; `-m slow` runs every row, and holds the means too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from matrices import matrix

from bench.cli import main, memory
from bench.cli.subject import cases_of
from bench.errors import BenchError
from bench.predict.allocator import CachingAllocator
from bench.predict.evidence import FILE, Measured, load_measured
from bench.training.cases import Case

ROWS = load_measured()
MIB = 1024**2
ALLOCATED, PHASE, RESERVED = 0.012, 0.03, 0.08
MEAN_ALLOCATED, MEAN_RESERVED = 0.004, 0.03
QUICK = (
    "eager-nf4-fp16-adamw-r32-ckpt-HuggingFaceTB_SmolLM2-135M-bs2-seq512",
    "flash-nf4-fp16-adamw-r32-ckpt-TinyLlama_TinyLlama-1.1B-Chat-v1.0-bs2-seq512",
    "eager-none-fp16-adamw-r32-ckpt-TinyLlama_TinyLlama-1.1B-Chat-v1.0-bs2-seq1024",
    "flash-none-fp16-adamw-r32-ckpt-HuggingFaceTB_SmolLM2-1.7B-bs1-seq2048",
    "flash-none-fp16-adamw-r32-ckpt-Qwen_Qwen2.5-1.5B-Instruct-bs2-seq1024",
)


HANGS = "eager-nf4-fp16-adamw-r32-ckpt-HuggingFaceTB_SmolLM2-1.7B-bs1-seq2048"
"""Whose peak reserved hangs on how much of the loader's copies is free when training begins: see
`test_what_loading_leaves_free_decides_one_row`."""


def _slow(row: Measured) -> list[pytest.MarkDecorator]:
    """The marks of a row that is not in the quick selection."""
    if not row.id.endswith(HANGS):
        return [pytest.mark.slow]
    reason = "predicted to reserve 15.15 % more; allocated and after loading agree within 0.1 %"
    return [pytest.mark.slow, pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)]


@functools.cache
def _said(config: str, options: tuple[str, ...]) -> dict[str, Any]:
    """What `bench memory` answers; the same command is run once."""
    with tempfile.TemporaryDirectory() as folder, io.StringIO() as text:
        Path(folder, "config.json").write_text(config, encoding="utf-8")
        with contextlib.redirect_stdout(text):
            status = main(["memory", folder, *options, "--json"])
        assert status in (0, 1), "the command line does not say this step"
        (line,) = text.getvalue().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def predicted(row: Measured) -> dict[str, Any]:
    return _said(json.dumps(row.config), row.options)


def _error(predicted_bytes: int, measured_bytes: int) -> float:
    return predicted_bytes / measured_bytes - 1


def _quick(row: Measured) -> bool:
    return row.id.split("-", 4)[4].removesuffix("#3") in QUICK


@pytest.mark.parametrize(
    "row",
    matrix(
        [pytest.param(r, id=r.id, marks=[] if _quick(r) else _slow(r)) for r in ROWS],
        by=lambda row: {("quantized", row.quantized), ("eager", "eager" in row.id)},
    ),
)
def test_a_step_on_a_t4(row: Measured) -> None:
    found = predicted(row)
    assert found["trainable_parameters"] == row.trainable_parameters
    assert found["step"].endswith("keep-output loop")
    assert abs(_error(found["peak_allocated_bytes"], row.peak_allocated_bytes)) <= ALLOCATED
    for phase, measured in row.peak_by_phase.items():
        assert abs(_error(found["peak_by_phase"][phase], measured)) <= PHASE, phase
    if not row.quantized:  # to the byte, but for batch and rounding
        assert abs(found["loaded_bytes"] - row.loaded_bytes) < MIB // 4
        assert abs(found["peak_reserved_bytes"] - row.peak_reserved_bytes) <= 16 * MIB
    assert abs(_error(found["peak_reserved_bytes"], row.peak_reserved_bytes)) <= RESERVED


@pytest.mark.slow
def test_the_means_over_every_row() -> None:
    found = [predicted(row) for row in ROWS]
    for name, mean in (
        ("peak_allocated_bytes", MEAN_ALLOCATED),
        ("peak_reserved_bytes", MEAN_RESERVED),
    ):
        errors = [
            abs(_error(p[name], getattr(row, name))) for p, row in zip(found, ROWS, strict=True)
        ]
        assert fmean(errors) <= mean, name


def test_the_rows_are_all_there() -> None:
    assert len(ROWS) == 49 == len({row.id for row in ROWS})
    assert sum(_quick(row) for row in ROWS) >= len(QUICK)


def _loaded(config: dict[str, Any], ahead: Callable[[], int]) -> int:
    """Bytes that the allocator counts once 4-bit weights have come in by name, each quantized from
    a float16 copy, while the loader's threads hold up to `ahead()` more of those copies."""
    allocator = CachingAllocator()
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = (
        width * inner, width * inner, width * inner, width * heads, width * width, width * width,
        width * heads,
    )  # fmt: skip  # down, gate and up; key, output, query and value
    sizes = layer * config["num_hidden_layers"]
    copied = 0
    for index, elements in enumerate(sizes):
        while copied < min(len(sizes), index + 1 + ahead()):
            allocator.allocate(("copy", copied), 2 * sizes[copied])
            copied += 1
        allocator.allocate(("weight", index), elements // 2)
        allocator.allocate(("scales", index), elements // 16)
        allocator.release(("copy", index))
    return allocator.allocated_bytes - sum(n // 2 + n // 16 for n in sizes)


@pytest.mark.parametrize("model", sorted({row.model for row in ROWS}))
def test_what_nf4_leaves_after_loading_is_what_the_allocator_does_not_split(model: str) -> None:
    """T4 rows hold up to 22 MiB more than the tensors, another amount in every run: a 4-bit weight
    that lands where a float16 copy was counts for the whole block where at most 1 MiB remains.
    Which weight lands where depends on how far the loader's threads are ahead. Weights of a whole
    number of 2 MiB, or under 1 MiB, leave nothing, in any run."""
    rows = [row for row in ROWS if row.model == model and row.quantized]
    draw = random.Random(0)
    runs = [_loaded(rows[0].config, lambda: draw.randint(0, 8)) for _ in range(30)]
    tensors = min(_said_loaded(row) for row in rows)
    more = [row.loaded_bytes - tensors for row in rows]
    if max(more) > MIB:
        assert max(runs) > MIB
        assert max(more) <= max(runs) + 4 * MIB
    else:
        assert max(runs) <= MIB // 4


def _said_loaded(row: Measured) -> int:
    """Bytes of what is there after loading, by hand: 4-bit weights with a float32 scale in 64, the
    rest and the adapters in float32."""
    c, rank = row.config, 32
    width, layers, inner = c["hidden_size"], c["num_hidden_layers"], c["intermediate_size"]
    head = c.get("head_dim", width // c["num_attention_heads"])
    query, key = head * c["num_attention_heads"], head * c["num_key_value_heads"]
    linear = layers * (2 * width * query + 2 * width * key + 3 * width * inner)
    tables = c["vocab_size"] * width * (1 if c["tie_word_embeddings"] else 2)
    norms = (2 * layers + 1) * width
    biases = layers * (query + 2 * key) if c["model_type"] == "qwen2" else 0
    adapters = layers * rank * (2 * (width + query) + 2 * (width + key))
    assert adapters == row.trainable_parameters
    return linear // 2 + linear // 16 + 4 * (tables + norms + biases + adapters)


@pytest.mark.slow
def test_what_loading_leaves_free_decides_one_row() -> None:
    """Three blocks of 512 MiB hold a layer's scores. Whether the third is whole when the loss needs
    384 MiB, twice, hangs on where smaller tensors went before: where loading has left 128 to
    320 MiB more free than its own order does, as threads that copy ahead may, the peak reserved is
    what was measured; where it has not, it is 15 % more. No row says what that run had left."""
    from bench.predict import kernels
    from bench.predict.trace import trace

    (row,) = (row for row in ROWS if row.id.endswith(HANGS))
    traced = trace(_case(row), kernels.cuda(None, 7.5))
    begin = next(at for at, name in traced.marks if name == "first-step")

    def reserved(free: int) -> int:
        allocator = CachingAllocator()
        for index, event in enumerate(traced.events):
            if index == begin:
                for _ in range(free // (20 * MIB)):  # segments that nothing holds
                    allocator.reserve(20 * MIB)
            if event > 0:
                allocator.allocate(event, traced.sizes[event])
            else:
                allocator.release(-event)
        return allocator.reserved_bytes

    assert _error(reserved(0), row.peak_reserved_bytes) > 0.1
    assert abs(_error(reserved(160 * MIB), row.peak_reserved_bytes)) < 0.02
    assert abs(_error(reserved(240 * MIB), row.peak_reserved_bytes)) < 0.02


def _case(row: Measured) -> Case:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(row.config), encoding="utf-8")
        parser = argparse.ArgumentParser()
        memory.add_options(parser.add_argument)
        _, (case,) = cases_of(parser.parse_args([folder, *row.options]))
    return case


@pytest.mark.parametrize(
    ("change", "said"),
    [((",nf4,", ",nf5,"), "line 2: 'nf5'"), (("after_load", "later"), "unknown key")],
)
def test_wrong_rows_are_named(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    file = tmp_path / "t4.csv"
    file.write_text(FILE.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(BenchError, match=said):
        load_measured(file)


def test_a_fit_is_as_sure_as_the_rows_of_its_kind() -> None:
    """The range of measured over predicted; for what was not measured the largest deviation."""
    from bench.predict.evidence import interval, load_kept

    kept = load_kept()
    ratios = [
        row.peak_reserved_bytes / kept[row.id]["peak_reserved_bytes"]
        for row in ROWS
        if row.id in kept and row.quantized
    ]
    found = interval("nf4", "keep-output")
    assert found.low == min(1.0, *ratios)
    assert found.high == max(1.0, *ratios)
    assert "SmolLM2-1.7B, eager, 1 × 2048 lies farthest off" in found.why
    other = interval("bf16", "sft")
    assert other.high - 1 == pytest.approx(max(abs(ratio - 1) for ratio in ratios))
    assert other.low == pytest.approx(2 - other.high)
    assert "no step in bf16 and the sft loop was measured" in other.why


def test_the_page_says_what_the_data_say() -> None:
    """docs/prediction.md, between its marks: `bench published --page docs/prediction.md`."""
    from bench.predict.evidence import load_kept
    from bench.reports.evidence import measured_section, refreshed

    page = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text(encoding="utf-8")
    assert refreshed(page, measured_section(ROWS, load_kept())) == page


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_what_is_kept_is_what_is_predicted(row: Measured) -> None:
    from bench.predict.evidence import load_kept

    if row.id not in load_kept():
        pytest.skip("no prediction of this row is kept")
    kept, found = load_kept()[row.id], predicted(row)
    flat = {**found, **found["peak_by_phase"]}
    assert {name: flat[name] for name in kept} == dict(kept)
