"""Which of two reduced geometries a run without a GPU measures."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import pytest

from bench.baselines import KEY
from bench.baselines.accepted import load_baseline
from bench.baselines.journal import unfinished
from bench.errors import BenchError
from bench.models.declared import load_architecture, registered, smaller_labels
from bench.plugin.state import KIND, SAVE, storage_folder
from bench.scenarios.subjects import Subjects
from bench.training.speed import half_ratio, is_slow

USUAL, SMALLER = GEOMETRIES = ("reduced", "smaller")
_HANDED_ON = "bench_geometry"


def is_smaller(config: pytest.Config) -> bool:
    """As `--geometry` says; else as in the run to compare with or to go on with, which finds its
    cases by their ids; else by how fast this machine computes in half precision. On a cluster's
    nodes, of which nothing is measured beforehand, the usual one.

    What came of it is kept as the option's value, and handed on to the workers of pytest-xdist:
    all of them have to collect the same ids.
    """
    option = config.option
    if option.geometry is None:
        option.geometry = getattr(config, "workerinput", {}).get(_HANDED_ON)
    if option.geometry is None:
        before = _of_stored(config)
        if KIND in config.stash:
            option.geometry = USUAL
        elif before is not None:
            option.geometry = before
        else:
            option.geometry = SMALLER if half_is_slow() else USUAL
    return bool(option.geometry == SMALLER)


def without_effect(geometry: str, subjects: Subjects) -> str:
    """That a geometry was asked for and nothing is measured in a reduced one; "" where it is."""
    if any(subject.model.reduced for subject in subjects.measured.values()):
        return ""
    return (
        f"--geometry {geometry} had no effect: {', '.join(_reducible())} have a reduced geometry, "
        "without a GPU, --weights and --full-geometry"
    )


def _reducible() -> list[str]:
    return [name for name, folder in registered().items() if load_architecture(folder).reduced]


@cache
def half_is_slow() -> bool:
    """Of this machine, measured once in this process."""
    return is_slow(half_ratio())


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_configure_node(node: Any) -> None:
    """A worker takes what its controller has found out."""
    node.workerinput[_HANDED_ON] = node.config.option.geometry


def _of_stored(config: pytest.Config) -> str | None:
    """The geometry of the run that this one is held against or goes on with; None where there is
    no such run, or it measured none: what is wrong with it is told where it is read."""
    option = config.option
    models: set[str] = set()
    with suppress(BenchError):
        if option.resume and (name := config.stash[SAVE]):
            stored = unfinished(storage_folder(config), name)
            models = {str(each["model"]) for each in stored[KEY]["records"].values()}
        elif option.benchmark_compare:
            selector = None if option.benchmark_compare is True else option.benchmark_compare
            run = load_baseline(storage_folder(config), selector)
            models = {record.model for record in run.records.values()}
    reduced = {model.partition("@")[2] for model in models if "@" in model}
    if not reduced:
        return None
    return SMALLER if reduced <= smaller_labels() else USUAL
