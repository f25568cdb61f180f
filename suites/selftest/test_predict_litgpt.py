"""LitGPT's own step: what it holds that transformers' does not, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bench.training.cases import Case, StepOptions

LAYERS, WIDTH, INNER, WORDS, TOKENS = 3, 256, 704, 256, 512
LLAMA = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "vocab_size": WORDS,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4,
}  # fmt: skip


def litgpt_case(precision: str, tokens: int = TOKENS, **config: Any) -> Case:
    adapter = {"r": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.05}
    step = StepOptions(batch_size=1, seq_len=tokens)
    model = {**LLAMA, **config}
    return Case("small", model, "AutoModelForCausalLM", "q-v", adapter, precision, step)


def peaks(case: Case) -> tuple[Any, ...]:
    from bench.predict import litgpt  # torch with it: not where tests are chosen

    return litgpt.peaks(case)


def test_inputs_of_the_last_batch_stay_in_4_bits() -> None:
    """Three of the width and one of the MLP's a layer, and what the head is given; in bfloat16
    nothing but the optimizer's state comes to a second batch."""
    first, second = peaks(litgpt_case("nf4"))
    kept = 2 * TOKENS * (LAYERS * (3 * WIDTH + INNER) + WIDTH)
    assert 0.6 * kept < second - first < kept  # the second's peak lies before its loss
    first, second = peaks(litgpt_case("bf16"))
    assert second - first < 0.1 * kept


def test_the_head_is_there_twice_while_it_multiplies() -> None:
    """By how much more words are more: the embedding, the packed head and its scales, the logits in
    float32 and their gradient; and the head in float16 and in bfloat16."""
    tokens, words = 32, 32768
    small, large = (peaks(litgpt_case("nf4", tokens, vocab_size=n * words))[0] for n in (1, 2))
    held = words * (2 * WIDTH + WIDTH // 2 + 4 * WIDTH // 64 + (4 + 2) * tokens)
    expanded = words * (2 + 2) * WIDTH
    assert large - small == pytest.approx(held + expanded, rel=0.05)


@pytest.mark.parametrize("kind", ["gpt_neox", "phi", "falcon", "gemma", "phi3", "mistral"])
def test_every_type_is_built(kind: str) -> None:
    first, second = peaks(litgpt_case("nf4-dq", tokens=32, model_type=kind, vocab_size=512))
    assert 0 < first <= second
