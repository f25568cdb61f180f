r"""The other methods of PEFT: their settings, their papers, and what each adds to one layer.

For a weight of `out × in`, per adapted layer (trained; added is the same unless said otherwise):

| method | elements |
|---|---|
| lora | r (in + out) |
| lora-fa | r · out; A is added and frozen |
| adalora | r (in + out) + r; one rank counter is added and frozen |
| loha | 2 r (in + out) |
| lokr | a · c + r (b + d), or a · c + b · d where r ≥ max(b, d) / 2 |
| vera | r + out; the shared A and B are buffers, no parameters |
| oft | (in / n) · n (n − 1) / 2 for blocks of n; one block where they are shared |
| boft | (in / n) · n² + out for blocks of n |
| fourierft | n_frequency |
| ia3 | in for a feed-forward module, out for others |
| ln-tuning | a copy of the normalisation layer |
| trainable-tokens | (token indices) · width |
| full | every parameter; nothing is added |

LoKr writes out = a · b and in = c · d, each pair of factors as near to its root as it divides. The
methods that train virtual tokens are in `bench.formulas.prompts`; the papers are each kind's
`source`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bench.adapters.patterns import check_compiles, check_pattern, compiled
from bench.errors import BenchError
from bench.formulas import prompts
from bench.models.modules import CONV1D, CONVOLUTIONS, EMBEDDING, LINEAR, OTHER, Module, ModuleTable

Settings = Mapping[str, Any]
Elements = tuple[int, int]
"""Trained and added elements of one layer."""

_MATCHING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
             "modules_to_save", "task_type")  # fmt: skip
_UNLAYERED = ("target_modules", "exclude_modules", "modules_to_save", "task_type")
_PATTERNED = (*_MATCHING, "rank_pattern", "alpha_pattern")
_PROMPTED = ("modules_to_save", "task_type")


@dataclass(frozen=True)
class Kind:
    """A method: PEFT's configuration class, its settings with their defaults, and its formula.

    `size` is the setting that a budget is met with, "" where none scales. `mapping` ends the name
    of PEFT's table of default targets. `bias` is what PEFT calls training the adapted biases.
    `lora_like`: what PEFT keeps LoRA off (Mamba's output projections) it keeps this off too.
    `turns`: the sizes after which the count on a layer falls; None where it only grows.
    `common` names the fields that it shares with other methods. `listed`: PEFT wants a list of
    target_modules beside layers_to_transform. `uncounted`: fields of PEFT's class that are none
    here.
    """

    name: str
    peft_class: str
    settings: Settings
    source: str
    size: str = ""
    kinds: tuple[str, ...] = (LINEAR, CONV1D)
    elements: Callable[[ModuleTable, Module, Settings], Elements] | None = None
    mapping: str = "LORA"
    bias: str = ""
    lora_like: bool = False
    turns: Callable[[Module, Settings], tuple[int, ...]] | None = None
    common: tuple[str, ...] = _MATCHING
    listed: bool = False
    uncounted: tuple[str, ...] = ()


def _adalora(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    r = settings["init_r"]
    trained = r * (module.in_features + module.out_features) + r
    return trained, trained + 1


def _flat(module: Module) -> tuple[int, int]:
    """out and in of the weight as a matrix: a convolution's window and groups folded into in."""
    return module.out_features, module.in_features // module.groups * module.kernel


def _loha(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    r = settings["r"]
    out, inside = _flat(module)
    if settings["use_effective_conv2d"] and module.kernel > 1:
        channels = module.in_features // module.groups
        each = 2 * (r * r * module.kernel + r * (out + channels))
    else:
        each = 2 * r * (out + inside)
    return each, each


def _lokr(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    r, factor = settings["r"], settings["decompose_factor"]
    a, b = near_root(module.out_features, factor)
    c, d = near_root(module.in_features // module.groups, factor)
    window = module.kernel
    first = r * (a + c) if settings["decompose_both"] and r < max(a, c) / 2 else a * c
    if r >= max(b, d) / 2:
        second = b * d * window
    elif settings["use_effective_conv2d"] and window > 1:
        second = r * r * window + r * (b + d)
    else:
        second = r * (b + d * window)
    return first + second, first + second


def _lokr_turns(module: Module, settings: Settings) -> tuple[int, ...]:
    """The largest ranks at which either product is still decomposed."""
    factor = settings["decompose_factor"]
    a, b = near_root(module.out_features, factor)
    c, d = near_root(module.in_features // module.groups, factor)
    ends = (max(b, d), *((max(a, c),) if settings["decompose_both"] else ()))
    return tuple((end + 1) // 2 - 1 for end in ends if end > 2)


def near_root(number: int, factor: int = -1) -> tuple[int, int]:
    """Two factors of `number`, the smaller first, as near to each other as it divides.

    With a positive `factor` the smaller one is `factor` where that divides, else the largest
    divisor below it.
    """
    if factor > 0 and number % factor == 0:
        return factor, number // factor
    limit = number if factor == -1 else factor
    divisors = (k for k in range(1, int(number**0.5) + 1) if number % k == 0 and k <= limit)
    small = max(divisors, default=1)
    return small, number // small


def _vera(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    each = settings["r"] + module.out_features
    return each, each


def _oft(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    # An embedding is rotated in its width.
    width = module.out_features if module.kind == EMBEDDING else module.in_features
    if bool(settings["r"]) == bool(settings["oft_block_size"]):
        raise BenchError("oft: give either r or oft_block_size, the other one as 0")
    if settings["oft_block_size"]:
        size = _nearest_divisor(width, settings["oft_block_size"])
        blocks = width // size
    else:
        blocks = _nearest_divisor(width, settings["r"])
        size = width // blocks
    each = (1 if settings["block_share"] else blocks) * (size * (size - 1) // 2)
    return each, each


def _nearest_divisor(number: int, wanted: int) -> int:
    """PEFT's repair of a block size that does not divide: the nearest divisor, the lower of two."""
    if wanted >= number:
        return number
    return min((k for k in range(1, number + 1) if number % k == 0),
               key=lambda k: (abs(k - wanted), k))  # fmt: skip


def _boft(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    if settings["boft_n_butterfly_factor"] != 1:
        raise BenchError(
            "boft: PEFT falls back to one butterfly factor where its CUDA extension is missing: "
            "the count depends on the machine"
        )
    size, number = settings["boft_block_size"], settings["boft_block_num"]
    if bool(size) == bool(number):
        raise BenchError("boft: give either boft_block_size or boft_block_num, the other one as 0")
    given = size or number
    if module.in_features % given:
        raise BenchError(f"boft: {module.name} has {module.in_features} inputs, which {given} does "
                         "not divide")  # fmt: skip
    size = size or module.in_features // number
    each = module.in_features // size * size * size + module.out_features
    return each, each


def _fourierft(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    keys = (key for key in settings["n_frequency_pattern"] if in_pattern(key, module.name))
    n = int(settings["n_frequency_pattern"].get(next(keys, ""), settings["n_frequency"]))
    if n > module.in_features * module.out_features:
        raise BenchError(f"fourierft: {module.name} has fewer than n_frequency={n} elements")
    return n, n


def in_pattern(key: str, name: str) -> bool:
    """Whether a key of n_frequency_pattern is of the module: PEFT looks for it behind a dot."""
    return compiled(rf".*\.{key}$").match(name) is not None


def check_frequency_key(key: str, table: ModuleTable) -> None:
    """BenchError for a key that is no expression, or does not come to an end on these names."""
    try:
        check_compiles(rf".*\.{key}$")
    except BenchError as error:
        raise BenchError(
            f"fourierft: n_frequency_pattern {key!r:.80} is not a regular expression: {error}"
        ) from None
    check_pattern(rf".*\.{key}$", tuple(table.by_name), f"fourierft: n_frequency_pattern {key!r}")


def _ia3(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    wanted = settings["feedforward_modules"]
    if isinstance(wanted, str):
        check_pattern(wanted, tuple(table.by_name), f"ia3: feedforward_modules {wanted!r}")
        feedforward = re.fullmatch(wanted, module.name) is not None
    else:
        feedforward = module.name.endswith(wanted)
    each = module.in_features if feedforward else module.out_features
    return each, each


def _ln_tuning(table: ModuleTable, module: Module, settings: Settings) -> Elements:
    each = sum(p.elements for p in table.below(module.name))
    if not each:
        raise BenchError(f"ln-tuning: {module.name} has no parameters, and PEFT raises")
    return each, each


_LYCORIS = {"r": 8, "alpha": 8, "rank_dropout": 0.0, "module_dropout": 0.0,
            "use_effective_conv2d": False, "init_weights": True}  # fmt: skip
_CONVOLVED = (LINEAR, *CONVOLUTIONS[:2])
_KINDS = (
    Kind("lora", "LoraConfig", {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False},
         "https://arxiv.org/abs/2106.09685", "r", bias="lora_only", listed=True),
    Kind("lora-fa", "LoraConfig", {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0,
                                   "use_rslora": False},
         "https://arxiv.org/abs/2308.03303", "r", bias="lora_only", listed=True),
    Kind("adalora", "AdaLoraConfig",
         {"init_r": 12, "target_r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "tinit": 0,
          "tfinal": 0, "deltaT": 1, "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5,
          "total_step": 1000},
         "https://arxiv.org/abs/2303.10512", "init_r", elements=_adalora, mapping="ADALORA",
         bias="lora_only", lora_like=True, listed=True),
    Kind("loha", "LoHaConfig", _LYCORIS, "https://arxiv.org/abs/2108.06098", "r", _CONVOLVED,
         _loha, "LOHA", common=_PATTERNED),
    Kind("lokr", "LoKrConfig",
         {**_LYCORIS, "decompose_both": False, "decompose_factor": -1,
          "rank_dropout_scale": False},
         "https://arxiv.org/abs/2309.14859", "r", _CONVOLVED, _lokr, "LOKR",
         turns=_lokr_turns, common=_PATTERNED),
    Kind("vera", "VeraConfig",
         {"r": 256, "vera_dropout": 0.0, "d_initial": 0.1, "projection_prng_key": 0,
          "save_projection": True, "fan_in_fan_out": False, "init_weights": True},
         "https://arxiv.org/abs/2310.11454", "r", elements=_vera, mapping="VERA",
         bias="vera_only", common=tuple(c for c in _MATCHING if c != "exclude_modules")),
    Kind("oft", "OFTConfig",
         {"r": 0, "oft_block_size": 32, "block_share": False, "module_dropout": 0.0, "coft": False,
          "eps": 6e-5, "use_cayley_neumann": True, "num_cayley_neumann_terms": 5,
          "fan_in_fan_out": False, "init_weights": True},
         "https://arxiv.org/abs/2306.07280", "oft_block_size", (LINEAR, EMBEDDING), _oft,
         "OFT", "oft_only"),
    Kind("boft", "BOFTConfig",
         {"boft_block_size": 4, "boft_block_num": 0, "boft_n_butterfly_factor": 1,
          "boft_dropout": 0.0, "fan_in_fan_out": False, "init_weights": True},
         "https://arxiv.org/abs/2311.06243", "boft_block_size", (LINEAR,), _boft, "BOFT",
         "boft_only"),
    Kind("fourierft", "FourierFTConfig",
         {"n_frequency": 1000, "n_frequency_pattern": {}, "scaling": 150.0, "random_loc_seed": 777,
          "fan_in_fan_out": False, "init_weights": False},
         "https://arxiv.org/abs/2405.03003", "n_frequency", elements=_fourierft,
         mapping="FOURIERFT", bias="fourier_only", listed=True),
    Kind("ia3", "IA3Config",
         {"feedforward_modules": None, "fan_in_fan_out": False, "init_ia3_weights": True},
         "https://arxiv.org/abs/2205.05638", "", (LINEAR, CONV1D, *CONVOLUTIONS[1:]), _ia3, "IA3",
         common=_UNLAYERED),
    Kind("ln-tuning", "LNTuningConfig", {}, "https://arxiv.org/abs/2312.11420", "",
         (LINEAR, CONV1D, EMBEDDING, OTHER), _ln_tuning, "LNTUNING", common=_UNLAYERED),
    Kind("trainable-tokens", "TrainableTokensConfig", {"token_indices": (), "init_weights": True},
         "https://huggingface.co/docs/peft/package_reference/trainable_tokens", "token_indices",
         (LINEAR, EMBEDDING), common=("target_modules", "task_type")),
    Kind("prefix-tuning", "PrefixTuningConfig", prompts.PROMPT_METHODS["prefix-tuning"],
         "https://arxiv.org/abs/2101.00190", "num_virtual_tokens", common=_PROMPTED),
    Kind("prompt-tuning", "PromptTuningConfig", prompts.PROMPT_METHODS["prompt-tuning"],
         "https://arxiv.org/abs/2104.08691", "num_virtual_tokens", common=_PROMPTED,
         uncounted=("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")),
    Kind("p-tuning", "PromptEncoderConfig", prompts.PROMPT_METHODS["p-tuning"],
         "https://arxiv.org/abs/2103.10385", "num_virtual_tokens", common=_PROMPTED),
    Kind("full", "", {}, "every parameter of the base model", common=()),
)  # fmt: skip
PARTS = {
    name: ("base_layer", *parts.split())
    for name, parts in {
        "adalora": "lora_A lora_B lora_E lora_embedding_A lora_embedding_B ranknum lora_dropout "
                   "lora_dropout.default lora_magnitude_vector",
        "loha": "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2",
        "lokr": "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2",
        "vera": "vera_A vera_B vera_lambda_b vera_lambda_d vera_dropout vera_dropout.default",
        "oft": "oft_R oft_R.default oft_embedding_R oft_dropout oft_dropout.default",
        "boft": "boft_R boft_s boft_dropout boft_dropout.default",
        "fourierft": "fourierft_spectrum",
        "ia3": "ia3_l",
        "ln-tuning": "ln_tuning_layers ln_tuning_layers.default",
        "trainable-tokens": "trainable_tokens_delta trainable_tokens_original",
    }.items()
}  # fmt: skip
"""The modules within a layer that a method wraps, which PEFT's search for modules to save meets."""
METHODS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _KINDS})
"""Method names as `--method` takes them."""
UNCOUNTED = frozenset(
    """adamss adaption-prompt beft c3a cartridge cpt deft delora frod glora gralora hira hra lily
    miss multitask-prompt-tuning osf peanut poly psoft pvera randlora road shadow shira supertuning
    tinylora unilora vblora waveft xlora""".split()
)
"""The methods of PEFT 0.21 that have no closed form here."""
