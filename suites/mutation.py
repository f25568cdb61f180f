"""Mutants of what counts and what judges, and whether a test sees them.

    python suites/mutation.py --seed 12 --mutants 300

mutmut makes the mutants; each runs in a fork of a process that has imported the libraries but
nothing of `bench`, with the tests that execute its line, the fastest first, until one fails. Which
tests those are is measured once and kept in `.mutation/`. A sample is drawn with a seed; one that
is cut short is a smaller sample. Needs `mutmut` and `coverage`.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import hashlib
import importlib
import json
import math
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import accumulate
from pathlib import Path
from random import Random
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".mutation"
MUTATED = (
    "bench/formulas/*.py", "bench/targets/*.py", "bench/statistics.py",
    "bench/baselines/verdicts.py",
)  # fmt: skip
TESTS = (
    "suites/test_targets.py", "suites/test_phases.py", "suites/test_dead.py",
    "suites/test_fields.py", "suites/test_hazards.py", "suites/test_stacks.py",
    "suites/test_field.py", "suites/test_ways_out.py", "suites/test_methods.py",
    "suites/selftest/test_formulas.py", "suites/selftest/test_statistics.py",
    "suites/selftest/test_baselines.py", "suites/selftest/test_baselines_verdicts.py",
)  # fmt: skip
PYTEST = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]


@dataclass(frozen=True)
class Mutant:
    """One change of one file: where, and the file's text with it."""

    path: Path
    line: int
    number: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}#{self.number}"

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(
            self.path.read_text("utf-8").splitlines(), self.text.splitlines(), lineterm="", n=0
        )
        return "\n".join([*lines][3:])


def mutated_files() -> list[Path]:
    return sorted(path for pattern in MUTATED for path in ROOT.glob(pattern))


def mutants_of(path: Path) -> Iterator[tuple[Path, int, int, Any]]:
    """(file, line, number within the file, a function that makes the file's mutated text)."""
    import libcst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
    from mutmut.mutation.mutators import mutation_operators
    from mutmut.mutation.pragma_handling import IgnoredCode

    wrapper = MetadataWrapper(libcst.parse_module(path.read_text("utf-8")))
    visitor = MutationVisitor(mutation_operators, IgnoredCode(set(), set(), set()))
    tree = wrapper.visit(visitor)
    places = wrapper.resolve(PositionProvider)
    for number, change in enumerate(visitor.mutations):

        def text(change: Any = change, tree: Any = tree) -> str:
            made = deep_replace(tree, change.original_node, change.mutated_node)
            return str(made.code)

        yield path, places[change.original_node].start.line, number, text


class Mutated(SourceFileLoader):
    """Loads one module of `bench` as the mutant has it, and finds itself on the way."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        parts = mutant.path.relative_to(ROOT).with_suffix("").parts
        self.module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        super().__init__(self.module, str(mutant.path))

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return (
            spec_from_file_location(name, self.path, loader=self) if name == self.module else None
        )

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.mutant.text, self.path, "exec", dont_inherit=True)


class Watch:
    """Notes how long each test took, and the first that failed."""

    def __init__(self, coverage: Any = None) -> None:
        self.coverage, self.seconds, self.failed = coverage, {}, ""

    def pytest_runtest_setup(self, item: Any) -> None:
        if self.coverage:
            self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid


def in_a_fork(work: Any, cpu_seconds: int) -> tuple[int, str]:
    """(exit status, what `work` returned as text) of a child; below 0 the signal that ended it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            status, text = work()
            os.write(write, text.encode()[:60_000])
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def measure() -> dict[str, Any]:
    """Which tests execute which lines, how long each takes, and which libraries they import."""
    files = sorted([*mutated_files(), *(ROOT / test for test in TESTS)])
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    kept = KEPT / f"tests-{digest[:12]}.json"
    if kept.exists():
        return json.loads(kept.read_text())

    def work() -> tuple[int, str]:
        import coverage
        import pytest

        measured = coverage.Coverage(
            data_file=None, include=[str(ROOT / pattern) for pattern in MUTATED]
        )
        watch = Watch(measured)
        measured.start()
        status = pytest.main([*PYTEST, *TESTS], plugins=[watch])
        measured.stop()
        data = measured.get_data()
        lines = {
            str(Path(file).relative_to(ROOT)): {
                line: [c for c in contexts if c]
                for line, contexts in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        ours = (str(ROOT), "None")
        libraries = sorted(
            name for name, module in sys.modules.items()
            if not str(getattr(module, "__file__", None)).startswith(ours)
        )  # fmt: skip
        KEPT.mkdir(exist_ok=True)
        found = {"lines": lines, "seconds": watch.seconds, "libraries": libraries}
        if status == 0:
            kept.write_text(json.dumps(found))
        return int(status), watch.failed

    status, failed = in_a_fork(work, 3600)
    if status:
        sys.exit(f"the tests do not pass without a mutant: {failed or status}")
    return json.loads(kept.read_text())


def judge(mutant: Mutant, tests: list[str], seconds: float) -> tuple[str, str]:
    """("killed", the test that failed), ("timeout", "") or ("survived", "")."""

    def work() -> tuple[int, str]:
        import pytest

        loader = Mutated(mutant)
        sys.meta_path.insert(0, loader)
        loaded = importlib.import_module(loader.module)  # before the plugin, under its own name
        assert loaded.__loader__ is loader
        watch = Watch()
        status = pytest.main([*PYTEST, *tests], plugins=[watch])
        return int(status), watch.failed

    status, failed = in_a_fork(work, int(60 + 10 * seconds))
    if status == 0:
        return "survived", ""
    return ("timeout" if status == -signal.SIGXCPU else "killed"), failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of tests for each, the fastest first"
    )
    parser.add_argument("--only", default="", help="files or mutants whose name holds this")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # this copy of `bench`, not the installed one
    found = measure()
    for name in found["libraries"]:
        try:
            importlib.import_module(name)
        except Exception:  # a part of a library that only works where it was imported from
            continue
    assert "bench" not in sys.modules
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page of the libraries
    every = [made for path in mutated_files() for made in mutants_of(path)]
    every = [m for m in every if options.only in f"{m[0].relative_to(ROOT)}:{m[1]}#{m[2]}"]
    Random(options.seed).shuffle(every)
    counts: Counter[str] = Counter()
    for path in [made[0] for made in every[:1]]:
        tests = sorted(found["seconds"], key=lambda test: found["seconds"][test])[:20]
        as_it_is = Mutant(path, 1, -1, path.read_text("utf-8"))
        if (control := judge(as_it_is, tests, 0)) != ("survived", ""):
            sys.exit(f"{as_it_is.name} without a change: {control}")
    for path, line, number, text in every[: options.mutants]:
        mutant = Mutant(path, line, number, text())
        lines = found["lines"].get(str(path.relative_to(ROOT)), {})
        tests = lines.get(str(line)) or sorted({t for of_line in lines.values() for t in of_line})
        tests = sorted(tests, key=lambda test: found["seconds"][test])
        spent = [*accumulate(found["seconds"][test] for test in tests)]
        tests = [
            test for test, so_far in zip(tests, spent, strict=True) if so_far < options.seconds
        ]
        verdict, test = judge(mutant, tests, sum(found["seconds"][t] for t in tests))
        counts[verdict] += 1
        print(f"{verdict} {mutant.name} {test}", flush=True)
        if verdict == "survived":
            print(mutant.diff, flush=True)
    print(f"seed {options.seed}: {sum(counts.values())} of {len(every)} mutants, {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
