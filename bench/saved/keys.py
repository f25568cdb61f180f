"""What PEFT does with an adapter's keys on a model: asked of PEFT's own loader, on the meta device.

The loader renames the keys of a file (the adapter's name, whole modules, experts that transformers
fused) before it looks for them; what comes out of that is compared with what the model has.

Source: peft 0.21 `utils/save_and_load.py` (`set_peft_model_state_dict`), `peft_model.py`
(`load_adapter`, for which missing keys count).
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.saved.header import SavedTensor

if TYPE_CHECKING:
    from bench.models.architectures import Model

_ADAPTER = "default"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SHARED_ENDS = (".tinylora_v.", ".unilora_theta_d.")
_LEAST = 3
"""Segments that two keys must share at their ends to be the same tensor under another prefix."""


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose shape in the file is not the model's."""

    key: str
    saved: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """A prefix under which the file holds what the model has under another."""

    old: str
    new: str
    keys: int


@dataclass(frozen=True)
class KeysFound:
    """An adapter's keys against a model. Keys are as a file of that model would have them.

    Attributes:
        saved: how many tensors the file holds.
        missing: what PEFT looks for and the file does not hold: these stay as initialised.
        ignored: what the file holds and nothing looks for.
        mismatches: tensors of another shape, at which PEFT raises.
        moves: prefixes that explain missing and ignored keys at once, the most keys first.
        overwritten: weights of the base model that the file replaces (a head that was saved whole).
        lost: modules trained whole that the file lacks, at which PEFT raises.
    """

    saved: int
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    moves: tuple[Move, ...] = ()
    overwritten: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not (self.missing or self.ignored or self.mismatches or self.lost)


def compare_keys(model: Model, config: Path, tensors: Mapping[str, SavedTensor]) -> KeysFound:
    """Hold the tensors of an adapter against `model`. `config` is its adapter_config.json.

    Raises BenchError with PEFT's own words where PEFT refuses the configuration or the file.
    """
    import torch

    peft_model = _injected(model, config)
    loaded = {
        name: torch.empty(t.shape, dtype=_dtype(t.dtype), device="meta")
        for name, t in tensors.items()
    }
    held = {name: tuple(t.shape) for name, t in peft_model.state_dict().items()}
    renamed, lost = _renamed(peft_model, loaded, held, config)
    names = {id(tensor): name for name, tensor in loaded.items()}
    prefix = _prefix(peft_model)
    whole = tuple(f"{name}." for name in _whole_modules(peft_model))
    missing = [
        key
        for key in held
        if key not in renamed and prefix in key and _ADAPTER in key
        and not any(end in key for end in _SHARED_ENDS)
    ]  # fmt: skip
    ignored = [(names.get(id(t), key), key) for key, t in renamed.items() if key not in held]
    # With bias="all" PEFT writes the bias of what is trained whole twice, and reads one of them.
    copies = {n: n.replace(".modules_to_save.", ".") for n in tensors if n.endswith(".bias")}
    twice = {name for name, read in copies.items() if name != read and read in tensors}
    ignored = [(name, key) for name, key in ignored if name not in twice]
    shapes = [
        Mismatch(names.get(id(t), _as_saved(key)), tuple(t.shape), held[key])
        for key, t in renamed.items()
        if key in held and tuple(t.shape) != held[key]
    ]
    overwritten = [
        names.get(id(t), key)
        for key, t in renamed.items()
        if key in held and prefix not in key and not key.startswith(whole)
    ]
    shown = tuple(_as_saved(key) for key in missing)
    return KeysFound(
        saved=len(tensors),
        missing=shown,
        ignored=tuple(name for name, _ in ignored),
        mismatches=tuple(shapes),
        moves=_moves([name for name, _ in ignored], [*shown, *lost]),
        overwritten=tuple(overwritten),
        lost=lost,
    )


def _injected(model: Model, config: Path) -> Any:
    """The model with an adapter of that configuration, all of it on the meta device."""
    import torch
    from peft import PeftConfig, get_peft_model

    base = model.build()
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            settings = PeftConfig.from_pretrained(str(config.parent))
            return get_peft_model(base, settings)
        except Exception as error:  # PEFT refuses with many types
            raise BenchError(f"{config}: PEFT refuses: {_first_line(error)}") from error


def _renamed(
    peft_model: Any, loaded: Mapping[str, Any], held: Mapping[str, Any], config: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the tensors by the names that PEFT loads them under, the whole modules it did not find)."""
    import torch
    from peft import set_peft_model_state_dict

    found: dict[str, Any] = {}
    result = type("Result", (), {"missing_keys": [], "unexpected_keys": []})()

    def keep(tensors: Mapping[str, Any], **_: Any) -> Any:
        found.update(tensors)
        return result

    given = dict(loaded)
    lost: list[str] = []
    object.__setattr__(peft_model, "load_state_dict", keep)
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                set_peft_model_state_dict(peft_model, given, adapter_name=_ADAPTER)
        except KeyError as error:  # a module that is trained whole is not in the file
            key = str(error.args[0])
            if key in given or len(lost) > len(held):
                raise BenchError(f"{config.parent}: PEFT cannot load it: {error}") from error
            given[key] = torch.empty(0, device="meta")
            lost.append(key)
        except Exception as error:
            reason = _first_line(error)
            raise BenchError(f"{config.parent}: PEFT cannot load it: {reason}") from error
        else:
            break
    fillers = {id(given[key]) for key in lost}
    return {key: t for key, t in found.items() if id(t) not in fillers}, tuple(lost)


def _prefix(peft_model: Any) -> str:
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    kind = peft_model.peft_config[_ADAPTER].peft_type
    return str(PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, ""))


def _whole_modules(peft_model: Any) -> list[str]:
    """Modules that PEFT trains whole, or some tokens of."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [n for n, m in peft_model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]


def _as_saved(key: str) -> str:
    """A key of the live model as a file has it: without the adapter's name, and DoRA's magnitude
    by the name it had first."""
    plain = key.replace(f".{_ADAPTER}.", ".").removesuffix(f".{_ADAPTER}")
    return plain.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def _moves(ignored: list[str], missing: list[str]) -> tuple[Move, ...]:
    """Pairs of prefixes that turn an ignored key into a missing one, by the longest common end."""
    by_end: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for key in missing:
        parts = tuple(key.split("."))
        for size in range(_LEAST, len(parts) + 1):
            by_end[parts[-size:]].append(parts)
    candidates = []
    for key in ignored:
        parts = tuple(key.split("."))
        for size in range(len(parts), _LEAST - 1, -1):
            if others := by_end.get(parts[-size:]):
                old = ".".join(parts[:-size])
                candidates.append({(old, ".".join(o[:-size])) for o in others})
                break
    counts = Counter(pair for pairs in candidates for pair in pairs)
    chosen = Counter(max(sorted(pairs), key=counts.__getitem__) for pairs in candidates)
    return tuple(Move(old, new, n) for (old, new), n in chosen.most_common())


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, _DTYPES.get(name, "float32"))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
