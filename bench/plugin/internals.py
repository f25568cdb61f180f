"""What pytest and pytest-benchmark offer no hook for, by the private names that compat lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

from bench.compat import private


@lru_cache(maxsize=1)
def root_of(config: Any) -> Path:
    """The root directory of the tests that pytest was given. pytest itself looks for it before it
    knows a plugin's options, and takes paths among their values for tests: `--model /data/llama`
    would make that the root, and what the project's pyproject.toml asks for would be dropped."""
    option = config.option
    if option.rootdir or option.inifilename:
        return Path(config.rootpath)
    find, call = private("root directory"), config.invocation_params
    given = {
        "inifile": None, "override_ini": None, "rootdir_cmd_arg": None, "invocation_dir": call.dir,
        "args": [each for each in config.args if each in call.args],  # as written, no name's folder
    }  # fmt: skip
    return Path(find(**{name: given[name] for name in signature(find).parameters})[0])


def benchmarks_of(config: Any) -> Any:
    """The figures that pytest-benchmark has collected; it offers them to no hook."""
    return private("benchmarks", config)


def tell_unwritten(config: Any, tell: Callable[[OSError], object]) -> None:
    """Where pytest-benchmark cannot write its --benchmark-json, `tell` is told instead of the
    exception that would end pytest before anybody else is asked to finish."""
    write = private("benchmarks' file", config)

    def written(document: Any) -> None:
        try:
            write(document)
        except OSError as error:
            tell(error)

    write.__self__.save_json = written


def width_of(reporter: Any) -> int:
    """Columns of the terminal that pytest writes to; its reporter tells them to nobody."""
    return int(private("width of the terminal", reporter))


def rewrite_line(reporter: Any, text: str) -> None:
    """Put `text` in the place of the terminal's last line: on the file itself, since pytest's
    writer counts what it writes, and would break a line that is rewritten."""
    file = private("terminal", reporter)
    file.write(f"\r\x1b[K{text}")
    file.flush()
