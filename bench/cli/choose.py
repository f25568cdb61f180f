"""`bench choose`: which modules? Every role scenario of a model on a GPU, and one proposed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.options import (
    MOST_PARAMETERS,
    PRINTED,
    REPEATABLE,
    Add,
    add_format,
    add_gpu,
    add_model,
    add_plot,
    add_step,
)
from bench.cli.output import check_plot, json_lines, progress, put, save_figure, written
from bench.errors import BenchError, check_most
from bench.models.precision import precision

if TYPE_CHECKING:
    from bench.choose.table import Choice

HELP = "which modules? the model's role scenarios side by side on a GPU, one of them proposed"
EPILOG = (
    "Predicted without a GPU; exits with 1 where no row fits. docs/choose.md says how the rows are "
    "compared, and what the published results are that a proposal cites."
)
LENGTH = 2048


def add_options(add: Add) -> None:
    """The model, the GPU, the step, and which rows."""
    # fmt: off
    add_model(add)
    add_gpu(add, "the GPU that it has to fit")
    add_step(add, 1, LENGTH)
    add("--optimizer", default="adamw")
    add("--precision", **REPEATABLE, metavar="P",
        help="only this; repeatable (default: bf16, int8, nf4)")
    add("--rank", type=int, metavar="R", help="of every row (default: 16)")
    add("--budget", type=int, metavar="N",
        help="... or the rank of each row at which it trains most nearly N parameters")
    add("--show", type=int, metavar="ROW",
        help="print that row as LoraConfig(...), for axolotl and for LLaMA-Factory instead")
    add("--probe", action="store_true",
        help="the gradient's norm by role before any training, with --weights; trains nothing")
    add("--weights", type=Path, metavar="DIR", help="the model's weights, for --probe")
    add("--data", type=Path, metavar="FILE", help="one's own text, for --probe")
    add_plot(add, "draw predicted peak against FLOPs, too")
    add_format(add, "terminal", PRINTED)
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Print the table; 1 where nothing fits."""
    _check(options)
    from bench.predict.gpus import find_gpu, gpu_with_memory
    from bench.training.options import StepOptions, check_positions

    gpu = find_gpu(options.gpu) if options.gpu else gpu_with_memory(options.gpu_memory)
    step = StepOptions(
        batch_size=options.batch_size,
        seq_len=LENGTH if options.seq_len is None else options.seq_len,
        optimizer=options.optimizer,
    )
    from bench.models.architectures import load_model

    model = load_model(options.model, options.auto_class, options.trust_remote_code)
    check_positions(model.config, options.seq_len, model.label)
    if options.probe:
        from bench.learning.signal import check_weights_of

        check_weights_of(model, options.weights)
    from bench.choose.rows import PROPOSED_PRECISIONS, RANK
    from bench.choose.table import choose

    wanted = tuple(dict.fromkeys(options.precision)) or PROPOSED_PRECISIONS
    try:
        choice = choose(
            model, gpu, step, precisions=wanted, rank=options.rank or RANK, budget=options.budget,
            progress=_progress, shorten=options.seq_len is None, show=options.show,
        )  # fmt: skip
    finally:
        _progress(0, 0)
    if options.probe:
        choice = _probed(choice, options)
    if options.plot:
        from bench.choose.report import choice_plot

        save_figure(choice_plot(choice), options.plot)
    if options.show is not None:
        from bench.choose.code import as_code

        put(as_code(choice.rows[options.show - 1]))
    elif options.format == "json":
        from bench.choose.report import choice_json

        put(json_lines([choice_json(choice)]))
    else:
        from bench.choose.report import choice_report

        put(written(choice_report(choice), options.format))
    return 0 if any(row.fits for row in choice.rows) else 1


def _probed(choice: Choice, options: argparse.Namespace) -> Choice:
    """The choice with what the first gradient of its weights says."""
    from dataclasses import replace

    from bench.learning.signal import probe_weights
    from bench.reports.learning import signal_said

    progress("reading the weights, for their first gradient")
    norms = probe_weights(options.weights, options.data)
    progress("")
    return replace(choice, norms=norms, signal=signal_said(norms))


def _check(options: argparse.Namespace) -> None:
    """Raise BenchError for wrong options, before a model is built."""
    from bench.adapters.checks import LARGEST_RANK

    if bool(options.gpu) == bool(options.gpu_memory):
        raise BenchError(
            "give --gpu NAME or --gpu-memory SIZE, one of them: what has to fit where?"
        )
    if options.probe and options.weights is None:
        raise BenchError("--probe needs --weights DIR: the gradient is that of real weights")
    if options.probe:
        from bench.files import check_readable, check_weights

        check_weights(options.weights)
        if options.data is not None:
            check_readable(options.data, "--data")
    if not options.probe and (options.weights or options.data):
        raise BenchError("--weights and --data are for --probe")
    if options.show is not None and options.format != "terminal":
        raise BenchError("--show prints code: give it without --json and --format")
    for name in options.precision:
        precision(name)
    if options.rank is not None and options.budget is not None:
        raise BenchError("give --rank or --budget, not both: a budget gives each row its own rank")
    for name in ("rank", "budget", "show"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BenchError(f"--{name} must be at least 1, not {value}")
    check_most("--budget", options.budget, MOST_PARAMETERS)
    check_most("--rank", options.rank, LARGEST_RANK)
    if options.show is not None:
        from bench.choose.rows import PROPOSED_PRECISIONS, PROPOSED_SCENARIOS

        most = len(PROPOSED_SCENARIOS) * len(set(options.precision) or PROPOSED_PRECISIONS) * 2
        if options.show > most:
            raise BenchError(f"--show {options.show}: there are at most {most} rows")
    check_plot(options.plot)


def _progress(done: int, of: int) -> None:
    """Cleared by 0 of 0."""
    progress(f"predicting rows: {done} of {of}" if of else "")
