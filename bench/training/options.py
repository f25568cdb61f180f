"""The options of one training step, said once: the command line, the suites and the trace read them
from here, and so mean the same.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from typing import Any

from bench.errors import BenchError, UnknownName, check_most

PLAIN, KEEP_OUTPUT, TRAINER, SFT = "plain", "keep-output", "trainer", "sft"
LOOPS = (PLAIN, KEEP_OUTPUT, TRAINER, SFT)
PHASES = ("forward", "backward", "optimizer")
"""Of a step, in order."""
DDP, FSDP = "ddp", "fsdp"
"""How a step is spread over GPUs: whole copies of the model, or shards of it."""
SDPA, EAGER = "sdpa", "eager"
CUDNN, FLASH, EFFICIENT, MATH = "cudnn", "flash", "efficient", "math"
LOOP_PACKAGES: Mapping[str, tuple[str, ...]] = {
    TRAINER: ("accelerate",),
    SFT: ("accelerate", "datasets", "trl"),
}
"""The packages whose own code a loop runs; the extra `trainers` brings them."""
PINNED = (CUDNN, FLASH, EFFICIENT, MATH)
"""The kernels that `scaled_dot_product_attention` can be held to, in the order in which it asks
them."""
ATTENTION = (SDPA, EAGER, *PINNED)
DTYPES: Mapping[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Short name -> torch's."""
UNNAMED_LENGTH = 64
"""Tokens in a sequence of a case whose id names no length: an id under which figures are stored
can only be read with this number, so it stays."""
MEASURED_LENGTH = 32
"""Tokens where a step is measured and no length is asked for: short enough for a CPU."""
PREDICTED_LENGTH = 512
"""Tokens where a step is predicted and no length is asked for: what people train with."""
MOST: Mapping[str, int] = {
    "batch_size": 1 << 20, "seq_len": 1 << 24, "accumulation": 1 << 16, "images": 1 << 10,
    "gpus": 1 << 12,
}  # fmt: skip
"""More than any step has; beyond, a trace only takes long before it fails."""
MOST_TOKENS = 1 << 21
"""Tokens in a batch: of more no model's questions can be answered on meta."""
OPTIMIZERS = (
    "adamw", "adamw-fused", "adamw-foreach", "adamw-8bit", "paged-adamw-8bit", "adamw-32bit",
    "paged-adamw-32bit", "lion-8bit", "paged-lion-8bit", "lion-32bit", "paged-lion-32bit",
    "adafactor", "sgd", "adagrad", "rmsprop",
)  # fmt: skip
_WRITTEN: Mapping[str, str] = {
    "adamw-torch": "adamw",
    "adamw-hf": "adamw",
    "adamw-torch-fused": "adamw-fused",
    "adamw-bnb-8bit": "adamw-8bit",
    "paged-adamw": "paged-adamw-32bit",
    "lion": "lion-32bit",
    "paged-lion": "paged-lion-32bit",
}
"""What transformers' `optim=` calls them, with dashes -> the name here, where they differ."""


def optimizer_name(text: str) -> str:
    """An optimizer as users write it (`adamw_torch_fused`, `paged_adamw_32bit`) by the name here;
    UnknownName, with the nearest, for one that there is not."""
    name = text.lower().replace("_", "-")
    name = _WRITTEN.get(name, name)
    if name not in OPTIMIZERS:
        raise UnknownName("optimizer", text, (*OPTIMIZERS, *_WRITTEN))
    return name


def trainer_name(optimizer: str) -> str | None:
    """What transformers' `optim=` calls an optimizer of `OPTIMIZERS`; None where it has none."""
    if optimizer in ("adamw-foreach", "adamw-32bit"):
        return None
    torchs = {"adamw": "adamw_torch", "adamw-fused": "adamw_torch_fused"}
    return torchs.get(optimizer) or optimizer.replace("-", "_")


def _said(default: Any, label: str, help: str = "", **more: Any) -> Any:
    """A field with what an id, and a command line, call it. In `label`, {} is the value."""
    return field(default=default, metadata={"label": label, "help": help, **more})


@dataclass(frozen=True)
class StepOptions:
    """The parameters of one training step. Dropout is as the model's and the adapter's configs say.

    `seq_len` counts tokens (images ignore it); `padded` pads every sequence but the first on the
    right; `packed` lays the sequences behind one another in one row, told apart by their positions
    alone. `loop` is the code around the step: "plain" drops the model's output as soon as it has
    the loss, "keep-output" holds it until the step ends, "trainer" and "sft" are transformers' and
    TRL's. `attention` is transformers' own choice ("sdpa"), its eager code, or sdpa held to one
    kernel. `compute_dtype` is what 4-bit weights expand to, and the dtype of all that is not
    quantized. `kbit_preparation` runs PEFT's `prepare_model_for_kbit_training`, which holds every
    weight that is not quantized in float32. `images` counts those at the start of every sequence of
    a vision-language model. `parallel` spreads the step over `gpus` GPUs: `batch_size` is what each
    of them takes, and every figure is one GPU's. Raises BenchError on a value out of range.
    """

    batch_size: int = _said(2, "b{}", "sequences in a batch", type=int)
    seq_len: int = _said(UNNAMED_LENGTH, "s{}", "tokens in a sequence", type=int)
    optimizer: str = _said(
        "adamw", "{}", f"one of {', '.join(OPTIMIZERS)}, or as transformers' optim= calls it"
    )
    learning_rate: float = _said(1e-3, "lr{}")
    gradient_checkpointing: bool = _said(False, "checkpointed", "recompute layers going backward")
    padded: bool = _said(False, "padded", "sequences of different length, padded")
    attention: str = _said(
        SDPA, "{}", "the library's choice, its eager code, or sdpa held to one kernel",
        choices=ATTENTION,
    )  # fmt: skip
    seed: int = _said(0, "seed{}")
    kbit_preparation: bool = _said(
        False, "kbit", "PEFT's prepare_model_for_kbit_training", flag="--kbit"
    )
    loop: str = _said(PLAIN, "{}", "the code around the step", choices=LOOPS)
    autocast: str | None = _said(
        None, "autocast-{}", "forward and loss under torch.autocast", choices=("bf16", "fp16")
    )
    compute_dtype: str | None = _said(
        None, "compute-{}", "what 4-bit weights expand to and the rest is held in (default: bf16)",
        choices=tuple(DTYPES),
    )  # fmt: skip
    loss_scaling: bool = _said(True, "unscaled", "no loss scaler in fp16", flag="--no-loss-scaling")
    reentrant: bool = _said(False, "reentrant", "the older, reentrant checkpointing")
    accumulation: int = _said(
        1, "acc{}", "batches a step (default: 1)", type=int, flag="--gradient-accumulation"
    )
    max_grad_norm: float | None = _said(
        None, "clip{}", "clip the gradients to this norm", type=float
    )
    packed: bool = _said(False, "packed", "sequences behind one another in one row, no padding")
    liger: bool = _said(False, "liger", "Liger's kernels: fused head and loss, norms, RoPE, MLPs")
    fused_head: bool = _said(
        True, "model-loss", "sft: the model's own loss, not TRL's fused head",
        flag="--no-fused-head",
    )  # fmt: skip
    autocast_adapter_dtype: bool = _said(
        True, "half-adapters", "adapters in the base model's dtype, not in float32",
        flag="--no-autocast-adapter-dtype",
    )  # fmt: skip

    images: int = _said(0, "i{}", "images in a sequence, in its seq-len", type=int)
    parallel: str | None = _said(
        None, "{}", "several GPUs, the figures of one: a whole copy on each (ddp), or shards of "
        "the parameters (fsdp: FSDP2)", choices=(DDP, FSDP), predicted=True,
    )  # fmt: skip
    gpus: int = _said(
        1, "{}gpus", "with --parallel: how many GPUs (default: 1)", type=int, predicted=True
    )

    def __post_init__(self) -> None:
        if not isinstance(self.images, int) or self.images < 0:
            raise BenchError(f"step option images: expected a number >= 0, found {self.images!r}")
        for name in ("batch_size", "seq_len", "accumulation", "gpus"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise BenchError(
                    f"step option {name}: expected a whole number >= 1, found {value!r}"
                )
        for name, most in MOST.items():
            check_most(f"step option {name}", getattr(self, name), most)
        object.__setattr__(self, "optimizer", optimizer_name(self.optimizer))
        for option in fields(self):
            choices, value = option.metadata.get("choices"), getattr(self, option.name)
            if choices and value not in choices and value != option.default:
                raise UnknownName(option.name.replace("_", " "), value, choices)
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise BenchError(
                f"step option max_grad_norm: expected > 0 and finite, found {self.max_grad_norm}"
            )
        if self.padded and self.packed:
            raise BenchError("a packed batch has no padding: give --padded or --packed")
        if self.reentrant and not self.gradient_checkpointing:
            raise BenchError("--reentrant is a way of checkpointing: add --gradient-checkpointing")
        if self.parallel and self.gpus < 2:
            raise BenchError(
                f"--parallel {self.parallel} is over several GPUs: add --gpus 2 or more"
            )
        if self.gpus > 1 and not self.parallel:
            raise BenchError(
                f"--gpus {self.gpus}: say how the step is spread: --parallel {DDP} or {FSDP}"
            )
        if not self.fused_head and self.loop != SFT:
            raise BenchError(
                f"--no-fused-head is an option of the sft loop, and the loop is {self.loop}"
            )

    @property
    def by_trainer(self) -> bool:
        """Whether the loop is a trainer's own: transformers' or TRL's."""
        return self.loop in (TRAINER, SFT)

    @property
    def pinned_attention(self) -> str | None:
        """The kernel that `scaled_dot_product_attention` is held to; None where none is."""
        return self.attention if self.attention in PINNED else None

    def labels(self) -> list[str]:
        """The options that differ from the defaults, each by its short name."""
        return [
            option.metadata["label"].format(_written(value))
            for option in fields(self)
            if (value := getattr(self, option.name)) != option.default
        ]

    def label(self) -> str:
        """`labels`, joined by dashes, as in an id; empty when nothing differs."""
        return "-".join(self.labels())

    def recorded(self) -> dict[str, Any]:
        """What a stored run says of its step: the size, and the other options where they are not
        the usual ones."""
        size = {"batch_size": self.batch_size, "seq_len": self.seq_len}
        rest = replace(self, batch_size=2, seq_len=UNNAMED_LENGTH).label()
        return {**size, "step_options": rest} if rest else size

    def words(self) -> list[str]:
        """The options as a command line says them, but for those that have their default."""
        words: list[str] = []
        for option in fields(self):
            value = getattr(self, option.name)
            if value == option.default or not option.metadata["help"]:
                continue
            words.append(_flag(option))
            if not isinstance(option.default, bool):
                words.append(_written(value))
        return words


def _written(value: object) -> str:
    """A value as short as it can be told from every other."""
    short = format(value, "g") if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short


def check_step(options: StepOptions) -> None:
    """Raise BenchError for what can be said, and cannot be run or traced."""
    for package in LOOP_PACKAGES.get(options.loop, ()):
        if find_spec(package) is None:
            raise BenchError(
                f"--loop {options.loop} runs the step of the trainer itself, and {package} is not "
                "installed: pip install 'lora-target-bench[trainers]'"
            )


def check_positions(config: Mapping[str, Any], seq_len: int | None, label: str) -> None:
    """Raise BenchError for more tokens than a model's config.json says that it has positions for,
    before anything is built. One that lets it pass may have fewer (`bench.training.limits`)."""
    text = config.get("text_config")
    said = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    if seq_len is not None and type(said) is int and seq_len > said > 0:
        raise BenchError(f"--seq-len {seq_len}: {label} has positions for {said} tokens")


def check_images(config: Mapping[str, Any], auto_class: str, images: int, label: str) -> None:
    """Raise BenchError for images beside the text of a language model, before anything is built."""
    if images and "vision_config" not in config and auto_class.endswith(_TEXT_ALONE):
        raise BenchError(f"--images {images}: {label} takes no images")


_TEXT_ALONE = ("ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
               "ForQuestionAnswering")  # fmt: skip


def flag_of(name: str) -> str:
    """What a command line calls a field of a step."""
    return _flag(StepOptions.__dataclass_fields__[name])


def _flag(option: Any) -> str:
    flag: str = option.metadata.get("flag") or f"--{option.name.replace('_', '-')}"
    return flag


def _offered(predicted: bool) -> list[Any]:
    """The fields that a command line has; those that are only `predicted` where it predicts."""
    return [
        option
        for option in fields(StepOptions)
        if option.metadata["help"] and (predicted or not option.metadata.get("predicted"))
    ]


def add_step_options(
    add: Callable[..., Any], unset: tuple[str, ...] = (), predicted: bool = False, **defaults: Any
) -> None:
    """Give a parser (argparse's `add_argument`, or pytest's `addoption`) every option of a step;
    those of steps that are `predicted` and never measured, where asked for.

    `defaults` replaces a field's own, and what its help says of it; those in `unset` are None where
    they are not given.
    """
    for option in _offered(predicted):
        help_text = option.metadata["help"]
        if isinstance(option.default, bool):
            action = "store_false" if option.default else "store_true"
            add(_flag(option), action=action, dest=option.name, help=help_text)
            continue
        kwargs = {name: option.metadata[name] for name in ("type", "choices")
                  if name in option.metadata}  # fmt: skip
        default = defaults.get(option.name, option.default)
        if default is not None and "default" not in help_text:
            help_text += f" (default: {default})"
        if option.name in unset:
            default = None
        add(_flag(option), default=default, dest=option.name, help=help_text, **kwargs)


def step_from(given: Namespace, predicted: bool = False, **instead: Any) -> StepOptions:
    """The step that parsed options ask for; `instead` replaces what they say."""
    values = {option.name: getattr(given, option.name) for option in _offered(predicted)}
    return StepOptions(**{**values, **instead})
