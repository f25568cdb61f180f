"""Which stored run may be a baseline: one whose gate passed, or one that somebody accepted by name.

A run that failed must not become what the next one is held against: a second try would turn green.
So a stored run records how its gate ended, and `bench accept` writes `accepted.json` beside it, an
entry a run: the reason, by whom and when, and the run's digest, so that no other run of that name
is meant. The first run has nothing to be held against: if it is whole, none of its tests failed and
somebody gave it its name, that is its acceptance, recorded in the same file for a review to see.
"""

from __future__ import annotations

import getpass
import json
import shlex
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.baselines.runs import StoredRun, load_run
from bench.baselines.storage import (
    SAVE_HINT,
    alone,
    check_one,
    find_runs,
    named,
    names_run,
    stored_files,
)
from bench.errors import BenchError
from bench.files import parse, read_json, write_output
from bench.units import one_line

FILE = "accepted.json"
PASSED, FAILED, FIRST, NARROWER = "passed", "failed", "first", "narrower"
"""How a run's gate ended; FIRST: all tests passed, and there was no baseline to hold it against;
NARROWER: it passed, and was not asked for every case of its baseline."""
FIRST_REASON = "the first run stored here: none of its tests failed, and no baseline says otherwise"


@dataclass(frozen=True)
class Acceptance:
    """That a run may be a baseline: why, by whom and when, and the run's digest."""

    reason: str
    by: str
    when: str
    digest: str


def accept(path: Path, reason: str) -> tuple[Path, Acceptance | None]:
    """Record that the run stored in `path` may be a baseline, and why; returns the file, and what
    stood there of that name before.

    BenchError without a reason, and for a run that did not reach every case.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise BenchError("--reason: say why these figures are right")
    run = load_run(path)
    if run.interrupted:
        raise BenchError(f"{path}: it was interrupted, and lacks cases: it cannot be a baseline")
    file = path.parent / FILE
    entry = Acceptance(reason, _who(), datetime.now(UTC).isoformat(timespec="seconds"), run.digest)
    with alone(path.parent):
        before = _accepted(file)
        accepted = {**before, path.stem: entry}
        entries = {name: asdict(accepted[name]) for name in sorted(accepted)}
        write_output(file, json.dumps(entries, indent=1) + "\n")
    return file, before.get(path.stem)


def _who() -> str:
    """As git calls whoever works here, else as the system does."""
    try:
        asked = subprocess.run(
            ["git", "config", "user.name"], capture_output=True, text=True, check=False
        )
        return one_line(asked.stdout) or getpass.getuser()
    except (OSError, KeyError):  # no git; a user whom the system does not know
        return "unknown"


def _accepted(file: Path) -> dict[str, Acceptance]:
    return parse(read_json(file), dict[str, Acceptance], str(file)) if file.exists() else {}


def is_first(folder: Path) -> bool:
    """Whether the next run in `folder` has nothing there to be held against.

    A run that cannot be read may have been the baseline: then it is not. BenchError for an
    `accepted.json` that cannot be read.
    """
    _accepted(folder / FILE)
    for path in stored_files(folder):
        try:
            run = load_run(path)
        except BenchError:
            return False
        if not no_baseline(run):
            return False
    return True


def no_baseline(run: StoredRun) -> str:
    """Why a stored run may not be a baseline; "" if it may."""
    if run.interrupted:
        return "it was interrupted"
    if run.gate == PASSED:
        return ""
    if run.path is not None:
        entry = _accepted(run.path.parent / FILE).get(run.path.stem)
        if entry is not None and entry.digest == run.digest:
            return ""
    if run.gate == FIRST:
        return "it was the first, not accepted"
    if run.gate == NARROWER:
        return "it was not asked for every case of its baseline, which stays the one"
    return "its gate failed" if run.gate == FAILED else "no gate has judged it"


def unproven(baseline: StoredRun) -> str:
    """What every answer says that holds something against this stored run, which somebody named:
    that it has passed no gate. "" where it has or is accepted, and of a run that is not stored."""
    if baseline.path is None or not (why := no_baseline(baseline)):
        return ""
    run = baseline.label
    if baseline.gate == NARROWER and not baseline.interrupted:
        return f"{run} may not be a baseline unless it is named: {why}."
    if baseline.gate == FAILED and not baseline.interrupted:
        return (
            f"{run} FAILED its gate, and nobody has accepted it: what is unchanged against it may "
            "be as wrong as it was."
        )
    return f"{run} has never passed a gate, and nobody has accepted it: {why}."


def check_gated(baseline: StoredRun) -> None:
    """BenchError for a run that failed or was cut short, and that nobody has accepted: to be named
    makes it something to look at beside this run, and nothing that a gate may pass against."""
    why = no_baseline(baseline)
    if why and (baseline.interrupted or baseline.gate == FAILED):
        ways = ["name another", "compare without --gate"]
        if not baseline.interrupted:
            run = named(baseline.path) if baseline.path else baseline.label
            ways.insert(0, f"accept it (bench accept {run} --reason WHY)")
        raise BenchError(
            f"--gate: {baseline.label} may not be a baseline: {why}; {' or '.join(ways)}"
        )


def load_baseline(
    storage: Path | str, selector: str | None = None, store: str = SAVE_HINT
) -> StoredRun:
    """The newest run that may be a baseline, of those that `selector` means (`find_runs`); `store`
    is the command that stores one.

    A selector that means another run by its whole name or number, and no other, means it all the
    same: it is named. BenchError where there is none, with how to make one.
    """
    found = find_runs(storage, "*" if selector is None else selector, store)
    if selector is not None:
        check_one(storage, selector, found)
    newest: dict[Path, StoredRun] = {}
    refused: list[str] = []
    whole: list[Path] = []
    cut: list[Path] = []
    for path in reversed(found):
        if path.parent in newest:
            continue
        run = load_run(path)
        if why := no_baseline(run):
            refused.append(f"{path.stem} ({why})")
            (cut if run.interrupted else whole).append(path)
            if selector is None or len(found) > 1 or not names_run(selector, path):
                continue
        newest[path.parent] = run
    if selector and len(newest) > 1:
        names = ", ".join(f"{folder.name}/{run.label}" for folder, run in newest.items())
        raise BenchError(f"{selector!r} means several runs: {names}; give the folder too")
    if newest:
        return max(newest.values(), key=lambda run: run.datetime or "")
    ways = []
    if whole:
        ways.append(f"accept one: bench accept {shlex.quote(named(whole[0]))} --reason WHY")
    if cut:
        name = shlex.quote(cut[0].stem.partition("_")[2])
        ways.append(f"go on with the one cut last: {store.replace('NAME', name)} --resume")
    ways.append(f"store one: {store}")
    way = ", or ".join(ways)
    raise BenchError(
        f"no run in {storage} may be a baseline: {', '.join(refused[:5])}. "
        f"{way[0].upper()}{way[1:]}"
    )
