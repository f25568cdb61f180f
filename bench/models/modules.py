"""The module table: every module and parameter of a model, read off once, kept without torch.

The ledger and the formulas answer from such a table, so that a hundred scenarios of one model cost
one model on the meta device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from math import prod
from typing import TYPE_CHECKING, Any

from bench.compat import private
from bench.models.stacks import (
    AUDIO,
    DECODER,
    LANGUAGE,
    MODEL,
    VISION,
    Stack,
    innermost,
    read_stacks,
    with_layers,
)

if TYPE_CHECKING:
    from torch import nn

# Kinds that LoRA can adapt, as PEFT dispatches them; everything else is OTHER.
LINEAR, CONV1D, EMBEDDING, MULTIHEAD = "linear", "conv1d", "embedding", "multihead_attention"
CONVOLUTIONS = ("convolution1d", "convolution2d", "convolution3d")
OTHER = "other"
_QUANTIZED = ("Linear8bitLt", "Linear4bit", "LinearNF4", "LinearFP4")

# The first numbered segment is the layer; a nested index (an expert's) is not. PEFT reads
# `layers_to_transform` the same way.
_LAYER = re.compile(r"^(.*?\.?[^.]*\.\d+)\.")


@dataclass(frozen=True)
class Parameter:
    """One tensor: its full name and logical shape (4-bit weights unpacked).

    `same_as` names the parameter that it shares its memory with, when that one comes first.
    """

    name: str
    shape: tuple[int, ...]
    same_as: str = ""

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Module:
    """One named module. Features are channels for a convolution, rows × width for an embedding.

    `kernel` is the number of positions in a convolution's window, `groups` its channel groups.
    """

    name: str
    kind: str = OTHER
    in_features: int = 0
    out_features: int = 0
    bias: bool = False
    kernel: int = 1
    groups: int = 1
    class_name: str = ""

    @property
    def quantized(self) -> bool:
        """Whether bitsandbytes holds its weight, as integers that cannot train."""
        return self.class_name in _QUANTIZED

    @property
    def leaf(self) -> str:
        """The last segment of the name, as people write it in `target_modules`."""
        return self.name.rpartition(".")[2]

    @property
    def layer(self) -> str:
        """The repeated block that holds this module ("model.layers.3"); "" outside all of them."""
        return layer_of(self.name)

    @property
    def weight_elements(self) -> int:
        return self.in_features * self.out_features * self.kernel // self.groups


@cache
def layer_of(name: str) -> str:
    """The name up to the first numbered segment, or "" for a module outside the layers."""
    found = _LAYER.match(name + ".")
    return found.group(1) if found else ""


@dataclass(frozen=True)
class ModuleTable:
    """What a model is made of.

    Attributes:
        model_type: the configuration's `model_type` ("" for a model without one).
        class_name: the model's class.
        modules: in `named_modules()` order, shared modules once, the root left out.
        parameters: in `named_parameters(remove_duplicate=False)` order.
        input_embedding, output_embedding: names of those modules, "" where there is none.
        tied: names of the modules that PEFT takes for tied to the input embedding: by what their
            class declares and the configuration says.
        moe_conversion: the family by which PEFT rewrites transformers-4 expert names, or "".
        ties_unknown: the model names tied weights but not its input embedding: PEFT then raises
            whatever the targets.
        repeated: (further name, first name) of modules that are registered twice.
        base_model: name of the module that holds the pretrained model without a head, or "".
        backbone: name of the first child of transformers' own kind, or "".
        stacks: the towers of layers, in the model's order; at least one.
        says_tied: whether the configuration says that embeddings are tied, whatever the class does
            of it; PEFT asks for trainable tokens.
        pretrained: whether the model is one of transformers' own kind.
        generates: whether it has the methods that PEFT's CAUSAL_LM and SEQ_2_SEQ_LM wrap.
    """

    model_type: str
    class_name: str
    modules: tuple[Module, ...]
    parameters: tuple[Parameter, ...]
    input_embedding: str = ""
    output_embedding: str = ""
    tied: tuple[str, ...] = ()
    moe_conversion: str = ""
    ties_unknown: bool = False
    repeated: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    base_model: str = ""
    backbone: str = ""
    stacks: tuple[Stack, ...] = ()
    says_tied: bool = True
    pretrained: bool = True
    generates: bool = True

    def __post_init__(self) -> None:
        holders = [m.name for m in self.modules if m.kind in (LINEAR, CONV1D)]
        holders += [p.name for p in self.expert_parameters]
        stacks = with_layers(self.stacks or (Stack(MODEL),), holders)
        object.__setattr__(self, "stacks", stacks)

    @cached_property
    def _by_prefix(self) -> dict[str, Stack]:
        return {stack.prefix: stack for stack in self.stacks}

    @cached_property
    def main_stack(self) -> Stack:
        """The one that speaks: the last that text feeds, a decoder before a language stack; the
        largest where none is fed by text. Heads belong to it."""
        speaking = [s for s in self.stacks if s.kind in (DECODER, LANGUAGE)]
        speaking = [s for s in speaking if s.text] or speaking
        decoders = [s for s in speaking if s.kind == DECODER]
        return (decoders or speaking or [max(self.stacks, key=lambda s: len(s.layers))])[-1]

    @cached_property
    def main_stacks(self) -> tuple[Stack, ...]:
        """Those that a batch of text feeds, where a language model stands beside towers that it
        does not; else all of them."""
        text = tuple(s for s in self.stacks if s.text)
        speaks = any(s.kind in (LANGUAGE, DECODER) for s in text) and self.output_embedding
        beside = any(s.kind in (VISION, AUDIO) for s in self.stacks)
        return text if speaks and beside else self.stacks

    def stack_of(self, name: str) -> Stack:
        """The innermost stack that holds a module or parameter; for a head outside of all of them
        the main stack."""
        found = self._stack_by_name.get(name)
        if found is None:
            found = innermost(self._by_prefix, name) or self.main_stack
            self._stack_by_name[name] = found
        return found

    @cached_property
    def _stack_by_name(self) -> dict[str, Stack]:
        """Each name is asked for again with every configuration that is matched."""
        return {}

    @cached_property
    def by_name(self) -> dict[str, Module]:
        return {module.name: module for module in self.modules}

    @cached_property
    def adaptable(self) -> tuple[str, ...]:
        """The names of the modules of a kind that LoRA can adapt."""
        return tuple(module.name for module in self.modules if module.kind != OTHER)

    @cached_property
    def total_parameters(self) -> int:
        """Logical elements, shared tensors once."""
        return sum(p.elements for p in self.parameters if not p.same_as)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Blocks that hold at least one linear weight, in order."""
        holders = [m.layer for m in self.modules if m.kind in (LINEAR, CONV1D)]
        holders += [layer_of(p.name) for p in self.expert_parameters]
        return tuple(dict.fromkeys(layer for layer in holders if layer))

    @cached_property
    def expert_parameters(self) -> tuple[Parameter, ...]:
        """3-D weights of fused experts (experts × rows × columns), which hold no nn.Linear.

        Class tokens and position tables are 3-D too, with a first dimension of 1; so are the
        windows of transposed convolutions and of convolutions under weight norm ("original1"), and
        a state space's decay in Zamba ("A_log"), none of which is a matrix for every expert.
        """
        owners = {
            m.name
            for m in self.modules
            if m.kind == OTHER and not m.class_name.startswith("ConvTranspose")
        }
        return tuple(
            p
            for p in self.parameters
            if len(p.shape) == 3
            and min(p.shape) > 1
            and p.name.rpartition(".")[0] in owners
            and not p.name.rpartition(".")[2].startswith(("original", "A_log"))
        )

    def below(self, module: str) -> Iterator[Parameter]:
        """Every parameter in the module or its children, shared ones too (a copy copies them)."""
        prefix = module + "."
        return (p for p in self.parameters if p.name.startswith(prefix))


def read_table(model: nn.Module) -> ModuleTable:
    """The table of a live model (on any device, the meta device included)."""
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", "") or ""
    names: dict[int, str] = {}
    parameters = []
    for name, tensor in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(tensor), name)
        parameters.append(
            Parameter(name, _logical_shape(model, name, tensor), "" if first == name else first)
        )
    named = [(name, module) for name, module in model.named_modules() if name]
    by_id = {id(module): name for name, module in named}

    def embedding(getter: str) -> str:
        try:
            return str(by_id.get(id(getattr(model, getter)()), ""))
        except (AttributeError, NotImplementedError, TypeError):
            return ""

    seen = set(by_id.values())
    repeated = tuple(
        (name, by_id[id(module)])
        for name, module in model.named_modules(remove_duplicate=False)
        if name and name not in seen
    )
    base_model = str(getattr(model, "base_model_prefix", ""))
    base_model = base_model if base_model in seen else ""
    input_embedding = embedding("get_input_embeddings")
    modules = tuple(_read_module(name, module) for name, module in named)
    output_embedding = embedding("get_output_embeddings")
    width = next((m.out_features for m in modules if m.name == input_embedding), 0)
    widths = {
        m.name: 0 if m.kind in CONVOLUTIONS else m.out_features
        for m in modules
        if m.kind not in (OTHER, EMBEDDING)
    }
    return ModuleTable(
        model_type=model_type,
        class_name=type(model).__name__,
        modules=modules,
        parameters=tuple(parameters),
        input_embedding=input_embedding,
        output_embedding=output_embedding,
        tied=_tied(model, input_embedding, parameters),
        moe_conversion=_moe_conversion(model_type),
        ties_unknown=_ties_unknown(model),
        repeated=repeated,
        base_model=base_model,
        backbone=next((n for n, m in model.named_children() if _is_pretrained(m)), ""),
        stacks=read_stacks(model, widths, base=base_model, head=output_embedding, width=width),
        says_tied=_says_tied(model),
        pretrained=_is_pretrained(model),
        generates=hasattr(model, "prepare_inputs_for_generation"),
    )


def _read_module(name: str, module: Any) -> Module:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    class_name = type(module).__name__
    if isinstance(module, nn.Linear):
        return Module(
            name,
            LINEAR,
            module.in_features,
            module.out_features,
            module.bias is not None,
            class_name=class_name,
        )
    if isinstance(module, Conv1D):
        rows, columns = module.weight.shape
        return Module(name, CONV1D, rows, columns, True, class_name=class_name)
    if isinstance(module, nn.Embedding):
        return Module(
            name, EMBEDDING, module.num_embeddings, module.embedding_dim, class_name=class_name
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return Module(
            name,
            CONVOLUTIONS[len(module.kernel_size) - 1],
            module.in_channels,
            module.out_channels,
            module.bias is not None,
            prod(module.kernel_size),
            module.groups,
            class_name,
        )
    if isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim:
        width = module.embed_dim
        bias = module.in_proj_bias is not None
        return Module(name, MULTIHEAD, width, width, bias, class_name=class_name)
    return Module(name, class_name=class_name)


def _logical_shape(model: nn.Module, name: str, tensor: Any) -> tuple[int, ...]:
    # bitsandbytes packs a 4-bit weight into a column of bytes; the layer knows the real shape.
    if name.endswith(".weight") and getattr(tensor, "bnb_quantized", False):
        layer = model.get_submodule(name.removesuffix(".weight"))
        if hasattr(layer, "out_features"):
            return (layer.out_features, layer.in_features)
    return tuple(tensor.shape)


def _says_tied(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    return bool(values.get("tie_word_embeddings", False))


def _is_pretrained(model: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _tied(model: nn.Module, input_embedding: str, parameters: list[Parameter]) -> tuple[str, ...]:
    """The modules that PEFT makes follow the input embedding, in the parameters' order.

    Source: peft 0.21 `utils/other.py` (`_get_module_names_tied_with_embedding`).
    """
    private("tied keys")
    keys = getattr(model, "_tied_weights_keys", None)
    if not keys or getattr(getattr(model, "config", None), "tie_word_embeddings", None) is False:
        return ()
    if isinstance(keys, dict):
        declared: dict[str, str] = {}
        for name, module in model.named_modules():
            inside = getattr(module, "_tied_weights_keys", None)
            prefix = f"{name}." if name else ""
            if isinstance(inside, dict):
                declared |= {f"{prefix}{k}": f"{prefix}{v}" for k, v in inside.items()}
        first = {p.name: p.same_as or p.name for p in parameters}
        own = {f for n, f in first.items() if n.rpartition(".")[0] == input_embedding}
        keys = [k for k, v in declared.items() if input_embedding and first.get(v) in own]
    names = {key.rpartition(".")[0] for key in keys}
    return tuple(
        dict.fromkeys(
            owner for p in parameters for owner in [p.name.rpartition(".")[0]] if owner in names
        )
    )


def _ties_unknown(model: nn.Module) -> bool:
    tied = getattr(model, "_tied_weights_keys", None)
    if not isinstance(tied, dict) or not hasattr(model, "get_input_embeddings"):
        return False
    if getattr(getattr(model, "config", None), "tie_word_embeddings", None) is False:
        return False
    try:
        return not hasattr(model.get_input_embeddings(), "parameters")
    except NotImplementedError:
        return True


def _moe_conversion(model_type: str) -> str:
    # PEFT adds mixtral itself to transformers' table, and asks nothing of other model types.
    if model_type == "mixtral":
        return "mixtral"
    if int(version("transformers").partition(".")[0]) < 5:  # which fuses no experts
        return ""
    return str(private("conversion patterns").get(model_type) or "")
