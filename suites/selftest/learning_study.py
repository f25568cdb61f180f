"""A study on a small BERT with random weights and made-up text: seconds, and no package.

The weights are wide enough for it to tell words apart.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from bench.learning.study import Origin, Study, make_study

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u")]
TOPICS = ("apples", "boats", "clocks")
SETTINGS: dict[str, Any] = {
    "weights": "minilm",
    "task": "classification",
    "text": {"source": "prose"},
    "other": {"source": "prose"},
    "length": 8,
    "batch_size": 8,
    "steps": 30,
    "evaluate_at": [0, 15, 30],
    "held_back": 16,
    "evaluation": 48,
    "other_examples": 4,
    "new_tokens": 12,
    "budget_scenario": "everything",
    "budget_rank": 2,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "rates": [1e-2, 3e-2, 1e-1],
    "full_rates": [1e-3, 3e-3, 1e-2],
    "head_rates": [1e-2, 3e-2, 1e-1],
    "rungs": [6, 12],
    "kept": [2, 1],
    "margin": 0.02,
    "seeds": 3,
}


def texts_of(folder: Path, count: int = 240) -> Path:
    """Texts of six words, of which four are the topic's own: a file for --data."""
    draw, lines = random.Random(0), []
    for number in range(count):
        topic = number % len(TOPICS)
        own = WORDS[20 * topic : 20 * topic + 6]
        words = [*draw.sample(own, 4), *draw.sample(WORDS, 2)]
        lines.append(json.dumps({"text": " ".join(words), "label": TOPICS[topic]}))
    path = folder / "texts.jsonl"
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")
    return path


def weights_of(folder: Path) -> Path:
    """A folder with a small BERT and its tokenizer, as `from_pretrained` reads them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def small_study(
    folder: Path,
    arms: dict[str, dict[str, Any]],
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Study:
    """The study of these arms; `more`: claims."""
    weights = folder / "weights"
    if not weights.exists():
        weights_of(weights)
        texts_of(folder)
    values = {"study": {**SETTINGS, **(settings or {})}, "arm": arms, **more}
    return make_study(Origin("small", weights, folder / "texts.jsonl"), values, "small")
