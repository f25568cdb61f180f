"""What `bench explain` lists beside the likeliest answer, and the task that an answer is for."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.explain import SEARCHED_RANK, explain
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
from bench.models.architectures import Model, load_model
from bench.reports.explained import explanation_text
from bench.targets import match

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 503}
ENCODER = {**SIZES, "intermediate_size": 112}


def written(folder: Path, config: dict[str, Any]) -> Model:
    (folder / "config.json").write_text(json.dumps(config))
    return load_model(str(folder))


def falcon(folder: Path) -> Model:
    return written(
        folder, {"model_type": "falcon", "architectures": ["FalconForCausalLM"], **SIZES}
    )


SIDES = {"query_key_value": 112, "dense": 96, "dense_h_to_4h": 240, "dense_4h_to_h": 240}
"""in + out of a layer's: six heads of 8, one of key and one of value."""


def some_layers(trainable: int) -> int:
    """Sets × 1 or 2 of 3 layers × ranks that train so many, by hand."""
    sums = [sum(s) for n in range(1, 5) for s in combinations(SIDES.values(), n)]
    parts = (k * each for k in (1, 2) for each in sums)
    return sum(trainable % part == 0 and trainable // part <= SEARCHED_RANK for part in parts)


def asked(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> tuple[str, Any]:
    """What the command prints for people, and for programs."""
    command = ["explain", str(folder), *options]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    return said, json.loads(capsys.readouterr().out)


def test_some_layers_stand_beside_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dense` at rank 24 on two of three layers trains what rank 16 on all of them does."""
    model = falcon(tmp_path)
    true = AdapterConfig(("dense",), r=24, layers_to_transform=(1, 2))
    counted = count(inject(model.build(), true))
    assert counted.trainable == 4608
    said, answer = asked(capsys, tmp_path, "--trainable", "4608", "--total", str(counted.total))
    assert [row["adapter"]["r"] for row in answer["exact"]] == [16]
    assert "of some layers only, which give it too:\n" in said
    assert "  r 24; dense; layers_to_transform 0 to 1 (any 2 of 3 layers)\n" in said
    every = some_layers(4608)
    assert every > 3
    assert len(answer["some_layers"]) == 3
    assert answer["not_shown"] == answer["not_shown_some_layers"] == every - 3
    assert f"not shown: up to {every - 3} more of some layers only that give it too" in said
    for row in answer["some_layers"]:
        adapter = AdapterConfig(
            tuple(row["adapter"]["target_modules"]), r=row["adapter"]["r"],
            layers_to_transform=tuple(row["adapter"]["layers_to_transform"]),
        )  # fmt: skip
        assert count(inject(model.build(), adapter)).trainable == 4608


@pytest.mark.parametrize("trainable", [96 * 2 * 5, 112 * 48, 240 * 2, 96 * 64, 96 * 14])
def test_those_of_some_layers_are_counted(tmp_path: Path, trainable: int) -> None:
    """Whatever else gives the number: listed and counted, they are as many as by hand."""
    answer = explain(falcon(tmp_path).table, trainable)
    listed = [f for f in (*answer.exact, *answer.some_layers) if f.adapter.layers_to_transform]
    assert len(listed) + answer.more_some_layers == some_layers(trainable) > 0
    assert answer.more >= answer.more_some_layers


def test_both_kinds_that_are_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **ENCODER})
    )
    said, answer = asked(capsys, tmp_path, "--trainable", str(16 * 3 * 96))
    partly, more = answer["not_shown_some_layers"], answer["not_shown"]
    assert 0 < partly < more
    assert f"up to {more} more that give it too and are less likely ({partly} of them of" in said
    assert "of some layers only, which give it too" in said


def test_a_total_decides_between_some_layers_and_biases(tmp_path: Path) -> None:
    """No answer of some layers trains a bias: with biases in the total none of them is left, with
    none in it none of the others."""
    config = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "hidden_size": 56,
              "ffn_dim": 128, "num_hidden_layers": 4, "num_attention_heads": 7, "vocab_size": 503,
              "word_embed_proj_dim": 56}  # fmt: skip
    table = written(tmp_path, config).table
    biased = lora_parameters(match(table, AdapterConfig(("fc1", "fc2"), r=8, bias="all")))
    trainable, free = biased.trainable, table.total_parameters + biased.trainable
    assert biased.total < free
    answer = explain(table, trainable)
    assert {f.total for f in answer.exact} == {biased.total}
    assert {f.total for f in answer.some_layers} == {free}
    partly = len(answer.some_layers) + answer.more_some_layers
    assert f"of some layers only, which give it too, of {free:,} in all" in explanation_text(
        "x", answer
    )
    answer = explain(table, trainable, biased.total)
    assert {f.total for f in answer.exact} == {biased.total}
    assert (answer.some_layers, answer.more, answer.more_some_layers) == ((), 0, 0)
    assert answer.remark == f"the total fits; with another total: {partly}, left out"
    answer = explain(table, trainable, free)
    assert {f.total for f in answer.exact} == {free}
    assert all(f.adapter.layers_to_transform for f in answer.exact)
    assert len(answer.exact) + answer.more_some_layers == partly
    assert answer.remark.startswith("the total fits; with another total: ")


@pytest.mark.parametrize(
    ("model_type", "ending", "task_type", "saved"),
    [
        ("roberta", "RobertaForTokenClassification", "TOKEN_CLS", ()),
        ("roberta", "RobertaForSequenceClassification", "SEQ_CLS", ()),
        ("roberta", "RobertaForQuestionAnswering", "QUESTION_ANS", ()),
        ("bert", "BertForTokenClassification", "TOKEN_CLS", ()),
        # PEFT has no task type for these: the head is named.
        ("roberta", "RobertaForMultipleChoice", None, ("classifier",)),
        ("vit", "ViTForImageClassification", None, ("classifier",)),
    ],
)  # fmt: skip
def test_the_task_type_is_that_of_the_models_class(
    tmp_path: Path, model_type: str, ending: str, task_type: str | None, saved: tuple[str, ...]
) -> None:
    """An adapter that is copied from the answer is for the model's own task, as PEFT counts it."""
    model = written(tmp_path, {"model_type": model_type, "architectures": [ending], **ENCODER})
    names = ("q_proj", "v_proj") if model_type == "vit" else ("query", "value")
    true = AdapterConfig(names, r=8, task_type=task_type, modules_to_save=saved)
    counted = count(inject(model.build(), true))
    answer = explain(model.table, counted.trainable, counted.total)
    found = answer.exact[0].adapter
    assert (found.task_type, found.modules_to_save) == (task_type, saved)
    assert ({*found.target_modules}, found.r) == ({*names}, 8)
    listed = {f.adapter.task_type for f in (*answer.exact, *answer.some_layers)}
    assert listed <= {task_type, None}
    again = count(inject(model.build(), found))
    assert (again.trainable, again.total) == (counted.trainable, counted.total)
