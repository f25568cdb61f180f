r"""LoRA in closed form: every term of a configuration, from the match ledger.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) adds to a frozen weight W of `out × in` the
product B A with A of `r × in` and B of `out × r`, so each adapted layer gets

    |A| + |B|  =  r · in + out · r  =  r (in + out)

elements. What PEFT does with the other layer kinds:

| kind | A | B |
|---|---|---|
| linear, GPT-2's Conv1D, any quantized linear | r · in | out · r |
| embedding of `rows × width` | r · rows | width · r |
| convolution with a window of k positions and g groups | r · in · k | out · r / g |
| MultiheadAttention of width E: in_proj and out_proj | 2 r · E | 3E · r + E · r |
| fused experts, a parameter of `n × rows × columns` | n r · rows | n r · columns |

`lora_alpha`, `alpha_pattern`, `lora_dropout`, `use_rslora`, `fan_in_fan_out`, aLoRA and VeLoRA
change no element. An initialisation changes none either, but for three: MiCA freezes B, and PiSSA
and OLoRA cut both matrices out of W and so have no more than min(in, out) ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.formulas.terms import Parameters, Term
from bench.models.modules import (
    CONV1D,
    CONVOLUTIONS,
    EMBEDDING,
    LINEAR,
    MULTIHEAD,
    Module,
    Parameter,
)
from bench.targets import Adapted, Ledger
from bench.targets.ledger import adapter_of
from bench.targets.saving import token_layers

_MONTECLORA_SAMPLES = 8
_CUT_FROM_WEIGHT = ("pissa", "olora")
_TOKEN_BASE = "token_adapter.base_layer"


@dataclass(frozen=True)
class Matrices:
    """Elements of A and of B of one adapted layer, and the bias that B can have."""

    a: int
    b: int
    b_bias: int

    @property
    def elements(self) -> int:
        return self.a + self.b


def module_matrices(module: Module, r: int) -> Matrices:
    """A and B of LoRA with rank r on one module. Raises BenchError for a kind without LoRA."""
    shape = (module.in_features, module.out_features, module.kernel, module.groups)
    if (found := _matrices(module.kind, shape, r)) is None:
        kind = module.class_name or module.kind
        raise BenchError(f"{module.name}: no formula for LoRA on a {kind}")
    return found


@lru_cache(maxsize=4096)  # the layers of a model repeat a handful of shapes
def _matrices(kind: str, shape: tuple[int, int, int, int], r: int) -> Matrices | None:
    rows, columns, kernel, groups = shape
    if kind in (LINEAR, CONV1D, EMBEDDING):
        return Matrices(r * rows, columns * r, columns)
    if kind in CONVOLUTIONS:
        return Matrices(r * rows * kernel, columns * r // groups, columns)
    if kind == MULTIHEAD:
        return Matrices(2 * r * rows, (3 * columns + columns) * r, 3 * columns + columns)
    return None


def parameter_matrices(parameter: Parameter, r: int) -> Matrices:
    """A and B on a bare 2-D weight, or on 3-D experts: every expert gets its own r ranks.

    Raises BenchError for any other shape.
    """
    if len(parameter.shape) not in (2, 3):
        raise BenchError(f"{parameter.name}: LoRA adapts parameters of 2 or 3 dimensions only")
    *experts, rows, columns = parameter.shape
    n = experts[0] if experts else 1
    return Matrices(n * r * rows, columns * r * n, 0)


def lora_parameters(ledger: Ledger) -> Parameters:
    """Trainable and total parameters of the ledger's configuration on its model.

    Terms (trained; what is added is the same unless said otherwise):

    * `lora`: Σ |A| + |B| over the adapted layers. With BD-LoRA's n blocks the block-diagonal one of
      the two is 1/n of that; with MiCA (https://arxiv.org/abs/2604.01694) B is added and frozen;
    * `modules_to_save`: a copy of every saved module, the heads of the task type included. A tied
      weight is copied once for each module, with `ensure_weight_tying` once in all;
    * `trainable_tokens`: (number of token indices) × (embedding width), once on a tied model;
    * `bias`: "all" trains every base parameter called `bias`, "lora_only" those of adapted layers;
      nothing is added;
    * `dora`: one magnitude for each output feature (https://arxiv.org/abs/2402.09353);
    * `lora_bias`: a bias in B, one for each output feature;
    * `kasa`: r singular values a layer (https://arxiv.org/abs/2412.06071);
    * `monteclora`: r deviations and `num_samples` (8) sample weights a layer. Quantized layers get
      neither of the two, and no block-diagonal matrices: PEFT makes plain LoRA of them.

    The base is that of the grown model under `layer_replication`: repeated layers share their
    weights and count once, layers that no range names are gone.

    Raises BenchError where no closed form is known: EVA with rho above 1 (ranks then depend on the
    data), CorDA, LoftQ and LoRA-GA with more ranks than a weight has, and a module that is trained
    whole and by tokens. None is ignored.
    """
    table, adapter = ledger.table, ledger.adapter
    _check_known(ledger)
    free = free_layers(ledger)

    parts = [(a, adapted_matrices(adapter, a)) for a in free]
    a_elements = sum(m.a for _, m in parts)
    b_elements = sum(m.b for _, m in parts)
    frozen = b_elements if adapter.init_lora_weights == "mica" else 0
    terms = [Term("lora", a_elements + b_elements - frozen, a_elements + b_elements, len(parts))]
    if ledger.saved:
        terms.append(saved_term(ledger, {a.name: _all_added(adapter, a) for a in ledger.adapted}))
    if adapter.trainable_token_indices:
        terms.append(_token_term(ledger))
    if adapter.bias != "none":
        terms.append(bias_term(ledger))
    for name, each in _variant_terms(adapter, free).items():
        terms.append(Term(name, sum(each), sum(each), len(each)))
    return Parameters(tuple(terms), table.total_parameters)


def adapted_matrices(adapter: AdapterConfig, item: Adapted) -> Matrices:
    """A and B of one ledger line, as the configuration's variant shapes them."""
    if item.module is None:
        assert item.parameter is not None
        return parameter_matrices(item.parameter, item.r)
    adapter = adapter.on(item.module.quantized)
    whole = module_matrices(item.module, _rank(adapter, item.module, item.r))
    if adapter.use_bdlora is None:
        return whole
    on_a, on_b = adapter.block_diagonal(item.name)
    blocks = adapter.use_bdlora.get("nblocks", 1)
    if on_a:
        return Matrices(whole.a // blocks, whole.b, whole.b_bias)
    if on_b:
        return Matrices(whole.a, whole.b // blocks, whole.b_bias)
    return whole


def _rank(adapter: AdapterConfig, module: Module, r: int) -> int:
    # The singular (or QR) factors of W have no more than min(in, out) columns.
    init = str(adapter.init_lora_weights)
    if init.startswith(_CUT_FROM_WEIGHT) and module.kind in (LINEAR, CONV1D):
        return min(r, module.in_features, module.out_features)
    return r


def _variant_terms(adapter: AdapterConfig, items: Iterable[Adapted]) -> dict[str, list[int]]:
    """Elements, trained and added, that a variant puts beside A and B of each layer."""
    modules = [(item.module, item.r) for item in items if item.module is not None]
    in_floats = [(module, r) for module, r in modules if not module.quantized]
    terms: dict[str, list[int]] = {}
    if adapter.use_dora:
        terms["dora"] = [module.out_features for module, _ in modules]
    if adapter.lora_bias:
        terms["lora_bias"] = [module_matrices(module, r).b_bias for module, r in modules]
    if adapter.kasa_config is not None:
        terms["kasa"] = [r for _, r in in_floats]
    if adapter.monteclora_config is not None:
        samples = adapter.monteclora_config.get("num_samples", _MONTECLORA_SAMPLES)
        terms["monteclora"] = [r + samples for _, r in in_floats]
    return {name: each for name, each in terms.items() if each}


def _all_added(adapter: AdapterConfig, item: Adapted) -> int:
    beside = _variant_terms(adapter, [item]).values()
    return adapted_matrices(adapter, item).elements + sum(map(sum, beside))


def _check_known(ledger: Ledger) -> None:
    adapter = ledger.adapter
    modules = {item.name for item in ledger.adapted if item.module is not None}
    for item in ledger.adapted:
        if item.parameter is not None and item.owner in modules:
            raise BenchError(f"no closed form for {item.name}: a parameter of an adapted module")
    if adapter.init_lora_weights == "eva" and (adapter.eva_config or {}).get("rho", 2.0) != 1:
        raise BenchError(
            "no closed form for init_lora_weights='eva': it hands ranks from layer to layer as the "
            "data asks for; with eva_config rho=1 every layer keeps r"
        )
    cut = str(adapter.init_lora_weights).startswith(_CUT_FROM_WEIGHT)
    decomposed = adapter.init_lora_weights in ("corda", "loftq", "lora_ga")
    for item in ledger.adapted if cut or decomposed else ():
        if item.parameter is not None:
            most = min(item.parameter.shape[-2:])
        else:
            assert item.module is not None
            most = min(item.module.in_features, item.module.out_features)
        if item.r > most and (decomposed or item.parameter is not None):
            raise BenchError(
                f"no closed form for {adapter.init_lora_weights!r} with rank {item.r} on "
                f"{item.name}: the weight has fewer ranks"
            )
    if adapter.use_bdlora is not None and cut:
        raise BenchError(f"no closed form for {adapter.init_lora_weights!r} with use_bdlora")
    tokens = {layer.name for layer in token_layers(ledger.table, adapter)}
    if tokens and adapter.later_heads and _TOKEN_BASE.endswith(adapter.saved_modules):
        raise BenchError("no closed form for a base_layer saved under trainable tokens")
    whole = tuple(f"{name}." for name in ledger.saved)
    if ledger.tied and ledger.table.input_embedding.startswith(whole):
        raise BenchError(
            "no closed form for ensure_weight_tying with the input embedding in a saved module"
        )
    if both := sorted(name for name in tokens if f"{name}.".startswith(whole)):
        raise BenchError(f"no closed form for {both[0]}: trained whole and by tokens")


def free_layers(ledger: Ledger) -> list[Adapted]:
    """The adapted layers outside the saved modules, whose adapters train where they are."""
    frozen = ledger.copies.frozen
    return [item for item in ledger.adapted if adapter_of(item.name) not in frozen]


def saved_term(ledger: Ledger, adapters: Mapping[str, int] | None = None) -> Term:
    """`modules_to_save`: trained copies of modules.

    PEFT's copy of a module around an adapted layer holds a trained copy of the adapter as well, and
    the adapter inside the frozen original stays where it is. A module saved inside a saved one is
    copied once more. `adapters` gives the elements of each adapted layer's adapter.
    """
    copies = ledger.copies
    inside = {adapter_of(name): elements for name, elements in (adapters or {}).items()}
    elements = {p.name: p.elements for p in ledger.table.parameters} | inside
    trained = sum(n * elements.get(name, 0) for name, n in copies.trained.items())
    made = sum(n * elements.get(name, 0) for name, n in copies.made.items())
    kept = sum(n for name, n in inside.items() if name in copies.frozen)
    return Term("modules_to_save", trained, made + kept, len(ledger.saved))


def bias_term(ledger: Ledger) -> Term:
    """`bias`: the base model's own biases that train; nothing is added.

    "all" reaches every parameter called `bias`, "lora_only" those of the adapted layers and of the
    modules that hold an adapted parameter. A saved module's original is frozen, and with it what it
    shares with others.
    """
    everything, adapted = ledger.adapter.bias == "all", ledger.adapted
    names = {f"{a.owner}.bias" for a in adapted}
    # LoRA on a MultiheadAttention adapts its out_proj as a layer of its own; in_proj_bias is
    # called otherwise and is never reached.
    names |= {f"{a.name}.out_proj.bias" for a in adapted if a.module and a.module.kind == MULTIHEAD}
    chosen = {
        p.same_as or p.name: p.elements
        for p in ledger.table.parameters
        if p.name in names or (everything and p.name.rpartition(".")[2] == "bias")
    }
    chosen = {name: n for name, n in chosen.items() if name not in ledger.copies.frozen}
    return Term("bias", sum(chosen.values()), 0, len(chosen))


def _token_term(ledger: Ledger) -> Term:
    layers = token_layers(ledger.table, ledger.adapter)
    elements = sum(layer.tokens * layer.width for layer in layers if not layer.follows)
    return Term("trainable_tokens", elements, elements, len(layers))
