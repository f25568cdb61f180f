"""Stacks: the towers of layers within a model, and what feeds each of them.

Read off the model itself. A part that transformers builds as a model of its own, or from a
configuration of its own, is a stack; what stands between stacks is a connector. The kind is told by
the key of that configuration (`vision_config`), else by the attribute (`encoder`), else by what the
part's class says that it takes (`input_modalities`, `main_input_name`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LANGUAGE, VISION, AUDIO, CONNECTOR = "language", "vision", "audio", "connector"
ENCODER, DECODER = "encoder", "decoder"
MODEL = "model"
"""The kind of the only stack of a module that says nothing of itself."""

# The plain words of keys and attributes, in the order in which they decide.
_WORDS = (
    (VISION, {"vision", "visual", "image", "video", "vit", "vq", "vqmodel"}),
    (AUDIO, {"audio", "speech", "acoustic", "acoustics", "codec", "vocoder", "sound"}),
    (ENCODER, {"encoder"}),
    (DECODER, {"decoder"}),
    (LANGUAGE, {"text", "language", "llm", "lm"}),
)
_INPUTS = {"pixel_values": "image", "input_features": "audio", "input_values": "audio",
           "input_ids": "text"}  # fmt: skip
_KINDS = {"image": VISION, "video": VISION, "audio": AUDIO, "text": LANGUAGE}
_FED_BY: dict[str, tuple[str, ...]] = {VISION: ("image",), AUDIO: ("audio",), LANGUAGE: ("text",)}

# A layer is a numbered container: a numbered projection (`mlp.0`) is none, and of nested numbers
# the first counts.
_LAYER = re.compile(r"((?:[^.]*\.)*?\d+)\.")


@dataclass(frozen=True)
class Stack:
    """A tower of layers within a model.

    Attributes:
        kind: language, vision, audio, connector, encoder or decoder.
        prefix: the module that holds it; "" for the whole model. Where stacks lie within each
            other, a module belongs to the innermost.
        inputs: what feeds it ("text", "image", "audio"); empty where only other stacks do.
        layers: the names of its blocks that hold a linear weight, in order.
    """

    kind: str
    prefix: str = ""
    inputs: tuple[str, ...] = ("text",)
    layers: tuple[str, ...] = ()

    @property
    def text(self) -> bool:
        """Whether a batch of text alone feeds it, so that its adapters get a gradient."""
        return "text" in self.inputs

    @property
    def label(self) -> str:
        return f"{self.kind} {self.prefix}" if self.prefix else self.kind

    def layer_of(self, name: str) -> str:
        """The layer of this stack that holds the module called `name`; "" outside of all."""
        found = self._layer_by_name.get(name)
        if found is None:
            inside = name.removeprefix(f"{self.prefix}.") if self.prefix else name
            layer = _LAYER.match(inside)
            found = _join(self.prefix, layer[1]) if layer else ""
            self._layer_by_name[name] = found
        return found

    @cached_property
    def _layer_by_name(self) -> dict[str, str]:
        """Each name is asked for again with every configuration that is matched."""
        return {}


@dataclass
class _Part:
    """A part of the model that is a model, or has a configuration, of its own."""

    name: str
    module: Any
    inner: list[_Part]

    @property
    def config(self) -> Any:
        return getattr(self.module, "config", None)

    @property
    def main_kind(self) -> str:
        """The kind that its main input tells; MODEL where it says nothing of itself."""
        main = getattr(self.module, "main_input_name", "")
        return _KINDS.get(_INPUTS.get(main, ""), MODEL)

    @property
    def only_kind(self) -> str:
        """The kind that its class tells where it takes one modality alone, other than text."""
        if self.main_kind in (VISION, AUDIO):
            return self.main_kind
        said = getattr(self.module, "input_modalities", ())
        kinds = {_KINDS.get(m, m) for m in ((said,) if isinstance(said, str) else said or ())}
        return kinds.pop() if len(kinds) == 1 and kinds != {LANGUAGE} else ""

    def stack(self, kind: str) -> Stack:
        """This part as a stack; one without a kind of its own is fed by what its class takes."""
        fed = _FED_BY.get(kind) or _FED_BY.get(self.only_kind or self.main_kind, ())
        return Stack(kind, self.name, () if kind == CONNECTOR else fed)


def read_stacks(
    model: nn.Module, widths: Mapping[str, int], *, base: str, head: str, width: int
) -> tuple[Stack, ...]:
    """The stacks of a live model, in its own order, their layers not yet filled in.

    `widths` maps every linear layer to the width that it puts out, and every convolution to 0;
    `base` and `head` name the base model and the output embedding, "" where there is none, and
    `width` is that of the input embedding (0 without one).
    """
    inside = f"{base}." if base else ""
    names = [n for n in widths if n != head and n.startswith(inside)]
    found = _settle(_visit(_parts("", model), None, names or list(widths)))
    if len(found) > 1:
        found += [c for s in found for c in _own_connectors(s, names, widths, width)]
    order = {name: at for at, (name, _) in enumerate(model.named_modules())}
    return tuple(sorted(found, key=lambda s: order[s.prefix]))


def with_layers(stacks: Iterable[Stack], names: Iterable[str]) -> tuple[Stack, ...]:
    """The stacks with those layers that hold one of `names`, each in the innermost stack."""
    stacks = tuple(stacks)
    layers: dict[str, dict[str, None]] = {s.prefix: {} for s in stacks}
    by_prefix = {s.prefix: s for s in stacks}
    for name in names:
        stack = innermost(by_prefix, name)
        if stack is not None and (layer := stack.layer_of(name)):
            layers[stack.prefix][layer] = None
    return tuple(replace(s, layers=tuple(layers[s.prefix])) for s in stacks)


def innermost(by_prefix: Mapping[str, Stack], name: str) -> Stack | None:
    """The stack that holds a module, of those by prefix; None for one outside of all."""
    while name not in by_prefix:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return by_prefix[name]


def _parts(name: str, module: Any) -> _Part:
    from transformers import PretrainedConfig, PreTrainedModel

    part = _Part(name, module, [])

    def look_in(name: str, module: Any) -> None:
        for attribute, child in module.named_children():
            inner = _join(name, attribute)
            own = getattr(child, "config", None)
            if attribute.isdigit():
                continue  # a layer holds no stack
            other = isinstance(own, PretrainedConfig) and type(own) is not type(part.config)
            if isinstance(child, PreTrainedModel) or (other and _has_lists(child)):
                part.inner.append(_parts(inner, child))
            else:
                look_in(inner, child)

    look_in(name, module)
    return part


def _has_lists(module: Any) -> bool:
    return any(type(inner).__name__ == "ModuleList" for inner in module.modules())


def _visit(part: _Part, outer: _Part | None, names: list[str]) -> list[Stack]:
    """The stacks of a part; one with a kind that nothing tells has the kind ""."""
    names = [n for n in names if _lies_in(n, part.name)]
    inner = [p for p in part.inner if any(_lies_in(n, p.name) for n in names)]
    rest = _remainder(part, inner, names)
    layered = [n for n, numbered in rest.items() if numbered]
    if not inner or (len(inner) == 1 and not layered):
        below = _visit(inner[0], part, names) if inner else []
        if outer is None:
            return below or [part.stack(part.only_kind or part.main_kind)]
        # Around one inner part it is a wrapper, such as the class with the head.
        return below if len(below) > 1 else [part.stack(_told(part, outer) or part.only_kind)]
    # Lists of layers that are its own make it a stack beside its parts.
    own = [n for n in layered if n in _lists(part)] or layered[:1]
    found = [part.stack(part.main_kind)] if own else []
    found += [stack for p in inner for stack in _visit(p, part, names)]
    found += [Stack(CONNECTOR, n, ()) for n in rest if n not in own]
    if own and not getattr(part.config, "is_encoder_decoder", False):
        found = [replace(s, inputs=()) if s.kind == ENCODER else s for s in found]
    whole = _told(part, outer) if outer else ""
    if whole in (VISION, AUDIO):  # a tower of two encoders, a codec
        return [s if s.kind == CONNECTOR else Stack(whole, s.prefix, _FED_BY[whole]) for s in found]
    return _settle(found)


def _settle(stacks: list[Stack]) -> list[Stack]:
    """The kinds that nothing told: where a tower and a language model stand, a stack leads to the
    latter, or from it; elsewhere it is a language stack itself."""
    kinds = {s.kind for s in stacks}
    towers = {VISION, AUDIO} & kinds and {LANGUAGE, DECODER} & kinds
    settled: list[Stack] = []
    for stack in stacks:
        if stack.kind:
            settled.append(stack)
        elif towers:
            after = any(s.kind == LANGUAGE for s in settled)
            settled.append(replace(stack, kind=DECODER if after else CONNECTOR, inputs=()))
        else:
            settled.append(replace(stack, kind=LANGUAGE))
    return settled


def _remainder(part: _Part, inner: list[_Part], names: list[str]) -> dict[str, bool]:
    """The largest modules of a part that hold none of its inner parts, and whether each holds
    layers."""
    around = {part.name}
    for p in inner:
        above = p.name
        while above != part.name:
            above = above.rpartition(".")[0]
            around.add(above)
    found: dict[str, bool] = {}
    for name in names:
        if any(_lies_in(name, p.name) for p in inner):
            continue
        top = name
        while (above := top.rpartition(".")[0]) not in around:
            top = above
        numbered = bool(_LAYER.match(name[len(part.name) + 1 if part.name else 0 :]))
        found[top] = found.get(top, False) or numbered
    return found


def _lists(part: _Part) -> set[str]:
    children = part.module.named_children()
    return {_join(part.name, n) for n, child in children if type(child).__name__ == "ModuleList"}


def _told(part: _Part, outer: _Part) -> str:
    """The kind that the key of the part's configuration tells, else the attribute; "" if none."""
    fields = vars(outer.config) if outer.config is not None else {}
    key = next((k for k, v in fields.items() if part.config is not None and v is part.config), "")
    attribute = part.name[len(outer.name) + 1 if outer.name else 0 :].replace(".", "_")
    for name in (key, attribute):
        words = set(name.split("_"))
        for kind, telling in _WORDS:
            if words & telling:
                return kind
    return ""


def _own_connectors(
    stack: Stack, names: list[str], widths: Mapping[str, int], width: int
) -> Iterator[Stack]:
    """The connectors that a tower holds itself: what stands behind its layers and puts out the
    width of the text embedding, or one that the layers do not."""
    if stack.kind not in (VISION, AUDIO) or not width:
        return
    children: dict[str, list[str]] = {}
    for name in names:
        if _lies_in(name, stack.prefix):
            child = name[len(stack.prefix) + 1 if stack.prefix else 0 :].partition(".")[0]
            children.setdefault(_join(stack.prefix, child), []).append(name)
    largest = max(children, key=lambda c: len(children[c]), default="")
    theirs = {0, *(widths[name] for name in children.get(largest, ()))} - {width}
    for child in list(children)[list(children).index(largest) + 1 :] if children else ():
        if any(widths[name] not in theirs for name in children[child]):
            yield Stack(CONNECTOR, child, ())


def _lies_in(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
