"""Values of another tool's file that are not of their kind: taken as the tool's own parser takes
them, or refused at their line."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from bench.check.answer import Checked, Question, check
from bench.check.gate import HazardGate
from bench.cli import main
from bench.errors import BenchError
from bench.files import FIXTURES
from bench.readers import axolotl, litgpt, llama_factory, ms_swift, recipe, trl
from bench.readers.values import ARGUMENTS

PHI = {"model_type": "phi3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
       "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64,
       "pad_token_id": 0}  # fmt: skip
AXOLOTL = ("base_model: .\nadapter: lora\nlora_r: 16\nlora_alpha: 32\n"
           "lora_target_modules: [qkv_proj]\n")  # fmt: skip
FACTORY = "model_name_or_path: .\nstage: sft\nfinetuning_type: lora\nlora_target: qkv_proj\n"
TRL = ("model_name_or_path: .\nuse_peft: true\nlora_r: 16\n"
       "lora_target_modules: [qkv_proj, o_proj]\n")  # fmt: skip
SWIFT = "model: .\ntuner_type: lora\nlora_rank: 8\ntarget_modules: [qkv_proj]\n"
LITGPT = ("checkpoint_dir: .\nlora_r: 8\nlora_query: true\nlora_key: true\n"
          "lora_value: true\n")  # fmt: skip


def asked(tmp_path: Path, text: str, **gate: object) -> Checked:
    (tmp_path / "config.json").write_text(json.dumps(PHI))
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return check(path, Question(gradients=False, gate=HazardGate().with_options(**gate)))  # type: ignore[arg-type]


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(BenchError) as raised:
        asked(tmp_path, text)
    return str(raised.value)


@pytest.mark.parametrize("tool", [axolotl, litgpt, llama_factory, ms_swift, trl])
def test_what_is_said_of_a_key_is_said_of_values_that_belong_there(tool: ModuleType) -> None:
    reader = tool.READER
    assert {*reader.said, *reader.said_of_step} <= reader.kinds.keys()


def reached(found: Checked) -> set[str]:
    return {item.name.rpartition(".")[2] for item in found.ledger.adapted}


@pytest.mark.parametrize(
    ("text", "on"),
    [("'false'", False), ("'0'", False), ("'off'", False), ("false", False), ("0", False),
     ("'true'", True), ("'1'", True), ("'on'", True), ("true", True), ("1", True)],
)  # fmt: skip
def test_a_text_is_the_boolean_that_axolotl_makes_of_it(
    text: str, on: bool, tmp_path: Path
) -> None:
    found = asked(tmp_path, f"{AXOLOTL}lora_target_linear: {text}\n", minimum_coverage=0.9)
    assert (reached(found) == {"qkv_proj"}) != on
    assert found.failed != on


def test_switches_of_litgpt_and_ms_swift_are_read_alike(tmp_path: Path) -> None:
    mlp = {"gate_up_proj", "down_proj"}
    assert reached(asked(tmp_path, f"{LITGPT}lora_mlp: 'no'\n")) == {"qkv_proj"}
    assert reached(asked(tmp_path, f"{LITGPT}lora_mlp: 'true'\n")) == {"qkv_proj", *mlp}
    step = asked(tmp_path, f"{SWIFT}gradient_checkpointing: 'no'\n").recipe.step
    assert step is not None
    assert not step.gradient_checkpointing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{AXOLOTL}lora_target_linear: maybe\n",
         "line 6: lora_target_linear must be true or false, not 'maybe'"),
        (f"{AXOLOTL}lora_target_linear: [true]\n", "line 6: lora_target_linear must be true or"),
        (f"{AXOLOTL}bf16: perhaps\n", "line 6: bf16 must be true or false or auto, not 'perhaps'"),
        (f"{AXOLOTL}gradient_checkpointing: some\n", "line 6: gradient_checkpointing must be"),
        (f"{AXOLOTL}load_in_4bit: true\nload_in_8bit: true\n",
         "lines 2, 6 and 7: adapter lora with load_in_4bit and load_in_8bit: axolotl takes it"),
        (f"{AXOLOTL}load_in_4bit: 'true'\nload_in_8bit: 'on'\n", "with load_in_4bit and load_in_8"),
        (f"{AXOLOTL.replace('adapter: lora', 'adapter: qlora')}load_in_8bit: true\n",
         "lines 2 and 6: adapter qlora with load_in_8bit: axolotl refuses it"),
        (AXOLOTL.replace("lora_r: 16", "lora_r: sixteen"),
         "line 3: lora_r must be a whole number of at least 1, not 'sixteen'"),
        (AXOLOTL.replace("lora_r: 16", "lora_r: 16.5"), "line 3: lora_r must be a whole number"),
        (AXOLOTL.replace("lora_r: 16", "lora_r: true"), "line 3: lora_r must be a whole number"),
        (AXOLOTL.replace("lora_alpha: 32", "lora_alpha: true"),
         "line 4: lora_alpha must be a whole number, not true"),
        (f"{AXOLOTL}lora_dropout: little\n", "line 6: lora_dropout must be a number, not 'little'"),
        (AXOLOTL.replace("[qkv_proj]", "5"),
         "line 5: lora_target_modules must be a list of names, or text, not 5"),
        (AXOLOTL.replace("[qkv_proj]", "[qkv_proj, null, [o_proj], true]"),
         "line 5: lora_target_modules must be a list of names, or text, not ['qkv_proj', null, "
         "['o_proj'], true]"),
        (AXOLOTL.replace("[qkv_proj]", "{a: b}"), "line 5: lora_target_modules must be a list"),
        (f"{AXOLOTL}peft: 5\n", "line 6: peft must be a table of keys, not 5"),
        (f"{AXOLOTL}bnb_config_kwargs:\n  bnb_4bit_quant_type: nf5\n",
         "line 7: bnb_config_kwargs.bnb_4bit_quant_type must be one of nf4, fp4, not 'nf5'"),
        (AXOLOTL.replace("adapter: lora", "adapter: 5"), "line 2: adapter must be text, not 5"),
        (f"{FACTORY}use_dora: 'false'\n", "line 5: use_dora must be true or false, not 'false' (a "
         "text stays a text there: write it without quotes)"),
        (f"{FACTORY}lora_rank: '16'\n", "line 5: lora_rank must be a whole number of at least 1"),
        (f"{FACTORY}freeze_vision_tower: maybe\n", "line 5: freeze_vision_tower must be true"),
        (f"{FACTORY}bf16: true\nfp16: true\n", "lines 5 and 6: bf16 with fp16: LLaMA-Factory"),
        (FACTORY.replace("qkv_proj", "[qkv_proj, 5]"), "line 4: lora_target must be a list"),
        (f"{TRL}load_in_4bit: yes please\n",
         "line 5: load_in_4bit must be true or false, not 'yes please'"),
        (f"{TRL}load_in_4bit: true\nload_in_8bit: true\n",
         "lines 5 and 6: load_in_4bit with load_in_8bit: TRL refuses it"),
        (TRL.replace("use_peft: true", "use_peft: 'false'"), "use_peft is not true"),
        (TRL.replace("use_peft: true", "use_peft: 'on'"), "line 2: use_peft must be true or false"),
        (f"{TRL}bnb_4bit_quant_type: int4\n", "line 5: bnb_4bit_quant_type must be one of"),
        (f"{TRL}optim: 5\n", "line 5: optim must be one of adamw_torch, "),
        (f"{SWIFT}freeze_vit: maybe\n", "line 5: freeze_vit must be true or false, not 'maybe'"),
        (f"{SWIFT}max_length: long\n", "line 5: max_length must be a whole number"),
        (f"{LITGPT}lora_mlp: '1'\n", "line 6: lora_mlp must be true or false, not '1'"),
        (f"{LITGPT}train: 5\n", "line 6: train must be a table of keys, not 5"),
        (f"{LITGPT}train:\n  micro_batch_size: none\n",
         "line 7: train.micro_batch_size must be a whole number of at least 1, not 'none'"),
        (f"{LITGPT}quantize: bnb.nf5\n", "line 6: quantize must be one of bnb.nf4"),
        (f"{LITGPT}precision: 16\n", "line 6: precision must be one of bf16-true, "),
        (f"{LITGPT}devices: [1]\n", "line 6: devices must be a whole number, or text, not [1]"),
        (f"{LITGPT}lora_r: 16.\n", "line 6: lora_r must be a whole number of at least 1"),
        (f"{AXOLOTL}fp8: perhaps\n", "line 6: fp8 must be true or false, not 'perhaps'"),
        (f"{AXOLOTL}lora_model_dir: 5\n", "line 6: lora_model_dir must be text, not 5"),
        (f"{AXOLOTL}tensor_parallel_size: two\n",
         "line 6: tensor_parallel_size must be a whole number, not 'two'"),
        (f"{AXOLOTL}deepspeed: [a]\n", "line 6: deepspeed must be a table of keys, or text, not"),
        (f"{FACTORY}adapter_name_or_path: [a]\n", "line 5: adapter_name_or_path must be text"),
        (f"{FACTORY}deepspeed: 3\n", "line 5: deepspeed must be a table of keys, or text, not 3"),
        (f"{TRL}model_init_kwargs: [5]\n", "line 5: model_init_kwargs must be a table of keys"),
        (f"{TRL}num_generations: many\n", "line 5: num_generations must be a whole number"),
        (f"{SWIFT}adapters: {{a: b}}\n", "line 5: adapters must be a list of names, or text"),
        (f"{SWIFT}init_weights: [pissa]\n", "line 5: init_weights must be text, or true or"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_at_its_line(
    text: str, said: str, tmp_path: Path
) -> None:
    refusal = refused(tmp_path, text)
    assert said in refusal
    assert "\n" not in refusal


@pytest.mark.parametrize("key", ["base_model", "model_name_or_path", "model", "checkpoint_dir"])
def test_a_base_model_that_is_no_name_is_told_as_that(key: str, tmp_path: Path) -> None:
    text = next(t for t in (AXOLOTL, TRL, SWIFT, LITGPT) if t.startswith(f"{key}:"))
    with pytest.raises(BenchError, match=rf"line 1: {key} must be text, not 5$"):
        asked(tmp_path, f"{key}: 5\n{text.partition(chr(10))[2]}")


def test_a_file_without_a_base_model_says_so_in_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(AXOLOTL.replace("base_model: .", "base_model: null"))
    with pytest.raises(BenchError, match="the file names no base model, and none lies beside it; "):
        check(path, Question())


def test_a_name_that_stands_twice_is_said(tmp_path: Path) -> None:
    found = asked(tmp_path, AXOLOTL.replace("[qkv_proj]", "[qkv_proj, o_proj, qkv_proj]"))
    assert (
        "lora_target_modules: qkv_proj stands there more than once, and counts once" in found.notes
    )


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        (f"{FACTORY}lora_tagret: o_proj\n", "lora_tagret", "lora_target"),
        (f"{AXOLOTL}lora_target_module: [o_proj]\n", "lora_target_module", "lora_target_modules"),
        (f"{AXOLOTL}lora_layers_to_transform: [99]\n", "lora_layers_to_transform", ""),
        (f"{AXOLOTL}load_in_4bti: true\n", "load_in_4bti", "load_in_4bit"),
        (f"{TRL}use_rslroa: true\n", "use_rslroa", "use_rslora"),
        (f"{SWIFT}target_modlues: [o_proj]\n", "target_modlues", "target_modules"),
        (f"{LITGPT}lora_mpl: true\n", "lora_mpl", "lora_mlp"),
    ],
)
def test_a_key_that_is_not_known_is_a_hazard_that_can_fail(
    text: str, key: str, near: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked(tmp_path, text)
    (told,) = [finding for finding in found.findings if finding.code == "unknown-key"]
    line = next(n for n, x in enumerate(text.splitlines(), 1) if x.startswith(f"{key}:"))
    assert (told.line, told.error, found.failed) == (line, False, False)
    assert f"{key} (line {line}" in told.text
    assert f"did you mean {near}?" in told.text or not near
    path = str(tmp_path / "train.yaml")
    for option in ("all", "unknown-key"):
        assert main(["check", path, "--no-gradients", "--fail-on", option, "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["failed"]
    assert not asked(tmp_path, text, allow=("unknown-key",)).failed


def test_a_key_that_speaks_of_nothing_here_is_a_note(tmp_path: Path) -> None:
    found = asked(tmp_path, f"{AXOLOTL}my_colour: blue\n", fail_on=("all",))
    assert not found.failed
    assert any("my_colour (line 6)" in note for note in found.notes)


def test_the_slip_is_named_where_nothing_is_left_to_adapt(tmp_path: Path) -> None:
    text = AXOLOTL.replace("lora_target_modules", "lora_traget_modules")
    with pytest.raises(BenchError) as raised:
        asked(tmp_path, text)
    said = "lora_traget_modules (line 5; did you mean lora_target_modules?)"
    assert said in str(raised.value)


def test_layers_that_the_model_does_not_have_fail(tmp_path: Path) -> None:
    for layers in ("[0, 99]", "[99]"):
        found = asked(tmp_path, f"{AXOLOTL}peft_layers_to_transform: {layers}\n")
        assert found.failed
        assert any("layers_to_transform" in f.text for f in found.findings if f.error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{AXOLOTL}peft_layers_to_transform: ['0']\n",
         "line 6: peft_layers_to_transform must be a layer's index"),
        (f"{AXOLOTL}lora_dropout: 2\n", "line 6: lora_dropout must be a number from 0 to 1"),
        (f"{AXOLOTL}peft_init_lora_weights: nosuch\n",
         "line 6: unknown peft_init_lora_weights 'nosuch'"),
        (f"{FACTORY[: FACTORY.index('lora_target')]}lora_target: ''\n",
         "line 4: lora_target is empty"),
        (f"{AXOLOTL}peft_layer_replication: [[0, 9]]\n", "train.yaml: layer_replication"),
        (f"{FACTORY.replace('sft', 'nosuch')}", "line 2: stage must be one of pt, sft"),
        (f"{TRL}dtype: float64\n", "line 5: dtype must be one of float32"),
        (f"{TRL}lora_task_type: nosuch\n", "line 5: lora_task_type must be one of CAUSAL_LM"),
        (f"{SWIFT}torch_dtype: nosuch\n", "line 5: torch_dtype must be one of float32"),
        (f"{SWIFT}task_type: nosuch\n", "line 5: task_type must be one of causal_lm"),
        (f"{AXOLOTL}peft:\n  backend: bnb\n", "line 7: peft.backend bnb: axolotl takes it without"),
    ],
)  # fmt: skip
def test_what_peft_would_not_take_is_told_in_the_files_own_words(
    text: str, said: str, tmp_path: Path
) -> None:
    assert said in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{SWIFT}freeze_llm: true\n", "freeze_llm does nothing"),
        (f"{SWIFT}task_type: embedding\n", "task_type embedding: what it puts upon the model"),
        (f"{SWIFT}quant_bits: 4\n", "quant_bits: without quant_method"),
        (f"{FACTORY}freeze_language_model: true\n", "freeze_language_model does nothing"),
    ],
)
def test_what_a_key_does_not_do_is_said(text: str, said: str, tmp_path: Path) -> None:
    assert any(said in note for note in asked(tmp_path, text).notes)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"{LITGPT}train:\n  micro_batchsize: 3\n", "train.micro_batchsize (line 7; did you mean"),
        (f"{AXOLOTL}bnb_config_kwargs:\n  bnb_4bit_quant_typ: fp4\n",
         "bnb_config_kwargs.bnb_4bit_quant_typ (line 7; did you mean"),
    ],
)  # fmt: skip
def test_a_slip_within_a_table_is_a_hazard_too(text: str, key: str, tmp_path: Path) -> None:
    found = asked(tmp_path, text, fail_on=("unknown-key",))
    assert found.failed
    (told,) = found.findings
    assert (told.line, key in told.text) == (7, True)


@pytest.mark.parametrize("text", [AXOLOTL, SWIFT])
def test_more_labels_than_anybody_has_are_refused_before_transformers_names_each(
    text: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match="num_labels is 1,000,000,000,000: 1,000,000 is most"):
        asked(tmp_path, f"{text}num_labels: 1000000000000\n")


def test_containers_among_the_adapted_have_no_width(tmp_path: Path) -> None:
    """An expression for everything reaches modules without a weight, which PEFT refuses."""
    found = asked(tmp_path, AXOLOTL.replace("[qkv_proj]", "'.*'"))
    told = {hazard.code: hazard.reason for hazard in found.ledger.hazards}
    assert "smaller side is 0" not in told.get("rank-above-width", "")


def test_one_wrong_value_is_one_fault(tmp_path: Path) -> None:
    with pytest.raises(BenchError) as raised:
        asked(tmp_path, AXOLOTL.replace("[qkv_proj]", "[no, ~, [[[[[[[[[[]]]]]]]]]]]"))
    assert str(raised.value).count("lora_target_modules") == 1
    assert "not [false, null, [" in str(raised.value)


def test_axolotl_runs_in_bf16_where_both_halves_are_on(tmp_path: Path) -> None:
    """Its trainer's fp16 is `fp16 and not bf16`."""
    step = asked(tmp_path, f"{AXOLOTL}bf16: true\nfp16: true\n").recipe.step
    assert step is not None
    assert (step.precision, step.autocast) == ("bf16", "bf16")


def test_litgpt_says_which_precision_it_predicts_instead(tmp_path: Path) -> None:
    for asked_for, precision, autocast, said in (
        ("transformer-engine", "bf16", None, True),
        ("16", "fp32", "fp16", False),
        ("bf16-mixed", "fp32", "bf16", False),
    ):
        step = asked(tmp_path, f"{LITGPT}precision: '{asked_for}'\n").recipe.step
        assert step is not None
        assert (step.precision, step.autocast) == (precision, autocast)
        assert any("is not predicted: bf16 is" in note for note in step.notes) == said


def test_an_adapters_own_file_is_told_as_closely(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PHI))
    path = tmp_path / "adapter_config.json"
    for text, said in (
        ('"r": "16"', "line 2: r must be a whole number"),
        ('"r": 8,\n"use_dora": "false"', "line 3: use_dora must be true or false"),
        ('"base_model_name_or_path": 5', "line 2: base_model_name_or_path must be text, not 5"),
    ):
        path.write_text(f'{{"peft_type": "LORA", "target_modules": ["qkv_proj"],\n{text}}}')
        with pytest.raises(BenchError) as raised:
            check(path, Question(gradients=False))
        assert said in str(raised.value)
    path.write_text('{"peft_type": "LORA", "r": 4, "r": 8, "target_modules": ["o_proj", "o_proj"]}')
    notes = check(path, Question(gradients=False)).notes
    assert "r stands twice; the last counts" in notes
    assert "target_modules: o_proj stands there more than once, and counts once" in notes


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[said]", "[sayd]", "unknown key in .*: 'sayd': did you mean said"),
        (
            "integer = ",
            "integr = ",
            "unknown kind of value in other-.*: 'integr': did you mean integer",
        ),
        ('names = ["loss_type"]', "names = 3", "values: names: expected a list, found 3"),
        ('tool = "TRL"\n', "", "missing key 'tool'"),
    ],
)
def test_a_table_of_keys_that_is_wrong_is_told_by_file_and_key(
    old: str, new: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = (FIXTURES / "tools" / "trl.toml").read_text(encoding="utf-8")
    assert old in tables
    (tmp_path / "tools").mkdir()
    name = f"other-{said[:12].encode().hex()}"  # what was read once is kept
    (tmp_path / "tools" / f"{name}.toml").write_text(tables.replace(old, new, 1))
    monkeypatch.setattr(recipe, "FIXTURES", tmp_path)
    with pytest.raises(BenchError, match=said):
        recipe.load_reader(name, ARGUMENTS, trl.read)
