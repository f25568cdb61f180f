"""Matched, but does it learn? What a step on the meta device says of each adapter's gradient, held
against one real step on the CPU: every registered architecture, and more model types."""

from __future__ import annotations

import inspect
import types
import warnings
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from matrices import matrix
from tiny_models import COMMON, MODELS, OTHERS, adapted_as, other, tiny

from bench.adapters.config import AdapterConfig
from bench.check.gate import HazardGate
from bench.errors import BenchError
from bench.models.architectures import Model, find_model
from bench.models.declared import registered
from bench.targets import match
from bench.tasks import TASKS
from bench.training.options import StepOptions


def _lazily(name: str, module: str = "bench.predict.gradients") -> Any:
    """A function whose module is imported when it is called: collecting imports no torch."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    return call


trace_whole = _lazily("trace_whole")
trace_gradients = _lazily("trace_gradients")
with_gradients = _lazily("with_gradients")
make_batch = _lazily("make_batch", "bench.training.step")
weights_handed_over = _lazily("weights_handed_over")
shallower = _lazily("shallower", "bench.predict.alike")

KERNELS = {"mamba": "mamba_inner_fn", "falcon_mamba": "mamba_inner_fn"}
"""Module-level functions that transformers replaces by a fused kernel where one is installed."""


def shrunk(name: str) -> Model:
    """A registered architecture in the tiny geometry of its type."""
    model = find_model(name)
    known = {k: v for k, v in model.config.items() if k not in COMMON}
    return replace(model, config={**known, **adapted_as(model.model_type)}, architecture=None)


def subject(name: str) -> tuple[Model, AdapterConfig]:
    if name in registered():
        return shrunk(name), AdapterConfig("all-linear", r=2)
    given = MODELS.get(name) or OTHERS[name]
    model = tiny(name) if name in MODELS else other(name)
    return model, AdapterConfig(given.targets, r=2, target_parameters=())


def real(model: Model) -> Any:
    import torch
    from transformers.utils import logging

    from bench.models.classes import model_class

    logging.set_verbosity_error()
    torch.manual_seed(0)
    loader = model_class(model.auto_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A copy: PEFT writes the layers that it adds into the configuration.
        return getattr(loader, "from_config", loader)(deepcopy(model.transformers_config))


def batch_for(base: Any) -> dict[str, Any]:
    """Two rows of what the model's forward takes: text alone where it takes text."""
    import torch

    taken = inspect.signature(type(base).forward).parameters
    ids = torch.randint(10, 40, (2, 8))
    batch: dict[str, Any] = {}
    if "input_ids" in taken:
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    elif "input_features" in taken:
        config = base.config
        frames = 2 * config.max_source_positions
        batch["input_features"] = torch.randn(2, config.num_mel_bins, frames)
    else:
        size = base.config.image_size
        batch["pixel_values"] = torch.randn(2, 3, size, size)
    if "decoder_input_ids" in taken:
        batch["decoder_input_ids"] = ids
    return batch


def trained_modules(model: Model, adapter: AdapterConfig) -> tuple[set[str], set[str]]:
    """(adapted modules, those of them whose matrices a real step would change)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = real(model)
        peft_model = get_peft_model(base, LoraConfig(**adapter.to_dict())).train()
        torch.manual_seed(1)
        out = peft_model(**batch_for(base))
        target = torch.randn_like(out.logits)
        (out.logits * target).sum().backward()
    adapted, trained = set(), set()
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            # One of the two begins at zero, so that the other's first gradient is zero.
            held = (module.lora_A, module.lora_B, module.lora_embedding_A, module.lora_embedding_B)
            label = name.replace(".base_layer", "")
            label = (
                f"{label}.{module.parameter_name}" if hasattr(module, "parameter_name") else label
            )
            adapted.add(label)
            weights = [w for part in held for w in part.parameters()]
            if any(w.grad is not None and bool(w.grad.any()) for w in weights):
                trained.add(label)
    return adapted, trained


@pytest.mark.evidence
@pytest.mark.parametrize("name", [*registered(), *OTHERS, "qwen2_vl", "gpt_neox", "phi", "gemma2"])
def test_adapters_without_a_gradient_are_those_that_a_real_step_leaves_alone(name: str) -> None:
    model, adapter = subject(name)
    adapted, trained = trained_modules(model, adapter)
    found = trace_gradients(model, adapter)
    assert set(found.adapted) == adapted
    assert set(found.without) == adapted - trained


@pytest.mark.parametrize("name", KERNELS)
def test_a_fused_kernel_leaves_alone_what_it_takes_the_weight_of(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel stands in as a function of the weights that it is handed, which is all that one
    has to know of it here: the modules themselves are not called."""
    model, adapter = subject(name)
    module = import_module(f"transformers.models.{name}.modeling_{name}")

    def kernel(projected: Any, *tensors: Any, **more: Any) -> Any:
        hidden = tensors[4].shape[0]  # of out_proj's weight
        summed = sum(t.float().mean() for t in tensors[:5] if t is not None)
        return projected.transpose(1, 2)[..., :hidden] * summed

    monkeypatch.setattr(module, KERNELS[name], kernel)
    adapted, trained = trained_modules(model, adapter)
    monkeypatch.undo()
    found = trace_gradients(model, adapter)
    assert {*found.without, *found.fused} == adapted - trained


SPEECH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "conv_dim": [16, 16], "conv_kernel": [3, 3],
          "conv_stride": [2, 2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
          "num_feat_extract_layers": 2}  # fmt: skip
OF_TASK = {
    "causal-lm": [("llama", {}, "")],
    "seq2seq": [("t5", {"decoder_start_token_id": 0}, ""), ("bart", {}, "")],
    "masked-lm": [("bert", {}, "")],
    "sequence-classification": [("bert", {}, ""), ("bart", {}, ""), ("llama", {}, ""),
                                ("t5", {"decoder_start_token_id": 0}, "")],
    "token-classification": [("bert", {}, ""), ("t5", {}, "")],
    "question-answering": [("bert", {"num_labels": 2}, ""), ("bart", {}, "")],
    "multiple-choice": [("bert", {}, ""), ("bert", {}, "BertForMultipleChoice"),
                        ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "")],
    "image-classification": [("vit", {}, "")],
    "image-text-to-text": [("llava", {}, "")],
    "speech-seq2seq": [("whisper", {}, "")],
    "ctc": [("wav2vec2", SPEECH, "")],
    "audio-classification": [("whisper", {}, ""), ("wav2vec2", SPEECH, "")],
    "feature-extraction": [("bert", {}, "")],
}  # fmt: skip
"""Of every task some models: a type, what differs from its tiny configuration, and a class of
their own."""


@pytest.mark.parametrize(
    ("task", "at"),
    matrix(
        [(t, n) for t in OF_TASK for n in range(len(OF_TASK[t]))],
        by=lambda task, at: {task, OF_TASK[task][at][0]},
    ),
)
def test_every_task_has_a_batch_that_its_models_take(task: str, at: int) -> None:
    """The real model trains on the task's batch, and the step is traced with it on meta."""
    import torch

    found = next(row for row in TASKS if row.name == task)
    kind, changes, own = OF_TASK[task][at]
    given = MODELS.get(kind) or OTHERS.get(kind)
    config = {"model_type": kind, **COMMON, **(given.config if given else {}), **changes}
    model = Model(kind, config, own or found.auto_class)
    assert model.task_class == found.auto_class
    batch = make_batch(model.transformers_config, found.auto_class, StepOptions(2, 16))
    if found.labels != "pairs":
        loss = real(model)(**batch).loss
        assert loss.requires_grad
        assert bool(torch.isfinite(loss))
    if found.texts > 1:
        assert batch["input_ids"].shape == (2, found.texts, 16)
    adapter = AdapterConfig("all-linear", r=2, target_parameters=())
    traced = trace_gradients(model, adapter)
    assert traced.adapted
    assert not traced.error


def test_the_tasks_are_all_tried() -> None:
    assert set(OF_TASK) == {task.name for task in TASKS}


BROKEN = [
    (("conv1",), None, {"model.encoder.conv1"}),
    (("q_proj", "conv2", "conv1"), None, {"model.encoder.conv1", "model.encoder.conv2"}),
    (("q_proj",), "SEQ_2_SEQ_LM", set()),
]


@pytest.mark.parametrize(("targets", "task_type", "broken"), BROKEN)
def test_a_wrapper_that_breaks_the_forward_pass_is_told(
    targets: tuple[str, ...], task_type: str | None, broken: set[str]
) -> None:
    """PEFT's own model raises, for real, what is told of it; the base model does not."""
    from peft import LoraConfig, get_peft_model

    model = other("whisper")
    base = real(model)
    batch = batch_for(base)
    base(**batch)
    adapter = AdapterConfig(targets, r=2, task_type=task_type)
    with pytest.raises((AttributeError, TypeError)) as raised:
        get_peft_model(base, LoraConfig(**adapter.to_dict()))(**batch)
    found = trace_gradients(model, adapter)
    assert set(found.broken) == broken
    name, _, said = found.error.partition(": ")
    assert name == type(raised.value).__name__
    assert " ".join(str(raised.value).split()).endswith(said[-40:])
    ledger = with_gradients(model, match(model.table, adapter, model.role_of))
    (reason,) = (h.reason for h in ledger.hazards if h.code == "forward-fails")
    assert all(word in reason for word in (*broken, task_type or "", name))
    assert "forward-fails" in HazardGate().failing(ledger)


def test_layers_that_the_configuration_does_not_know_break_the_forward_pass() -> None:
    """Qwen2 has a type of attention for each of its own layers; Llama has none."""
    from peft import LoraConfig, get_peft_model

    grown = AdapterConfig(("q_proj",), r=2, layer_replication=((0, 2), (1, 2)))
    base = real(tiny("qwen2"))
    with pytest.raises(IndexError) as raised:
        get_peft_model(base, LoraConfig(**grown.to_dict()))(**batch_for(base))
    for name, fails in (("qwen2", True), ("llama", False)):
        model = tiny(name)
        ledger = with_gradients(model, match(model.table, grown, model.role_of))
        found = [h.reason for h in ledger.hazards if h.code == "forward-fails"]
        assert bool(found) == fails
        assert all(f"with layer_replication the forward pass on text raises, and without it does "
                   f"not: IndexError: {raised.value}" in reason for reason in found)  # fmt: skip


def test_where_no_adapter_is_on_the_path_none_gets_a_gradient() -> None:
    """Text feeds no tower: for real the loss then has no gradient at all."""
    from peft import LoraConfig, get_peft_model

    model, adapter = tiny("qwen2_vl"), AdapterConfig(("mlp.fc2",), r=2)
    base = real(model)
    peft_model = get_peft_model(base, LoraConfig(**adapter.to_dict()))
    assert not peft_model(**batch_for(base)).logits.requires_grad
    found = trace_gradients(model, adapter)
    assert found.fed == ("text",)
    assert found.without == found.adapted != ()


def test_what_the_base_model_does_not_get_through_is_not_the_adapters() -> None:
    """A head of three outputs where a question has a beginning and an end: transformers raises
    with and without an adapter."""
    config = {"model_type": "bert", **COMMON, **MODELS["bert"].config}
    model = Model("bert", config, "AutoModelForQuestionAnswering")
    with pytest.raises(BenchError, match="cannot be told: ValueError: too many values"):
        trace_gradients(model, AdapterConfig(("query",), r=2))


def test_a_module_that_is_only_called_is_handed_to_nobody() -> None:
    class Mixer:
        def forward(self, x: Any) -> Any:
            y = self.in_proj(x)
            z = fused(y, self.out_proj.weight, bias=self.gate.weight)
            return self.out_proj(y) if z is None else self.gate(z) + self.scale.weight

    fused = types.SimpleNamespace()
    assert weights_handed_over(Mixer) == {"out_proj", "gate"}


@pytest.mark.parametrize("kind", ["t5.T5DenseActDense", "nllb_moe.NllbMoeDenseActDense"])
def test_who_asks_about_a_weight_takes_it_not(kind: str) -> None:
    folder, _, name = kind.partition(".")
    module = import_module(f"transformers.models.{folder}.modeling_{folder}")
    assert weights_handed_over(getattr(module, name)) == frozenset()


@pytest.mark.evidence
@pytest.mark.parametrize("name", ["gpt2", "llama-3.2-1b", "opt-125m", "bloom-560m"])
def test_fewer_layers_say_the_same_as_all_of_them(name: str) -> None:
    model, adapter = find_model(name), AdapterConfig("all-linear", r=2)
    assert shallower(model, adapter) is not None
    found, whole = trace_gradients(model, adapter), trace_whole(model, adapter)
    assert set(found.adapted) == set(whole.adapted)
    assert set(found.without) == set(whole.without) == set()


def test_layers_are_left_out_only_where_all_are_alike() -> None:
    mamba = replace(other("mamba"), config={**other("mamba").config, "num_hidden_layers": 12})
    adapter = AdapterConfig(("x_proj", "dt_proj"), r=2)
    assert shallower(mamba, adapter) is not None
    found, whole = trace_gradients(mamba, adapter), trace_whole(mamba, adapter)
    assert set(found.without) == set(whole.without)
    assert len(found.without) == 12
    assert set(found.fused) == set(whole.fused)
    jamba = replace(other("jamba"), config={**other("jamba").config, "num_hidden_layers": 12})
    assert shallower(jamba, AdapterConfig(("q_proj",), r=2)) is None
    in_layers = AdapterConfig(("x_proj",), r=2, layers_to_transform=(3,))
    assert shallower(mamba, in_layers) is None
    assert shallower(mamba, AdapterConfig(r".*layers\.(3|5)\..*x_proj", r=2)) is None
    assert shallower(mamba, AdapterConfig(r".*layers\.(?:1[0-9])\..*x_proj", r=2)) is None
    assert shallower(mamba, AdapterConfig(("layers.3.mixer.x_proj",), r=2)) is None
    assert shallower(other("mamba"), adapter) is None
