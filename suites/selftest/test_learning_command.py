"""`bench learn` from the command line, on a model and a text of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import main


def test_ones_own_model_and_text_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as what the study found, which --read would tell; and a token alone foretells none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["<unk>", "<s>", "</s>", *"abcdefghijklmnop"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    given = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    mine = tmp_path / "my model"
    PreTrainedTokenizerFast(tokenizer_object=made, **given).save_pretrained(mine)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(words), num_hidden_layers=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(mine)
    text = tmp_path / "text.txt"
    lines = (" ".join("abcdefghijklmnop"[(i * k) % 16] for k in range(20)) for i in range(200))
    text.write_text("\n\n".join(lines))
    monkeypatch.setattr("bench.files.OWN_RESULTS", tmp_path / "results")
    asked = ["learn", "--weights", str(mine), "--data", str(text), "--arm", "query",
             "--seeds", "1", "--workers", "1"]  # fmt: skip
    assert main([*asked, "--seq-len", "1"]) == 2
    assert "--seq-len 1: a language model foretells each token" in capsys.readouterr().err
    assert main([*asked, "--steps", "1"]) == 2
    assert "--steps 1: two or more" in capsys.readouterr().err
    assert main([*asked, "--save", "x", "--steps", "2"]) == 0
    (run,) = (tmp_path / "results").rglob("*_x.json")
    assert run.parent.relative_to(tmp_path) == Path("results/learning/own-my-model-text")
