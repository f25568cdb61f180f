"""What trains beside the adapters: modules saved whole, and single tokens.

Saving is PEFT's last phase, on the model as the injection left it. By then an adapted layer holds
its adapter's parts and, under `base_layer`, what it was, so that the ending "dropout" fits
`q_proj.lora_dropout`. A module inside a saved one is looked up in the copy, and not at all where it
is the child of a child; the heads of a task type are looked for once more at the very end, and with
them what the originals and copies hold. PEFT's loop is therefore followed step by step, on modules
that hold nothing but the names of their tensors.

Source: peft 0.21 `utils/other.py` (`_set_trainable`, `ModulesToSaveWrapper`), `peft_model.py`.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.models.modules import EMBEDDING, LINEAR, ModuleTable
from bench.targets.entries import tie
from bench.targets.ledger import Adapted, Copies, adapter_of

_LISTS = ("ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "ParametrizationList")
_TUNER, _WRAPPER = "adapter", "saved"
LORA_PARTS = (
    "lora_dropout", "lora_dropout.default", "lora_A", "lora_A.default", "lora_B", "lora_B.default",
    "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
)  # fmt: skip
"""The modules that LoRA puts into a layer."""
_COPY, _ORIGINAL = ".modules_to_save.default", ".original_module"


@dataclass(eq=False)
class _Tensor:
    name: str
    original: bool = True
    trained: bool = False
    frozen: bool = False


@dataclass(eq=False)
class _Node:
    """A module: its children, its own tensors, and its class where PEFT asks for that."""

    kind: str = ""
    children: dict[str, _Node] = field(default_factory=dict)
    tensors: list[_Tensor] = field(default_factory=list)

    def child(self, name: str) -> _Node | None:
        """As attributes are found: a saved module has those of its copy beside its own."""
        found = self.children.get(name)
        if found is None and self.kind == _WRAPPER:
            return self.children["modules_to_save"].children["default"].child(name)
        return found

    def at(self, path: str) -> _Node | None:
        node: _Node | None = self
        for name in filter(None, path.split(".")):
            node = node.child(name) if node else None
        return node

    def walk(self, path: str = "") -> Iterator[tuple[str, _Node]]:
        for name, child in self.children.items():
            here = f"{path}.{name}" if path else name
            yield here, child
            yield from child.walk(here)

    def every_tensor(self) -> set[_Tensor]:
        return {t for node in (self, *(n for _, n in self.walk())) for t in node.tensors}


@dataclass(frozen=True)
class Saving:
    """What is trained whole: full names in the model's order, those of them whose copy is the input
    embedding's, the copies, and why PEFT raises.

    A name that ends in ".base_layer" is an adapted layer's own weight.
    """

    saved: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    copies: Copies = field(default_factory=Copies)
    refusals: tuple[str, ...] = ()


def save(
    table: ModuleTable,
    adapter: AdapterConfig,
    adapted: tuple[Adapted, ...],
    tied: tuple[str, ...],
    parts: tuple[str, ...] = LORA_PARTS,
) -> Saving:
    """What `modules_to_save` (the task's heads among it) reaches on the injected model; `tied` are
    the modules that take over the input embedding's copy, `parts` those within an adapted layer."""
    wanted = (*adapter.saved_modules, *tied)
    names = (*table.by_name, *(name for name, _ in table.repeated))
    if not wanted or not (adapted or any(name.endswith(wanted) for name in names)):
        return Saving()
    model = _injected(table, adapted, parts)
    refusals = _wrap(model, adapter.guarded_modules)
    if tied and not refusals:
        lender = model.at(f"{table.input_embedding}.modules_to_save.default")
        if lender is None:
            refusals.append(f"{table.input_embedding} is not saved: nothing to tie a copy to")
        refusals += _wrap(model, tied, lender)
    whole = model
    if adapter.later_heads and not refusals:
        held = {"base_model": _Node(children={"model": model})}
        if not parts:  # virtual tokens wrap nothing, and stand beside the model
            held = {"base_model": model, "prompt_encoder": _Node("ModuleDict")}
        whole = _Node(children=held)
        refusals += _wrap(whole, adapter.saved_modules)
    saved = _names(model)
    quantized = quantized_copies(table, tuple(re.sub(r"\.base_layer$", "", n) for n in saved))
    refusals += [f"{name} is quantized, and cannot be trained whole" for name in quantized[:1]]
    followers = tuple(name for name in saved if tied and name.endswith(tied))
    return Saving(saved, followers, _copies(whole), tuple(refusals[:1]))


def _injected(table: ModuleTable, adapted: tuple[Adapted, ...], parts: tuple[str, ...]) -> _Node:
    """The model after the injection."""
    root = _Node()
    tensors: dict[str, _Tensor] = {}
    again = dict(table.repeated)
    for name in (*table.by_name, *again):
        parent, _, leaf = name.rpartition(".")
        holder = root.at(parent)
        if holder is None:  # an atlas' table does not hold every container
            holder = _containers(root, parent)
        if name in again and (same := root.at(again[name])) is not None:
            holder.children[leaf] = same
            continue
        found = table.by_name[name].class_name
        node = holder.children.setdefault(leaf, _Node())
        node.kind = found if found in _LISTS else ""
    for p in table.parameters:
        if p.name in again:
            continue
        holder = root.at(p.name.rpartition(".")[0])
        first = p.same_as or p.name
        tensor = tensors.setdefault(first, _Tensor(first))
        if holder is not None and tensor not in holder.tensors:
            holder.tensors.append(tensor)
    for item in adapted:
        _adapt(root, item, parts)
    return root


def _containers(root: _Node, path: str) -> _Node:
    node = root
    for name in filter(None, path.split(".")):
        node = node.children.setdefault(name, _Node())
    return node


def _adapt(root: _Node, item: Adapted, parts: tuple[str, ...]) -> None:
    owner = item.owner
    parent, _, leaf = owner.rpartition(".")
    holder = root.at(parent)
    inner = holder.children.get(leaf) if holder else None
    if holder is None or inner is None:
        return
    outer = _Node(_TUNER, {"base_layer": inner})
    for part in parts:
        outside, _, own = part.rpartition(".")
        within = outer.at(outside)
        assert within is not None, part  # each stands behind the one around it
        within.children[own] = _Node("" if outside else "ModuleDict")
    holds = outer.at("lora_A.default") or outer
    holds.tensors.append(_Tensor(adapter_of(item.name)))
    holder.children[leaf] = outer


def _wrap(root: _Node, wanted: tuple[str, ...], tied: _Node | None = None) -> list[str]:
    """Put a copy beside every module whose name ends in one of `wanted`; why PEFT raises."""
    refusals = []
    for path in [path for path, _ in root.walk()] if wanted else ():
        if not path.endswith(wanted):
            continue
        parent_path, _, leaf = path.rpartition(".")
        parent, grandparent = root.at(parent_path), root.at(parent_path.rpartition(".")[0])
        target = root.at(path)
        if parent is None or target is None:
            continue
        entry = next(entry for entry in wanted if path.endswith(entry))
        if grandparent is not None and grandparent.kind == _TUNER:
            refusals.append(f"modules_to_save {entry!r} fits {path}, a part of an adapter")
        elif grandparent is not None and grandparent.kind == _WRAPPER:
            _train(grandparent)
        elif target.kind == _WRAPPER:
            _train(target)
        elif target.kind == _TUNER:
            refusals.append(
                f"{path.removeprefix('base_model.model.')} is adapted and named in "
                "modules_to_save: PEFT cannot save an adapted module"
            )
        elif target.kind:
            refusals.append(
                f"modules_to_save {entry!r} fits {path}, a {target.kind}, which has no copy"
            )
        else:
            parent.children[leaf] = _saved(target, tied)
    return refusals


def _saved(target: _Node, tied: _Node | None) -> _Node:
    if tied is None:
        twin = copy.deepcopy(target)
        for tensor in twin.every_tensor():
            tensor.original = False
    else:
        twin = _Node(tensors=list(tied.tensors))
    holder = _Node("ModuleDict", {"default": twin})
    wrapper = _Node(_WRAPPER, {"original_module": target, "modules_to_save": holder})
    _train(wrapper)
    return wrapper


def _train(wrapper: _Node) -> None:
    for tensor in wrapper.children["original_module"].every_tensor():
        tensor.trained, tensor.frozen = False, True
    for tensor in wrapper.children["modules_to_save"].every_tensor():
        tensor.trained, tensor.frozen = True, False


def _names(model: _Node) -> tuple[str, ...]:
    """The saved modules, by their names in the base model."""
    found = []
    for path, node in model.walk():
        if node.kind == _WRAPPER:
            at = path.replace(_COPY, "").replace(_ORIGINAL, "")
            found.append(re.sub(r"\.base_layer(?=\.)", "", at))
    return tuple(dict.fromkeys(found))


def _copies(whole: _Node) -> Copies:
    tensors = whole.every_tensor()
    made = [t for t in tensors if not t.original]
    return Copies(
        made=_count(made),
        trained=_count([t for t in made if t.trained]),
        frozen=frozenset(t.name for t in tensors if t.original and t.frozen),
    )


def _count(tensors: list[_Tensor]) -> Mapping[str, int]:
    return dict(Counter(t.name for t in tensors))


def quantized_copies(table: ModuleTable, saved: tuple[str, ...]) -> list[str]:
    """The quantized layers in what is to be trained whole: their integer weights cannot train."""
    inside = tuple(f"{name}." for name in saved)
    return [m.name for m in table.modules if m.quantized and f"{m.name}.".startswith(inside)]


@dataclass(frozen=True)
class TokenLayer:
    """A module with `tokens` trained rows of `width`; one that follows another adds none."""

    name: str
    tokens: int
    width: int
    follows: bool = False


def token_layers(table: ModuleTable, adapter: AdapterConfig) -> tuple[TokenLayer, ...]:
    """The modules that `trainable_token_indices` reaches.

    On a tied model the output embedding follows the input embedding's tokens; PEFT lets both train
    apart where a mapping gives them different indices. Raises BenchError where PEFT raises.

    Source: peft 0.21 `utils/other.py` (`set_additional_trainable_modules`).
    """
    given = adapter.trainable_token_indices
    if given is None:
        return ()
    embedding = table.input_embedding or "embed_tokens"
    asked = {embedding: given} if isinstance(given, tuple) else dict(given)
    saved = tie(table, adapter, None).adapter.guarded_modules
    # PEFT asks for the embedding's name after saving: within a saved container it is another.
    held = isinstance(given, tuple) and any(
        re.match(rf"(^|.*\.){entry}\..*", embedding) for entry in saved
    )
    if both := [] if held else [key for key in asked if key in saved]:
        raise BenchError(f"trainable_token_indices: {both[0]} is in modules_to_save as well")
    shared = [
        key
        for key in asked
        if embedding.endswith(key)
        or any(name.endswith(key) or key in name.split(".") for name in table.tied)
    ]
    together = len({asked[key] for key in shared}) < 2
    if table.says_tied and not together and adapter.ensure_weight_tying:
        raise BenchError("trainable_token_indices: tied modules need the same indices")
    if table.says_tied and together and len(shared) > 1:
        asked = {key: value for key, value in asked.items() if key not in table.tied}
    layers: dict[str, TokenLayer] = {}
    for key, indices in asked.items():
        found = [m for m in table.modules if m.name.endswith(key)]
        if not found:
            raise BenchError(f"trainable_token_indices: no module is called {key!r}")
        for module in found:
            if module.kind not in (EMBEDDING, LINEAR):
                raise BenchError(f"{module.name} is a {module.class_name} and holds no tokens")
            if module.quantized:
                raise BenchError(
                    f"trainable_token_indices: {module.name} is quantized, and rows of integers "
                    "cannot train"
                )
            rows = module.in_features if module.kind == EMBEDDING else module.out_features
            if indices and max(indices) >= rows:
                raise BenchError(
                    f"trainable_token_indices: {module.name} has {rows} rows, and {max(indices)} "
                    "is not one of them"
                )
            width = module.out_features if module.kind == EMBEDDING else module.in_features
            layers.setdefault(module.name, TokenLayer(module.name, len(indices), width))
    if table.says_tied and embedding in layers and (together or adapter.ensure_weight_tying):
        for name in table.tied:
            layers.setdefault(name, TokenLayer(name, 0, 0, follows=True))
    return tuple(layers.values())


def token_refusals(table: ModuleTable, adapter: AdapterConfig, adapted: set[str]) -> list[str]:
    """The reasons for which PEFT refuses `trainable_token_indices` beside the adapted modules."""
    try:
        layers = token_layers(table, adapter)
    except BenchError as error:
        return [str(error)]
    # One that only follows the embedding may be adapted, unless the configuration names it.
    given = adapter.trainable_token_indices
    named = tuple(given) if isinstance(given, Mapping) else ()
    both = [
        x.name for x in layers if x.name in adapted and (not x.follows or x.name.endswith(named))
    ]
    both += [name for name in sorted(adapted) if named and name.endswith(named)][: not both]
    return [f"{name} is adapted and has trainable tokens: PEFT takes one of them" for name in both]
