"""What pytest has in every repository where this package is installed: one fixture, four options.

Nothing else: no hook that sees a test (one finds this package's own suites by their name), no
marker, no option that is not called `--lora-...`. The suite's own options belong to
`bench.plugin.suite`, which only its own conftest.py asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bench.targets import Ledger


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the fixture `check_targets`."""
    add = parser.getgroup("lora_target_bench", "LoRA target modules (lora-target-bench)").addoption
    # fmt: off
    add("--lora-model", metavar="MODEL",
        help="the model of a check_targets() that names none: folder, config.json or hub id")
    add("--lora-adapter", type=Path, metavar="FILE",
        help="the configuration of a check_targets() that gives none: an adapter_config.json")
    add("--lora-optional", default="", metavar="A,B", help="entries that may reach nothing")
    add("--lora-auto-class", metavar="CLASS", help="transformers class to build the model with")
    # fmt: on


@pytest.hookimpl(tryfirst=True)  # before pytest looks for the conftest.py of what is to be run
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """`--pyargs bench.suites` means this package's suites: their folder, whose conftest.py brings
    their options, stands in the place of the name."""
    for asked in (args, early_config.known_args_namespace.file_or_dir):
        for index, argument in enumerate(asked):
            name, dot, rest = argument.partition("::")[0].partition(".suites")
            if dot and early_config.known_args_namespace.pyargs and _is_ours(name):
                from lora_target_bench.files import SUITES

                file = f"/{rest[1:].replace('.', '/')}.py" if rest else ""
                asked[index] = f"{SUITES}{file}{''.join(argument.partition('::')[1:])}"


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
        from lora_target_bench import check_targets as checked

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
        allowed = options.pop("optional", ())
        optional = (allowed,) if isinstance(allowed, str) else tuple(allowed)
        more = config.getoption("lora_optional", "").split(",")
        listed = tuple(entry.strip() for entry in more if entry.strip())
        options.setdefault("tell", print)
        ledger: Ledger = checked(model, adapter, optional=(*optional, *listed), **options)
        return ledger

    return check
