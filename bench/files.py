"""Where the project's data lie, and how files are read: one error that names the file."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.errors import BenchError

# By whichever name this package was imported; its files lie in `bench`.
_PACKAGE = Path(str(files(__package__))).resolve().parent / "bench"
INSTALLED = (_PACKAGE / "fixtures").is_dir()
"""Whether the data lie inside the package, where a wheel has them, and not beside it, as in a
checkout: `setup.py` maps the folders in."""
_HOME = _PACKAGE if INSTALLED else _PACKAGE.parent
FIXTURES = _HOME / "fixtures"
RESULTS = _HOME / "results"
"""Stored predictions, experiments and baselines of the project's own."""
SUITES = _HOME / "suites"
"""What `pytest suites/` runs; in an installation `pytest --pyargs bench.suites`."""

OWN_RESULTS = Path("results") if INSTALLED else RESULTS
"""Where results are written: in an installation the user's own folder, never the package's."""


def read_json(path: Path) -> Any:
    """The JSON in `path`; BenchError, naming the file, when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file") from None
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BenchError(f"{path}: not JSON: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML in `path`; BenchError, naming the file, when it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BenchError(f"{path}: not TOML: {error}") from None


def require_extra(module: str, extra: str) -> None:
    """Raise BenchError, naming the extra to install, unless `module` can be imported."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise BenchError(
            f"{module} is not installed: pip install 'lora-target-bench[{extra}]' brings it"
        )
