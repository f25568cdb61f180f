"""Models to ask about: the registered architectures (`declared`), and a user's own.

Any folder or file with a `config.json`, or the id of a model on the Hugging Face Hub, works
everywhere a registered name does.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.compat import unasked, unreset
from bench.errors import BenchError, UnknownName
from bench.models.classes import (
    auto_class_of,
    check_auto_class,
    class_for_task,
    class_of,
    coded_classes,
    config_by_own_code,
    config_of_type,
    model_class,
    task_class_of,
    unknown_classes,
)
from bench.models.configs import read_config
from bench.models.declared import Architecture, Projection, load_architecture, registered
from bench.models.modules import OTHER, ModuleTable, read_table
from bench.models.precision import precision
from bench.models.quantization import (
    bitsandbytes_config,
    given_config,
    quantization_notes,
    quantize_on_meta,
)
from bench.models.roles import role_in_table
from bench.tasks import BY_CLASS
from bench.units import one_line

if TYPE_CHECKING:
    from torch import nn


_LOCAL_ALONE = (
    "its own code is run from a local folder only: download the repository, and give its folder"
)


@dataclass(frozen=True)
class Model:
    """A model to ask about: a label, the values of its config.json and the class to build.

    `source_folder` is where it was found (None for a hub id), `architecture` set for registered
    ones, `place` what a run knows one of the others by, `at_hand` what a live model is made of.
    """

    label: str
    config: Mapping[str, Any] = field(repr=False)
    auto_class: str
    architecture: Architecture | None = None
    source_folder: Path | None = None
    reduced: bool = False
    trust_remote_code: bool = False
    place: str = ""
    at_hand: ModuleTable | None = field(default=None, repr=False)

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    def reduce(self, label: str | None = None, *, smallest: bool = False) -> Model:
        """A reduced geometry that the architecture declares: of this label, else the usual one, or
        the smallest. Its label tells the reduction. BenchError where there is none."""
        declared = self.architecture.reduced if self.architecture else ()
        fitting = [each for each in declared if label in (None, each.label)]
        if not fitting:
            which = f"no reduced geometry {label}" if label else "no reduced geometry"
            raise BenchError(f"{self.label}: {which} is declared")
        reduction = fitting[-1 if smallest else 0]
        return replace(
            self,
            label=f"{self.label}@{reduction.label}",
            config={**self.config, **reduction.config},
            reduced=True,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What an answer about this model does not cover."""
        return (*self._other_class(), *quantization_notes(self.config.get("quantization_config")))

    def _other_class(self) -> Iterator[str]:
        """That another class is built than the config names, or code of its own was not run."""
        if self.architecture is not None:
            return
        coded = coded_classes(self.config)
        if self.own_code is not None:
            if coded and self.loader_class not in coded:
                yield (
                    f"auto_map has no code for {self.loader_class}: answered for transformers' "
                    f"own; --auto-class {coded[0]} runs the code that it has"
                )
        elif self.config.get("auto_map"):
            runs = _LOCAL_ALONE if self.trust_remote_code else "--trust-remote-code runs it"
            yield (
                "the config names code of its own (auto_map), which was not run: answered for "
                f"transformers' {self.auto_class}; {runs}"
            )
        elif unknown := unknown_classes(self.config):
            yield (
                f"architectures names {one_line(unknown[0])}, which transformers "
                f"{_version('transformers')} does not have: answered for {self.auto_class}"
            )

    @property
    def own_code(self) -> Path | None:
        """The folder whose code builds this model, where there is such code and it is trusted."""
        trusted = self.trust_remote_code and self.config.get("auto_map")
        return self.source_folder if trusted else None

    @property
    def loader_class(self) -> str:
        """The class that is asked to build it. Where code of its own is run, transformers' auto
        class of that task, as `from_pretrained` is called: it alone looks into `auto_map`."""
        own = self.own_code is not None
        return auto_class_of(self.auto_class, self.config) if own else self.auto_class

    @property
    def adapter_beside(self) -> Path | None:
        """The adapter_config.json beside the model's config.json, if there is one."""
        beside = self.source_folder and self.source_folder / "adapter_config.json"
        return beside if beside and beside.exists() else None

    def loaded_in(self, precision_name: str) -> Model:
        """This model as `from_pretrained` loads it in a precision, with its quantized layers."""
        kind = precision(precision_name)
        if not kind.quantized:
            return self
        if kind.name not in self._loaded:
            settings = bitsandbytes_config(kind).to_dict()
            config = {**self.config, "quantization_config": settings}
            self._loaded[kind.name] = replace(self, config=config)
        return self._loaded[kind.name]

    def held_in(self, precision_name: str) -> Model:
        """`loaded_in`; a config.json that says how its weights are held is obeyed, whatever is
        asked for."""
        return self if "quantization_config" in self.config else self.loaded_in(precision_name)

    @cached_property
    def _loaded(self) -> dict[str, Model]:
        """By precision: each is built once, for all the subjects that ask for it."""
        return {}

    def for_task(self, task_type: str | None) -> Model:
        """This model with the head that PEFT's task type is for, where there is such a class."""
        given = self.architecture is not None or not self.auto_class.startswith("AutoModel")
        chosen = class_for_task(self.auto_class, self.config, task_type, given=given)
        return self if chosen == self.auto_class else replace(self, auto_class=chosen)

    def check_code(self) -> None:
        """BenchError where nothing but code of its own builds this model, and it is not trusted."""
        if not self.config.get("auto_map") or self.own_code is not None:
            return
        if self.model_type in _known_model_types():
            return
        raise self._untrusted()

    def _untrusted(self) -> BenchError:
        needs = "needs code from its own repository, which is only run with --trust-remote-code"
        return BenchError(f"{self.label}: {_LOCAL_ALONE if self.trust_remote_code else needs}")

    @cached_property
    def transformers_config(self) -> Any:
        """The transformers configuration object. Raises BenchError for an unknown model type."""
        values = {k: v for k, v in self.config.items() if k != "model_type"}
        if self.own_code is not None:
            return config_by_own_code(self.own_code)
        self.check_code()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return config_of_type(self.model_type, values)
        except ValueError as error:
            known = _known_model_types()
            if self.model_type not in known:
                raise UnknownName(
                    f"model_type in {self.label}:", self.model_type, known,
                    f"(transformers {_version('transformers')})",
                ) from None  # fmt: skip
            raise BenchError(f"{self.label}: {one_line(error)}") from None
        except Exception as error:  # transformers validates configs with many error types
            said = one_line(error)
            raise BenchError(f"{self.label}: transformers refuses the config: {said}") from None

    @cached_property
    def fields(self) -> dict[str, Any]:
        """Configuration fields for the declared expressions, with defaults filled in."""
        config = self.transformers_config
        fields: dict[str, Any] = config.to_dict()
        fields.update({k: getattr(config, k) for k in config.attribute_map})
        fields["num_labels"] = getattr(config, "num_labels", 2)
        return fields

    @cached_property
    def task_class(self) -> str:
        """The auto class whose task `auto_class` is made for ("AutoModelForCausalLM" for
        LlamaForCausalLM); `auto_class` itself where no known task has it."""
        if self.own_code is not None:
            return self.loader_class
        return task_class_of(self.auto_class, self.config)

    @property
    def task_type(self) -> str | None:
        """PEFT's task type of the class; None where PEFT has none."""
        task = BY_CLASS.get(self.task_class)
        return task.task_type if task else None

    def build(self) -> nn.Module:
        """The model on the meta device: every shape, no memory.

        A config that carries bitsandbytes' `quantization_config` gets its quantized layers.
        """
        import torch

        quantization = given_config(self.config.get("quantization_config"), self.label)
        loader = model_class(self.loader_class)
        trusted = self.own_code is not None
        with torch.device("meta"), unreset(), unasked(trusted), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if hasattr(loader, "from_config"):
                    loader = partial(loader.from_config, trust_remote_code=trusted)
                # A copy: PEFT's layer_replication writes its number of layers into it.
                model: nn.Module = loader(deepcopy(self.transformers_config))
                if quantization is not None:
                    quantize_on_meta(model, quantization)
                return model
            except BenchError:
                raise
            except Exception as error:
                if sys.flags.optimize > 1:
                    raise BenchError(
                        "transformers reads its own docstrings, which Python leaves out here: run "
                        "it without -OO and PYTHONOPTIMIZE=2"
                    ) from error
                coded = self.auto_class in coded_classes(self.config)
                if coded and not trusted and "trust_remote_code" in str(error):
                    raise self._untrusted() from None
                raise BenchError(
                    f"{self.label}: {self.loader_class} cannot be built from this config: "
                    f"{_first_line(error)}"
                ) from error

    @cached_property
    def table(self) -> ModuleTable:
        """The module table, of the model at hand or else read off one build on the meta device."""
        return self.at_hand or read_table(self.build())

    def matching(self, projection: Projection) -> list[str]:
        """Names of the modules (or expert parameters) that a declared projection names."""
        if projection.kind == "expert":
            names = [p.name for p in self.table.expert_parameters]
        else:
            names = [m.name for m in self.table.modules if m.kind != OTHER]
        pattern = projection.module if projection.regex else re.escape(projection.module)
        return [name for name in names if re.fullmatch(rf"(?:.*\.)?{pattern}", name)]

    @cached_property
    def _declared_roles(self) -> dict[str, str]:
        projections = self.architecture.projections(self.fields) if self.architecture else ()
        return {name: p.role for p in projections for name in self.matching(p)}

    def role_of(self, name: str) -> str:
        """The declared role of a module; what its place, name and kind tell where nobody declared
        it."""
        return self._declared_roles.get(name) or role_in_table(self.table, name)


def find_model(
    name: str, auto_class: str | None = None, *, trust_remote_code: bool = False
) -> Model:
    """The model called `name`: registered (by name or hub id), a folder or file, or a hub id.

    `auto_class` overrides the class to build; without it the architecture's declaration, or the
    config's `architectures`, decide. Raises BenchError naming what is wrong.
    """
    if not name.strip():
        raise BenchError("the model's name is empty: a registered name, a folder or a hub id")
    if auto_class is not None:
        check_auto_class(auto_class)
    folders = registered()
    architecture = None
    if name in folders:
        architecture = load_architecture(folders[name])
    else:
        by_hub_id = {a.hub_id: a for a in map(load_architecture, folders.values())}
        architecture = by_hub_id.get(name)
    path = Path(name)
    if architecture is not None:
        folder: Path | None = architecture.folder
        config = read_config(architecture.folder / "config.json")
        label = architecture.name
    elif _exists(path) or name.endswith(".json") or name.startswith((".", "/", "~")):
        path = path.expanduser()
        file = path / "config.json" if path.is_dir() else path
        if path.is_dir() and not _exists(file):
            raise BenchError(f"{name}: no model's folder: it holds no config.json")
        config = read_config(file)
        folder, label = file.parent, file.resolve().parent.name
    else:
        config, folder, label = _from_hub(name, folders), None, name.rpartition("/")[2]
    own_code = trust_remote_code and folder is not None
    if auto_class and own_code and config.get("auto_map"):
        _check_not_passed_over(auto_class, config)
    declared = architecture and architecture.auto_class
    chosen = auto_class or declared or class_of(config, own_code=own_code)
    return Model(one_line(label), config, chosen, architecture, folder, False, trust_remote_code)


def _check_not_passed_over(auto_class: str, config: Mapping[str, Any]) -> None:
    """BenchError for a class of transformers where code of the model's own is asked for as well:
    that class would be built in the code's place."""
    auto = auto_class_of(auto_class, config)
    if auto != auto_class:
        raise BenchError(
            f"--auto-class {auto_class}: transformers' own class runs none of the model's code, "
            f"which --trust-remote-code asks for: --auto-class {auto}"
        )


@cache
def load_model(name: str, auto_class: str | None = None, trust_remote_code: bool = False) -> Model:
    """`find_model`, each model once: its table is read off one build."""
    return find_model(name, auto_class, trust_remote_code=trust_remote_code)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a name, or in a folder that may not be looked into
        return False


def _from_hub(name: str, known: Mapping[str, Path]) -> dict[str, Any]:
    if name.count("/") != 1:
        raise UnknownName("architecture", name, known,
            "; or give a folder or file with a config.json, or a hub id (owner/name)")  # fmt: skip
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        path = hf_hub_download(name, "config.json")  # HF_HUB_OFFLINE is the hub client's to read
    except HFValidationError:
        raise UnknownName("architecture", name, known) from None
    except Exception as error:  # the hub client has dozens of network errors
        raise BenchError(
            f"{name}: neither a registered architecture ({', '.join(known)}), nor a folder, nor a "
            f"hub id that is cached or can be reached ({_first_line(error)})"
        ) from None
    return read_config(Path(path))


def _known_model_types() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return list(CONFIG_MAPPING_NAMES)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
