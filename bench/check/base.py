"""The base model that a configuration is for: the one given, or the one that its file names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from bench.errors import BenchError, check_most
from bench.files import read_json
from bench.models.architectures import Model, load_model
from bench.models.configs import MOST_LABELS
from bench.models.declared import registered
from bench.saved.folder import CONFIG
from bench.saved.header import SavedTensor
from bench.tasks import BY_CLASS


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
    if found := base_folder(named, file):
        return load_model(found, auto_class, trust_remote_code)
    failure = ""
    if named and not Path(named).is_absolute():
        try:
            return load_model(named, auto_class, trust_remote_code)
        except BenchError as error:
            failure = str(error)
            if not _not_found(failure):
                raise
    hub = "the hub's cache" if os.environ.get("HF_HUB_OFFLINE") else "the hub and its cache"
    places = [f"{place}/config.json" for place in _candidates(named, file)]
    places += ["the registered architectures"]
    places += [hub] if named and named.count("/") == 1 else []
    names = f"the base model {named!r} was not found"
    if not named:
        names = "the file names no base model, and none lies beside it"
    raise BenchError(
        f"{file}: {names}; looked in {', '.join(places)}; pass --model with a "
        f"folder that holds its config.json, a hub id, or a registered name "
        f"({', '.join(sorted(registered()))})"
    )


def base_folder(named: str | None, file: Path) -> str | None:
    """The first folder with a config.json of those that may hold the base model; None if none
    has."""
    folders = _candidates(named, file)
    return next((name for name in folders if (Path(name) / "config.json").is_file()), None)


def _candidates(named: str | None, file: Path) -> list[str]:
    """Folders that may hold the model's config.json, in the order of trust.

    A further adapter of one model lies in a folder of its name, and its configuration was written
    for the folder around it, whose adapter's base model is its own too.
    """
    folders = []
    if named:
        folders = [named, str(file.parent / named)]
    folders.append(str(file.parent))
    inside = Path(os.path.abspath(file)).parent  # as written, "." has no other parent than itself
    around = inside.parent / CONFIG
    if file.name == CONFIG and inside != inside.parent and around.is_file():
        folders += [str(around.parent / named)] if named else []
        folders += _candidates(_named_in(around), around)
    return list(dict.fromkeys(folders))


def _named_in(config: Path) -> str | None:
    """The base model that another adapter's configuration names; None where it cannot be read,
    which the check of that adapter says."""
    try:
        values = read_json(config)
    except BenchError:
        return None
    named = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    return named if isinstance(named, str) and named else None


def _not_found(message: str) -> bool:
    """Whether a model's name led nowhere; another message says what is wrong with the model."""
    return "unknown architecture" in message or "neither a registered architecture" in message


def label_heads(model: Model, keys: Iterable[str]) -> set[str]:
    """Those tensors of an adapter's file that are the weight of a layer with a row for each label:
    one that has a row more where the model has a label more."""
    task = BY_CLASS.get(model.task_class)
    whole = [key for key in keys if key.endswith(".weight") and ".lora_" not in key]
    if not whole or task is None or not task.labels.startswith("a class"):
        return set()
    plain = {key: value for key, value in model.config.items() if key not in _LABELS}
    more = replace(model, config={**plain, "num_labels": model.fields["num_labels"] + 1})
    sizes = {m.name: m.out_features for m in model.table.modules}
    ends = tuple(
        f".{m.name}.weight" for m in more.table.modules if m.out_features != sizes.get(m.name)
    )
    return {key for key in whole if f".{key}".endswith(ends)}


_LABELS = ("num_labels", "id2label", "label2id")


def with_saved_labels(
    model: Model, weights: Path, tensors: Mapping[str, SavedTensor]
) -> tuple[Model, tuple[str, ...]]:
    """(`model` with as many labels as the head in `weights` has, a note that says so), where its
    own configuration names none: whoever trained the head gave the number when loading."""
    if any(model.config.get(key) is not None for key in _LABELS):
        return model, ()
    rows = {tensors[key].shape[0] for key in label_heads(model, tensors) if tensors[key].shape}
    if len(rows) != 1 or not min(rows) or rows == {model.fields["num_labels"]}:
        return model, ()
    (labels,) = rows
    check_most(f"{weights}: the labels of its head", labels, MOST_LABELS)
    note = (
        f"{labels} labels, as the head in {weights.name} has: the base model's config.json names "
        f"none; load it with num_labels={labels}, or PEFT raises"
    )
    return replace(model, config={**model.config, "num_labels": labels}), (note,)
