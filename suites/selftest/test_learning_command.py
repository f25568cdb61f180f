"""`bench learn` from the command line, on a model and a text of one's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from bench.cli import main
from bench.errors import BenchError
from bench.training.cases import BATCH_SIZE, RANK, SEQ_LEN
from bench.units import format_bytes


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A tiny Llama with weights and a tokenizer, and a text."""
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
    return mine, text


def test_ones_own_model_and_text_are_kept_apart(
    own: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Not as what the study found, which --read would tell; and a token alone foretells none."""
    mine, text = own
    asked = ["learn", "--weights", str(mine), "--data", str(text), "--arm", "query",
             "--seeds", "1", "--workers", "1"]  # fmt: skip
    assert main([*asked, "--seq-len", "1"]) == 2
    assert "--seq-len 1: a language model foretells each token" in capsys.readouterr().err
    assert main([*asked, "--steps", "1"]) == 2
    assert "--steps 1: two or more" in capsys.readouterr().err
    said: list[str] = []
    monkeypatch.setattr("bench.cli.output.progress", said.append)
    assert main([*asked, "--save", "x", "--steps", "2"]) == 0
    held = [*mine.glob("*.safetensors*"), mine / "config.json"]
    size = format_bytes(sum(path.stat().st_size for path in held))
    assert said[0] == f"reading the weights: {format_bytes(0)} of {size}"
    assert not said[-1]
    (run,) = (tmp_path / "results").rglob("*_x.json")
    assert run.parent.relative_to(tmp_path) == Path("results/learning/own-my-model-text")


@pytest.mark.parametrize("error", [KeyboardInterrupt, BenchError("no")])
def test_a_run_that_ends_before_its_first_case_leaves_nothing(
    own: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException],
) -> None:  # fmt: skip
    """What is said to be kept is: nothing, and no file of a run to go on with."""
    mine, text = own

    def cut(*_: object, **__: object) -> None:
        assert list((tmp_path / "results").rglob(".unfinished-x.jsonl"))
        raise error

    monkeypatch.setattr("bench.learning.schedule.run_study", cut)
    asked = ["learn", "--weights", str(mine), "--data", str(text), "--arm", "query",
             "--seeds", "1", "--workers", "1", "--save", "x", "--steps", "2"]  # fmt: skip
    interrupted = error is KeyboardInterrupt
    assert main(asked) == (130 if interrupted else 2)
    assert ("nothing is kept" in capsys.readouterr().err) == interrupted
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file()]


def test_advice_is_of_the_command_that_was_called(
    own: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can be pasted: what stores a learning run, and the file that is accepted. What was not
    stored has not failed when it was."""
    mine, text = own
    results = tmp_path / "kept"
    asked = ["learn", "--weights", str(mine), "--data", str(text), "--arm", "query", "--seeds", "1",
             "--workers", "1", "--steps", "2", "--results", str(results)]  # fmt: skip
    assert main([*asked, "--compare"]) == 2
    assert f"store one with bench learn --save NAME --results {results}" in capsys.readouterr().err
    assert main([*asked, "--save", "first"]) == 0
    capsys.readouterr()
    assert main([*asked, "--compare"]) == 2
    said = capsys.readouterr().err
    advice = re.search(r"Accept one: bench (accept \S+ --reason) WHY, or store one: (.*)\n", said)
    assert advice is not None
    assert advice[2] == f"bench learn --save NAME --results {results}"
    assert main([*advice[1].split(), "tried"]) == 0
    assert main([*asked[:-4], "--steps", "3", *asked[-2:], "--compare"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"the same with --save NAME --results {results}, then bench accept NAME" in said
    assert "when it was stored" not in said


def test_a_probe_of_ones_own_text_needs_no_other(
    own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, text = own
    monkeypatch.setattr("bench.learning.texts.package", None)  # nothing is read of any
    # How much more would fit is not asked here, and a search for each row.
    monkeypatch.setattr("bench.choose.costs.LARGEST", {RANK: 16, SEQ_LEN: 16, BATCH_SIZE: 1})
    asked = ("choose", str(mine), "--gpu-memory", "1GiB", "--seq-len", "16", "--precision", "fp32")
    assert main([*asked, "--probe", "--weights", str(mine), "--data", str(text)]) == 0
    assert "gradient" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 3}, r"model\.layers\.\d is \w+ there, not no module"),
        ({"num_key_value_heads": 1}, r"k_proj is Linear \d+ × \d+ there, not Linear \d+ × \d+"),
    ],
)
def test_a_probe_takes_the_models_own_weights_alone(
    own: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    change: dict[str, int], said: str,
) -> None:  # fmt: skip
    mine, text = own
    other = shutil.copytree(mine, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | change))
    asked = ("choose", str(mine), "--gpu-memory", "1GiB", "--seq-len", "16", "--precision", "fp32")
    assert main([*asked, "--probe", "--weights", str(other), "--data", str(text)]) == 2
    assert re.search(f"these are not the weights of {mine.name}: .*{said}", capsys.readouterr().err)


def test_an_empty_tokenizer_is_told(
    own: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers makes one for a folder of GPT-2 that holds none, and of every text nothing."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    mine, text = own
    gpt2 = mine.parent / "gpt2"
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=19, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(gpt2)
    assert AutoTokenizer.from_pretrained(gpt2)("a b c")["input_ids"] == []
    asked = ("--weights", str(gpt2), "--data", str(text))
    assert main(["learn", *asked, "--plan"]) == 2
    assert f"{gpt2}: its tokenizer knows no word of the text" in capsys.readouterr().err


def test_a_model_that_no_arm_can_train_says_why(
    own: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mine, text = own
    file = mine / "config.json"
    file.write_text('{"model_type": "t5", "d_model": 32, "num_layers": 1, "vocab_size": 19}')
    for more in (("--plan",), ("--arm", "query")):
        assert main(["learn", "--weights", str(mine), "--data", str(text), *more]) == 2
        said = capsys.readouterr().err
        assert "nothing to train: my model: AutoModelForCausalLM cannot be built" in said
