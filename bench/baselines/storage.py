"""Runs on disk: found by name or number, and saved so that nothing is lost or half-written.

Layout, as pytest-benchmark's: `results/MACHINE/0001_NAME.json`.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.baselines.runs import StoredRun, load_run, seal
from bench.errors import BenchError
from bench.files import check_readable, saving, strict_json

RUN_FILE = re.compile(r"(\d{4,})_(.+)\.json")
NAME = re.compile(r"[\w+.\-]{1,100}")
SAVE_HINT = "pytest suites/ --benchmark-save=NAME"


def find_runs(
    storage: Path | str, selector: str | None = None, store: str = SAVE_HINT
) -> list[Path]:
    """Stored runs that `selector` means, oldest number first; the latest alone without one.

    A selector is the path of a file, or, as in pytest-benchmark, the start of a file name: a
    number (`0001`, or `1`), number and name (`0001_first`), a name (`first`), or a pattern with
    `*`; a machine's folder may stand before it (`linux-x86_64-cpu/0001`). A number means the runs
    of that number, and a run called so only where there are none; a whole file name means its run
    alone. BenchError, listing what is there, when nothing matches; where nothing is there, with
    the command that stores one.
    """
    storage = Path(storage)
    if selector is not None and not selector.strip():
        raise BenchError("the name of a stored run is empty: give its number, its name or its file")
    if selector and is_path(selector):
        check_readable(selector)
        return [Path(selector)]
    stored = stored_files(storage)
    folder, _, wanted = (selector or "").rpartition("/")
    inside = [p for p in stored if not folder or fnmatch.fnmatchcase(p.parent.name, folder)]
    found = (
        [p for p in inside if wanted.isdecimal() and _number(p) == int(wanted[:20])]
        or [path for path in inside if path.stem == _filled(wanted)]
        or [path for path in inside if _matches(path, wanted)]
    )
    if found:
        return found if selector else found[-1:]
    if not storage.is_dir():
        raise BenchError(
            f"no stored run in {storage}: there is no such folder; name the one that holds them "
            f"(by default results/), or store one with {store}"
        )
    if not stored:
        raise BenchError(f"no stored run in {storage}: store one with {store}")
    there = _listed(storage, stored[-20:])
    raise BenchError(f"no stored run in {storage} matches {selector!r}; there are: {there}")


def is_path(selector: str) -> bool:
    """Whether a selector is the path of a file, or of what is none and cannot be read, and so
    nothing has to be looked up. The folder of a machine may have a run's name."""
    path = Path(selector)
    return path.is_absolute() or (os.path.lexists(path) and not path.is_dir())


def names_run(selector: str, path: Path) -> bool:
    """Whether a selector that means this run says its whole name or number, or is its file's path:
    not a pattern, and not the start of a name."""
    number, _, name = path.stem.partition("_")
    wanted = selector.rpartition("/")[2].removesuffix(".json")
    first, _, rest = wanted.partition("_")
    return (
        is_path(selector)
        or wanted in (path.stem, name)
        or (first.isdecimal() and int(first[:20]) == int(number) and rest in ("", name))
    )


def stored_files(storage: Path) -> list[Path]:
    """Every stored run in the folder and those within it, oldest number first. Runs of one folder
    may have one number, where two branches were merged: of these the one stored first is first."""
    found = (path for pattern in ("*.json", "*/*.json") for path in storage.glob(pattern))
    runs = [path for path in found if RUN_FILE.fullmatch(path.name)]
    runs.sort(key=lambda path: (_number(path), path.name, path.parent))
    alike: dict[tuple[Path, int], list[int]] = {}
    for place, path in enumerate(runs):
        alike.setdefault((path.parent, _number(path)), []).append(place)
    for places in alike.values():
        if len(places) > 1:
            for place, path in zip(places, _by_time([runs[i] for i in places]), strict=True):
                runs[place] = path
    return runs


def _by_time(paths: list[Path]) -> list[Path]:
    """In the order in which they were stored; as they are, where one does not tell when it was."""
    times = {path: when for path in paths if (when := _stored_at(path)) is not None}
    return sorted(paths, key=times.__getitem__) if len(times) == len(paths) else paths


def _stored_at(path: Path) -> datetime | None:
    """When a run was stored, as it says itself; None where that cannot be read. What else is wrong
    with the file, whoever loads it says."""
    try:
        check_readable(path)
        when = datetime.fromisoformat(strict_json(path.read_text(encoding="utf-8"))["datetime"])
    except (BenchError, OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def check_one(storage: Path | str, selector: str, found: Sequence[Path]) -> None:
    """BenchError where `selector`, which means the runs `found`, says a number that several runs of
    one folder have. Of those that a name or a pattern means, the newest is meant."""
    wanted = selector.rpartition("/")[2]
    if is_path(selector) or not wanted or "*" in wanted or "?" in wanted:
        return
    newest = {path.parent: _number(path) for path in found}  # the last of each folder stays
    alike = [path for path in found if _number(path) == newest[path.parent]]
    if len(alike) > len(newest):
        raise BenchError(f"{selector!r} means several runs: {_listed(storage, alike)}; name one")


def named(path: Path) -> str:
    """How a command names a stored run: by number and name where it looks by itself, in results/,
    else by its file."""
    here = Path("results").resolve()
    folder = path.resolve().parent
    if here in (folder, folder.parent):
        return path.stem
    cwd = Path.cwd()
    return str(path.relative_to(cwd) if path.is_relative_to(cwd) else path)


def load_stored(storage: Path | str, selector: str | None = None) -> StoredRun:
    """The one run that `selector` means, as `find_runs` reads it: the newest match. Without a
    selector, the latest run that was not interrupted.

    BenchError also where matches lie in several folders, whose numbers count apart, and where
    `check_one` says so.
    """
    if selector is not None:
        found = find_runs(storage, selector)
        if len({path.parent for path in found}) > 1:
            raise BenchError(
                f"{selector!r} means several runs: {_listed(storage, found)}; give the folder too"
            )
        check_one(storage, selector, found)
        return load_run(found[-1])
    find_runs(storage)  # there is one
    latest: dict[Path, StoredRun] = {}
    for path in reversed(find_runs(storage, "*")):
        if path.parent not in latest and not (run := load_run(path)).interrupted:
            latest[path.parent] = run
    if not latest:
        raise BenchError(f"every run in {storage} was interrupted: name one, or use {SAVE_HINT}")
    return max(latest.values(), key=lambda run: run.datetime or "")


def _listed(storage: Path | str, paths: Iterable[Path]) -> str:
    return ", ".join(str(path.relative_to(storage).with_suffix("")) for path in paths)


def _number(path: Path) -> int:
    match = RUN_FILE.fullmatch(path.name)
    return int(match[1]) if match else 0


def _matches(path: Path, wanted: str) -> bool:
    wanted = _filled(wanted).replace("[", "[[]")
    name = path.stem.partition("_")[2]
    return fnmatch.fnmatchcase(path.stem, f"{wanted}*") or fnmatch.fnmatchcase(name, wanted)


def _filled(wanted: str) -> str:
    """What a selector says of a file's name, its number written as it is there."""
    wanted = wanted.removesuffix(".json")
    return re.sub(r"^\d{1,3}(?=_)", lambda number: number[0].zfill(4), wanted)


def check_name(name: str) -> None:
    """BenchError unless a stored run can be called so."""
    if not NAME.fullmatch(name):
        raise BenchError(
            f"{name!r} cannot name a run: use letters, digits and . _ + - (at most 100)"
        )


def write_run(folder: Path | str, name: str, document: Mapping[str, Any]) -> Path:
    """Seal `document` and store it as the next `NNNN_NAME.json` in `folder`; returns its path.

    The run appears whole or not at all, and never in the place of another: it is written to a
    temporary file beside it, flushed to the disk, then linked to its number, which fails if the
    number is taken. A killed process leaves at most a `.saving-*` file, which nothing reads.
    BenchError for a name that cannot be a file name, an invalid run, or a full disk.
    """
    check_name(name)
    text = _lines(seal(document), 3) + "\n"
    folder = Path(folder)
    with saving(folder / name, text) as temporary, alone(folder):
        number = 1 + max((_number(path) for path in folder.glob("*.json")), default=0)
        while True:
            path = folder / f"{number:04}_{name}.json"
            try:
                _link(temporary, path)
            except FileExistsError:
                number += 1
            else:
                return path


def _lines(value: Any, depth: int) -> str:
    """JSON with a line for each item down to `depth`: a record or a benchmark is one line."""
    if not depth or not isinstance(value, dict | list) or not value:
        return json.dumps(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(_lines(item, depth - 1) for item in value) + "\n]"
    items = (f"{json.dumps(key)}: {_lines(item, depth - 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + "\n}"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two savers do not take one number under two names, and no
    entry of a file that both rewrite is lost.

    Where the system or the file system has no such lock, numbers may repeat; no run is lost.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _link(temporary: Path, path: Path) -> None:
    """Give the file its name; FileExistsError if it is taken."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if path.exists():  # no hard links here: the lock alone keeps others away
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(temporary, path)
