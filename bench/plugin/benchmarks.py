"""pytest-benchmark's own options: honoured, or refused by name before anything runs.

A measured case is timed by its worker, after one warmup round until its times agree or `--rounds`
times, and printed in the suite's own table. What would choose other rounds or another clock cannot
be honoured; what chooses how pytest-benchmark shows its table asks for that table too.
"""

from __future__ import annotations

import os
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.files import check_output

_ROUNDS = "a measured case takes steps until their times agree, or --rounds N, after a warmup step"
_CLOCK = "a measured case is timed in its worker process, by the worker's clock"
_REFUSED = {
    "--benchmark-min-rounds": _ROUNDS,
    "--benchmark-min-time": _ROUNDS,
    "--benchmark-max-time": f"{_ROUNDS}; --budget MINUTES bounds the whole run",
    "--benchmark-precision": _ROUNDS,
    "--benchmark-warmup": _ROUNDS,
    "--benchmark-warmup-iterations": _ROUNDS,
    "--benchmark-timer": _CLOCK,
    "--benchmark-calibration-precision": _CLOCK,
    "--benchmark-disable-gc": f"{_CLOCK}, which collects no garbage within a step",
    "--benchmark-compare-fail": "it compares means, without their intervals, and after the run is "
    "stored; --gate judges every figure, with --threshold step_seconds=5% for what may differ",
    "--benchmark-cprofile": _CLOCK,
    "--benchmark-cprofile-loops": _CLOCK,
    "--benchmark-cprofile-top": _CLOCK,
    "--benchmark-cprofile-dump": _CLOCK,
}
_SHOWN = ("columns", "sort", "group-by", "name", "histogram", "confidence", "verbose")


def given(config: pytest.Config) -> set[str]:
    """The options that this run was called with, those of PYTEST_ADDOPTS and of the ini file's
    addopts too, without their values."""
    arguments = [str(argument) for argument in config.invocation_params.args]
    arguments += config.getini("addopts")
    arguments += shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    return {a.partition("=")[0] for a in arguments if a.startswith("--benchmark-")}


def check_benchmark_options(config: pytest.Config) -> None:
    """Raises BenchError for one that measured cases cannot honour."""
    option, named = config.option, given(config)
    for name in sorted(named & _REFUSED.keys()):
        raise BenchError(f"{name} has no effect on these suites: {_REFUSED[name]}")
    if "--benchmark-histogram" in named and not (find_spec("pygal") and find_spec("pygaljs")):
        raise BenchError(
            "--benchmark-histogram needs pygal: pip install 'pytest-benchmark[histogram]'"
        )
    if isinstance(option.benchmark_json, Path):  # an open file in pytest-benchmark 5.1
        try:
            check_output(option.benchmark_json)
        except BenchError as error:
            raise BenchError(f"--benchmark-json {error}") from None
    if named & {f"--benchmark-{name}" for name in _SHOWN}:
        option.benchmark_quiet = False
    for name, instead in (("only", "measured"), ("skip", "'not measured'")):
        if option.gate and getattr(option, f"benchmark_{name}"):
            raise BenchError(
                f"--benchmark-{name} does not go with --gate, to which the cases that it leaves "
                f"out would have vanished: choose with -m {instead}"
            )
    storage = str(option.benchmark_storage)
    if "://" in storage and not storage.startswith("file://"):
        raise BenchError(f"--benchmark-storage {storage}: runs are stored in a folder")


def name_to_save(config: pytest.Config) -> str | None:
    """What --benchmark-save, or --benchmark-autosave, calls this run; pytest-benchmark itself then
    saves nothing. Its name for an autosave is the commit and the time."""
    option = config.option
    name: str | None = option.benchmark_save or option.benchmark_autosave or None
    option.benchmark_save = option.benchmark_autosave = None
    return name
