"""The base model that a configuration is for: the one given, or the one that its file names."""

from __future__ import annotations

import os
from pathlib import Path

from bench.errors import BenchError
from bench.models.architectures import Model, load_model
from bench.models.declared import registered


def find_base(
    named: str | None,
    file: Path,
    given: str | None = None,
    auto_class: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """The model to check against: `given`, or `named` in `file`, or a config.json beside it.

    A name may be a registered one, a folder (also one relative to the file), or a hub id; a hub id
    is looked up in the cache first, and fetched only where the hub is allowed. Raises BenchError
    that says every place that was looked in, and what to pass.
    """
    if given is not None:
        return load_model(given, auto_class, trust_remote_code)
    looked: list[str] = []
    for name in _candidates(named, file):
        looked.append(name)
        if (Path(name) / "config.json").is_file():
            return load_model(name, auto_class, trust_remote_code)
    failure = ""
    if named and not Path(named).is_absolute():
        try:
            return load_model(named, auto_class, trust_remote_code)
        except BenchError as error:
            failure = str(error)
            if not _not_found(failure):
                raise
    hub = "the hub's cache" if os.environ.get("HF_HUB_OFFLINE") else "the hub and its cache"
    places = [f"{place}/config.json" for place in looked] + ["the registered architectures"]
    places += [hub] if named and named.count("/") == 1 else []
    names = f"the base model {named!r} was not found"
    if not named:
        names = "the file names no base model, and none lies beside it"
    raise BenchError(
        f"{file}: {names}; looked in {', '.join(places)}; pass --model with a "
        f"folder that holds its config.json, a hub id, or a registered name "
        f"({', '.join(sorted(registered()))})"
    )


def _candidates(named: str | None, file: Path) -> list[str]:
    """Folders that may hold the model's config.json, in the order of trust."""
    folders = []
    if named:
        folders = [named, str(file.parent / named)]
    folders.append(str(file.parent))
    return list(dict.fromkeys(folders))


def _not_found(message: str) -> bool:
    """Whether a model's name led nowhere; another message says what is wrong with the model."""
    return "unknown architecture" in message or "neither a registered architecture" in message
