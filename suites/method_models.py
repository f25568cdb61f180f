"""Small models for the other methods, and the two answers about each: the formula's and PEFT's."""

from __future__ import annotations

from functools import cache

from bench.errors import BenchError
from bench.formulas.kinds import METHODS
from bench.formulas.methods import method, method_parameters
from bench.measure.counting import count_lora_fa, count_method
from bench.models.architectures import Model

COMMON = {"vocab_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
           "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip
CONFIGS = {
    "llama": ({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True,
               "tie_word_embeddings": True}, "AutoModelForCausalLM", "CAUSAL_LM"),
    "gpt2": ({"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32},
             "AutoModelForCausalLM", "CAUSAL_LM"),
    "bert": ({**ENCODER, "num_labels": 3}, "AutoModelForSequenceClassification", "SEQ_CLS"),
    "t5": ({"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 96, "num_layers": 2,
            "num_decoder_layers": 2}, "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "opt": ({"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "word_embed_proj_dim": 32, "max_position_embeddings": 32},
            "AutoModelForCausalLM", "CAUSAL_LM"),
}  # fmt: skip
TASKS = {name: task for name, (_, _, task) in CONFIGS.items()}


@cache
def model_called(name: str) -> Model:
    config, auto_class, _ = CONFIGS[name]
    return Model(name, {"model_type": name, **COMMON, **config}, auto_class)


def formula_of(model: Model, name: str, **fields: object) -> tuple[int, int] | str:
    try:
        found = method_parameters(model.table, method(name, **fields), model.transformers_config)
    except BenchError as error:
        return str(error)
    return found.trainable, found.total


def counted_of(model: Model, name: str, **fields: object) -> tuple[int, int] | str:
    network = model.build()
    if name == "full":
        elements = sum(p.numel() for p in network.parameters())
        return elements, elements
    if name == "boft":  # builds its permutations element by element, which meta cannot
        network = network.to_empty(device="cpu")
        network.tie_weights()
    asked = method(name, **fields)
    try:
        if name == "lora-fa":
            found = count_lora_fa(network, asked.to_dict())
        else:
            found = count_method(network, METHODS[name].peft_class, asked.to_dict())
    except BenchError as error:
        return str(error)
    return found.trainable, found.total
