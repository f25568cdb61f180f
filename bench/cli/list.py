"""`bench list`: the names that options take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from bench.cli.options import TEXT, Add, add_format
from bench.cli.output import fitted, json_lines, put, say

HELP = "the names that options take: models, scenarios, gpus, precisions, methods"

NameAbout = tuple[str, str]


def add_options(add: Add) -> None:
    """What to list."""
    add("what", choices=tuple(_LISTS), help="what to list")
    add_format(add, "terminal", TEXT)


def run(options: argparse.Namespace) -> int:
    """Print a name a line, with what it stands for; 0."""
    rows = list(_LISTS[options.what]())
    if as_data := options.format == "json":
        put(json_lines({"name": name, "about": about} for name, about in rows))
    else:
        width = max(len(name) for name, _ in rows)
        put("".join(f"{name:{width}}  {about}".rstrip() + "\n" for name, about in rows))
    if options.what == "methods":
        from bench.reports.methods import left_out

        if as_data:
            say(left_out())
        else:
            put(fitted(left_out()) + "\n")
    return 0


def _models() -> Iterator[NameAbout]:
    from bench.models.declared import load_architecture, registered

    for name, folder in registered().items():
        yield name, load_architecture(folder).hub_id


def _scenarios() -> Iterator[NameAbout]:
    from bench.scenarios.scenario import load_scenarios

    for scenario in load_scenarios().values():
        adapted = scenario.target_modules or (*scenario.roles, *scenario.optional_roles)
        yield scenario.name, ", ".join(adapted)


def _gpus() -> Iterator[NameAbout]:
    from bench.predict.gpus import load_gpus
    from bench.units import format_bytes

    for key, gpu in load_gpus().items():
        yield key, f"{gpu.name}, {format_bytes(gpu.memory_bytes)}"


def _precisions() -> Iterator[NameAbout]:
    from bench.models.precision import PRECISIONS

    for precision in PRECISIONS.values():
        yield precision.name, precision.description


def _methods() -> Iterator[NameAbout]:
    from bench.formulas.kinds import METHODS

    for name, kind in METHODS.items():
        yield name, kind.peft_class or "no adapter"


_LISTS: dict[str, Callable[[], Iterator[NameAbout]]] = {
    "models": _models,
    "scenarios": _scenarios,
    "gpus": _gpus,
    "precisions": _precisions,
    "methods": _methods,
}
