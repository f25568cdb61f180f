"""Layers that share a weight: what is adapted, saved and trained of them, as PEFT has it."""

from __future__ import annotations

import pytest
from agreement import agrees, both, disagreement
from small_types import small

from bench import check_targets
from bench.adapters.config import AdapterConfig
from bench.formulas import lora_parameters
from bench.models.modules import read_table
from bench.targets import match


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ("q_proj", "lm_head")},
        {"target_modules": ("q_proj",), "modules_to_save": ("lm_head",)},
        {"target_modules": ("q_proj",), "trainable_token_indices": (1, 2)},
        {"target_modules": ("q_proj",), "trainable_token_indices": {"lm_head": (1,),
                                                                    "embed_tokens": (1,)}},
    ],
    ids=["targets", "saved", "tokens", "tokens-twice"],
)  # fmt: skip
def test_tying_goes_by_the_configuration(says: bool, shared: bool, fields: dict) -> None:
    """What the configuration says against what the weights are: PEFT asks the configuration."""
    network = small("qwen2-CausalLM").build()
    network.config.tie_word_embeddings = says
    if not shared:
        network.lm_head.weight = type(network.lm_head.weight)(network.lm_head.weight.clone())
    adapter = AdapterConfig(ensure_weight_tying=True, **fields)
    assert disagreement(network, read_table(network), adapter) == ("injected", "")


def test_three_tied_tokens() -> None:
    """Three rows on a tied model train once, 3 × 32; named for both embeddings too, and apart
    where the two differ."""
    for tokens, rows in (
        ((1, 2, 3), 3),
        ({"embed_tokens": (1, 2, 3)}, 3),
        ({"lm_head": (1, 2, 3)}, 3),
        ({"embed_tokens": (1, 2, 3), "lm_head": (1, 2, 3)}, 3),
        ({"embed_tokens": (1, 2, 3), "lm_head": (4,)}, 4),
    ):
        adapter = AdapterConfig(("q_proj",), r=1, trainable_token_indices=tokens)
        plain = AdapterConfig(("q_proj",), r=1)
        (trainable, _), theirs = both("qwen2-CausalLM", adapter)
        assert trainable == theirs[0]
        assert trainable - both("qwen2-CausalLM", plain)[0][0] == rows * 32


@pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying")
@pytest.mark.parametrize("model_type", ["t5", "bart", "opt"])
def test_a_configuration_that_has_been_injected_once(model_type: str) -> None:
    """PEFT keeps in it what it has tied, and reads that again: the next model gets the same."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    made, head, targets = {
        "t5": (transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                                     vocab_size=64), "T5ForConditionalGeneration", "q"),
        "bart": (transformers.BartConfig(d_model=32, encoder_layers=2, decoder_layers=2,
                                         encoder_attention_heads=2, decoder_attention_heads=2,
                                         encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=64),
                 "BartForConditionalGeneration", "q_proj"),
        "opt": (transformers.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2,
                                       num_attention_heads=2, word_embed_proj_dim=32,
                                       vocab_size=64), "OPTForCausalLM", "q_proj"),
    }[model_type]  # fmt: skip
    config = LoraConfig(r=4, target_modules=[targets, "lm_head"], ensure_weight_tying=True)
    found = []
    for _ in range(3):
        told = check_targets(getattr(transformers, head)(made), config)
        injected = get_peft_model(getattr(transformers, head)(made), config)
        layers = sum(isinstance(each, LoraLayer) for each in injected.modules())
        assert told.adapted_layers == layers
        assert lora_parameters(told).trainable == injected.get_nb_trainable_parameters()[0]
        found.append(layers)
    assert len(set(found)) == 1


def test_tied_names_are_taken_out_before_a_list_is_condensed() -> None:
    """Of 21 names two are tied to Marian's embedding, which is listed as tied itself: 19 are left,
    full names that layers_to_transform does not hold back."""
    leaves = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "fc1", "fc2")
    names = [f"model.encoder.layers.{n}.{leaf}" for n in range(3) for leaf in leaves]
    names += [f"model.decoder.layers.{n}" for n in ("0.fc1", "0.fc2", "1.fc1")] + ["model.shared"]
    tied = ["model.decoder.embed_tokens", "lm_head"]
    adapter = AdapterConfig(
        (*names, *tied), r=2, layers_to_transform=(3,), ensure_weight_tying=True
    )
    agrees("marian-Seq2SeqLM", adapter)
    adapted = {a.name for a in match(small("marian-Seq2SeqLM").table, adapter).adapted}
    assert adapted > {*names}


def test_a_tied_embedding_that_is_taken_out() -> None:
    """Marian lists its shared embedding as tied itself: nothing is left whose copy others share."""
    adapter = AdapterConfig(("q_proj",), modules_to_save=("lm_head",), ensure_weight_tying=True)
    agrees("marian-Seq2SeqLM", adapter, "refused")
    table = small("marian-Seq2SeqLM").table
    assert match(table, adapter).refusals == (
        f"{table.input_embedding} is not saved: nothing to tie a copy to",
    )
