"""`bench check` from the command line: what it prints in each format, and its exit status."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from model_folders import LLAMA, write_model

from bench.check.report import annotation
from bench.cli import main
from bench.files import FIXTURES

READERS = FIXTURES / "readers"
OLD = FIXTURES / "field" / "old-adapter-keys"


@pytest.fixture
def old_adapter(tmp_path: Path) -> Path:
    """An adapter with the keys of transformers before 4.52 (huggingface/transformers 38927)."""
    import torch
    from safetensors.torch import save_file

    heads = {"q_proj": 64, "v_proj": 32}
    tensors = {}
    for key in (OLD / "keys.txt").read_text().split():
        width = next(n for name, n in heads.items() if name in key)
        shape = (4, 64) if "lora_A" in key else (width, 4)
        tensors[key] = torch.ones(shape)
    for name in ("adapter_config.json", "config.json"):
        shutil.copy(OLD / name, tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path


def test_an_adapter_of_an_older_transformers_is_told(
    old_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(old_adapter), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["dead_entries"] == []
    assert len(found["saved"]["missing"]) == len(found["saved"]["ignored"]) == 8
    assert found["saved"]["moves"] == [
        {"old": "base_model.model.model", "new": "base_model.model.model.language_model", "keys": 8}
    ]
    assert main(["check", str(old_adapter)]) == 1
    text = capsys.readouterr().out
    assert "adapter of PEFT (adapter_config.json, adapter_model.safetensors)" in text
    assert (
        "what the file calls model is model.language_model on this model: explains 8 of 8" in text
    )


def test_values_are_read_where_they_are_asked_for(
    old_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", str(old_adapter), "--weights", "--no-gradients"])
    text = capsys.readouterr().out
    assert "norm of B·A by role" in text
    # A (4, 64) and B (64, 4) of ones: every element of the product is 4, 64 × 64 of them.
    assert "query  2 modules  256 to 256" in text


def test_weights_without_an_adapter_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = READERS / "trl" / "defaults.yaml"
    assert main(["check", str(path), "--weights", "--no-gradients"]) == 2
    assert "there are no weights" in capsys.readouterr().err


def test_a_checkpoint_of_trainer_is_called_so(
    old_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old_adapter / "trainer_state.json").write_text("{}")
    main(["check", str(old_adapter), "--no-gradients"])
    assert "Trainer checkpoint of PEFT" in capsys.readouterr().out


def test_annotations_stand_on_the_line_of_the_dead_entry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = READERS / "axolotl" / "phi-3-mini-dead-names.yaml"
    assert main(["check", str(path), "--format", "github", "--no-gradients"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"::error file={path},line=8,title=bench%3A dead-entry::q_proj ")
    assert lines[1].startswith(f"::error file={path},line=9,")
    assert all(line.startswith(("::error ", "::warning ", "::notice ")) for line in lines)


def test_an_annotation_is_one_line_whatever_it_says() -> None:
    said = annotation("error", "50 %\nof it", "a,b:c.yaml", 3, "bench: x")
    assert said == "::error file=a%2Cb%3Ac.yaml,line=3,title=bench%3A x::50 %25%0Aof it"


def test_several_files_fail_when_one_does(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = READERS / "peft" / "rank-pattern", READERS / "peft" / "llama"
    assert main(["check", str(good), "--no-gradients"]) == 0
    assert main(["check", str(good), str(bad), "--no-gradients"]) == 1
    assert main(["check", str(bad), "--optional", "qkv_proj", "--no-gradients"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("format", ["terminal", "json", "github"])
def test_one_file_that_cannot_be_read_keeps_none_from_being_checked(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("base_model: .\nadapter: lora\nlora_r: x\n")
    dead = READERS / "axolotl" / "phi-3-mini-dead-names.yaml"
    asked = ["check", str(bad), str(tmp_path / "none"), str(dead), "--no-gradients"]
    assert main([*asked, "--format", format]) == 2
    said = capsys.readouterr()
    assert said.err.count("bench: error: ") == 2
    assert "bad.yaml: line 3: lora_r must be" in said.err
    assert "no lora_r" not in said.err
    assert "none: no such file" in said.err
    assert "qkv_proj" in said.out
    if format == "json":
        first, second, third = map(json.loads, said.out.splitlines())
        assert (first["path"], second["path"]) == (str(bad), str(tmp_path / "none"))
        assert "lora_r must be" in first["error"]
        assert first["failed"]
        assert third["dead_entries"]
    if format == "github":
        assert f"::error file={bad},line=3,title=bench%3A input::" in said.out
        assert f"::error file={dead},line=8," in said.out


def test_an_optional_entry_that_is_a_slip_is_told_before_any_report(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = str(READERS / "peft" / "rank-pattern")
    assert main(["check", good, "--optional", "qkv_prj", "--no-gradients"]) == 2
    said = capsys.readouterr()
    assert (said.out, "qkv_prj" in said.err) == ("", True)


def test_a_hazard_fails_where_it_is_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(READERS / "axolotl" / "gpt2-dora-new-tokens.yml")
    assert main(["check", path, "--no-gradients"]) == 0
    assert main(["check", path, "--no-gradients", "--fail-on", "untied-copy"]) == 1
    assert "untied-copy" in capsys.readouterr().out


def test_the_model_given_goes_before_the_one_named(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(READERS / "peft" / "all-linear")
    assert main(["check", path, "--model", "gpt2", "--no-gradients", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["base_model"]) == ("gpt2", "meta-llama/Meta-Llama-3-8B")


def test_a_tower_that_no_text_feeds_is_a_hazard(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(READERS / "llama-factory" / "qwen2-vl-with-tower.yaml")
    assert main(["check", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (told,) = [h for h in found["hazards"] if h["code"] == "no-gradient"]
    assert "model.visual.blocks.*.attn.qkv" in told["reason"]
    assert main(["check", path, "--fail-on", "no-gradient"]) == 1
    capsys.readouterr()


def test_memory_is_that_of_the_files_own_step(
    old_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = old_adapter / "llama"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
                    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                    "vocab_size": 64, "max_position_embeddings": 64})
    )  # fmt: skip
    path = old_adapter / "llama" / "train.yaml"
    path.write_text("base_model: .\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nsequence_len: 32\n"
                    "lora_target_linear: true\nmicro_batch_size: 3\noptimizer: adamw_torch\n"
                    "gradient_checkpointing: true\nbf16: true\n")  # fmt: skip
    assert main(["check", str(path), "--gpu-memory", "1GiB", "--json", "--no-gradients"]) == 0
    found = json.loads(capsys.readouterr().out)
    case = found["prediction"]["case"]
    assert "b3-s32" in case
    assert "checkpointed" in case
    assert found["prediction"]["tokens_per_step"] == 3 * 32
    assert main(["check", str(path), "--gpu-memory", "1MiB", "--no-gradients"]) == 1
    capsys.readouterr()


def test_an_optimizer_that_is_not_predicted_leaves_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was asked for and nobody can tell has not passed."""
    path = READERS / "axolotl" / "mixtral-parameters.yaml"
    assert main(["check", str(path), "--no-gradients"]) == 0
    capsys.readouterr()
    assert main(["check", str(path), "--gpu-memory", "80GiB", "--no-gradients"]) == 1
    said = capsys.readouterr().out
    assert "memory is not predicted" in said
    assert said.endswith("memory asked for, and not predicted\n")
    assert (
        main(["check", str(path), "--gpu-memory", "80GiB", "--no-gradients", "--format", "github"])
        == 1
    )
    assert "title=bench%3A memory::memory is not predicted" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["terminal", "github"])
def test_what_a_prediction_leaves_out_of_the_step_is_told_beside_it(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLaMA-Factory's collator for dpo makes two rows of each pair: data/collator.py."""
    file = tmp_path / "dpo.yaml"
    file.write_text(
        "model_name_or_path: opt-125m\nstage: dpo\nlora_target: q_proj\ncutoff_len: 64\n"
    )
    asked = ["check", str(file), "--gpu-memory", "24GiB", "--no-gradients", "--format", format]
    assert main(asked) == 0
    told = capsys.readouterr().out
    begin = "  " if format == "terminal" else "not covered::"
    assert (
        f"{begin}note on the step: stage dpo: each row is a pair, twice what is predicted" in told
    )


def test_another_rank_is_one_line_that_says_so(
    old_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    file = old_adapter / "adapter_model.safetensors"
    moved = {k.replace("model.layers", "model.language_model.layers"): t
             for k, t in load_file(file).items()}  # fmt: skip
    save_file(moved, file)
    assert main(["check", str(old_adapter), "--no-gradients"]) == 0
    config = old_adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 6}))
    assert main(["check", str(old_adapter), "--no-gradients"]) == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "other-shape" in x]
    assert "8 of another shape than the model's" in line
    assert "4×64 for 6×64" in line
    assert "the file's rank is 4, adapter_config.json says 6" in line


def test_what_is_wrong_with_the_file_and_with_its_model_is_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("base_model: no-such-model\nadapter: lora\nlora_r: 4\nlora_alpha: 8\n"
                    "lora_dropout: 5\nmicro_batch_size: 0\nsequence_len: 32\n"
                    "lora_target_modules: [q_proj]\n")  # fmt: skip
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    for fault in ("micro_batch_size must be", "'no-such-model' was not found", "lora_dropout must"):
        assert said.count(fault) == 1
    assert said.count(str(path)) < 4
    adapter = tmp_path / "adapter_config.json"
    adapter.write_text(json.dumps({"peft_type": "LORA", "r": 0, "target_modules": ["q_proj"],
                                   "base_model_name_or_path": "no-such-model"}))  # fmt: skip
    assert main(["check", str(adapter)]) == 2
    said = capsys.readouterr().err
    assert "r must be a whole number" in said
    assert "'no-such-model' was not found" in said


def test_an_optional_entry_of_no_file_is_a_slip(capsys: pytest.CaptureFixture[str]) -> None:
    path = READERS / "trl" / "defaults.yaml"
    asked = ["check", str(path), str(path), "--no-gradients", "--optional", "q_porj"]
    assert main(asked) == 2
    assert "unknown entry in --optional: 'q_porj'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LLAMA, ""),
        ({"model_type": "opt", "architectures": ["OPTForCausalLM"], "hidden_size": 32,
          "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4},
         "use_liger_kernel is left out of the prediction: Liger has no kern"),
    ],
    ids=["llama", "opt"],
)  # fmt: skip
def test_ligers_kernels_are_predicted_where_there_are_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], said: str
) -> None:
    write_model(tmp_path, config, vocab_size=2000)

    def peak(more: str) -> tuple[int, str]:
        (tmp_path / "swift.yaml").write_text(
            f"model: {tmp_path}\ntuner_type: lora\ntarget_modules: [q_proj]\nlora_rank: 8\n"
            f"max_length: 256\ngradient_accumulation_steps: 1\n{more}"
        )
        asked = ["check", str(tmp_path / "swift.yaml"), "--gpu-memory", "80GiB", "--no-gradients"]
        assert main([*asked, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return found["prediction"]["peak_allocated_bytes"], " ".join(found["notes"])

    plain, fused = peak(""), peak("use_liger_kernel: true\n")
    assert (fused[0] < plain[0]) == (not said)
    assert said in fused[1]
    assert "less than is predicted" not in fused[1]
    some = peak("use_liger_kernel: true\nliger_kernel_config: {rope: true}\n")
    assert some[0] == plain[0]


def test_a_scalar_where_a_matrix_belongs_is_another_shape(
    old_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = old_adapter / "adapter_model.safetensors"
    moved = (k.replace("model.layers", "model.language_model.layers") for k in load_file(file))
    save_file({key: torch.tensor(1.0) for key in moved}, file)
    assert main(["check", str(old_adapter), "--no-gradients", "--weights"]) == 1
    assert "8 of another shape than the model's" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["terminal", "json", "github"])
def test_every_adapter_that_peft_saved_in_one_folder_is_checked(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from tiny_models import built, tiny

    def lora(*targets: str) -> LoraConfig:
        return LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM")

    model = get_peft_model(built("llama"), lora("q_proj"))
    model.add_adapter("second", lora("v_proj", "nope"))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.ones_(parameter)
    model.save_pretrained(tmp_path / "two")
    write_model(tmp_path / "two", tiny("llama").config)
    checkpoint = tmp_path / "two" / "checkpoint-5"
    checkpoint.mkdir()
    shutil.copy(tmp_path / "two" / "adapter_config.json", checkpoint)
    (checkpoint / "trainer_state.json").write_text("{}")
    folder, second = tmp_path / "two", tmp_path / "two" / "second"
    asked = ["check", "--no-gradients", "--weights", "--format", format]
    assert main([*asked, str(folder)]) == 1
    said = capsys.readouterr().out
    left_out = f"the folder also holds checkpoints, which are not checked: {checkpoint}"
    assert said.count(left_out) == 1
    if format == "json":
        answers = [json.loads(line) for line in said.splitlines()]
        assert [(a["path"], a["failed"]) for a in answers] == [
            (str(folder), False),
            (str(second), True),
        ]
    elif format == "github":
        assert f"::error file={second / 'adapter_config.json'},line=" in said
    else:
        assert said.count(f"{second}: adapter of PEFT") == 1
        assert re.search("nope +reaches nothing", said)
    assert main([*asked, str(folder), str(second)]) == 1
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("name", "auto_class", "task"),
    [
        ("llama", "AutoModelForSequenceClassification", "SEQ_CLS"),
        ("roberta", "AutoModelForSequenceClassification", "SEQ_CLS"),
        ("roberta", "AutoModelForTokenClassification", "TOKEN_CLS"),
    ],
)
@pytest.mark.parametrize("labels", [1, 5])
def test_labels_are_those_of_the_saved_head_where_the_model_names_none(
    name: str, auto_class: str, task: str, labels: int, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import transformers
    from peft import LoraConfig, get_peft_model
    from tiny_models import MODELS, tiny

    plain = {key: value for key, value in tiny(name).config.items() if key != "num_labels"}
    base = getattr(transformers, auto_class).from_config(
        transformers.AutoConfig.for_model(**plain, num_labels=labels)
    )
    config = LoraConfig(r=4, target_modules=[MODELS[name].targets[0]], task_type=task)
    model = get_peft_model(base, config)
    model.save_pretrained(tmp_path)
    write_model(tmp_path, plain)
    asked = ["check", str(tmp_path), "--no-gradients"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counted = model.get_nb_trainable_parameters()
    assert (found["trainable_parameters"], found["total_parameters"]) == counted
    (note,) = (n for n in found["notes"] if "labels" in n)
    assert note.startswith(f"{labels} labels, as the head in adapter_model.safetensors has")
    assert f"num_labels={labels}" in note
    assert main([*asked, "--format", "github"]) == 0
    assert f"load it with num_labels={labels}" in capsys.readouterr().out

    named = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    other = write_model(tmp_path / "other", plain, **named)
    assert main([*asked, "--model", str(other)]) == 1
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "other-shape" in x)
    assert line.endswith(
        f"the file's head has {labels} labels, the base model's configuration 3: load it with "
        f"num_labels={labels}"
    )
