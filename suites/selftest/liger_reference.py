"""Liger's own kernels, run on the CPU by Triton's interpreter: what `--liger` is held against.

The step is this project's (`test_measure_memory.profiled`: its second, under torch.profiler), with
Liger's kernels put in by Liger, as `transformers.Trainer` asks it to. Run as a script, with
liger_kernel and triton installed, it writes `fixtures/measured/liger.csv` anew:

TRITON_INTERPRET=1 python suites/selftest/liger_reference.py > liger.csv
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from bench.training.cases import Case, StepOptions

_SHAPE = {
    "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256,
}  # fmt: skip
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PHI = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def liger_case(
    kind: str = "llama",
    precision: str = "fp32",
    *,
    scenario: str = "seven",
    saved: tuple[str, ...] = (),
    shape: dict[str, Any] | None = None,
    names: list[str] | None = None,
    **options: Any,
) -> Case:
    """A small model of a type that Liger patches; `saved` modules are trained whole, `shape`
    replaces what its config says, and `names` what is adapted."""
    names = names or (PHI if kind == "phi3" else SEVEN)
    adapter = {"r": 8, "lora_alpha": 16, "target_modules": names, "task_type": "CAUSAL_LM"}
    if saved:
        adapter["modules_to_save"] = list(saved)
    step = StepOptions(**{"batch_size": 2, "seq_len": 24, "liger": True, **options})
    config = {"model_type": kind, **_SHAPE, **(shape or {})}
    return Case(kind, config, "AutoModelForCausalLM", scenario, adapter, precision, step)


CASES = [
    *map(liger_case, ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3")),
    *map(liger_case, ("gemma", "gemma2", "gemma3_text")),
    liger_case(gradient_checkpointing=True),
    liger_case("qwen3", gradient_checkpointing=True),
    liger_case("gemma2", gradient_checkpointing=True),
    liger_case(loop="keep-output"),
    liger_case(padded=True),
    liger_case(packed=True),
    liger_case(attention="eager"),
    liger_case(precision="bf16"),
    liger_case(autocast="bf16"),
    liger_case(loop="trainer", autocast="bf16", gradient_checkpointing=True, accumulation=2),
    liger_case(scenario="head", saved=("lm_head",)),
    liger_case(scenario="head", saved=("lm_head",), precision="bf16"),
    liger_case(scenario="wide", names=["q_proj", "o_proj"], shape={"intermediate_size": 1024}),
]


def under_interpreter() -> None:
    """Let Triton's interpreter (3.9) run Liger's kernels: it hands on floats as Python's, without
    the methods of a tensor, and has none of CUDA's own functions. Nor does it copy arguments, which
    are on the CPU already: its copies hang in a cycle, and hold them."""
    import numpy
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def converted(arg: Any) -> Any:
        if not isinstance(arg, float):
            return convert(arg)
        handle = interpreter.TensorHandle(numpy.array([arg], dtype=numpy.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = converted
    executor = interpreter.GridExecutor
    executor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    executor._restore_args_dev = lambda self, *_: None
    for name in ("rms_norm", "cross_entropy", "geglu"):
        importlib.import_module(f"liger_kernel.ops.{name}")
        module = sys.modules[f"liger_kernel.ops.{name}"]
        if hasattr(module, "rsqrt"):
            module.rsqrt = lambda x: 1 / tl.sqrt(x)
        if hasattr(module, "tanh"):
            module.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1


def main() -> None:
    from step_reference import write_reference

    under_interpreter()
    said = (
        "Second step with Liger's kernels, run on the CPU by Triton's interpreter under",
        "torch.profiler (suites/selftest/liger_reference.py), and its prediction.",
    )
    packages = ("torch", "transformers", "peft", "liger-kernel", "triton")
    write_reference(CASES, said, packages)


if __name__ == "__main__":
    import peft  # noqa: F401  # what is imported within a step would count

    main()
