"""Arguments of transformers' Trainer, which TRL, LLaMA-Factory and ms-swift take as their own.

Names and defaults: transformers 5.23 `training_args.py` (`TrainingArguments`), `modeling_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.errors import BenchError
from bench.training.options import EAGER, SDPA, optimizer_name

BATCH_SIZE = 8
"""`per_device_train_batch_size` where a file is silent."""
OPTIMIZER = "adamw_torch_fused"


def optimizer(
    name: object, values: Mapping[str, object], others: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """(our name of a Trainer optimizer, "" for one that is not predicted; what to say of it).
    `others` are keys that put another one in its place: what it is called, "" for the value."""
    for key, called in others.items():
        if values.get(key):
            return "", (f"optimizer {called or values[key]} ({key}) is not predicted",)
    asked = str(getattr(name, "value", name))
    try:
        return optimizer_name(asked), ()
    except BenchError:  # one of the tool's own names all the same: others are refused before
        return "", (f"optimizer {asked} is not predicted",)


def liger(values: Mapping[str, object]) -> bool:
    """Whether Trainer puts all of Liger's kernels into the model; some of them are not predicted,
    and `SAID_OF_STEP` tells them."""
    return bool(values.get("use_liger_kernel")) and not values.get("liger_kernel_config")


def attention(key: str, asked: object) -> tuple[str, tuple[str, ...]]:
    """(the attention that is predicted for what transformers calls `attn_implementation`, what to
    say of another one). None is transformers' own choice."""
    if asked in (None, SDPA, EAGER):
        return str(asked or SDPA), ()
    return SDPA, (f"{key} {asked}: what that kernel keeps is left out of the prediction; {SDPA} is "
                  "predicted in its place",)  # fmt: skip


def table(asked: object) -> Mapping[str, object]:
    """`gradient_checkpointing_kwargs`; empty where there are none."""
    return asked if isinstance(asked, Mapping) else {}


def reentrant(kwargs: object, silent: bool = False) -> bool:
    """Whether `gradient_checkpointing_kwargs` ask for reentrant checkpointing; `silent` where there
    are none. A table without `use_reentrant` leaves it to torch, whose own default it is."""
    if not (found := table(kwargs)):
        return silent
    asked = found.get("use_reentrant")
    return asked is None or bool(asked)


def ways_of_checkpointing(key: str, kwargs: object) -> tuple[str, ...]:
    """What to say of the other keys of that table: they change what is kept, or where."""
    found = table(kwargs)
    keys = [name for name, value in found.items() if value and name not in _KEEPS_AS_MUCH]
    return tuple(f"{key}.{name}: checkpointing of every layer, whole, on the GPU is predicted"
                 for name in keys)  # fmt: skip


_KEEPS_AS_MUCH = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")


def autocast_of(values: Mapping[str, object], silent: str | None = None) -> str | None:
    """The dtype that Trainer's `bf16` or `fp16` runs forward and loss under; `silent` where `bf16`
    is null, or not in the file."""
    if halves(values, "fp16"):
        return "fp16"
    if halves(values, "bf16"):
        return "bf16"
    return silent if values.get("bf16") is None else None


def halves(values: Mapping[str, object], key: str) -> bool:
    """Whether `bf16` or `fp16` is on."""
    return values.get(key) is True or str(values.get(key)).lower() in ("true", "auto")
