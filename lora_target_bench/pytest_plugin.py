"""What pytest has in every repository where this package is installed: one fixture, four options.

Nothing else: no hook that sees a test (one finds this package's own suites by their name), no
marker, no option that is not called `--lora-...`. The suite's own options belong to
`bench.plugin.suite`, which only its own conftest.py asks for.
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from bench.targets import Ledger


HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the fixture `check_targets`."""
    add = parser.getgroup("lora_target_bench", "LoRA target modules (lora-target-bench)").addoption
    # fmt: off
    add("--lora-model", type=_given, metavar="MODEL",
        help="the model of a check_targets() that names none: folder, config.json or hub id")
    add("--lora-adapter", type=lambda text: Path(_given(text)), metavar="FILE",
        help="the configuration of a check_targets() that gives none: an adapter_config.json")
    add("--lora-optional", default="", metavar="A,B", help="entries that may reach nothing")
    add("--lora-auto-class", type=_given, metavar="CLASS",
        help="transformers class to build the model with")
    # fmt: on


def _given(text: str) -> str:
    """A value; an empty one, as from a variable that is not set, would skip the test."""
    if not text:
        raise ArgumentTypeError("expected a value, found nothing")
    return text


@pytest.hookimpl(wrapper=True)  # before pytest looks for the conftest.py of what is to be run
def pytest_load_initial_conftests(
    early_config: pytest.Config, args: list[str]
) -> Generator[None, Any, Any]:
    """`--pyargs bench.suites` means this package's suites: their folder, whose conftest.py brings
    their options, stands in the place of the name.

    Where nothing else is asked for, no other conftest.py is read: that of a repository which has
    its environment inside would be, and may have options of the same names. Where the suites cannot
    run, one line says why, and the status is 2.
    """
    known = early_config.known_args_namespace
    for asked in (args, known.file_or_dir):
        for index, argument in enumerate(asked):
            name, dot, rest = argument.partition("::")[0].partition(".suites")
            if dot and known.pyargs and _is_ours(name):
                from lora_target_bench.files import SUITES

                file = f"/{rest[1:].replace('.', '/')}.py" if rest else ""
                asked[index] = f"{SUITES}{file}{''.join(argument.partition('::')[1:])}"
    if not any(map(_in_suites, known.file_or_dir)):
        try:
            return (yield)
        except ValueError as error:  # "option dest 'lora_model' already used"
            if name := next((n for n in _OPTIONS if n in str(error)), ""):
                option = f"--{name.replace('_', '-')}"
                _refuse(
                    f"a conftest.py here defines {option}, which lora-target-bench has too: rename "
                    "it, or leave the plugin out: -p no:lora_target_bench.pytest_plugin"
                )
            raise
    _check_extra()
    _ours_first()
    values = _values(args)
    known.file_or_dir[:] = [each for each in known.file_or_dir if each not in values]
    if all(map(_in_suites, known.file_or_dir)) and not any(
        argument.startswith("--confcutdir") for argument in args
    ):
        from lora_target_bench.files import SUITES

        known.confcutdir = str(SUITES.parent)
    try:
        found = yield
    except ValueError:  # "option dest 'rank' already used"
        if text := _taken(early_config):
            _refuse(text)
        raise
    if pytest.version_tuple < (9,) and (text := _taken(early_config)):
        _refuse(text)  # these find it later, when they parse
    return found


_OPTIONS = ("lora_model", "lora_adapter", "lora_optional", "lora_auto_class")
"""Where pytest keeps the values of ours."""


def _in_suites(argument: str) -> bool:
    """Whether a path, or a node id, is of this package's suites."""
    path = Path(argument.partition("::")[0])
    if "suites" not in path.absolute().parts:
        return False
    if not _importable():
        return False
    from lora_target_bench.files import SUITES

    return path.resolve().is_relative_to(SUITES)


def _importable() -> bool:
    """Whether this package is what its name means, and not a folder of theirs that has it too."""
    import lora_target_bench

    return bool(lora_target_bench.__file__) and Path(lora_target_bench.__file__).parent == HERE


_NEEDED = ("pytest_benchmark", "hypothesis", "pandas")
"""What every run of the suites imports, and `check_targets` does not."""


def _check_extra() -> None:
    """End the run where a package is missing that the suites need."""
    from importlib.util import find_spec

    from lora_target_bench.errors import missing_extra

    for module in _NEEDED:
        if find_spec(module) is None:
            _refuse(missing_extra(ModuleNotFoundError(name=module)))


def _ours_first() -> None:
    """In a run of the suites `bench` is this package's: `python -m pytest` puts the current folder
    first, and with --import-mode=importlib pytest puts nothing before it. End the run where another
    one has been imported already."""
    from lora_target_bench import is_ours

    theirs = sys.modules.get("bench")
    if theirs is not None and not is_ours(theirs.__file__):
        place = theirs.__file__ or ", ".join(theirs.__path__)
        _refuse(
            f"a plugin has imported your own bench ({place}), and the suites import "
            "lora-target-bench's: leave that plugin out of this run (-p no:NAME)"
        )
    if sys.path[:1] != [str(HERE.parent)]:
        sys.path.insert(0, str(HERE.parent))


class _Names:
    """What a plugin adds to pytest's parser: the names of its options, and whether they take a
    value."""

    def __init__(self) -> None:
        self.names: dict[str, bool] = {}

    def addoption(self, *names: str, **how: Any) -> None:
        self.names.update(dict.fromkeys(names, how.get("action", "store") in ("store", "append")))

    def getgroup(self, *_: Any, **__: Any) -> _Names:
        return self

    def addini(self, *_: Any, **__: Any) -> None:
        pass


def _of_suites() -> _Names:
    """The options of the suites, which pytest knows once it has read their conftest.py."""
    from lora_target_bench.plugin.options import pytest_addoption as of_suites

    own = _Names()
    of_suites(own)
    return own


def _values(args: Sequence[str]) -> set[str]:
    """Values of the suites' options, such as the folder after --model: pytest does not know these
    yet, and takes what follows for a path to test."""
    taking = {name for name, value in _of_suites().names.items() if value}
    return {value for name, value in pairwise(args) if name in taking}


def _taken(config: pytest.Config) -> str:
    """Which options of the suites somebody else has too, whose they are, and the way out; "" where
    nobody has one."""
    own, manager = _of_suites(), config.pluginmanager
    for plugin in manager.get_plugins():  # the one that was refused its options has no hook yet
        adds: Any = getattr(plugin, "pytest_addoption", None)
        theirs = _Names()
        given = {"parser": theirs, "pluginmanager": manager}
        with suppress(Exception):  # a plugin without options, or that asks the parser for more
            adds(**{name: given[name] for name in signature(adds).parameters})
        both = ", ".join(sorted(theirs.names.keys() & own.names))
        if both and theirs.names != own.names:
            name = manager.get_name(plugin) or ""
            way = f"leave that plugin out of this run: -p no:{name}"
            if name.endswith("conftest.py"):
                way = "run the suites by themselves, without that folder and without --confcutdir"
            elif name in config.invocation_params.args:
                way = f"leave out -p {name}"
            elif any(name == word.removeprefix("-p") for word in config.getini("addopts")):
                way = "leave out the addopts that bring that plugin: -o addopts="
            return f"{name} defines {both}, and so do these suites: {way} (docs/ci.md)"
    return ""


def _refuse(text: str) -> NoReturn:
    """End before anything is collected, in one line, with status 2."""
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2)


def _is_ours(name: str) -> bool:
    """Whether a package's name means this one: `bench` may be somebody else's."""
    from importlib.util import find_spec

    import lora_target_bench

    if name != "bench":
        return name == lora_target_bench.__name__
    found = find_spec(name)
    return found is not None and lora_target_bench.is_ours(found.origin)


def _beside(model: Any) -> Path | None:
    """The adapter_config.json beside a model's config.json, where there is one."""
    if not isinstance(model, str | Path):
        return None
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    file = folder / "adapter_config.json"
    return file if Path(model).exists() and file.is_file() else None


_UNKNOWN = pytest.StashKey[set[str]]()
"""Of --lora-optional, what no configuration had so far."""
_HANDED_ON = "lora_optional_unknown"


@pytest.fixture(scope="session")
def check_targets(request: pytest.FixtureRequest) -> Callable[..., Ledger]:
    """`lora_target_bench.check_targets`: assert that a LoRA configuration has no dead entry.

    `check_targets(model, adapter)` as in the library; what is left out (None is not) comes from
    --lora-model and --lora-adapter, the adapter else from the adapter_config.json beside the model.
    Where neither is given by these, and no model by the test, the test is skipped.
    --lora-optional adds to `optional`. What `bench targets` would say is printed, so that -rA shows
    it of a test that passed too.
    """
    config = request.config

    def check(model: Any = ..., adapter: Any = ..., **options: Any) -> Ledger:
        __tracebackhide__ = True
        if not _importable():
            pytest.fail(
                "check_targets: a package of this repository is called lora_target_bench, as the "
                "installed one is: one of the two cannot be imported",
                pytrace=False,
            )
        from lora_target_bench import check_targets as checked
        from lora_target_bench.plugin.internals import root_of

        named = model is not ...
        model = model if named else config.getoption("lora_model", None) or ...
        if adapter is ...:
            adapter = config.getoption("lora_adapter", None) or _beside(model) or ...
        if named and adapter is ...:
            pytest.fail(
                "check_targets: no adapter: give a LoraConfig, a file or a list of target modules, "
                "or --lora-adapter",
                pytrace=False,
            )
        for given, option in ((model, "--lora-model"), (adapter, "--lora-adapter")):
            if given is ...:
                pytest.skip(f"no {option}")
        if config.getoption("lora_auto_class", None) and isinstance(model, str | Path):
            options.setdefault("auto_class", config.getoption("lora_auto_class"))
        anywhere = _listed(config)
        options.setdefault("tell", print)
        options.setdefault("project", root_of(config))
        unknown = config.stash.setdefault(_UNKNOWN, set(anywhere))
        try:
            ledger: Ledger = checked(model, adapter, optional_anywhere=anywhere, **options)
        except AssertionError as error:
            unknown -= _entries(getattr(error, "ledger", None))
            raise
        unknown -= _entries(ledger)
        return ledger

    return check


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The entries of --lora-optional that no configuration has: slips, which allow nothing."""
    if unknown := sorted(config.stash.get(_UNKNOWN, ())):
        from lora_target_bench.units import harmless_line

        names = harmless_line(", ".join(map(repr, unknown)))
        said = f"--lora-optional: {names}: in no configuration that check_targets was given"
        terminalreporter.write_line(said, yellow=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist hands on what it has not seen of --lora-optional."""
    output = getattr(session.config, "workeroutput", None)
    unknown = session.config.stash.get(_UNKNOWN, None)
    if output is not None and unknown is not None:
        output[_HANDED_ON] = sorted(unknown)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_testnodedown(node: Any) -> None:
    """Unused is what none of the workers has seen; of one that crashed nothing is known."""
    output, stash = getattr(node, "workeroutput", {_HANDED_ON: ()}), node.config.stash
    if _HANDED_ON in output:  # else it has checked nothing
        unknown = set(output[_HANDED_ON])
        stash[_UNKNOWN] = stash.get(_UNKNOWN, unknown) & unknown


def _entries(ledger: Ledger | None) -> set[str]:
    return {e.entry for e in ledger.entries} | ledger.adapter.written if ledger else set()


def _listed(config: pytest.Config) -> tuple[str, ...]:
    """The entries of --lora-optional."""
    listed = config.getoption("lora_optional", "").split(",")
    return tuple(entry.strip() for entry in listed if entry.strip())
