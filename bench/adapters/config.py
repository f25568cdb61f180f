"""The LoRA configuration, without PEFT: the fields that decide what is adapted and what it costs.

Field names and meanings are those of `peft.LoraConfig`
(https://huggingface.co/docs/peft/package_reference/lora).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bench.adapters.checks import BIASES, NESTED, NO_TARGETS, check_fields, check_given
from bench.adapters.patterns import ALL_LINEAR
from bench.errors import BenchError, UnknownName
from bench.files import read_json
from bench.tasks import heads_of

__all__ = ["ALL_LINEAR", "BIASES", "NO_TARGETS", "AdapterConfig"]

# Fields of an adapter_config.json that change neither what is adapted nor how many parameters it
# takes: bookkeeping (a saved config always says inference_mode), and initialisations of the same
# matrices.
INERT = frozenset(
    """auto_mapping base_model_name_or_path corda_config inference_mode
    loftq_config lora_ga_config megatron_core peft_type peft_version revision runtime_config
    qalora_group_size""".split()
)

# Of those, the ones that decide what is trained after all: a comparison tells of them.
UNSEEN = ("corda_config", "loftq_config", "lora_ga_config", "runtime_config")

# LoRA's variants, of which PEFT applies one at a time. MiCA is a variant by its initialisation.
VARIANTS = ("use_dora", "kasa_config", "monteclora_config", "use_bdlora", "velora_config",
            "alora_invocation_tokens")  # fmt: skip

# Those that PEFT's int8 and 4-bit layers do not have, and leave out without a word.
IN_FLOATS_ONLY = ("kasa_config", "monteclora_config", "use_bdlora")

# What is not computed, and why; `from_dict` says so.
NOT_UNDERSTOOD = {
    "arrow_config": "it routes between adapters that exist already",
    "use_qalora": "PEFT implements it for GPTQ weights only",
    "megatron_config": "it shards layers over processes",
}

_NAMING = ("target_modules", "target_parameters", "exclude_modules", "modules_to_save",
           "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
           "trainable_token_indices")  # fmt: skip

# Lists whose order and repetitions mean nothing.
_SETS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")


@dataclass(frozen=True)
class AdapterConfig:
    """One LoRA configuration.

    The `*_config` fields, and `use_bdlora`, hold the fields of PEFT's class of that name; None
    leaves the variant out, an empty mapping takes its defaults.

    Raises BenchError when a value is impossible (a wrong type, r < 1, an unknown bias, task type or
    initialisation, an empty target list, a malformed regular expression, two variants).
    """

    target_modules: tuple[str, ...] | str | None = None
    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    exclude_modules: tuple[str, ...] | str | None = None
    target_parameters: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    task_type: str | None = None
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    init_lora_weights: bool | str = True
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    layer_replication: tuple[tuple[int, int], ...] = ()
    ensure_weight_tying: bool = False
    kasa_config: Mapping[str, Any] | None = None
    monteclora_config: Mapping[str, Any] | None = None
    use_bdlora: Mapping[str, Any] | None = None
    velora_config: Mapping[str, Any] | None = None
    eva_config: Mapping[str, Any] | None = None
    alora_invocation_tokens: tuple[int, ...] | None = None
    # No field of PEFT's: those of the file that PEFT ignores, each with the reason.
    ignored: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    # Likewise: whether PEFT saved it with a trained adapter, its lists rewritten.
    saved: bool = field(default=False, compare=False, repr=False)
    # Likewise: the fields that no figure depends on, `UNSEEN`.
    unseen: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(vars(self))
        if len(self.variants) > 1:
            raise BenchError(f"{' and '.join(self.variants)} do not go together")

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants of LoRA that are asked for; "mica" is one."""
        # PEFT takes an empty mapping for a variant's defaults, an empty token list for none.
        given = [
            name
            for name in VARIANTS
            if getattr(self, name) not in (None, False, ())
        ]  # fmt: skip
        return tuple(given) + (("mica",) if self.init_lora_weights == "mica" else ())

    def on(self, quantized: bool) -> AdapterConfig:
        """This one as a layer of the model takes it: a quantized one leaves some variants out.

        Source: peft 0.21 `tuners/lora/bnb.py` (`resolve_lora_variant`).
        """
        if not (quantized and set(IN_FLOATS_ONLY).intersection(self.variants)):
            return self
        return self.but(**dict.fromkeys(IN_FLOATS_ONLY))

    @property
    def ranks(self) -> tuple[tuple[str, int], ...]:
        return tuple(self.rank_pattern.items())

    @property
    def written(self) -> frozenset[str]:
        """What the fields name: entries, patterns and keys, and layers by their number."""
        found: set[str] = set()
        for name in _NAMING:
            value = getattr(self, name)
            if isinstance(value, str | int):
                found.add(str(value))
            elif value is not None:
                found.update(map(str, value))
        return frozenset(found)

    @property
    def saved_modules(self) -> tuple[str, ...]:
        """`modules_to_save` with the heads that the task type adds, as PEFT extends it."""
        return self.modules_to_save + heads_of(self.task_type)

    @property
    def later_heads(self) -> tuple[str, ...]:
        """The heads that PEFT looks for once more, after all else is in place."""
        return heads_of(self.task_type)

    @property
    def guarded_modules(self) -> tuple[str, ...]:
        """Those of the saved modules that no entry adapts.

        PEFT adds the heads of SEQ_CLS before it injects and those of the other tasks after, when
        an adapted head can no longer be saved.
        """
        return self.saved_modules if self.task_type == "SEQ_CLS" else self.modules_to_save

    def expressions(self) -> Iterator[tuple[str, str, str]]:
        """(field, as given, as PEFT runs it) of all that it takes for a regular expression."""
        for key in ("target_modules", "exclude_modules"):
            value = getattr(self, key)
            if isinstance(value, str):
                if value.lower() != ALL_LINEAR:
                    yield key, value, value
            elif key == "target_modules" and self.ensure_weight_tying:  # else lists are names alone
                for name in value or ():
                    yield key, name, rf"(^|.*\.){name}($|\..*)"
        for name in self.modules_to_save:
            yield "modules_to_save", name, rf"(^|.*\.){name}($|\..*)"
        layers = self.layers_pattern or ()
        for layer in (layers,) if isinstance(layers, str) else layers:
            yield "layers_pattern", layer, rf"(?:^|.*?\.){layer}\.(\d+)\."
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, key):
                yield key, pattern, rf"(.*\.)?({pattern})$"

    def block_diagonal(self, module: str) -> tuple[bool, bool]:
        """Whether BD-LoRA makes A, and B, of a module of this name block-diagonal."""
        lists = [(self.use_bdlora or {}).get(f"target_modules_bd_{side}") or () for side in "ab"]
        on_a, on_b = (any(pattern in module for pattern in patterns) for patterns in lists)
        return on_a, on_b

    def with_rank(self, r: int) -> AdapterConfig:
        return replace(self, r=r)

    def but(self, **values: Any) -> AdapterConfig:
        """This one with other values, which have to be right, as those of a model's own modules
        are: they are not looked at."""
        made = object.__new__(type(self))
        vars(made).update(vars(self), **values)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Keyword arguments for `peft.LoraConfig`: lists for sequences, defaults left out."""
        changed = {
            key: value
            for key, value in asdict(self).items()
            if (value != getattr(_DEFAULTS, key) or key == "r") and key not in _OURS
        }
        return {key: _to_lists(value) for key, value in changed.items()}

    def as_given(self) -> dict[str, Any]:
        """`to_dict` with the fields that no figure depends on: all that two may differ in. Names
        of which PEFT makes a set, or asks alone whether one is there, are sorted."""
        given = self.to_dict()
        for name in _SETS:
            if isinstance(value := given.get(name), list):
                given[name] = sorted(set(value))
        return {**given, **self.unseen}

    @classmethod
    def of(cls, adapter: Any) -> AdapterConfig:
        """What a user has: a `peft.LoraConfig`, the path of an adapter_config.json, a mapping of
        its fields, a list of target modules or "all-linear". BenchError for anything else."""
        if isinstance(adapter, AdapterConfig):
            return adapter
        if isinstance(adapter, str) and not os.path.exists(adapter):
            if adapter.lower() == ALL_LINEAR:
                return cls.from_dict({"target_modules": ALL_LINEAR})
            raise BenchError(
                f"{adapter!r:.80}: no such file; target modules are a list of names, and an "
                "expression is {'target_modules': '...'}"
            )
        if isinstance(adapter, str | Path):
            return cls.from_file(Path(adapter))
        if isinstance(adapter, Mapping):
            return cls.from_dict(adapter)
        if isinstance(adapter, list | tuple | set):
            return cls(tuple(adapter))
        if hasattr(adapter, "peft_type") and hasattr(adapter, "to_dict"):
            given = adapter.to_dict().items()
            values = {k: sorted(v) if isinstance(v, set) else v for k, v in given}
            # What an injection of tied layers has left in it, and PEFT reads again at the next one.
            if tied := getattr(adapter, "target_modules_to_tie", None):
                values["target_modules"] = sorted({*values["target_modules"], *tied})
            kind = getattr(adapter.peft_type, "value", adapter.peft_type)
            return cls.from_dict({**values, "peft_type": str(kind)})
        raise BenchError(
            f"adapter: expected a LoraConfig, a path, a mapping or a list of target modules, "
            f"found {type(adapter).__name__}"
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "adapter") -> AdapterConfig:
        """From `peft.LoraConfig`'s fields, as adapter_config.json holds them.

        Raises BenchError for another PEFT method, and for a field whose effect is not known here
        unless it holds nothing: what is not understood is never ignored.
        """
        if not isinstance(data, Mapping):
            raise BenchError(f"{where}: expected an object, found {type(data).__name__}")
        method = data.get("peft_type")
        if method not in (None, "LORA"):
            raise BenchError(f"{where}: peft_type is {method!r}; only 'LORA' is understood")
        known = {f.name for f in fields(cls)} - _OURS
        wrong: list[BenchError] = []
        for key, value in data.items():
            if value in (None, False, {}, [], "") and not (key == "arrow_config" and value == {}):
                continue
            if key in NOT_UNDERSTOOD:
                wrong.append(
                    BenchError(f"{where}: no closed form for {key}: {NOT_UNDERSTOOD[key]}")
                )
            elif key not in known | INERT:
                name = f"field with a value in {where}:"
                wrong.append(UnknownName(name, key, known, _in_peft(key)))
        given = {
            key: value if key in NESTED else _to_tuples(value)
            for key, value in data.items()
            if key in known and value is not None and not (key in NESTED and value is False)
        }
        try:
            check_given(data)
            unseen = {key: data[key] for key in UNSEEN if data.get(key)}
            saved = data.get("inference_mode") is True
            made = cls(**given, ignored=_ignored(data), saved=saved, unseen=unseen)
        except (TypeError, BenchError) as error:
            wrong.append(BenchError(f"{where}: {error}"))
        if len(wrong) > 1:
            raise BenchError("; ".join(map(str, wrong)))
        if wrong:
            raise wrong[0] from None
        return made

    @classmethod
    def from_file(cls, path: Path) -> AdapterConfig:
        """From an adapter_config.json, or a folder that holds one."""
        if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
            raise BenchError(f"{path}: no adapter_config.json; `bench check` takes training files")
        return cls.from_dict(read_json(path / "adapter_config.json" if path.is_dir() else path),
                             str(path))  # fmt: skip


# Fields that PEFT reads with one initialisation alone.
_WITH_INIT = {
    "loftq_config": "loftq",
    "eva_config": "eva",
    "corda_config": "corda",
    "lora_ga_config": "lora_ga",
}


def _ignored(data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    init = data.get("init_lora_weights", True)
    return tuple(
        (name, f"PEFT ignores it where init_lora_weights is not {needed!r}")
        for name, needed in _WITH_INIT.items()
        if data.get(name) and init != needed
    )


def _in_peft(key: str) -> str:
    """Whether the installed PEFT has a field that is not understood here."""
    try:
        from peft import LoraConfig, __version__
    except ImportError:
        return ""
    if key in {f.name for f in fields(LoraConfig)}:
        return f"(PEFT {__version__} has it, and what it changes is not known here)"
    return (
        f"(PEFT {__version__} knows no such field: it drops it from a file, with a warning, and "
        "refuses it as an argument)"
    )


def _to_tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_to_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _to_tuples(item) for key, item in value.items()}
    return value


def _to_lists(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_lists(item) for key, item in value.items()}
    return value


_OURS = {"ignored", "saved", "unseen"}
_DEFAULTS = AdapterConfig()

_ONLY_IN_PATTERNS = re.compile(r"[\\^$()\[\]{}|*+?]")


def written_names(text: str) -> tuple[str, ...] | str:
    """Names as a command line has them, between commas; or a regular expression: behind `re:`, or
    known as one by a character that no module's name has."""
    if text.startswith("re:"):
        return text.removeprefix("re:")
    if _ONLY_IN_PATTERNS.search(text):
        return text
    return tuple(part.strip() for part in text.split(",") if part.strip())


def written_targets(text: str) -> tuple[str, ...] | str:
    """target_modules as a command line has them: as `written_names`, or `all-linear`."""
    return text if text.lower() == ALL_LINEAR else written_names(text)
