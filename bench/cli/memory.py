"""`bench memory`: predicted steps as text, tables and JSON; solved for, or stored, if asked."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.options import (
    REPEATABLE,
    TEXT,
    Add,
    add_adapter,
    add_format,
    add_gpu,
    add_model,
    add_plot,
)
from bench.cli.output import (
    check_plot,
    csv_text,
    fitted,
    json_lines,
    progress,
    put,
    save_figure,
    say,
    written,
)
from bench.cli.subject import card_of, cases_of, check_asked, memory_command, predicted_step
from bench.errors import BenchError
from bench.models.precision import PRECISIONS, precision
from bench.training.options import (
    PREDICTED_LENGTH,
    add_step_options,
    check_images,
    check_positions,
    check_step,
)
from bench.training.parallel import check_parallel_step
from bench.units import first_of, format_bytes, harmless_line

if TYPE_CHECKING:
    from bench.measure import Measurement, Session
    from bench.predict.gpus import Gpu
    from bench.predict.kernels import Device
    from bench.predict.largest import Solution
    from bench.predict.levers import Ways
    from bench.predict.result import Prediction
    from bench.training.cases import Case

    Attempt = Callable[[Case], Prediction]

HELP = "predict a step's GPU memory, without a GPU"
EPILOG = (
    "Limits: eager mode (no compilation or offloading); one GPU, or one of several (--parallel: "
    "DDP, or sharding by FSDP2 in the plain loops); the CUDA context is outside, and assumed "
    "to take 0.5 GiB where a GPU is asked for; the allocator has its default settings and room. "
    "docs/prediction.md says more. Exit status: 1 where a GPU (or --gpu-memory) was asked for and "
    "a step does not fit it."
)


def add_options(add: Add) -> None:
    """The model, its configuration and step, the GPU, and what to do with the prediction."""
    # fmt: off
    add_adapter(add, many=True)
    add_model(add)
    add("--precision", **REPEATABLE, metavar="P",
        help=f"repeatable (default bf16): {', '.join(PRECISIONS)}")
    add_step_options(add, ("seq_len",), predicted=True, batch_size=1, seq_len=PREDICTED_LENGTH)
    add_gpu(add, "hold the prediction against this GPU")
    add("--solve", choices=("batch-size", "seq-len", "rank"), help="the largest that fits")
    add("--measure", action="store_true",
        help="run the step too, on this machine's GPU or else its CPU, with random weights in a "
        "process of its own, and show what it took beside what is predicted for that device")
    add("--record", type=Path, metavar="FILE",
        help="with --measure: append each step as a line of JSON, for somebody to check")
    add_format(add, None, help="of the table that several cases give (default: markdown)")
    add_plot(add, "draw what the peaks are made of: of one case in each phase of the step, of "
                  "several at their highest")
    add("--store", action="store_true",
        help="keep the predictions in results/predicted, where the suite compares them")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Predict every configuration in every precision; 1 if a GPU was asked for and a step does not
    fit it, else 0."""
    _check(options)
    from bench.models.architectures import load_model
    from bench.predict.gpus import check_attention

    card = card_of(options)
    if card is not None:
        check_attention(options.attention, card.capability)
    model = load_model(options.model, options.auto_class, options.trust_remote_code)
    check_positions(model.config, options.seq_len, model.label)
    check_images(model.config, model.auto_class, options.images, model.label)
    if options.liger:
        from bench.training.liger import check_liger_model

        own_code = model.own_code is not None
        check_liger_model(model.config, model.task_class, options.measure, own_code)
    subjects, cases = cases_of(options)
    if not cases:
        raise BenchError("no scenario applies to this model: give --target-modules or --adapter")
    from bench.baselines.predicted import check_store, store
    from bench.predict.largest import Solution
    from bench.training.cases import check_has_length

    if options.store:
        if any(s.scenario is None or s.model.architecture is None for s in subjects):
            raise BenchError(
                "--store keeps predictions of registered scenarios on registered models: give "
                "--scenario, and a model of bench list models"
            )
        check_store()
    if options.seq_len is not None or options.solve == "seq-len":
        for case in cases:
            check_has_length(case)
    line = _Line(len(cases))
    for subject in subjects:
        subject.check_injectable()
    nothing: dict[str, dict[str, str]] = {}
    for subject in subjects:
        if dead := subject.unreached():
            nothing.setdefault(subject.name, {}).update(dead)
    unreached = tuple(said for dead in nothing.values() for said in dead.values())
    if options.measure:
        return _beside(cases, options, line, unreached)
    single = options.solve or (len(cases) == 1 and not options.format)
    one_by_one = single or options.format == "json"
    found: list[Prediction] = []
    attempt = _attempt(card, line)
    for number, case in enumerate(cases):
        try:
            done = _solved(case, options.solve, attempt) if options.solve else attempt(case)
        except BenchError as error:
            if found and not one_by_one:  # what is known is not kept back
                _table(found, card, options.format or "markdown", nothing)
            raise _ended_at(error, cases[number + 1 :]) from error
        progress("")
        if one_by_one:
            ways = _ways(case, done, options, attempt) if len(cases) == 1 else None
            progress("")
            put(_text(done, ways, options, unreached))
        found.append(done.prediction if isinstance(done, Solution) else done)
    if not one_by_one:
        _table(found, card, options.format or "markdown", nothing)
    if options.plot:
        from bench.reports.plots import predictions_figure

        save_figure(predictions_figure([(p, None) for p in found], card), options.plot)
    if options.store:
        say(f"stored {len(found)} in {store(found)}")
    return int(any(p.fit is not None and not p.fit.fits for p in found))


def _beside(
    cases: Sequence[Case], options: argparse.Namespace, line: _Line, unreached: Sequence[str]
) -> int:
    """Predict each case for the device at hand and measure it there; 1 if one could not be."""
    from bench.measure import Session
    from bench.predict.result import predict
    from bench.reports.predicted import beside_text, prediction_json, prediction_text
    from bench.training.liger import check_liger
    from bench.training.machine import machine

    for case in cases:
        check_liger(case, measured=True)
    here = machine()
    room = here.memory_limit_bytes or here.memory_bytes
    found: list[tuple[Prediction, Measurement | None]] = []
    with Session(memory_limit_bytes=room) as session:
        for number, case in enumerate(cases):
            line.begin(case.id)
            try:
                said = predict(case, device=_device(session, case), progress=line.phase)
            except BenchError as error:
                raise _ended_at(error, cases[number + 1 :]) from error
            line.phase("measuring")
            measured, why_not = _measured(session, case, said, room)
            progress("")
            found.append((said, measured))
            seen = {"failed": why_not} if measured is None else _seen(measured)
            beside = why_not
            if measured is not None:
                beside = f"{beside_text(asdict(said), seen)}\nmeasured on {measured.device}"
                beside += ", with random weights, in a process of its own"
            if options.format == "json":
                told = {**prediction_json(said), "measured": seen, "unreached": unreached}
                put(json_lines([told]))
            else:
                text = [prediction_text(said), *_warnings(unreached), "", beside]
                put(fitted("\n".join(text)) + "\n")
            if measured is not None and options.record:
                _append(case, said, measured, options.record)
    if options.plot:
        from bench.reports.plots import predictions_figure

        save_figure(predictions_figure(found), options.plot)
    return int(any(measured is None for _, measured in found))


def _ended_at(error: BenchError, rest: Sequence[Case]) -> BenchError:
    """The error of a case, with those after it, which were not looked at."""
    after = [case.id for case in rest]
    left = f"; not looked at after it: {first_of(after)}" if after else ""
    return BenchError(f"{error}{left}")


def _append(case: Case, said: Prediction, measured: Measurement, file: Path) -> None:
    from bench.predict.contributed import append_step, measured_step
    from bench.training.machine import gpu_facts

    device = {"name": measured.device} if measured.device == "cpu" else gpu_facts()
    append_step(file, measured_step(case, device, said, _seen(measured)))


def _device(session: Session, case: Case) -> Device:
    from bench.predict import kernels

    if session.devices == ("cpu",):
        return kernels.cpu()
    return kernels.this_gpu(case.step.pinned_attention)


def _measured(
    session: Session, case: Case, said: Prediction, room: int
) -> tuple[Measurement | None, str]:
    """What the step took, or why there is nothing to say."""
    from bench.measure import CaseFailed

    if said.device == "cpu" and said.peak_allocated_bytes > room:
        return None, f"not measured: this machine has {format_bytes(room)}"
    try:
        with session.start(case) as running:
            return running.prepare(), ""
    except CaseFailed as error:
        end = error.outcome
        return None, f"not measured: {end.name} in {end.phase}: {end.message}"


def _seen(measured: Measurement) -> dict[str, Any]:
    from bench.predict.contributed import PEAKS

    peaks = {name: getattr(measured, name) for name in PEAKS}
    return {**peaks, "breakdown_by_phase": measured.breakdown_by_phase, "device": measured.device}


def _attempt(card: Gpu | None, line: _Line) -> Attempt:
    """What predicts a case, and says meanwhile how far it is."""
    from bench.predict.result import predict

    def attempt(case: Case) -> Prediction:
        line.begin(case.id)
        return predict(case, gpu=card, progress=line.phase)

    return attempt


def _ways(
    case: Case, done: Prediction | Solution, options: argparse.Namespace, attempt: Attempt
) -> Ways | None:
    """What would make a step fit that does not; None where nothing was asked to fit, or it does."""
    from bench.predict.levers import NOTHING_SAVED, ways_to_fit
    from bench.predict.result import Prediction

    if not isinstance(done, Prediction) or done.fit is None or done.fit.fits:
        return None
    without = () if options.modules_to_save else (NOTHING_SAVED,)
    return ways_to_fit(case, done, attempt, without)


def _warnings(unreached: Sequence[str]) -> list[str]:
    return [f"  not in these figures: {harmless_line(each)}" for each in unreached]


def _text(
    done: Prediction | Solution,
    ways: Ways | None,
    options: argparse.Namespace,
    unreached: Sequence[str],
) -> str:
    from bench.reports.predicted import prediction_json, prediction_text, ways_json, ways_text

    command = partial(memory_command, options)
    if options.format == "json":
        more = {} if ways is None else {"ways_to_fit": ways_json(ways, command)}
        return json_lines([{**prediction_json(done), **more, "unreached": unreached}])
    text = [
        prediction_text(done),
        *_warnings(unreached),
        *([] if ways is None else [ways_text(ways, command)]),
    ]
    return fitted("\n".join(text)) + "\n"


def _check(options: argparse.Namespace) -> None:
    """Raise BenchError for options that do not go together."""
    check_plot(options.plot)
    for name in options.precision:
        precision(name)
    check_asked(options)
    step = predicted_step(options)
    check_step(step)
    check_parallel_step(step, *options.precision)
    card = options.gpu or options.gpu_memory
    if options.solve and not card:
        raise BenchError("--solve needs --gpu or --gpu-memory: there is nothing to fit")
    if options.solve and vars(options)[options.solve.replace("-", "_")] not in (None, 1):
        raise BenchError(
            f"--solve {options.solve} looks for the largest, and takes none: leave "
            f"--{options.solve} out"
        )
    if options.record and not options.measure:
        raise BenchError("--record keeps what --measure measured: give both")
    if options.record:
        from bench.predict.contributed import check_record

        check_record(options.record)
    if options.format not in (None, *TEXT):
        for name in ("measure", "solve"):
            if vars(options)[name]:
                raise BenchError(
                    f"--format {options.format} does not go with --{name}: its answer is text, "
                    "or --json"
                )
    for name in ("gpu", "gpu_memory", "solve", "store"):
        if options.measure and vars(options)[name]:
            raise BenchError(
                f"--measure predicts for the device that it measures on: give it without "
                f"--{name.replace('_', '-')}"
            )
    for name in ("measure", "store"):
        if options.parallel and vars(options)[name]:
            raise BenchError(
                f"--{name} is of one GPU: give it without --parallel {options.parallel}"
            )
    if options.store and (card or options.solve):
        raise BenchError(
            "--store keeps what holds for every GPU: "
            "give it without --gpu, --gpu-memory and --solve"
        )


def _table(
    found: Sequence[Prediction],
    card: Gpu | None,
    format: str,
    nothing: Mapping[str, Mapping[str, str]],
) -> None:
    from bench.reports.predicted import prediction_report, prediction_rows

    entries = {name: [e for e in dead if not e.endswith(" ")] for name, dead in nothing.items()}
    listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in entries.items() if found)
    said = [f"not in these figures, and reaching nothing: {listed}"] if listed else []
    # A whole field, which may have its effect in another precision: its sentence says where.
    said += [text for dead in nothing.values() for e, text in dead.items() if e.endswith(" ")]
    if format != "csv":
        report = prediction_report(found, card)
        put(written(replace(report, notes=(*report.notes, *said)), format))
        return
    for each in said:
        say(each)
    rows = prediction_rows(found, card)
    put(csv_text(rows[0], (row.values() for row in rows)))


def _solved(case: Case, what: str, attempt: Attempt) -> Solution:
    from bench.predict.largest import solve

    limit = None
    if what == "seq-len":
        from bench.training.limits import case_limit

        limit = case_limit(case)
    return solve(case, what, attempt, limit)


class _Line:
    """Which case of how many is being predicted."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0
        self._case = ""

    def begin(self, case: str) -> None:
        self._number += 1
        self._case = case

    def phase(self, name: str) -> None:
        of = f"/{self._total}" if self._number <= self._total else ""
        progress(f"[{self._number}{of}] {self._case}: {name}")
