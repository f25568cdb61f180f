"""The task types of PEFT: adapted layers, heads that train, and what works where there is none."""

from __future__ import annotations

import pytest
from method_models import COMMON, CONFIGS, ENCODER

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError, UnknownName
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
from bench.models.architectures import Model
from bench.targets import match
from bench.tasks import BY_TYPE

BERT = {"model_type": "bert", **COMMON, **ENCODER, "num_labels": 2}
SMALL_T5 = {"model_type": "t5", **COMMON, **CONFIGS["t5"][0]}
SMALL_LLAMA = {"model_type": "llama", **COMMON, **CONFIGS["llama"][0]}
OF_TASK = {
    "SEQ_CLS": (BERT, "AutoModelForSequenceClassification", ("query", "value"), ("classifier",)),
    "TOKEN_CLS": (BERT, "AutoModelForTokenClassification", ("query", "value"), ("classifier",)),
    "QUESTION_ANS": (BERT, "AutoModelForQuestionAnswering", ("query", "value"), ("qa_outputs",)),
    "FEATURE_EXTRACTION": (BERT, "AutoModel", ("query", "value"), ()),
    "SEQ_2_SEQ_LM": (SMALL_T5, "AutoModelForSeq2SeqLM", ("q", "v"), ()),
    "CAUSAL_LM": (SMALL_LLAMA, "AutoModelForCausalLM", ("q_proj", "v_proj"), ()),
}


@pytest.mark.parametrize("task", BY_TYPE)
def test_task_type(task: str) -> None:
    """PEFT's six, each on a model of the task: adapted layers, heads trained, formula = count."""
    config, auto_class, targets, heads = OF_TASK[task]
    model = Model(task.lower(), config, auto_class)
    adapter = AdapterConfig(targets, r=4, task_type=task)
    ledger = match(model.table, adapter)
    formula = lora_parameters(ledger)
    network = model.build()
    counted = count(inject(network, adapter))
    assert ledger.saved == counted.saved == heads
    assert sorted(a.name for a in ledger.adapted) == sorted(counted.adapted)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
    plain = lora_parameters(match(model.table, AdapterConfig(targets, r=4)))
    head = sum(p.elements for name in heads for p in model.table.below(name))
    assert formula.trainable == plain.trainable + head


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS"])
def test_all_linear_adapts_a_head_that_cannot_be_saved(task: str) -> None:
    """PEFT adds these tasks' heads after it has injected, and SEQ_CLS's before: only they raise."""
    config, auto_class, _, heads = OF_TASK[task]
    model = Model("heads", config, auto_class)
    adapter = AdapterConfig("all-linear", task_type=task)
    (refusal,) = match(model.table, adapter).refusals
    assert refusal == (
        f"{heads[0]} is adapted and named in modules_to_save: PEFT cannot save an adapted module"
    )
    with pytest.raises(BenchError, match="modules_to_save cannot be applied"):
        inject(model.build(), adapter)
    sequence = Model("heads", BERT, "AutoModelForSequenceClassification")
    assert not match(sequence.table, AdapterConfig("all-linear", task_type="SEQ_CLS")).refusals


def test_pefts_task_types_are_six() -> None:
    import peft

    assert {task.value for task in peft.TaskType} == set(BY_TYPE)


@pytest.mark.parametrize("task", ["MULTIPLE_CHOICE", "IMAGE_CLASSIFICATION", "UNSPECIFIED"])
def test_task_types_that_peft_does_not_have(task: str) -> None:
    """Some lists name three more. PEFT has no such members, and says so; so does bench."""
    import peft

    assert not hasattr(peft.TaskType, task)
    with pytest.raises(ValueError, match="task type"):
        peft.LoraConfig(target_modules=["query"], task_type=task)
    with pytest.raises(UnknownName, match=r"unknown task type .*PEFT has no other"):
        AdapterConfig(("query",), task_type=task)


@pytest.mark.parametrize(
    ("config", "auto_class", "targets"),
    [
        (BERT, "AutoModelForMultipleChoice", ("query", "value")),
        (
            {"model_type": "vit", "hidden_size": 32, "intermediate_size": 48, "num_labels": 5,
             "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
            "AutoModelForImageClassification",
            ("q_proj", "v_proj"),
        ),
    ],
    ids=["multiple-choice", "image-classification"],
)  # fmt: skip
def test_what_works_instead(config: dict, auto_class: str, targets: tuple[str, ...]) -> None:
    """No task type, and the head in modules_to_save: it trains. Without, it stays frozen."""
    model = Model("instead", config, auto_class)
    head = sum(p.elements for p in model.table.below("classifier"))
    bare = AdapterConfig(targets, r=4)
    kept = AdapterConfig(targets, r=4, modules_to_save=("classifier",))
    for adapter, trained_head in ((bare, 0), (kept, head)):
        formula = lora_parameters(match(model.table, adapter))
        network = inject(model.build(), adapter)
        counted = count(network)
        assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
        trained = {n for n, p in network.named_parameters() if p.requires_grad}
        assert any("classifier" in name for name in trained) == bool(trained_head)
        assert (
            formula.trainable - trained_head == lora_parameters(match(model.table, bare)).trainable
        )
