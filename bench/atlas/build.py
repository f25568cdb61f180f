"""Build model types on the meta device, each with the class that tells most of it, and keep of each
one projection for all modules of one name (but for its numbers), kind and shape.

The class is the first in `PREFERENCE` that takes the type (an encoder-decoder or a model with sight
whole rather than its text decoder alone) or any other task class; else the base model; else, for a
part of a larger model that no auto class gives, the class in its own module.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from bench.atlas import names
from bench.atlas.entries import Atlas, Bare, Folded, TypeEntry
from bench.atlas.reviewed import OWN_MODULE, Override, override_for, role_in
from bench.atlas.store import entry_from_json, entry_to_json
from bench.atlas.workers import Run, run_all
from bench.compat import unreset
from bench.errors import BenchError, check_known
from bench.models.modules import OTHER, ModuleTable, read_table
from bench.models.roles import ROUTER, role_of
from bench.process import broken_library

if TYPE_CHECKING:
    from torch import nn


Done = Callable[[str, int, int], None]

_PACKAGE = re.compile(r"requires the (\S+) library")


class Unbuildable(Exception):
    """A type that cannot be built here; the message is the reason."""


def build_atlas(
    types: Iterable[str] | None = None, run: Run = run_all, progress: Done | None = None
) -> Atlas:
    """Build every model type that the installed transformers knows, or the given ones.

    `run` runs the processes, here or on a cluster. `progress` is told of each type as it is done:
    its name, how many are done, and of how many.
    """
    import transformers

    wanted = model_types() if types is None else _known(types)
    built: dict[str, TypeEntry] = {}
    unbuilt: dict[str, str] = {}
    for item, answer, problem in run(entry_as_json, wanted):
        if problem:
            unbuilt[item] = problem
        else:
            built[item] = entry_from_json(answer, item)
        if progress:
            progress(item, len(built) + len(unbuilt), len(wanted))
    if unbuilt and not built and (broken := broken_library()):
        raise BenchError(broken)  # which says nothing about any type
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
    check_known("model type", name, known, f"({where})")
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
    config = default_config_of(model_type, override, changes)
    auto_class = (
        override.auto_class if override and override.auto_class else auto_class_for(model_type)
    )
    auto_class = "" if auto_class == OWN_MODULE else auto_class
    loader = getattr(transformers, auto_class) if auto_class else own_class(config)
    if loader is None:
        raise Unbuildable("no model class takes this configuration")
    if hasattr(loader, "from_config"):
        loader = partial(loader.from_config, trust_remote_code=False)
    with torch.device("meta"), unreset(), _numbers_to_read(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return loader(config), auto_class
        except Exception as error:  # any line of 400 modelling files
            raise Unbuildable(reason_of(error)) from error


def _numbers_to_read() -> contextlib.AbstractContextManager[None]:
    """`torch.linspace` off the meta device: transformers before 4.53 spaces the rates of stochastic
    depth with it, and reads them off."""
    import torch
    from torch.overrides import TorchFunctionMode

    class OnCpu(TorchFunctionMode):  # type: ignore[misc]  # torch is seen untyped
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            where = {"device": "cpu"} if func is torch.linspace else {}
            return func(*args, **{**where, **(kwargs or {})})

    return OnCpu()


def default_config(model_type: str) -> Any:
    """The configuration that a type is built with. Raises Unbuildable with the reason."""
    return default_config_of(model_type, _override(model_type))


def default_config_of(
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
            raise Unbuildable(reason_of(error)) from error


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


def reason_of(error: BaseException) -> str:
    """Why a type does not build, in one line: what it lacks here, or the error."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ImportError) and (missing := _PACKAGE.findall(text)):
        return f"needs the optional package {' and '.join(dict.fromkeys(missing))}"
    if isinstance(error, OSError) and "couldn't connect" in text:
        return "its configuration names a model on the hub"
    return shorten(f"{type(error).__name__}: {text}", 160, placeholder=" ...")


CAUSAL_LM = "AutoModelForCausalLM"
PREFERENCE = tuple(
    f"AutoModelFor{task}"
    for task in """Seq2SeqLM SpeechSeq2Seq ImageTextToText MultimodalLM Vision2Seq CausalLM MaskedLM
    CTC RNNT TDT ImageClassification AudioClassification VideoClassification ObjectDetection
    InstanceSegmentation UniversalSegmentation SemanticSegmentation DepthEstimation MaskGeneration
    ZeroShotImageClassification ZeroShotObjectDetection TextToSpectrogram TextToWaveform
    AudioTokenization SequenceClassification TokenClassification QuestionAnswering
    DocumentQuestionAnswering VisualQuestionAnswering""".split()
)
# These tell less of a type than its base model does.
_GENERIC = ("AutoBackbone", "AutoModelForPreTraining", "AutoModelForTextEncoding",
            "AutoModelForMultipleChoice", "AutoModelForNextSentencePrediction")  # fmt: skip
_MODELLING = ("modeling_", "vision", "perceiver")  # the last two are IDEFICS's
_OTHER_FRAMEWORKS = ("modeling_tf_", "modeling_flax_")


def auto_class_for(model_type: str) -> str:
    """The auto class for a type; "" when no auto class takes it."""
    from transformers.models.auto import modeling_auto

    tasks = sorted(n for n in dir(modeling_auto) if n.startswith("AutoModelFor"))
    others = [n for n in tasks if n not in _GENERIC]
    order = (*PREFERENCE, *others, "AutoModel", *_GENERIC)
    return next((name for name in order if takes(name, model_type)), "")


def takes(auto_class: str, model_type: str) -> bool:
    """Whether an auto class builds this type."""
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, auto_class, None)
    mapping = getattr(found, "_model_mapping", None)
    return mapping is not None and model_type in mapping._model_mapping


def own_class(config: Any) -> Any:
    """The class written for exactly this configuration, in the package that defines it: a model if
    there is one, else a part of a model that takes this configuration alone; None if neither."""
    from torch import nn

    package = importlib.import_module(type(config).__module__.rpartition(".")[0])
    models: list[Any] = []
    parts: list[Any] = []
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith(_MODELLING) or info.name.startswith(_OTHER_FRAMEWORKS):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in vars(module).items():
            if not isinstance(value, type) or value.__module__ != module.__name__:
                continue
            if not issubclass(value, nn.Module) or name.endswith("PreTrainedModel"):
                continue
            if getattr(value, "config_class", None) is type(config):
                models.append(value)
            elif _wanted_config(value) == type(config).__name__:
                parts.append(value)
    # What holds the others is written below them.
    return (models or parts or [None])[-1]


def _wanted_config(module_class: Any) -> str:
    """The name of the configuration class that builds a module, when nothing else is needed."""
    _, *given = inspect.signature(module_class.__init__).parameters.values()
    required = [p for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if [p.name for p in required] != ["config"]:
        return ""
    annotation = required[0].annotation
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def make_entry(table: ModuleTable, auto_class: str, causal_lm: bool) -> TypeEntry:
    """What the atlas keeps of a model that `auto_class` built. `causal_lm`: see TypeEntry."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for m in table.modules:
        if m.kind != OTHER:
            # A few models compute their widths with tensors.
            shape = (m.kind, int(m.in_features), int(m.out_features), m.bias, m.kernel, m.groups)
            groups.setdefault((names.template(m.name), *shape), []).append(m.name)
    bare: dict[tuple[Any, ...], list[str]] = {}
    owners = {m.name for m in table.modules if m.kind == OTHER}
    routers = (
        p
        for p in table.parameters
        if len(p.shape) == 2 and p.name.rpartition(".")[0] in owners and role_of(p.name) == ROUTER
    )
    for p in (*table.expert_parameters, *routers):
        bare.setdefault((names.template(p.name), p.shape), []).append(p.name)
    # A number tells nothing, unless an entry could be that number: linear layers are called so too.
    adaptable = {m.leaf for m in table.modules if m.kind != OTHER}
    other = {
        m.leaf
        for m in table.modules
        if m.kind == OTHER and (not m.leaf.isdigit() or m.leaf in adaptable)
    }
    entry = TypeEntry(
        auto_class=auto_class,
        class_name=table.class_name,
        causal_lm=causal_lm,
        layers=len(table.layers),
        parameters=table.total_parameters,
        input_embedding=table.input_embedding,
        output_embedding=table.output_embedding,
        tied=table.tied,
        moe_conversion=table.moe_conversion,
        ties_unknown=table.ties_unknown,
        other=tuple(sorted(other)),
    )

    def role(name: str, kind: str) -> str:
        return role_in(table.model_type, name, kind, entry)

    return replace(
        entry,
        projections=tuple(
            Folded(name, role(members[0], shape[0]), *shape)
            for (_, *shape), members in groups.items()
            for name in names.fold(members)
        ),
        bare=tuple(
            Bare(name, role(members[0], ""), shape)
            for (_, shape), members in bare.items()
            for name in names.fold(members)
        ),
    )
