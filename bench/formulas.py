r"""Closed forms: the trainable and total parameters of a LoRA configuration, term by term.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) adds to a frozen weight W of `out × in` the
product B A with A of `r × in` and B of `out × r`, so each adapted layer trains

    r · in + out · r  =  r (in + out)

elements. What PEFT does with the other layer kinds:

* an embedding of `rows × width` gets A of `r × rows` and B of `width × r`: r (rows + width);
* a convolution with a window of k positions gets A as a convolution `in → r` over the same window
  and B as a 1 × 1 convolution `r → out`: r (in k + out), grouped: r (in k + out / groups);
* fused experts, a parameter of `E × rows × columns`, get A and B of rank r for every expert:
  E r (rows + columns).

Nothing here imports torch or PEFT: what PEFT really creates is counted elsewhere, and the suites
hold the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.errors import BenchError
from bench.modules import (
    CONV1D,
    CONVOLUTIONS,
    EMBEDDING,
    LINEAR,
    Module,
    ModuleTable,
    Parameter,
)
from bench.targets import Adapted, Ledger


@dataclass(frozen=True)
class Term:
    """One summand: `trained` elements get gradients, `added` ones did not exist in the base model.

    A trained bias of the base model is trained but not added; a saved copy is both.
    """

    name: str
    trained: int
    added: int
    modules: int


@dataclass(frozen=True)
class Parameters:
    """The terms of one configuration, and the base model's own total."""

    terms: tuple[Term, ...]
    base: int

    @property
    def trainable(self) -> int:
        return sum(term.trained for term in self.terms)

    @property
    def total(self) -> int:
        """Logical elements, shared tensors once, the adapter and the saved copies included."""
        return self.base + sum(term.added for term in self.terms)

    @property
    def share(self) -> float:
        """Trainable share of the total, 0 to 1 (PEFT prints it in percent)."""
        return self.trainable / self.total


def lora_matrices(r: int, in_features: int, out_features: int) -> int:
    """r (in + out): the elements of A (r × in) and B (out × r)."""
    return r * (in_features + out_features)


def lora_module(module: Module, r: int) -> int:
    """Elements that LoRA of rank r adds to one module. Raises BenchError for other kinds."""
    if module.kind in (LINEAR, CONV1D, EMBEDDING):
        return lora_matrices(r, module.in_features, module.out_features)
    if module.kind in CONVOLUTIONS:
        return lora_matrices(
            r, module.in_features * module.kernel, module.out_features // module.groups
        )
    raise BenchError(f"{module.name}: no formula for LoRA on a {module.class_name or module.kind}")


def lora_parameter(parameter: Parameter, r: int) -> int:
    """Elements that LoRA of rank r adds to a bare 2-D weight or to fused 3-D experts.

    A 3-D weight is E experts of `rows × columns`; every one gets its own A and B.
    """
    if len(parameter.shape) not in (2, 3):
        raise BenchError(f"{parameter.name}: LoRA adapts parameters of 2 or 3 dimensions only")
    *experts, rows, columns = parameter.shape
    return (experts[0] if experts else 1) * lora_matrices(r, rows, columns)


def adapter_elements(item: Adapted) -> int:
    """Elements that the adapter of one ledger line adds."""
    if item.module is not None:
        return lora_module(item.module, item.r)
    assert item.parameter is not None
    return lora_parameter(item.parameter, item.r)


def lora_parameters(ledger: Ledger) -> Parameters:
    """Trainable and total parameters of the ledger's configuration on its model.

    Terms: `lora` over all adapted modules, `modules_to_save` (a trained copy of each saved module,
    tied weights copied too), `bias` (bias="all": every bias of the base model; "lora_only": those
    of the adapted modules), `dora` (one magnitude for each output feature, Liu et al. 2024,
    https://arxiv.org/abs/2402.09353) and `lora_bias` (a bias in B).

    Raises BenchError for a field that has no closed form here: none is ignored.
    """
    table, adapter = ledger.table, ledger.adapter
    for name in ("layer_replication", "trainable_token_indices"):
        if getattr(adapter, name):
            raise BenchError(f"no closed form yet for {name}")
    if adapter.ensure_weight_tying and table.tied:
        raise BenchError("no closed form yet for ensure_weight_tying on a tied model")
    saved = _outermost(ledger.saved)
    inside = tuple(name + "." for name in saved)
    free = [a for a in ledger.adapted if a.name not in saved and not a.name.startswith(inside)]
    wrapped = [a for a in ledger.adapted if a not in free]

    lora = sum(adapter_elements(a) for a in free)
    terms = [Term("lora", lora, lora, len(free))]
    if saved:
        copies = sum(p.elements for name in saved for p in table.below(name))
        # PEFT's saved copy of an adapted module holds a trained copy of its adapter as well, and
        # the adapter inside the frozen original stays where it is.
        nested = sum(adapter_elements(a) for a in wrapped)
        terms.append(Term("modules_to_save", copies + nested, copies + 2 * nested, len(saved)))
    if adapter.bias != "none":
        terms.append(_bias_term(table, adapter.bias, free, inside))
    if adapter.use_dora:
        dora = sum(a.module.out_features for a in free if a.module is not None)
        terms.append(Term("dora", dora, dora, len(free)))
    if adapter.lora_bias:
        extra = sum(a.module.out_features for a in free if a.module is not None)
        terms.append(Term("lora_bias", extra, extra, len(free)))
    return Parameters(tuple(terms), table.total_parameters)


def _outermost(saved: tuple[str, ...]) -> tuple[str, ...]:
    """The saved modules that lie in no other saved module."""
    return tuple(s for s in saved if not any(s.startswith(o + ".") for o in saved))


def _bias_term(
    table: ModuleTable, bias: str, adapted: list[Adapted], inside: tuple[str, ...]
) -> Term:
    names = {f"{a.name}.bias" for a in adapted}
    chosen = [
        p
        for p in table.parameters
        if not p.same_as
        and not p.name.startswith(inside)
        and (p.name in names if bias == "lora_only" else "bias" in p.name)
    ]
    return Term("bias", sum(p.elements for p in chosen), 0, len(chosen))
