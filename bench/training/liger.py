"""Liger's kernels in a model, as `transformers.Trainer` puts them there for `use_liger_kernel`.

Read in liger_kernel 0.8.5 (`transformers/monkey_patch.py`) and transformers 5.23
(`integrations/liger.py`).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.tasks import TRAINED
from bench.training.options import SFT, StepOptions

if TYPE_CHECKING:
    from bench.training.cases import Case

Patches = tuple[tuple[Any, str, Any], ...]
"""(owner, name, value): what stands in a module's place while a step runs."""
Patch = Callable[[Any, bool], Patches]
"""Puts kernels into a model that carries its adapters, head and loss among them or not."""
PREDICTED = (
    "gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3",
)  # fmt: skip
"""Types whose patch is RMSNorm, RoPE, the gated activation, and head and loss in one."""
PATCHED_TOO = frozenset(
    """deepseek_v2 deepseek_v3 deepseek_v4 exaone4 falcon_h1 gemma3 gemma4 gemma4_text glm4 glm4v
    glm4v_moe gpt_oss granite hunyuan_v1_dense hunyuan_v1_moe internvl llama4 llama4_text llava
    ministral mixtral mllama mllama_text_model muse_glimmer nemotron olmo2 olmo3 paligemma pixtral
    qwen2_5_vl qwen2_5_vl_text qwen2_vl qwen2_vl_text qwen3_5 qwen3_5_moe qwen3_5_moe_text
    qwen3_5_text qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text
    smolvlm""".split()
)
"""Types that Liger patches with kernels that are not predicted."""
ROPE = "apply_rotary_pos_emb"
"""What Liger replaces in a model's module, and so in every model of its kind."""


def predicts_liger(case: Case) -> bool:
    """Whether a step of this case can be predicted with Liger's kernels."""
    try:
        check_liger(replace(case, step=replace(case.step, liger=True)))
    except BenchError:
        return False
    return True


def check_liger(case: Case, measured: bool = False) -> None:
    """Raise BenchError where `--liger` is asked for and Liger has no kernels, or, to measure, is
    not there."""
    if not case.step.liger:
        return
    check_liger_model(case.config, case.auto_class, measured, own_code=case.code is not None)
    if measured:
        check_library(case.step)


def check_liger_model(
    config: Mapping[str, Any], auto_class: str, measured: bool = False, own_code: bool = False
) -> None:
    """Raise BenchError where Liger has no kernels for a model, or, unless they are to be measured,
    none whose memory is known."""
    kind = config.get("model_type")
    known = f"({', '.join(PREDICTED)})"
    if auto_class != "AutoModelForCausalLM":
        task = TRAINED.get(auto_class)
        raise BenchError(
            f"--liger: Liger's loss is for causal language models, and this one is for "
            f"{task.name if task else auto_class}"
        )
    if own_code or kind not in {*PREDICTED, *PATCHED_TOO}:
        raise BenchError(f"--liger: Liger has no kernels for a model of type {kind} {known}")
    if not measured and kind not in PREDICTED:
        raise BenchError(
            f"--liger: what Liger's kernels take in a model of type {kind} is not predicted {known}"
        )


def check_library(options: StepOptions) -> None:
    """Raise BenchError where `--liger` is to be measured, and nothing here can run it."""
    if not options.liger:
        return
    if find_spec("liger_kernel") is None:
        raise BenchError(
            "--liger: a measured step runs Liger's own kernels, and liger_kernel is not installed: "
            "pip install liger-kernel"
        )
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not importlib.import_module("torch").cuda.is_available():
        raise BenchError("--liger: Liger's kernels run on a GPU, and none is found here")


def fused_loss(options: StepOptions) -> bool:
    """Whether head and loss are Liger's too: trl 1.16 keeps its own head (`SFTTrainer.__init__`
    switches `fused_linear_cross_entropy` off)."""
    return options.loop != SFT or not options.fused_head


def put_kernels(model: Any, loss: bool) -> Patches:
    """Patch a PEFT model's base as Trainer does, and no other model.

    Liger also replaces names of the model's module, for the whole process: those are put back, and
    the one that a forward pass looks up is returned as a patch.
    """
    integration = importlib.import_module("transformers.integrations.liger")
    module = sys.modules[type(model.get_base_model()).__module__]
    before = dict(vars(module))
    integration.apply_liger_kernel(model, {"fused_linear_cross_entropy": loss})
    rope = vars(module)[ROPE]
    for name, value in before.items():
        if vars(module).get(name) is not value:
            setattr(module, name, value)
    return ((module, ROPE, rope),)
