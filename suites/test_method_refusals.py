"""The other methods on models where PEFT raises, or leaves something of the base trainable."""

from __future__ import annotations

from typing import Any

import pytest
from matrices import matrix
from method_models import COMMON, ENCODER, counted_of, formula_of, model_called

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.formulas import prompts
from bench.formulas.kinds import METHODS
from bench.measure.counting import inject
from bench.models.architectures import Model
from bench.targets import match

_VISION = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1,
           "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
_TEXT = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
         "num_attention_heads": 2, "word_embed_proj_dim": 32, "max_position_embeddings": 32,
         **COMMON}  # fmt: skip
_QFORMER = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1,
            "num_attention_heads": 2, "encoder_hidden_size": 32, "vocab_size": 48}  # fmt: skip
_CLIP_TEXT = {**_VISION, **COMMON, "max_position_embeddings": 32}
_PROPHETNET = {"hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
               "num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2,
               "num_decoder_attention_heads": 2, "max_position_embeddings": 32, "is_decoder": True,
               "add_cross_attention": False, **COMMON}  # fmt: skip


def small(model_type: str, auto_class: str, **values: Any) -> Model:
    return Model(model_type, {"model_type": model_type, **values}, auto_class)


BLIP2 = small("blip-2", "Blip2ForConditionalGeneration", vision_config=_VISION, text_config=_TEXT,
              qformer_config=_QFORMER, num_query_tokens=3, use_decoder_only_language_model=True,
              image_token_index=47)  # fmt: skip
CLIP = small("clip", "CLIPModel", text_config=_CLIP_TEXT, vision_config=_VISION, projection_dim=16)
VIT = small("vit", "ViTForImageClassification", **_VISION)
BERT = small("bert", "BertForMaskedLM", **ENCODER, **COMMON)
NO_NORM = small("modernbert-decoder", "ModernBertDecoderForCausalLM", **ENCODER, **COMMON)
PROPHETNET = small("prophetnet", "ProphetNetForCausalLM", **_PROPHETNET)


def both(model: Model, name: str, **given: Any) -> tuple[tuple[int, int] | str, ...]:
    """The formula's answer and PEFT's: equal counts, or both a refusal."""
    formula, counted = formula_of(model, name, **given), counted_of(model, name, **given)
    if isinstance(formula, str) or isinstance(counted, str):
        assert isinstance(formula, str) == isinstance(counted, str), (formula, counted)
    else:
        assert formula == counted
    return formula, counted


@pytest.mark.parametrize("name", prompts.PROMPT_METHODS)
def test_parameters_of_the_model_itself_stay_trainable(name: str) -> None:
    """PEFT freezes child by child: BLIP-2's query tokens and CLIP's scale are no child's."""
    asked = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
    formula, _ = both(BLIP2, name, **asked)
    alone, _ = both(Model("opt", _TEXT, "OPTForCausalLM"), name, **asked)
    assert formula[0] - alone[0] == 3 * 32
    # CLIP's sizes are in no place that PEFT reads.
    sizes = {"token_dim": 32, "num_layers": 1, "num_attention_heads": 2}
    both(CLIP, name, **{**asked, **sizes, "task_type": "FEATURE_EXTRACTION"})


def test_the_layers_of_other_methods_leave_nothing_trainable() -> None:
    found = both(BLIP2, "loha", target_modules=["q_proj"])
    assert isinstance(found[0], tuple)


@pytest.mark.parametrize("name", prompts.PROMPT_METHODS)
def test_a_configuration_without_a_vocabulary(name: str) -> None:
    given = {"num_virtual_tokens": 5, "task_type": "FEATURE_EXTRACTION"}
    formula, counted = both(VIT, name, **given)
    assert "vocab_size" in formula
    assert "vocab_size" in counted


def test_sampled_rows_are_of_the_embedding_that_peft_finds() -> None:
    """The first weight of as many rows as the vocabulary, whatever it is."""
    given = {"num_virtual_tokens": 5, "prompt_tuning_init": "SAMPLE_VOCAB"}
    formula, _ = both(BLIP2, "prompt-tuning", task_type="CAUSAL_LM", **given)
    assert "SAMPLE_VOCAB needs a word embedding, and PEFT finds none" in formula
    config = {**BLIP2.config, "vision_config": {**_VISION, "intermediate_size": 48}}
    taken = Model("blip-2", config, "Blip2ForConditionalGeneration")
    formula, _ = both(taken, "prompt-tuning", task_type="CAUSAL_LM", **given)
    assert "takes vision_model.encoder.layers.0.mlp.fc1, a Linear" in formula
    found, _ = both(BERT, "prompt-tuning", task_type="FEATURE_EXTRACTION", **given)
    assert isinstance(found, tuple)
    vocabulary = 2 * ENCODER["max_position_embeddings"]
    same = small("bert", "BertForMaskedLM", **{**ENCODER, **COMMON, "vocab_size": vocabulary,
                                               "hidden_size": vocabulary})  # fmt: skip
    both(same, "prompt-tuning", task_type="FEATURE_EXTRACTION", **given)


FITTED = [n for n, kind in METHODS.items() if "task_type" in kind.common]


@pytest.mark.parametrize("name", FITTED)
def test_a_model_that_does_not_generate(name: str) -> None:
    given = {"task_type": "CAUSAL_LM", **_targets(name, "query")}
    formula, counted = both(BERT, name, **given)
    assert "does not generate" in formula
    assert "prepare_inputs_for_generation" in counted


@pytest.mark.parametrize("name", [n for n in FITTED if "modules_to_save" in METHODS[n].common])
def test_a_list_of_modules_to_save(name: str) -> None:
    """ "k" ends T5's `encoder.block`, a ModuleList, of which there is no copy."""
    given = {"modules_to_save": ["k"], "task_type": "SEQ_2_SEQ_LM", **_targets(name, "q")}
    formula, counted = both(model_called("t5"), name, **given)
    assert "fits encoder.block, a ModuleList" in formula
    assert "ModuleList" in counted


def _targets(name: str, query: str) -> dict[str, Any]:
    kind = METHODS[name]
    if "exclude_modules" not in kind.common and name != "vera":
        return {}
    norm = "LayerNorm" if query == "query" else "layer_norm"
    given: dict[str, Any] = {"target_modules": [norm if name == "ln-tuning" else query]}
    return given | ({"feedforward_modules": []} if name == "ia3" else {})


TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
SAVED: list[tuple[str, str, dict[str, Any]]] = [
    *(("trainable-tokens", task, {"token_indices": [1]}) for task in TASKS),
    *(
        (name, task, {"modules_to_save": [saved]})
        for name in prompts.PROMPT_METHODS
        for task in TASKS
        for saved in ("er", "query", "_encoder")
    ),
]


@pytest.mark.parametrize(
    ("name", "task", "given"), matrix(SAVED, by=lambda name, task, given: {name, task}), ids=str
)
def test_modules_that_a_task_looks_for_later(name: str, task: str, given: dict[str, Any]) -> None:
    """PEFT looks for them on its own model: with virtual tokens `prompt_encoder` is one of its
    modules, and trainable tokens have no list to look through."""
    model = BERT.for_task(task)
    found, _ = both(model, name, task_type=task, **given)
    later = task in ("TOKEN_CLS", "QUESTION_ANS")
    if name == "trainable-tokens":
        assert isinstance(found, str) == later
    else:
        both(model, name, task_type=task, modules_to_save=["query"], num_virtual_tokens=2)


def test_the_word_embedding_is_met_twice() -> None:
    """PEFT's model holds it beside the base model, and its later search would copy it again."""
    given = {"num_virtual_tokens": 2, "modules_to_save": ["word_embeddings"]}
    asked = {"task_type": "SEQ_CLS", **given}
    said = formula_of(BERT.for_task("SEQ_CLS"), "prefix-tuning", **asked)
    assert (
        said == "no closed form for prefix-tuning with its own word_embeddings in modules_to_save"
    )
    both(BERT, "prefix-tuning", task_type="FEATURE_EXTRACTION", **given)


def test_a_normalisation_layer_without_parameters() -> None:
    """ModernBERT's first layer has nn.Identity in its place."""
    assert "has no parameters" in formula_of(NO_NORM, "ln-tuning", target_modules=["attn_norm"])
    with pytest.raises(StopIteration):
        counted_of(NO_NORM, "ln-tuning", target_modules=["attn_norm"])
    both(NO_NORM, "ln-tuning", target_modules=["mlp_norm"])


def test_tokens_of_an_embedding_that_is_listed_as_tied() -> None:
    (tokens, _), _ = both(PROPHETNET, "trainable-tokens", token_indices=[1, 2])
    assert tokens == 2 * 32


@pytest.mark.parametrize("targets", [["q_proj"], []], ids=str)
def test_a_parameter_of_the_model_itself_gets_no_lora(targets: list[str]) -> None:
    adapter = AdapterConfig.from_dict(
        {"target_modules": targets, "target_parameters": ["query_tokens"]}
    )
    refusals = match(BLIP2.table, adapter).refusals
    assert refusals == (
        "query_tokens: a parameter of the model itself, around which PEFT puts no adapter",
    )
    with pytest.raises(BenchError, match=r"top-level module is not supported"):
        inject(BLIP2.build(), adapter)
