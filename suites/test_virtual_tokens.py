"""The sizes of methods with virtual tokens, read off a configuration as PEFT reads them."""

from __future__ import annotations

import pytest
from method_models import counted_of, formula_of

from bench.errors import BenchError
from bench.formulas import prompts
from bench.formulas.kinds import METHODS
from bench.models.architectures import Model

VISION = {"model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2, "intermediate_size": 64, "image_size": 28,
          "patch_size": 14}  # fmt: skip
TEXT = {"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 32, "vocab_size": 100}  # fmt: skip
GEMMA3 = Model(
    "gemma3",
    {"model_type": "gemma3", "text_config": TEXT, "vision_config": VISION,
     "mm_tokens_per_image": 4},
    "Gemma3ForConditionalGeneration",
)  # fmt: skip


@pytest.mark.parametrize("name", prompts.PROMPT_METHODS)
@pytest.mark.parametrize("given", [{}, {"num_layers": 3}, {"token_dim": 32}], ids=str)
def test_virtual_tokens_follow_a_nested_text_config(name: str, given: dict) -> None:
    given = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM", **given}
    formula, counted = formula_of(GEMMA3, name, **given), counted_of(GEMMA3, name, **given)
    assert formula == counted
    assert isinstance(formula, tuple)


@pytest.mark.parametrize(
    "model_type",
    ["falcon", "gemma3", "gemma4", "gemma4_text", "glm4", "gpt_bigcode", "gpt_neo", "llava",
     "mamba", "mllama", "qwen2_vl", "swin", "t5", "whisper", "xlnet"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["prefix-tuning", "prompt-tuning"])
def test_sizes_are_read_where_peft_reads_them(model_type: str, name: str) -> None:
    """Text parts, other names, layers that differ in their heads: PEFT's own preparation."""
    import peft
    from peft.utils.other import _prepare_prompt_learning_config
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"this transformers has no {model_type}")
    config = CONFIG_MAPPING[model_type]()
    theirs = getattr(peft, METHODS[name].peft_class)(task_type="CAUSAL_LM", num_virtual_tokens=5)
    settings = {**METHODS[name].settings, "num_virtual_tokens": 5}
    try:
        _prepare_prompt_learning_config(theirs, config)
    except ValueError:
        with pytest.raises(BenchError):
            prompts.elements(name, settings, config, "CAUSAL_LM")
        return
    rows = 2 * theirs.num_layers if name == "prefix-tuning" else 1
    expected = 5 * rows * theirs.token_dim
    assert prompts.elements(name, settings, config, "CAUSAL_LM") == expected


@pytest.mark.parametrize(
    "names",
    [
        ("num_hidden_layers", "hidden_size", "num_attention_heads"),
        ("num_layers", "n_embd", "n_head"),
        ("n_layer", "d_model", "num_heads"),
        ("num_layers", "hidden_size", "encoder_attention_heads"),
    ],
    ids=lambda names: names[-1],
)
def test_sizes_by_every_name_that_peft_knows(names: tuple[str, str, str]) -> None:
    """Three layers of width 32, whatever a configuration calls them."""
    import peft
    from peft.utils.other import _prepare_prompt_learning_config
    from transformers import PretrainedConfig

    config = PretrainedConfig(**dict(zip(names, (3, 32, 4), strict=True)))
    theirs = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    _prepare_prompt_learning_config(theirs, config)
    assert (theirs.num_layers, theirs.token_dim, theirs.num_attention_heads) == (3, 32, 4)
    settings = {**METHODS["prefix-tuning"].settings, "num_virtual_tokens": 5}
    assert prompts.elements("prefix-tuning", settings, config, "CAUSAL_LM") == 5 * 2 * 3 * 32
