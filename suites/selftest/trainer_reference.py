"""The real trainers, three steps on the CPU under torch.profiler: what the loops are held against.

Nothing of this project's step is used: the model comes from its config, or from a checkpoint that
bitsandbytes quantizes, the data from a data set through the trainer's own collator and loader.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.training.cases import Case, StepOptions

LLAMA = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512,
}  # fmt: skip
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trainer_case(loop: str, kind: str, *, checkpointed: bool = False, shape: str = "full") -> Case:
    """A small Llama in "fp32", in fp32 under "bf16" autocast, or in "nf4" prepared under it."""
    adapter = {"r": 16, "lora_alpha": 16, "target_modules": SEVEN, "task_type": "CAUSAL_LM"}
    step = StepOptions(
        batch_size=4,
        seq_len=64,
        loop=loop,
        optimizer="adamw_torch_fused",
        gradient_checkpointing=checkpointed,
        padded=shape == "padded",
        packed=shape == "packed",
        autocast=None if kind == "fp32" else "bf16",
        kbit_preparation=kind == "nf4",
    )
    precision = "nf4" if kind == "nf4" else "fp32"
    return Case("llama", LLAMA, "AutoModelForCausalLM", "seven", adapter, precision, step)


def third_step_peak(case: Case, folder: Path) -> int:
    """Bytes at the peak of the third step, everything that is alive counted."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        number = 0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gc.collect()
            self.number += 1
            self.range = record_function(f"step-{self.number}")
            self.range.__enter__()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.range.__exit__(None, None, None)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    gc.collect()
    with (
        # oneDNN takes scratch space in halves that is no tensor's, and depends on the CPU.
        torch.backends.mkldnn.flags(enabled=case.step.autocast is None),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        trainer = real_trainer(case, folder, Steps())
        gc.collect()
        gc.disable()
        try:
            trainer.train()
        finally:
            gc.enable()
    events = list(profiler.profiler.kineto_results.events())
    start, end = next((e.start_ns(), e.end_ns()) for e in events if e.name() == "step-3")
    live = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        if start <= event.start_ns() <= end:
            peak = max(peak, live)
    return peak


def run_with(case: Case, folder: Path, callback: Any) -> None:
    """Three steps of the real trainer with a callback."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.backends.mkldnn.flags(enabled=case.step.autocast is None):
        real_trainer(case, folder, callback).train()


def real_trainer(case: Case, folder: Path, steps: Any) -> Any:
    import datasets
    import peft
    import transformers

    options = case.step
    settings = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "per_device_train_batch_size": options.batch_size,
        "max_steps": 3,
        "bf16": options.autocast == "bf16",
        "gradient_checkpointing": options.gradient_checkpointing,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    model = _model(case, folder)
    data = datasets.Dataset.from_list(_rows(case, model.config) * 3)
    lora = peft.LoraConfig(**case.adapter)
    if options.loop == "sft":
        import trl

        own = {"max_length": None, "padding_free": options.packed}
        skip = {"skip_prepare_dataset": True}
        return trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(**settings, **own, dataset_kwargs=skip),
            train_dataset=data,
            processing_class=_tokenizer(),
            peft_config=lora,
            callbacks=[steps],
        )
    flat = transformers.DataCollatorWithFlattening(return_tensors="pt")
    return transformers.Trainer(
        model=peft.get_peft_model(model, lora),
        args=transformers.TrainingArguments(**settings),
        train_dataset=data,
        data_collator=flat if options.packed else transformers.DataCollatorForSeq2Seq(_tokenizer()),
        callbacks=[steps],
    )


def _model(case: Case, folder: Path) -> Any:
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    values = {key: value for key, value in case.config.items() if key != "model_type"}
    config = AutoConfig.for_model(case.config["model_type"], **values, use_cache=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if case.precision != "nf4":
        return model
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    del model
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model",
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    return peft.prepare_model_for_kbit_training(
        model, case.step.gradient_checkpointing, {"use_reentrant": False}
    )


def _rows(case: Case, config: Any) -> list[dict[str, list[int]]]:
    """The sequences of the case's batch, each by itself."""
    from bench.training.step import make_batch

    batch = make_batch(config, case.auto_class, replace(case.step, packed=False))
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    kept = [ids[mask.bool()].tolist() for ids, mask in rows]
    return [{"input_ids": ids, "labels": ids} for ids in kept]


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
