"""Which transformers class a model is built with: named, of a task, or guessed from the config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from bench.compat import unasked
from bench.errors import BenchError, UnknownName
from bench.tasks import BY_CLASS, BY_TYPE, TASKS
from bench.units import one_line

_BASE = "AutoModel"
_GENERATION = "ForConditionalGeneration"


def model_class(name: str) -> Any:
    """The transformers auto class or model class called `name`."""
    import transformers

    found = getattr(transformers, name, None)
    if found is None or not (hasattr(found, "from_config") or hasattr(found, "config_class")):
        known = [n for n in dir(transformers) if n.startswith("AutoModel")]
        raise UnknownName("model class", name, known)
    return found


def check_auto_class(name: str) -> None:
    """UnknownName for an auto class that transformers does not have, by its source, without
    importing it. (A model's own class is told when it is built.)"""
    if not name.startswith(_BASE):
        return
    try:
        home = distribution("transformers").locate_file("transformers/models/auto")
        source = Path(str(home), "modeling_auto.py").read_text("utf-8")
    except (PackageNotFoundError, OSError):
        return
    known = set(re.findall(r"^class (AutoModel\w*)", source, re.MULTILINE))
    if known and name not in known:
        raise UnknownName("model class", name, known)


def class_of(config: Mapping[str, Any], *, own_code: bool = False) -> str:
    """The class that the config's `architectures` names, else the most specific auto class.

    own_code: what `auto_map` names is run; a class of that code goes by the auto class that
    `auto_map` keeps it under.
    """
    import transformers

    for name in config.get("architectures") or ():
        if isinstance(name, str) and hasattr(getattr(transformers, name, None), "config_class"):
            return name
        kept = [auto for auto in coded_classes(config) if _coded(auto, config) == name]
        if own_code and kept:
            return next((auto for auto in BY_CLASS if auto in kept), kept[0])
    language = (task.auto_class for task in TASKS if task.pretrained)
    return next((auto for auto in language if _built_by(auto, config)), _BASE)


def unknown_classes(config: Mapping[str, Any]) -> list[str]:
    """What `architectures` names, if transformers has none of it."""
    import transformers

    named = [str(name) for name in config.get("architectures") or ()]
    return [] if any(hasattr(transformers, name) for name in named) else named


def config_of_type(model_type: str, values: Mapping[str, Any]) -> Any:
    """The configuration of a registered type, of values as a config.json has them: an infinity is
    {"__float__": "Infinity"} there (transformers 5.23 `configuration_utils.py`). A part's own
    `auto_map` is left out: its code is never run.

    Raises what transformers raises for values that it refuses.
    """
    from transformers import AutoConfig

    with unasked():
        return AutoConfig.for_model(model_type, **{k: _read(v) for k, v in values.items()})


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        if list(value) == ["__float__"] and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        kept = {k: v for k, v in value.items() if not (k == "auto_map" and isinstance(v, dict))}
        return {key: _read(each) for key, each in kept.items()}
    return [_read(each) for each in value] if isinstance(value, list) else value


def config_by_own_code(folder: Path) -> Any:
    """The configuration of a local folder whose own code makes it (`auto_map`), which is run.

    BenchError where that code fails, in its own words.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(folder), trust_remote_code=True, local_files_only=True
        )
    except Exception as error:  # code from anywhere fails in any way
        said = one_line(error)[:300]
        raise BenchError(f"{folder}: its own code fails: {type(error).__name__}: {said}") from error


def coded_classes(config: Mapping[str, Any]) -> list[str]:
    """The auto classes of transformers that the config's `auto_map` has a class for."""
    import transformers

    own = config.get("auto_map") or {}
    return [key for key in own if key.startswith(_BASE) and hasattr(transformers, key)]


def _coded(auto: str, config: Mapping[str, Any]) -> str:
    """The bare name of the class that `auto_map` keeps under an auto class."""
    return str(config["auto_map"][auto]).rpartition(".")[2]


def auto_class_of(named: str, config: Mapping[str, Any]) -> str:
    """The auto class that a class of transformers belongs to, which builds what `auto_map` keeps
    under it before that class: the one that `auto_map` names where there are several. `named`
    itself where none has it, which is then built as it is."""
    if named.startswith(_BASE):
        return named
    coded = coded_classes(config)
    found = [auto for auto in BY_CLASS if _built_by(auto, config) == named]
    found += [auto for auto in BY_CLASS if _lists(auto, named)]
    found += [auto for auto in coded if auto != _BASE and named.endswith(auto[len(_BASE) :])]
    return next((auto for auto in found if auto in coded), (*found, named)[0])


def _lists(auto: str, named: str) -> bool:
    """Whether an auto class builds the class called `named` of any model type."""
    built = _names_of(auto).values()
    return any(named == each if isinstance(each, str) else named in each for each in built)


def task_class_of(named: str, config: Mapping[str, Any]) -> str:
    """The auto class whose task `named` is made for; `named` itself where no known task has it."""
    if named.startswith("AutoModel"):
        return named
    heads = (auto for auto in BY_CLASS if auto != _BASE)
    return next((auto for auto in heads if _built_by(auto, config) == named), named)


def class_for_task(
    named: str, config: Mapping[str, Any], task_type: str | None, *, given: bool
) -> str:
    """The class for an adapter of PEFT's `task_type`: the task's auto class, or `named` itself.

    `named` stays where it has that head, where the auto class does not take the config (a vision or
    speech model: PEFT asks nothing of the class), and where it generates from more than text and
    the auto class would leave the other towers out. `given` says that `named` was declared, not
    guessed.
    """
    asked = BY_TYPE.get(task_type or "")
    wanted = asked.auto_class if asked else None
    task = task_class_of(named, config)
    if wanted is None or task == wanted:
        return named
    built = _built_by(wanted, config)
    if given and not built:
        return named
    towers = named.endswith(_GENERATION) and (task == named or BY_CLASS[task].other_towers)
    return named if towers and built != named and task_type == "CAUSAL_LM" else wanted


def _built_by(auto: str, config: Mapping[str, Any]) -> str:
    """The class that an auto class builds from the config; "" if it does not take it."""
    own = config.get("auto_map")
    found = _names_of(auto).get(config.get("model_type", "")) or (own or {}).get(auto) or ""
    return found if isinstance(found, str) else str(found[0])


def _names_of(auto: str) -> Mapping[str, Any]:
    """transformers' table of an auto class: the name of the class, or of several, by model type."""
    from transformers.models.auto import modeling_auto

    mapping = BY_CLASS.get(auto, BY_CLASS[_BASE]).mapping
    names: Mapping[str, Any] = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES")
    return names
