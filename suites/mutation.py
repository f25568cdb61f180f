"""Mutants of what counts and what judges, and whether a test sees them.

    python suites/mutation.py --seed 12 --mutants 300

mutmut makes the mutants, of what is inside functions. The tests are collected once; each mutant
then runs in a fork, in which its function gets the changed code, with the tests that execute its
line (else its statement, else its function), the fastest first, until one fails. Which tests those
are is measured once for each file of them, and kept in `.mutation/`. A sample is drawn with a seed;
one that is cut short is a smaller sample. Those that change nothing that can be seen stand, with
the reason, in `mutants_alike.toml`, and are no part of the score. Needs `mutmut` and `coverage`.
"""

from __future__ import annotations

import argparse
import ast
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
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from random import Random
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".mutation"
MUTATED = (
    "bench/formulas/*.py", "bench/targets/*.py", "bench/statistics.py",
    "bench/baselines/machines.py", "bench/baselines/verdicts.py",
)  # fmt: skip
TESTS = (
    "suites/test_targets.py", "suites/test_phases.py", "suites/test_tied_layers.py",
    "suites/test_dead.py",
    "suites/test_fields.py", "suites/test_hazards.py", "suites/test_stacks.py",
    "suites/test_field.py", "suites/test_ways_out.py", "suites/test_methods.py",
    "suites/test_virtual_tokens.py",
    "suites/test_answers.py", "suites/test_answers_refused.py",
    "suites/selftest/test_formula_terms.py", "suites/selftest/test_formula_refusals.py",
    "suites/selftest/test_formula_sizes.py", "suites/selftest/test_baselines_fields.py",
    "suites/selftest/test_formulas.py", "suites/selftest/test_statistics.py",
    "suites/selftest/test_baselines.py", "suites/selftest/test_baselines_gate.py",
    "suites/selftest/test_baselines_times.py", "suites/selftest/test_baselines_verdicts.py",
    "suites/selftest/test_baselines_machines.py", "suites/selftest/test_baselines_pairs.py",
    "suites/test_task_types.py", "suites/test_suggestions.py",
)  # fmt: skip
PYTEST = ["-x", "-q", "-s", "-p", "no:cacheprovider", "--snapshot-warn-unused", f"--rootdir={ROOT}"]


class Mutant(NamedTuple):
    """One change of one file; `text` makes the whole file with it."""

    path: Path
    line: int
    number: int
    text: Callable[[], str]

    @property
    def file(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}#{self.number}"

    @property
    def change(self) -> tuple[str, ...]:
        """The lines as they were and as they are, without what is around them."""
        return tuple(line[1:].strip() for line in self.diff.splitlines() if line[:1] in "-+")

    @property
    def diff(self) -> str:
        before, after = self.path.read_text("utf-8").splitlines(), self.text().splitlines()
        return "\n".join([*difflib.unified_diff(before, after, lineterm="", n=0)][3:])


def mutated_files() -> list[Path]:
    return sorted(path for pattern in MUTATED for path in ROOT.glob(pattern))


def alike() -> dict[tuple[str, ...], str]:
    """Changes that nobody could see, by `Mutant.change`, each with the reason."""
    with Path(__file__).with_name("mutants_alike.toml").open("rb") as file:
        return {(m["line"], m["becomes"]): m["why"] for m in tomllib.load(file)["mutant"]}


def mutants_of(path: Path) -> Iterator[Mutant]:
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

        def text(change: Any = change) -> str:
            return str(deep_replace(tree, change.original_node, change.mutated_node).code)

        if isinstance(change.contained_by_top_level_function, libcst.FunctionDef):
            yield Mutant(path, places[change.original_node].start.line, number, text)


def graft(mutant: Mutant) -> None:
    """The mutant's code in the functions of its module that everybody has imported already."""
    parts = mutant.path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(p for p in parts if p != "__init__"))
    changed = ModuleType(module.__name__)
    changed.__dict__.update(__file__=module.__file__, __package__=module.__package__)
    exec(compile(mutant.text(), str(mutant.path), "exec", dont_inherit=True), changed.__dict__)
    _graft_all(vars(module), vars(changed), module.__name__)


def _graft_all(old: Any, new: Any, module: str) -> None:
    for name in set(old) & set(new):
        ours, theirs = old[name], new[name]
        if isinstance(theirs, type) and theirs.__module__ == module:
            _graft_all(vars(ours), vars(theirs), module)
            continue
        if hasattr(ours, "cache_clear"):
            ours.cache_clear()
        for inner in ("__wrapped__", "__func__", "fget", "func"):
            ours, theirs = getattr(ours, inner, ours), getattr(theirs, inner, theirs)
        if isinstance(theirs, FunctionType) and theirs.__module__ == module:
            ours.__code__ = theirs.__code__
            if ours.__defaults__ != theirs.__defaults__:
                ours.__defaults__ = theirs.__defaults__
            if ours.__kwdefaults__ != theirs.__kwdefaults__:
                ours.__kwdefaults__ = theirs.__kwdefaults__


class Watch:
    """Notes how long each test took, and the first that failed."""

    def __init__(self, coverage: Any = None) -> None:
        self.coverage, self.failed = coverage, ""
        self.seconds: dict[str, float] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        if self.coverage:
            self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid


def in_a_fork(work: Callable[[], tuple[int, str]], cpu_seconds: int) -> tuple[int, str]:
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


class Measured(NamedTuple):
    """Which tests execute which lines of which file, and how long each takes."""

    lines: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that execute the mutant's line; where none is known to (it is within an
        expression, or a default) its statement, else its function."""
        lines = self.lines.get(mutant.file, {})
        for span in spans(mutant):
            if tests := {test for line in span for test in lines.get(str(line), ())}:
                return sorted(tests, key=lambda test: self.seconds[test])
        return []


def spans(mutant: Mutant) -> Iterator[range]:
    """The lines around a mutant: its own, its statement's, its function's."""
    yield range(mutant.line, mutant.line + 1)
    nodes = [
        n
        for n in ast.walk(ast.parse(mutant.path.read_text("utf-8")))
        if isinstance(n, ast.stmt) and n.lineno <= mutant.line <= (n.end_lineno or 0)
    ]
    nodes.sort(key=lambda n: (n.end_lineno or 0) - n.lineno)
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef)]
    for node in (*nodes[:1], *functions):
        yield range(node.lineno, (node.end_lineno or 0) + 1)


def measure() -> Measured:
    """Of each file of tests what it executes; measured where that is not kept already."""
    code = b"".join(file.read_bytes() for file in mutated_files())
    kept = {}
    for test in TESTS:
        digest = hashlib.sha256(code + (ROOT / test).read_bytes()).hexdigest()
        kept[test] = KEPT / f"{Path(test).stem}-{digest[:12]}.json"
    if missing := [test for test, file in kept.items() if not file.exists()]:
        _measure({test: kept[test] for test in missing})
    whole = Measured({}, {})
    for file in kept.values():
        one = json.loads(file.read_text())
        whole.seconds.update(one["seconds"])
        for name, lines in one["lines"].items():
            for line, tests in lines.items():
                whole.lines.setdefault(name, {}).setdefault(line, []).extend(tests)
    return whole


def _measure(files: dict[str, Path]) -> None:
    def work() -> tuple[int, str]:
        import coverage

        include = [str(ROOT / pattern) for pattern in MUTATED]
        measured = coverage.Coverage(data_file=None, include=include)
        watch = Watch(measured)
        measured.start()
        status = pytest.main([*PYTEST, *files], plugins=[watch])
        measured.stop()
        data = measured.get_data()
        KEPT.mkdir(exist_ok=True)
        for test, kept in files.items() if status == 0 else ():
            lines = {
                str(Path(file).relative_to(ROOT)): {
                    line: [c for c in contexts if c.startswith(f"{test}::")]
                    for line, contexts in data.contexts_by_lineno(file).items()
                }
                for file in data.measured_files()
            }
            seconds = {t: s for t, s in watch.seconds.items() if t.startswith(f"{test}::")}
            kept.write_text(json.dumps({"lines": lines, "seconds": seconds}))
        return int(status), watch.failed

    status, failed = in_a_fork(work, 3600)
    if status:
        sys.exit(f"the tests do not pass without a mutant: {failed or status}")


def warm() -> None:
    """Once for all forks, what tests need and no mutant touches: libraries, models, tables."""
    for name in ("torch", "transformers", "peft", "bitsandbytes", "bench.measure.counting"):
        importlib.import_module(name)
    importlib.import_module("small_types").small_types()
    models = importlib.import_module("answer_models")
    for label in (*models.BY_HAND, *models.MODELS):
        models.table_of(label)


class Mutation(Watch):
    """A pytest plugin: in the place of a run of the tests, one for each mutant."""

    def __init__(self, mutants: list[Mutant], found: Measured, seconds: float) -> None:
        super().__init__()
        self.mutants, self.found, self.most = mutants, found, seconds
        self.counts: Counter[str] = Counter()
        self.alike = alike()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        warm()
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page
        first = self.mutants[0]
        as_it_is = first._replace(text=lambda: first.path.read_text("utf-8"))
        control = self.judge(session, as_it_is, [*items.values()][::20], 600)
        assert control == ("survived", ""), f"without a change: {control}"
        for mutant in self.mutants:
            lasts = self.found.seconds
            tests = [test for test in self.found.of(mutant) if test in items]
            spent = [*accumulate(lasts[test] for test in tests)]
            chosen = [items[t] for t, so_far in zip(tests, spent, strict=True)
                      if so_far < self.most]  # fmt: skip
            verdict, test = self.judge(session, mutant, chosen, sum(map(lasts.get, tests)))
            if verdict == "survived" and (why := self.alike.get(mutant.change)):
                verdict, test = "alike", why
            self.counts[verdict] += 1
            print(f"{verdict} {mutant.name} {test}", flush=True)
            if verdict == "survived":
                print(mutant.diff, flush=True)
        return True

    def judge(
        self, session: pytest.Session, mutant: Mutant, items: list[pytest.Item], seconds: float
    ) -> tuple[str, str]:
        """("killed", the test that failed), ("timeout", "") or ("survived", "")."""
        from _pytest.main import pytest_runtestloop

        def work() -> tuple[int, str]:
            graft(mutant)
            session.items = items
            with suppress(session.Failed, session.Interrupted):
                pytest_runtestloop(session)
            return int(bool(self.failed)), self.failed

        status, failed = in_a_fork(work, int(30 + 10 * seconds))
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
    parser.add_argument("--only", default="", help="files or mutants whose name holds one of these")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # this copy of `bench`, not the installed one
    found = measure()
    every = [mutant for path in mutated_files() for mutant in mutants_of(path)]
    every = [m for m in every if any(word in f"{m.name} " for word in options.only.split(","))]
    Random(options.seed).shuffle(every)
    plugin = Mutation(every[: options.mutants], found, options.seconds)
    status = pytest.main([*PYTEST, *TESTS], plugins=[plugin])
    told = sum(plugin.counts.values())
    print(f"seed {options.seed}: {told} of {len(every)} mutants, {dict(plugin.counts)}")
    if seen := told - plugin.counts["alike"]:
        print(f"killed of those that can be seen: {1 - plugin.counts['survived'] / seen:.1%}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
