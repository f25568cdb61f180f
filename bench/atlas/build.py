"""Build model types on the meta device, and read what the atlas keeps of them."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from bench.atlas.classes import CAUSAL_LM, choose, own_class, takes
from bench.atlas.entries import Atlas, TypeEntry
from bench.atlas.fold import make_entry
from bench.atlas.reviewed import OWN, Override, override_for
from bench.atlas.rows import entry_from_json, entry_to_json
from bench.atlas.workers import run_all
from bench.errors import UnknownName
from bench.models.modules import read_table

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str, int, int], None]

_PACKAGE = re.compile(r"requires the (\S+) library")


class Unbuildable(Exception):
    """A type that cannot be built here; the message is the reason."""


def build_atlas(
    types: Iterable[str] | None = None, jobs: int = 2, progress: Progress | None = None
) -> Atlas:
    """Build every model type that the installed transformers knows, or the given ones.

    `progress` is told of each type as it is done: its name, how many are done, and of how many.
    """
    import transformers

    wanted = model_types() if types is None else _known(types)
    built: dict[str, TypeEntry] = {}
    unbuilt: dict[str, str] = {}
    for item, answer, problem in run_all(entry_as_json, wanted, jobs):
        if problem:
            unbuilt[item] = problem
        else:
            built[item] = entry_from_json(answer, item)
        if progress:
            progress(item, len(built) + len(unbuilt), len(wanted))
    return Atlas(
        transformers.__version__, dict(sorted(built.items())), dict(sorted(unbuilt.items()))
    )


def default_jobs() -> int:
    """Worker processes: one a core, and no more than four, for each takes about 0.7 GiB."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def entry_as_json(model_type: str) -> dict[str, Any]:
    """`build_entry` in JSON: what a worker process answers."""
    return entry_to_json(build_entry(model_type))


def check_type_name(name: str, known: Iterable[str], where: str) -> str:
    """`name` itself; UnknownName, with the nearest, if it is none of the known types."""
    known = set(known)
    if name not in known:
        raise UnknownName("model type", name, known, f"({where})")
    return name


def _known(types: Iterable[str]) -> list[str]:
    import transformers

    known, where = model_types(), f"transformers {transformers.__version__}"
    return sorted({check_type_name(name, known, where) for name in types})


def model_types() -> list[str]:
    """Every model type that the installed transformers knows, in alphabetical order."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


def build_entry(model_type: str) -> TypeEntry:
    """What the atlas keeps of one type. Raises Unbuildable with the reason."""
    model, auto_class = build_model(model_type)
    return make_entry(read_table(model), auto_class, takes(CAUSAL_LM, model_type))


def build_model(model_type: str, changes: Mapping[str, Any] | None = None) -> tuple[nn.Module, str]:
    """The model on the meta device, and the auto class that built it ("" for none).

    `changes` are configuration values on top of the default and the reviewed override. Raises
    Unbuildable with the reason.
    """
    import torch
    import transformers

    override = _override(model_type)
    config = make_config(model_type, override, changes)
    auto_class = override.auto_class if override and override.auto_class else choose(model_type)
    auto_class = "" if auto_class == OWN else auto_class
    loader = getattr(transformers, auto_class) if auto_class else own_class(config)
    if loader is None:
        raise Unbuildable("no model class takes this configuration")
    loader = getattr(loader, "from_config", loader)
    with torch.device("meta"), _numbers_to_read(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return loader(config), auto_class
        except Exception as error:  # any line of 400 modelling files
            raise Unbuildable(explain(error)) from error


@contextlib.contextmanager
def _numbers_to_read() -> Iterator[None]:
    """`torch.linspace` off the meta device: transformers before 4.53 spaces the rates of stochastic
    depth with it, and reads them off."""
    import torch

    original = torch.linspace

    def linspace(*given: Any, **options: Any) -> Any:
        return original(*given, **{"device": "cpu", **options})

    torch.linspace = linspace
    try:
        yield
    finally:
        torch.linspace = original


def default_config(model_type: str) -> Any:
    """The configuration that a type is built with. Raises Unbuildable with the reason."""
    return make_config(model_type, _override(model_type))


def make_config(
    model_type: str, override: Override | None, changes: Mapping[str, Any] | None = None
) -> Any:
    """The default configuration, with the override's values and `changes`."""
    from transformers import AutoConfig

    values = _merge(override.config if override else {}, changes or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return AutoConfig.for_model(model_type, **values)
        except Exception as error:  # transformers validates configs with many error types
            raise Unbuildable(explain(error)) from error


def _override(model_type: str) -> Override | None:
    import transformers

    return override_for(model_type, int(transformers.__version__.partition(".")[0]))


def _merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `values` with `changes` laid over it (configurations keep what they get)."""
    merged = {k: _merge(v, {}) if isinstance(v, dict) else deepcopy(v) for k, v in values.items()}
    for key, value in changes.items():
        inside = merged.get(key)
        merged[key] = _merge(inside, value) if isinstance(inside, dict) else deepcopy(value)
    return merged


def explain(error: BaseException) -> str:
    """Why a type does not build, in one line: what it lacks here, or the error."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ImportError) and (missing := _PACKAGE.findall(text)):
        return f"needs the optional package {' and '.join(dict.fromkeys(missing))}"
    if isinstance(error, OSError) and "couldn't connect" in text:
        return "its configuration names a model on the hub"
    return shorten(f"{type(error).__name__}: {text}", 160, placeholder=" ...")
