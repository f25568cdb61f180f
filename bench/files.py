"""Where the project's data lie, and how files are read: one error that names the file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from bench.errors import BenchError

PROJECT = Path(__file__).resolve().parent.parent
FIXTURES = PROJECT / "fixtures"
RESULTS = PROJECT / "results"
"""Stored predictions, experiments and baselines of the project's own."""


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
